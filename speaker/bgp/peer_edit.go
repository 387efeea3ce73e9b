package bgp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// canKeepSession reports whether an edit of the peer needs no new session: our OPEN and
// the connection stay the same, and the router's AS number is still accepted.
func (w *peerWorker) canKeepSession(previous, next *intent.Peer) bool {
	x, y := *previous, *next
	if w.session != nil && checkRouterASN(&y, w.session.negotiated.RemoteOpen.ASN) == nil {
		x.PeerASN, x.AcceptedASNs = y.PeerASN, y.AcceptedASNs
	}
	return needSameOpenAndConnection(&x, &y)
}

// applyTimerEdits applies edits of the keepalive and connect times, which need no new session.
func (w *peerWorker) applyTimerEdits(previous *intent.Peer) {
	p := &w.currentDesiredState.peer
	switch {
	case w.session != nil && previous.KeepaliveTime != p.KeepaliveTime:
		w.session.setKeepaliveInterval(keepaliveInterval(p, w.session.negotiated.HoldTime))
	case w.session == nil && w.connectAttemptResults == nil && previous.MaxReconnectDelay != p.MaxReconnectDelay && previous.Name != "":
		w.failedAttemptCount = 0
		w.reconnectTimer.Reset(0)
	}
}

// addLastNotificationToError adds the router's last NOTIFICATION to an error. A router that refuses
// a node for some time, such as after too many prefixes, says why once, and then only closes
// connections.
func (w *peerWorker) addLastNotificationToError(err error) error {
	if n := (receivedNotification{}); errors.As(err, &n) {
		w.lastReceivedNotification = &n
		return err
	}
	if w.lastReceivedNotification == nil || w.currentDesiredState.peer.BlockedExplanation.IsSet() {
		return err
	}
	return fmt.Errorf("%w (before that, %w)", err, *w.lastReceivedNotification)
}

// keepRouterOfEstablishedPeers keeps the router's address of an established session while the
// address cannot be determined. For example, when a default route is replaced, there is none for a
// moment.
func (e *Engine) keepRouterOfEstablishedPeers(peers []intent.Peer) []intent.Peer {
	cloned := false
	for i := range peers {
		if p := &peers[i]; p.Address.IsValid() || p.Unnumbered {
			continue
		}
		k := slices.IndexFunc(e.bfdSetupOfPeers.peersOfLastUpdate, func(q intent.Peer) bool { return q.Name == peers[i].Name && q.Address.IsValid() })
		if k < 0 || e.sessionState(peers[i].Name) != Established {
			continue
		}
		if !cloned {
			peers, cloned = slices.Clone(peers), true
		}
		peers[i].Address, peers[i].BFD = e.bfdSetupOfPeers.peersOfLastUpdate[k].Address, e.bfdSetupOfPeers.peersOfLastUpdate[k].BFD
	}
	return peers
}

// sessionState returns the state of a peer's session.
func (e *Engine) sessionState(peer string) State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.statusByPeer[peer].State
}
