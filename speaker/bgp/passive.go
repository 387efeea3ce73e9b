package bgp

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// passiveListenPort is the TCP port on which routers connect to passive peers.
const passiveListenPort = 179

// listenRetryInterval is the time between two attempts to listen, or to set a password.
const listenRetryInterval = 5 * time.Second

// passiveListeners accept the connections of passive peers' routers. A socket without a VRF does
// not accept connections that arrive in a VRF, so that each VRF has a listener of its own.
type passiveListeners struct {
	listenerByVRF       map[string]*passiveListener // the key is a VRF, or empty
	acceptedConnections chan passiveConnection      // of all listeners
	retryTimer          *time.Timer                 // running after a failure
}

// passiveListener is the listener of one VRF.
type passiveListener struct {
	listener          Listener
	passwordsByRouter map[netip.Addr]string
	closedSignal      chan struct{}
}

// passiveConnection is a connection that a router opened.
type passiveConnection struct {
	Conn
	vrf string
}

func newPassiveListeners() *passiveListeners {
	l := &passiveListeners{listenerByVRF: map[string]*passiveListener{}, acceptedConnections: make(chan passiveConnection), retryTimer: time.NewTimer(time.Hour)}
	l.retryTimer.Stop()
	return l
}

// listenForPassivePeers listens while there are passive peers. It blocks the peers for which that
// fails.
func (e *Engine) listenForPassivePeers(ctx context.Context, peers []intent.Peer) []intent.Peer {
	wanted := map[string]bool{}
	for i := range peers {
		if peers[i].Passive {
			wanted[e.vrfOfPeer(&peers[i])] = true
		}
	}
	e.passiveListeners.closeListenersExcept(wanted)
	if len(wanted) == 0 {
		return peers
	}
	peers = slices.Clone(peers)
	faultByVRF := map[string]error{}
	for vrf := range wanted {
		faultByVRF[vrf] = e.passiveListeners.listenInVRF(ctx, e.options.Transport, vrf)
	}
	passwords := map[string]map[netip.Addr]string{}
	failed := false
	for i := range peers {
		p := &peers[i]
		if !p.Passive || p.BlockedExplanation.IsSet() {
			continue
		}
		vrf := e.vrfOfPeer(p)
		err := faultByVRF[vrf]
		if err == nil && p.Address.IsValid() {
			if passwords[vrf] == nil {
				passwords[vrf] = map[netip.Addr]string{}
			}
			passwords[vrf][p.Address] = p.Password
			err = e.passiveListeners.listenerByVRF[vrf].setPassword(p.Address, p.Password)
		}
		if err != nil {
			p.BlockedExplanation, failed = names.Explanation{Reason: names.ReasonPortUnavailable, Text: err.Error()}, true
		}
	}
	for vrf, l := range e.passiveListeners.listenerByVRF {
		l.removeOtherPasswords(passwords[vrf])
	}
	if failed {
		e.passiveListeners.retryTimer.Reset(listenRetryInterval)
	}
	return peers
}

// vrfOfPeer returns the VRF of a peer's session, which the peer names, or to which its link
// belongs; empty without one.
func (e *Engine) vrfOfPeer(p *intent.Peer) string { return vrfOfDevice(e.nodeAddresses, p.Device) }

// listenInVRF listens in a VRF unless it does already.
func (l *passiveListeners) listenInVRF(ctx context.Context, t Transport, vrf string) error {
	if l.listenerByVRF[vrf] != nil {
		return nil
	}
	listener, err := t.Listen(ctx, ListenOptions{Port: passiveListenPort, BindDevice: vrf})
	if err != nil {
		return err
	}
	one := &passiveListener{listener: listener, passwordsByRouter: map[netip.Addr]string{}, closedSignal: make(chan struct{})}
	l.listenerByVRF[vrf] = one
	go func() {
		for {
			select {
			case c := <-listener.AcceptedConnections():
				select {
				case l.acceptedConnections <- passiveConnection{c, vrf}:
				case <-one.closedSignal:
					c.Close()
					return
				}
			case <-one.closedSignal:
				return
			}
		}
	}()
	return nil
}

