package bgp

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// BFD watches the paths to routers. *bfd.Engine is one.
type BFD interface {
	Set(sessions []bfd.Session)
	Events() <-chan bfd.Event
	Status() []bfd.Status
	Changed() <-chan struct{}
}

// linkCheckInterval is how often it is looked whether an internal router is on a link of this node: addresses come and go.
const linkCheckInterval = 5 * time.Second

// bfdPaths are what BFD watches: keys by the peers' names, which are made of peers, and what is wrong with their profiles.
type bfdPaths struct {
	peers       []intent.Peer
	keyByPeer   map[string]bfd.Key
	faultByPeer map[string]bfd.Fault
}

// updateBFDSessions has BFD watch the paths to the peers that ask for it. A session's end says something about the path alone: two
// peers at one address share it.
func (e *Engine) updateBFDSessions(peers []intent.Peer) {
	e.peersByPath = map[bfd.Key][]string{}
	keys, faults := map[string]bfd.Key{}, map[string]bfd.Fault{}
	first := map[bfd.Key]bfd.Session{}
	var sessions []bfd.Session
	for i := range peers {
		p := &peers[i]
		if p.BFD == nil || !p.Address.IsValid() {
			continue
		}
		s := e.bfdSession(p)
		if f, shared := first[s.Key]; !shared {
			first[s.Key], sessions = s, append(sessions, s)
		} else if f != s {
			faults[p.Name] = bfd.Fault{Reason: names.ReasonConflictingBFD, Text: fmt.Sprintf(
				"BFD watches the path to %s as the BGPPeer %q asks, and this one asks for something else: name the same bfdProfile in both, or give one another sourceAddress", s.Peer, e.peersByPath[s.Key][0])}
		}
		e.peersByPath[s.Key] = append(e.peersByPath[s.Key], p.Name)
		keys[p.Name] = s.Key
	}
	e.mu.Lock()
	changed := !maps.Equal(e.bfdPaths.keyByPeer, keys) || !maps.Equal(e.bfdPaths.faultByPeer, faults)
	e.bfdPaths = bfdPaths{peers, keys, faults}
	e.mu.Unlock()
	if changed {
		e.notifyChanged()
	}
	if !slices.Equal(sessions, e.bfdSessions) {
		e.bfdSessions = sessions
		e.options.BFD.Set(sessions)
	}
}

// bfdSession is the BFD session of a peer. One that may be some hops away is a single hop away when it is on a link of this node.
func (e *Engine) bfdSession(p *intent.Peer) bfd.Session {
	s := bfd.Session{
		Key: bfd.Key{Peer: p.Address.WithZone(""), Local: p.SourceAddress},
		Profile: bfd.Profile{
			ReceiveInterval: p.BFD.ReceiveInterval, TransmitInterval: p.BFD.TransmitInterval, DetectMultiplier: p.BFD.Multiplier, EchoMode: p.BFD.EchoMode,
			EchoInterval: p.BFD.EchoInterval, Passive: p.BFD.Passive, MinimumTTL: p.BFD.MinTTL,
		},
	}
	s.Multihop = p.Multihop || (!p.IsExternal() || p.MaxHops > 1) && !e.options.Transport.IsOnLink(p.Address)
	switch {
	case p.Address.IsLinkLocalUnicast() || p.Unnumbered:
		s.Interface = cmp.Or(p.Address.Zone(), p.Device)
	default:
		s.VRF = p.Device
	}
	return s
}

// bfdState returns what BFD sees of a path; before it has looked, that is Down.
func bfdState(all []bfd.Status, k bfd.Key) (state string, fault bfd.Fault) {
	for i := range all {
		if all[i].Key == k {
			return all[i].State.String(), all[i].Fault
		}
	}
	return "Down", bfd.Fault{}
}

// logBFDFaults logs what is new of the paths.
func (e *Engine) logBFDFaults() {
	for _, s := range e.options.BFD.Status() {
		if old, known := e.faultsByPath[s.Key]; s.Fault != old {
			e.faultsByPath[s.Key] = s.Fault
			switch {
			case s.Fault != (bfd.Fault{}):
				e.options.Log.Warn("BFD does not run as asked for", "peers", e.peersByPath[s.Key], "reason", s.Fault.Reason, "text", s.Fault.Text)
			case known:
				e.options.Log.Info("BFD runs as asked for", "peers", e.peersByPath[s.Key])
			}
		}
	}
	maps.DeleteFunc(e.faultsByPath, func(k bfd.Key, _ bfd.Fault) bool { return e.peersByPath[k] == nil })
}

// forwardBFDEvent passes an event on to the workers of its path.
func (e *Engine) forwardBFDEvent(v bfd.Event) {
	e.options.Log.Info("BFD has news of a path", "router", v.Key.String(), "up", v.Up, "why", v.Text)
	for _, name := range e.peersByPath[v.Key] {
		if w, ok := e.workersByPeer[name]; ok {
			w.queueBFDEvent(v)
		}
	}
}

// queueBFDEvent takes an event of the path. A worker that is busy loses the oldest.
func (w *worker) queueBFDEvent(v bfd.Event) {
	for {
		select {
		case w.bfdEvents <- v:
			return
		default:
		}
		select {
		case <-w.bfdEvents:
		default:
		}
	}
}

// handleBFDEvent acts on what became of the path. A path that failed ends the session at once, which takes the routes away on
// the router's side too, and tells it why (RFC 9384).
func (w *worker) handleBFDEvent(v bfd.Event) {
	if !v.IsPathFailure() || w.session == nil {
		return
	}
	w.session.terminate(fmt.Errorf("BFD: %s", v.Text), w.hardReset(message.NewCease(message.CeaseBFDDown, "")))
}
