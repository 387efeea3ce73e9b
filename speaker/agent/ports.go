package agent

import (
	"maps"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// portID is a link and a family.
type portID struct {
	link   int
	family layer2.Family
}

// portStates are the ports that the layer-2 engine could not open.
type portStates struct {
	deniedByPort map[portID]string // why permission is missing
	failedByPort map[portID]string // why the port cannot be opened
}

func (p *portStates) recordFailure(r layer2.PortFailed) {
	id := portID{r.Link.Index, r.Family}
	p.failedByPort[id] = r.Err.Error()
	if delete(p.deniedByPort, id); r.IsPermissionDenied() {
		p.deniedByPort[id] = r.Err.Error()
	}
}

func (p *portStates) recordOpened(r layer2.PortOpened) {
	id := portID{r.Link.Index, r.Family}
	delete(p.failedByPort, id)
	delete(p.deniedByPort, id)
}

// pruneLinks forgets the faults of links that are gone.
func (p *portStates) pruneLinks(links facts.LinkSet) {
	isGone := func(id portID, _ string) bool { _, ok := links.FindByIndex(id.link); return !ok }
	maps.DeleteFunc(p.failedByPort, isGone)
	maps.DeleteFunc(p.deniedByPort, isGone)
}

// markLinks marks each link with the families that cannot be sent on it.
func (p *portStates) markLinks(links facts.LinkSet) facts.LinkSet {
	out := make(facts.LinkSet, 0, len(links))
	for _, l := range links {
		_, l.NoIPv4 = p.failedByPort[portID{l.Index, layer2.IPv4}]
		_, l.NoIPv6 = p.failedByPort[portID{l.Index, layer2.IPv6}]
		out = append(out, l)
	}
	return out
}

// faultsByLink returns the faults of links, by their index.
func (p *portStates) faultsByLink() map[int]string {
	out := map[int]string{}
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		for id, text := range p.failedByPort {
			if id.family != f {
				continue
			}
			if out[id.link] != "" {
				text = out[id.link] + "; " + text
			}
			out[id.link] = text
		}
	}
	return out
}

// usableLinks returns the links on which frames can be sent.
func (p *portStates) usableLinks(links facts.LinkSet) usableLinks {
	var out usableLinks
	for _, l := range p.markLinks(links) {
		if !l.NoIPv4 || !l.NoIPv6 {
			out.links = append(out.links, l)
		}
	}
	_, denied := p.deniedEverywhere(links)
	out.rawSockets = plan.RawSockets(denied)
	return out
}

// deniedEverywhere reports whether raw sockets of one family are denied on all links, and why.
func (p *portStates) deniedEverywhere(links facts.LinkSet) (why string, all bool) {
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		n := 0
		for _, l := range links {
			if text, ok := p.deniedByPort[portID{l.Index, f}]; ok {
				n++
				if why == "" || text < why {
					why = text
				}
			}
		}
		all = all || (n > 0 && n == len(links))
	}
	return why, all
}
