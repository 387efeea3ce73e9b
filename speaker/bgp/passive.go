package bgp

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// passiveListener accepts the connections of passive peers' routers. The zero value is closed.
type passiveListener struct {
	listener          Listener
	passwordsByRouter map[netip.Addr]string
	retryTimer        *time.Timer // nil before the first failure
}

// listenRetryInterval is the time between two attempts to listen.
const listenRetryInterval = 5 * time.Second

// listenForPassivePeers listens while there are passive peers. If that fails, it blocks them.
func (e *Engine) listenForPassivePeers(ctx context.Context, peers []intent.Peer) []intent.Peer {
	passive := slices.ContainsFunc(peers, func(p intent.Peer) bool { return p.Passive })
	if !passive {
		e.passiveListener.close()
		return peers
	}
	err := e.passiveListener.listenWithPasswords(ctx, e.options.Transport, peers)
	if err == nil {
		return peers
	}
	peers = slices.Clone(peers)
	for i := range peers {
		if peers[i].Passive && !peers[i].Blocked.IsSet() {
			peers[i].Blocked = names.Explanation{Reason: names.ReasonPortUnavailable, Text: err.Error()}
		}
	}
	return peers
}

// listenWithPasswords listens and sets the password of each passive peer's router.
func (d *passiveListener) listenWithPasswords(ctx context.Context, t Transport, peers []intent.Peer) error {
	if d.listener == nil {
		l, err := t.Listen(ctx, passiveListenPort)
		if err != nil {
			if d.retryTimer == nil {
				d.retryTimer = time.NewTimer(listenRetryInterval)
			} else {
				d.retryTimer.Reset(listenRetryInterval)
			}
			return err
		}
		d.listener, d.passwordsByRouter = l, map[netip.Addr]string{}
	}
	want := map[netip.Addr]string{}
	for i := range peers {
		if p := &peers[i]; p.Passive && p.Address.IsValid() && !p.Blocked.IsSet() {
			want[p.Address] = p.Password
		}
	}
	for a := range d.passwordsByRouter {
		if _, ok := want[a]; !ok {
			want[a] = ""
		}
	}
	for a, password := range want {
		if d.passwordsByRouter[a] == password {
			continue
		}
		if err := d.listener.SetRouterPassword(a.WithZone(""), password); err != nil {
			return err
		}
		d.passwordsByRouter[a] = password
	}
	return nil
}

// connections delivers the connections of routers. It is nil while closed.
func (d *passiveListener) connections() <-chan Conn {
	if d.listener == nil {
		return nil
	}
	return d.listener.AcceptedConnections()
}

// listenRetryDue is ready to read when it is time to listen again.
func (d *passiveListener) listenRetryDue() <-chan time.Time {
	if d.retryTimer == nil || d.listener != nil {
		return nil
	}
	return d.retryTimer.C
}

func (d *passiveListener) close() {
	if d.listener != nil {
		d.listener.Close()
	}
	*d = passiveListener{}
}

// assignPassiveConnection passes a connection to the passive peer with that
// router. It closes connections from all other addresses.
func (e *Engine) assignPassiveConnection(c Conn) {
	for i := range e.currentDesiredState.Peers {
		p := &e.currentDesiredState.Peers[i]
		address := p.Address
		if r := e.searchByDevice[p.Device]; p.Unnumbered && r != nil {
			address = r.foundRouterAddress
		}
		if !p.Passive || p.Blocked.IsSet() || address.WithZone("") != c.RemoteIP().WithZone("") || p.SourceAddress.IsValid() && p.SourceAddress != c.LocalIP() {
			continue
		}
		if w, ok := e.workerByPeer[p.Name]; ok {
			select {
			case w.incomingConnections <- c:
				return
			default: // it handles another connection
			}
		}
	}
	c.Close()
}
