package bgp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// outlives says whether what there is of a session goes on under an edited peer: when neither our OPEN nor the connection would be
// another, and the router's number is still one that is asked for.
func (w *worker) outlives(former, next *intent.Peer) bool {
	x, y := *former, *next
	if w.session != nil && asnFault(&y, w.session.agreed.Peer.ASN) == nil {
		x.PeerASN, x.ASNs = y.PeerASN, y.ASNs
	}
	return sameSession(&x, &y)
}

// retime follows an edit of times that need no new session.
func (w *worker) retime(former *intent.Peer) {
	p := &w.o.peer
	switch {
	case w.session != nil && former.Keepalive != p.Keepalive:
		w.session.keep(keepalive(p, w.session.agreed.Hold))
	case w.session == nil && w.attempt == nil && former.Connect != p.Connect && former.Name != "":
		w.failures = 0
		w.retry.Reset(0)
	}
}

// recall adds to an error what the router told before. One that refuses a node for a while, after too many prefixes for example,
// says why once, and hangs up without a word from then on.
func (w *worker) recall(err error) error {
	if n := (notice{}); errors.As(err, &n) {
		w.refused = &n
		return err
	}
	if w.refused == nil || w.o.peer.Blocked.Any() {
		return err
	}
	return fmt.Errorf("%w (before that, %w)", err, *w.refused)
}

// stay has a peer whose router cannot be told for the moment go on with the one that it is established with: a default route that
// is replaced is gone for an instant.
func (e *Engine) stay(peers []intent.Peer) []intent.Peer {
	cloned := false
	for i := range peers {
		if p := &peers[i]; p.Address.IsValid() || p.Unnumbered {
			continue
		}
		k := slices.IndexFunc(e.paths.peers, func(q intent.Peer) bool { return q.Name == peers[i].Name && q.Address.IsValid() })
		if k < 0 || e.phase(peers[i].Name) != Established {
			continue
		}
		if !cloned {
			peers, cloned = slices.Clone(peers), true
		}
		peers[i].Address, peers[i].BFD = e.paths.peers[k].Address, e.paths.peers[k].BFD
	}
	return peers
}

// phase is how far the session of a peer has come.
func (e *Engine) phase(peer string) Phase {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.states[peer].Phase
}