// setPassword sets the password of a router.
func (l *passiveListener) setPassword(router netip.Addr, password string) error {
	if l.passwordsByRouter[router] == password {
		return nil
	}
	if err := l.listener.SetRouterPassword(router.WithZone(""), password); err != nil {
		return err
	}
	l.passwordsByRouter[router] = password
	return nil
}

// removeOtherPasswords removes the passwords of routers that are not wanted.
func (l *passiveListener) removeOtherPasswords(wanted map[netip.Addr]string) {
	for router := range l.passwordsByRouter {
		if _, ok := wanted[router]; !ok && l.setPassword(router, "") == nil {
			delete(l.passwordsByRouter, router)
		}
	}
}

// closeListenersExcept closes the listeners of other VRFs than the wanted ones.
func (l *passiveListeners) closeListenersExcept(wanted map[string]bool) {
	for vrf, one := range l.listenerByVRF {
		if !wanted[vrf] {
			one.listener.Close()
			close(one.closedSignal)
			delete(l.listenerByVRF, vrf)
		}
	}
}

// passConnectionToPassivePeer passes a connection to the passive peer with that
// router. It closes connections from all other addresses.
func (e *Engine) passConnectionToPassivePeer(c passiveConnection) {
	for i := range e.currentDesiredState.Peers {
		p := &e.currentDesiredState.Peers[i]
		if !p.Passive || p.BlockedExplanation.IsSet() || e.vrfOfPeer(p) != c.vrf || !e.isRouterOfPeer(p, c.RemoteIP()) || p.SourceAddress.IsValid() && p.SourceAddress != c.LocalIP().WithZone("") {
			continue
		}
		if w, ok := e.workerByPeer[p.Name]; ok {
			select {
			case w.incomingConnections <- c.Conn:
				return
			default: // it handles another connection
			}
		}
	}
	c.Close()
}

// isRouterOfPeer reports whether a remote address is that of the peer's router. Routers on
// different links may have the same link-local address.
func (e *Engine) isRouterOfPeer(p *intent.Peer, remote netip.Addr) bool {
	address := p.Address
	if r := e.routerSearchByDevice[p.Device]; p.Unnumbered && r != nil {
		address = r.foundRouterAddress
	}
	if address.WithZone("") != remote.WithZone("") {
		return false
	}
	link := cmp.Or(address.Zone(), p.Device)
	return !remote.IsLinkLocalUnicast() || remote.Zone() == "" || link == "" || remote.Zone() == link
}

// handleIncomingConnection handles a connection that the router opened. An existing session wins,
// unless graceful restart was negotiated and the router keeps routes over a restart of its own:
// then a new connection means that the router has restarted (RFC 4724 section 5). The session ends
// only when the new connection has delivered an OPEN.
func (w *peerWorker) handleIncomingConnection(c Conn) {
	p := w.currentDesiredState.peer
	busy := w.connectAttemptResults != nil || w.session != nil && !w.session.negotiated.routerMayRestartGracefully()
	if !p.Passive || p.BlockedExplanation.IsSet() || busy {
		_, _ = c.Write(message.NewCeaseNotification(message.CeaseRejected, "").Encode())
		go closeConnectionWithoutReset(c, true)
		return
	}
	o := dialOptions(&p)
	if w.session == nil {
		w.reconnectTimer.Stop()
		w.enterState(Connect)
	}
	w.startConnectAttempt(func(context.Context) (Conn, error) { return c, c.SetTTLAndMinReceivedTTL(o.TTL, o.MinReceivedTTL) })
}

// routerMayRestartGracefully reports whether the router keeps routes over a restart of its own. A
// router that names no family only helps others to restart.
func (n *NegotiatedParameters) routerMayRestartGracefully() bool {
	return n.GracefulRestart && len(n.RemoteOpen.GracefulRestart.ForwardingKeptByFamily) > 0
}

// errRouterReconnected is why a session ends that a new connection of the router replaces.
var errRouterReconnected = errors.New("the router opened a new connection")
