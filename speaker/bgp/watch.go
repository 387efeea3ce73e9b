package bgp

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// BFD watches the paths to routers. *bfd.Engine is one.
type BFD interface {
	Set(sessions []bfd.Session)
	Events() <-chan bfd.Event
}

// watch has BFD watch the paths to the peers that ask for it. A session's end says something about the path alone: two
// peers at one address share it.
func (e *Engine) watch(peers []intent.Peer) {
	e.watched = map[bfd.Key][]string{}
	var sessions []bfd.Session
	for i := range peers {
		p := &peers[i]
		if p.BFD == nil || !p.Address.IsValid() {
			continue
		}
		s := e.session(p)
		if e.watched[s.Key] == nil {
			sessions = append(sessions, s)
		}
		e.watched[s.Key] = append(e.watched[s.Key], p.Name)
	}
	if !slices.Equal(sessions, e.sessions) {
		e.sessions = sessions
		e.o.BFD.Set(sessions)
	}
}

// session is the BFD session of a peer. An internal peer is a single hop away when it is on a link of this node.
func (e *Engine) session(p *intent.Peer) bfd.Session {
	s := bfd.Session{
		Key: bfd.Key{Peer: p.Address.WithZone(""), Local: p.Source},
		Profile: bfd.Profile{
			Receive: p.BFD.Receive, Transmit: p.BFD.Transmit, Multiplier: p.BFD.Multiplier, EchoMode: p.BFD.EchoMode,
			EchoInterval: p.BFD.Echo, Passive: p.BFD.Passive, MinimumTTL: p.BFD.MinTTL,
		},
	}
	s.Multihop = p.Multihop || !p.External() && !e.o.Transport.OnLink(p.Address)
	switch {
	case p.Address.IsLinkLocalUnicast() || p.Unnumbered:
		s.Interface = cmp.Or(p.Address.Zone(), p.Device)
	default:
		s.VRF = p.Device
	}
	return s
}

// heard passes an event on to the workers of its path.
func (e *Engine) heard(v bfd.Event) {
	for _, name := range e.watched[v.Key] {
		if w, ok := e.workers[name]; ok {
			w.watched(v)
		}
	}
}

// watched takes an event of the path. A worker that is busy loses the oldest.
func (w *worker) watched(v bfd.Event) {
	for {
		select {
		case w.paths <- v:
			return
		default:
		}
		select {
		case <-w.paths:
		default:
		}
	}
}

// onPath takes note of what became of the path. A path that failed ends the session at once, which takes the routes away on
// the router's side too, and tells it why (RFC 9384).
func (w *worker) onPath(v bfd.Event) {
	w.state.BFD = "Down"
	if v.Up {
		w.state.BFD = "Up"
	}
	if !v.Failed() || w.session == nil {
		return
	}
	w.session.finish(fmt.Errorf("BFD: %s", v.Text), w.hard(frame.Cease(frame.CeaseBFDDown, "")))
}
