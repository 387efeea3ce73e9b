package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// router is the search for the router of unnumbered peers on one link.
type router struct {
	cancel  context.CancelFunc
	address netip.Addr // invalid before one was found
	fault   error
}

// sighting is what a search tells.
type sighting struct {
	of      *router
	address netip.Addr
	err     error
}

// locate fills the addresses of unnumbered peers in, and looks for routers on exactly their links.
func (e *Engine) locate(ctx context.Context, peers []intent.Peer) []intent.Peer {
	wanted := map[string]bool{}
	for i := range peers {
		if peers[i].Unnumbered {
			wanted[peers[i].Device] = true
		}
	}
	for device, r := range e.routers {
		if !wanted[device] {
			r.cancel()
			delete(e.routers, device)
		}
	}
	if len(wanted) == 0 {
		return peers
	}
	peers = slices.Clone(peers)
	for i := range peers {
		p := &peers[i]
		if !p.Unnumbered {
			continue
		}
		r := e.routers[p.Device]
		if r == nil {
			r = e.find(ctx, p.Device)
		}
		switch p.Address = r.address; {
		case r.address.IsValid() || p.Blocked.Any():
		case r.fault != nil:
			p.Blocked = intent.Block{Reason: string(names.ReasonNoRouter), Text: r.fault.Error()}
		default:
			p.Blocked = intent.Block{
				Reason: string(names.ReasonNoRouter),
				Text:   fmt.Sprintf("no router has advertised itself on %s yet: configure this node as an unnumbered neighbour there, or have the router send router advertisements", p.Device),
			}
		}
	}
	return peers
}

// find starts a search.
func (e *Engine) find(ctx context.Context, device string) *router {
	ctx, cancel := context.WithCancel(ctx)
	r := &router{cancel: cancel}
	e.routers[device] = r
	e.ended.Go(func() {
		e.o.Transport.Find(ctx, device, func(a netip.Addr, err error) {
			select {
			case e.found <- sighting{r, a, err}:
			case <-ctx.Done():
			}
		})
	})
	return r
}

// sight takes note of what a search told. A router that was found stays while its link cannot be used: the session ends by
// itself then.
func (e *Engine) sight(s sighting) {
	s.of.fault = s.err
	if s.err != nil {
		e.o.Log.Warn("looking for an unnumbered router", "error", s.err)
		return
	}
	e.o.Log.Info("a router advertises itself", "router", s.address, "before", s.of.address)
	s.of.address = s.address
}

// port is where routers connect to a passive peer.
const port = 179

// door is where passive peers wait for their routers. The zero value is shut.
type door struct {
	listener  Listener
	passwords map[netip.Addr]string
	again     *time.Timer // after a failure
}

// doorPause is the time between two attempts to listen.
const doorPause = 5 * time.Second

// open listens as long as there are passive peers, and holds those back that nobody could reach.
func (e *Engine) open(ctx context.Context, peers []intent.Peer) []intent.Peer {
	passive := slices.ContainsFunc(peers, func(p intent.Peer) bool { return p.Passive })
	if !passive {
		e.door.close()
		return peers
	}
	err := e.door.prepare(ctx, e.o.Transport, peers)
	if err == nil {
		return peers
	}
	peers = slices.Clone(peers)
	for i := range peers {
		if peers[i].Passive && !peers[i].Blocked.Any() {
			peers[i].Blocked = intent.Block{Reason: string(names.ReasonPortUnavailable), Text: err.Error()}
		}
	}
	return peers
}

// prepare listens, and demands of each passive peer's router its password.
func (d *door) prepare(ctx context.Context, t Transport, peers []intent.Peer) error {
	if d.listener == nil {
		l, err := t.Listen(ctx, port)
		if err != nil {
			if d.again == nil {
				d.again = time.NewTimer(doorPause)
			} else {
				d.again.Reset(doorPause)
			}
			return err
		}
		d.listener, d.passwords = l, map[netip.Addr]string{}
	}
	want := map[netip.Addr]string{}
	for i := range peers {
		if p := &peers[i]; p.Passive && p.Address.IsValid() && !p.Blocked.Any() {
			want[p.Address] = p.Password
		}
	}
	for a := range d.passwords {
		if _, ok := want[a]; !ok {
			want[a] = ""
		}
	}
	for a, password := range want {
		if d.passwords[a] == password {
			continue
		}
		if err := d.listener.SetPassword(a.WithZone(""), password); err != nil {
			return err
		}
		d.passwords[a] = password
	}
	return nil
}

// incoming delivers the connections of routers; never anything while the door is shut.
func (d *door) incoming() <-chan Conn {
	if d.listener == nil {
		return nil
	}
	return d.listener.Incoming()
}

// retry is ready to read when it is time to listen again.
func (d *door) retry() <-chan time.Time {
	if d.again == nil || d.listener != nil {
		return nil
	}
	return d.again.C
}

func (d *door) close() {
	if d.listener != nil {
		d.listener.Close()
	}
	*d = door{}
}

// receive hands a connection to the passive peer whose router made it. Strangers are hung up on.
func (e *Engine) receive(c Conn) {
	for i := range e.last.Peers {
		p := &e.last.Peers[i]
		address := p.Address
		if r := e.routers[p.Device]; p.Unnumbered && r != nil {
			address = r.address
		}
		if !p.Passive || p.Blocked.Any() || address.WithZone("") != c.Remote().WithZone("") || p.Source.IsValid() && p.Source != c.Local() {
			continue
		}
		if w, ok := e.workers[p.Name]; ok {
			select {
			case w.calls <- c:
				return
			default: // it is busy with one
			}
		}
	}
	c.Close()
}
