package bgp

import (
	"fmt"
	"iter"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// sync brings the Table in line with what is desired.
func (w *worker) sync() {
	w.state.Routes = 0
	for range w.mine() {
		w.state.Routes++
	}
	w.table.Replace(func(yield func(netip.Prefix, Terms) bool) {
		for r := range w.mine() {
			if t, ok := w.terms(r); ok && !yield(r.Prefix, t) {
				return
			}
		}
	})
}

// mine are the routes that are for this peer.
func (w *worker) mine() iter.Seq[*intent.Route] {
	return func(yield func(*intent.Route) bool) {
		for _, r := range w.o.routes {
			if slices.Contains(r.Peers, w.name) && !yield(r) {
				return
			}
		}
	}
}

// gracefulShutdown is the community of routes that are about to go (RFC 8326 section 3).
const gracefulShutdown = 0xffff0000

// terms are those that the peer gets a route with now; false when it gets none, as before its first session, or when no message
// has room for it.
func (w *worker) terms(r *intent.Route) (Terms, bool) {
	if w.phase == gone {
		return Terms{}, false
	}
	t := Terms{NextHop: nextHop(frame.FamilyOf(r.Prefix), w.extends, w.v4, w.v6), Attributes: r.Attributes}
	if t.Bandwidth > 0 {
		t.Extended = append(slices.Clone(t.Extended), linkBandwidth(w.o.peer.LocalASN, t.Bandwidth))
	}
	if w.phase == going {
		t.LocalPref = 1 // the lowest: 0 stands for none
		t.Communities = append(slices.Clone(t.Communities), gracefulShutdown)
		slices.Sort(t.Communities)
		t.Communities = slices.Compact(t.Communities)
	}
	return t, t.NextHop.IsValid() && !r.Overloaded()
}

// withheld is why the first of the routes that the session does not carry is not announced. Of a node that leaves, none has to be.
func (w *worker) withheld() Withheld {
	if w.phase != staying || w.state.Announced >= w.state.Routes {
		return Withheld{}
	}
	for r := range w.mine() {
		f := frame.FamilyOf(r.Prefix)
		if !slices.Contains(w.state.Families, f) {
			return Withheld{names.ReasonFamilyNotCarried, fmt.Sprintf(
				"the router does not get %s: it takes no routes of %s on this session: activate that address family for this neighbour there", r.Prefix, f)}
		}
		switch t, ok := w.terms(r); {
		case ok:
		case !t.NextHop.IsValid():
			return Withheld{names.ReasonNoNextHop, fmt.Sprintf(
				"the router does not get %s: the link of this session has no address for a next hop of %s: give the node one there, or take dualStackAddressFamily out", r.Prefix, f)}
		default:
			return Withheld{names.ReasonTooManyCommunities, fmt.Sprintf(
				"the router does not get %s: it has more communities than a message can carry: take some out of its BGPAdvertisements", r.Prefix)}
		}
	}
	return Withheld{}
}

// linkBandwidth is the community of that name (draft-ietf-idr-link-bandwidth): a non-transitive one of an AS of two octets,
// and bytes per second as a floating-point number.
func linkBandwidth(asn uint32, bytes uint64) [8]byte {
	as, bits := frame.Narrow(asn), math.Float32bits(float32(bytes))
	return [8]byte{0x40, 4, byte(as >> 8), byte(as), byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}
}

// stop ends the worker as planned.
func (w *worker) stop(o order) {
	w.abort()
	if o.gone {
		defer w.e.forget(w)
	}
	s := w.session
	if s == nil {
		return
	}
	switch {
	case o.gone:
		s.finish(fmt.Errorf("the peer was removed"), w.hard(frame.Cease(frame.CeaseDeconfigured, "")))
		return
	case !w.o.leaving && s.agreed.Graceful:
		w.log.Info("the speaker restarts; the router keeps the routes", "router", w.state.Remote)
		s.finish(fmt.Errorf("the speaker restarts"), nil)
		return
	}
	w.log.Info("taking the routes back before the session ends", "router", w.state.Remote, "routes", w.table.Len())
	for _, step := range []struct {
		phase leavePhase
		wait  time.Duration
	}{{going, goingTime}, {gone, goneTime}} {
		if w.phase >= step.phase {
			continue
		}
		w.phase = step.phase
		w.sync()
		select {
		case <-time.After(step.wait):
		case <-s.ended:
			return
		case <-w.ctx.Done():
			return
		}
	}
	s.finish(fmt.Errorf("the speaker stops"), w.hard(frame.Cease(frame.CeaseShutdown, "the speaker stops")))
}

// hard turns a Cease into one after which the router keeps no routes, where it would.
func (w *worker) hard(f *frame.Fault) *frame.Fault {
	if w.session.agreed.Notification {
		return f.Hard()
	}
	return f
}

// leave begins the going of a leaving node's routes, or takes it back.
func (w *worker) leave(yes bool) {
	w.phase = staying
	w.drained.Stop()
	if yes {
		w.log.Info("the node is leaving: its routes are announced as going, and withdrawn then", "routes", w.table.Len())
		w.phase = going
		w.drained.Reset(goingTime)
	}
}
