package checkpoint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// peerEntry is an intent.Peer without its password, which is on no disk. Signed says that it has one.
type peerEntry struct {
	intent.Peer
	Signed bool `json:",omitempty"`
}

// routeGroup is routes that differ in nothing but the prefix: thousands of Services are announced alike.
type routeGroup struct {
	Peers      []string
	Attributes intent.Attributes
	Prefixes   []netip.Prefix
}

// groupLookback bounds how many bundles are looked through for each route.
const groupLookback = 8

func packBGP(d bgp.Desired) (peers []peerEntry, bundles []routeGroup) {
	for _, p := range d.Peers {
		signed := p.Password != ""
		p.Password = ""
		peers = append(peers, peerEntry{p, signed})
	}
	for _, r := range d.Routes {
		last := bundles[max(0, len(bundles)-groupLookback):]
		i := slices.IndexFunc(last, func(b routeGroup) bool { return slices.Equal(b.Peers, r.Peers) && b.Attributes.Equal(r.Attributes) })
		if i < 0 {
			bundles = append(bundles, routeGroup{Peers: r.Peers, Attributes: r.Attributes, Prefixes: []netip.Prefix{r.Prefix}})
			continue
		}
		last[i].Prefixes = append(last[i].Prefixes, r.Prefix)
	}
	return peers, bundles
}

// unpackBGP returns what can be gone on from. A peer with a password waits.
func unpackBGP(peers []peerEntry, bundles []routeGroup) (bgp.Desired, error) {
	var d bgp.Desired
	known := map[string]bool{}
	for _, p := range peers {
		if known[p.Name] || p.Name == "" || !p.Blocked.IsSet() && (p.Port == 0 || p.LocalASN == 0 || !p.Address.IsValid() && !p.Unnumbered) {
			return d, fmt.Errorf("the entry of BGPPeer %q is broken", p.Name)
		}
		known[p.Name] = true
		if p.Password = ""; p.Signed && !p.Blocked.IsSet() {
			p.Blocked = intent.BlockReason{
				Reason: string(names.ReasonUnknownSecret), Text: "the speaker was started while the API server is away, and passwords are not kept on the node: the session waits for the API server",
			}
		}
		d.Peers = append(d.Peers, p.Peer)
	}
	for _, b := range bundles {
		for _, prefix := range b.Prefixes {
			if !prefix.IsValid() {
				return d, fmt.Errorf("a route to %v has no prefix", b.Peers)
			}
			d.Routes = append(d.Routes, &intent.Route{Prefix: prefix, Peers: b.Peers, Attributes: b.Attributes})
		}
	}
	inOrder := func(x, y *intent.Route) int {
		return cmp.Or(x.Prefix.Compare(y.Prefix), slices.Compare(x.Peers, y.Peers))
	}
	slices.SortFunc(d.Routes, inOrder)
	for i := range d.Routes[min(1, len(d.Routes)):] {
		if r := d.Routes[i]; inOrder(r, d.Routes[i+1]) == 0 {
			return d, fmt.Errorf("%s is announced to %v twice", r.Prefix, r.Peers)
		}
	}
	return d, nil
}
