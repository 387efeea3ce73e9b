package bgp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// canKeepSession says whether what there is of a session goes on under an edited peer: when neither our OPEN nor the connection would be
// another, and the router's number is still one that is asked for.
func (w *worker) canKeepSession(former, next *intent.Peer) bool {
	x, y := *former, *next
	if w.session != nil && checkASN(&y, w.session.negotiated.RemoteOpen.ASN) == nil {
		x.PeerASN, x.DynamicASN = y.PeerASN, y.DynamicASN
	}
	return isSameSession(&x, &y)
}

// applyTimers follows an edit of times that need no new session.
func (w *worker) applyTimers(former *intent.Peer) {
	p := &w.order.peer
	switch {
	case w.session != nil && former.KeepaliveTime != p.KeepaliveTime:
		w.session.setKeepaliveInterval(keepaliveInterval(p, w.session.negotiated.HoldTime))
	case w.session == nil && w.attemptDone == nil && former.ConnectTime != p.ConnectTime && former.Name != "":
		w.failures = 0
		w.retryTimer.Reset(0)
	}
}

// addLastNotification adds to an error what the router told before. One that refuses a node for a while, after too many prefixes for example,
// says why once, and hangs up without a word from then on.
func (w *worker) addLastNotification(err error) error {
	if n := (receivedNotification{}); errors.As(err, &n) {
		w.lastNotification = &n
		return err
	}
	if w.lastNotification == nil || w.order.peer.Blocked.IsSet() {
		return err
	}
	return fmt.Errorf("%w (before that, %w)", err, *w.lastNotification)
}

// keepKnownAddresses has a peer whose router cannot be told for the moment go on with the one that it is established with: a default route that
// is replaced is gone for an instant.
func (e *Engine) keepKnownAddresses(peers []intent.Peer) []intent.Peer {
	cloned := false
	for i := range peers {
		if p := &peers[i]; p.Address.IsValid() || p.Unnumbered {
			continue
		}
		k := slices.IndexFunc(e.bfdPaths.peers, func(q intent.Peer) bool { return q.Name == peers[i].Name && q.Address.IsValid() })
		if k < 0 || e.sessionState(peers[i].Name) != Established {
			continue
		}
		if !cloned {
			peers, cloned = slices.Clone(peers), true
		}
		peers[i].Address, peers[i].BFD = e.bfdPaths.peers[k].Address, e.bfdPaths.peers[k].BFD
	}
	return peers
}

// sessionState is how far the session of a peer has come.
func (e *Engine) sessionState(peer string) State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.statusByPeer[peer].State
}
