package bgp

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// BFD watches the paths to routers. *bfd.Engine is one.
type BFD interface {
	Set(sessions []bfd.Session)
	Events() <-chan bfd.Event
	Status() []bfd.Status
	Changed() <-chan struct{}
}

// lookTime is how often it is looked whether an internal router is on a link of this node: addresses come and go.
const lookTime = 5 * time.Second

// paths are what BFD watches: keys by the peers' names, which are made of peers, and what is wrong with their profiles.
type paths struct {
	peers  []intent.Peer
	keys   map[string]bfd.Key
	faults map[string]bfd.Fault
}

// watch has BFD watch the paths to the peers that ask for it. A session's end says something about the path alone: two
// peers at one address share it.
func (e *Engine) watch(peers []intent.Peer) {
	e.watched = map[bfd.Key][]string{}
	keys, faults := map[string]bfd.Key{}, map[string]bfd.Fault{}
	first := map[bfd.Key]bfd.Session{}
	var sessions []bfd.Session
	for i := range peers {
		p := &peers[i]
		if p.BFD == nil || !p.Address.IsValid() {
			continue
		}
		s := e.session(p)
		if f, shared := first[s.Key]; !shared {
			first[s.Key], sessions = s, append(sessions, s)
		} else if f != s {
			faults[p.Name] = bfd.Fault{Reason: names.ReasonConflictingBFD, Text: fmt.Sprintf(
				"BFD watches the path to %s as the BGPPeer %q asks, and this one asks for something else: name the same bfdProfile in both, or give one another sourceAddress", s.Peer, e.watched[s.Key][0])}
		}
		e.watched[s.Key] = append(e.watched[s.Key], p.Name)
		keys[p.Name] = s.Key
	}
	e.mu.Lock()
	changed := !maps.Equal(e.paths.keys, keys) || !maps.Equal(e.paths.faults, faults)
	e.paths = paths{peers, keys, faults}
	e.mu.Unlock()
	if changed {
		e.poke()
	}
	if !slices.Equal(sessions, e.sessions) {
		e.sessions = sessions
		e.o.BFD.Set(sessions)
	}
}

// session is the BFD session of a peer. One that may be some hops away is a single hop away when it is on a link of this node.
func (e *Engine) session(p *intent.Peer) bfd.Session {
	s := bfd.Session{
		Key: bfd.Key{Peer: p.Address.WithZone(""), Local: p.Source},
		Profile: bfd.Profile{
			Receive: p.BFD.Receive, Transmit: p.BFD.Transmit, Multiplier: p.BFD.Multiplier, EchoMode: p.BFD.EchoMode,
			EchoInterval: p.BFD.Echo, Passive: p.BFD.Passive, MinimumTTL: p.BFD.MinTTL,
		},
	}
	s.Multihop = p.Multihop || (!p.External() || p.Hops > 1) && !e.o.Transport.OnLink(p.Address)
	switch {
	case p.Address.IsLinkLocalUnicast() || p.Unnumbered:
		s.Interface = cmp.Or(p.Address.Zone(), p.Device)
	default:
		s.VRF = p.Device
	}
	return s
}

// see returns what BFD sees of a path; before it has looked, that is Down.
func see(all []bfd.Status, k bfd.Key) (state string, fault bfd.Fault) {
	for i := range all {
		if all[i].Key == k {
			return all[i].State.String(), all[i].Fault
		}
	}
	return "Down", bfd.Fault{}
}

// tell logs what is new of the paths.
func (e *Engine) tell() {
	for _, s := range e.o.BFD.Status() {
		if old, known := e.faults[s.Key]; s.Fault != old {
			e.faults[s.Key] = s.Fault
			switch {
			case s.Fault != (bfd.Fault{}):
				e.o.Log.Warn("BFD does not run as asked for", "peers", e.watched[s.Key], "reason", s.Fault.Reason, "text", s.Fault.Text)
			case known:
				e.o.Log.Info("BFD runs as asked for", "peers", e.watched[s.Key])
			}
		}
	}
	maps.DeleteFunc(e.faults, func(k bfd.Key, _ bfd.Fault) bool { return e.watched[k] == nil })
}

// heard passes an event on to the workers of its path.
func (e *Engine) heard(v bfd.Event) {
	e.o.Log.Info("BFD has news of a path", "router", v.Key.String(), "up", v.Up, "why", v.Text)
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

// onPath acts on what became of the path. A path that failed ends the session at once, which takes the routes away on
// the router's side too, and tells it why (RFC 9384).
func (w *worker) onPath(v bfd.Event) {
	if !v.Failed() || w.session == nil {
		return
	}
	w.session.finish(fmt.Errorf("BFD: %s", v.Text), w.hard(frame.Cease(frame.CeaseBFDDown, "")))
}
