package bgp

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// terms are what a prefix is announced with. They are immutable.
type terms struct {
	nextHop netip.Addr
	intent.Attributes
}

func (t *terms) same(p *Path) bool { return t.nextHop == p.NextHop && t.Attributes.Equal(p.Attributes) }

// mostShared bounds how many terms are looked through: nearly all routes of a peer have the same.
const mostShared = 16

// termsOf returns the terms of a path, those of another one where they are the same.
func (w *worker) termsOf(p *Path) *terms {
	for _, t := range w.shared {
		if t.same(p) {
			return t
		}
	}
	t := &terms{p.NextHop, p.Attributes}
	if len(w.shared) == mostShared {
		w.shared = slices.Delete(w.shared, 0, 1)
	}
	w.shared = append(w.shared, t)
	return t
}

// sync brings the Speaker's routes in line with what is desired. A route that cannot be announced harms no other.
func (w *worker) sync() {
	w.state.Routes = len(w.o.routes)
	if w.speaker == nil {
		return
	}
	var set []Path
	var withdraw []netip.Prefix
	for _, r := range w.o.routes {
		p, ok := w.path(r)
		switch old, held := w.held[r.Prefix]; {
		case !ok && held:
			withdraw = append(withdraw, r.Prefix)
		case ok && (!held || !old.same(&p)):
			set = append(set, p)
		}
	}
	for prefix := range w.held {
		if _, wanted := slices.BinarySearchFunc(w.o.routes, prefix, func(r *intent.Route, p netip.Prefix) int { return r.Prefix.Compare(p) }); !wanted {
			withdraw = append(withdraw, prefix)
		}
	}
	slices.SortFunc(withdraw, netip.Prefix.Compare)
	if err := w.speaker.Withdraw(withdraw); err != nil {
		w.log.Error("withdrawing routes", "error", err)
	}
	for _, p := range withdraw {
		delete(w.held, p)
	}
	if err := w.speaker.Set(set); err != nil {
		w.log.Error("announcing routes", "error", err)
	}
	for i := range set {
		w.held[set[i].Prefix] = w.termsOf(&set[i])
	}
}

// gracefulShutdown is the community of routes that are about to go (RFC 8326 section 3).
const gracefulShutdown = 0xffff0000

// path is a route as the peer gets it now; false when it gets none.
func (w *worker) path(r *intent.Route) (Path, bool) {
	if w.phase == gone {
		return Path{}, false
	}
	prefix, a := r.Prefix, r.Attributes
	f := frame.IPv6
	if prefix.Addr().Is4() {
		f = frame.IPv4
	}
	p := Path{Prefix: prefix, NextHop: nextHop(f, w.extends, w.v4, w.v6), Attributes: a}
	if a.Bandwidth > 0 {
		p.Extended = append(slices.Clone(p.Extended), linkBandwidth(w.o.peer.LocalASN, a.Bandwidth))
	}
	if w.phase == going {
		p.LocalPref = 1 // the lowest that the library sends; 0 leaves it out
		p.Communities = append(slices.Clone(p.Communities), gracefulShutdown)
		slices.Sort(p.Communities)
		p.Communities = slices.Compact(p.Communities)
	}
	return p, p.NextHop.IsValid() && !p.Overloaded() // the library would not survive that
}

// linkBandwidth is the community of that name (draft-ietf-idr-link-bandwidth): a non-transitive one of an AS of two octets,
// and bytes per second as a floating-point number.
func linkBandwidth(asn uint32, bytes uint64) [8]byte {
	if asn > 0xffff {
		asn = 23456 // AS_TRANS, RFC 6793
	}
	bits := math.Float32bits(float32(bytes))
	return [8]byte{0x40, 4, byte(asn >> 8), byte(asn), byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}
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
	w.log.Info("taking the routes back before the session ends", "router", w.state.Remote, "routes", len(w.held))
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
		w.log.Info("the node is leaving: its routes are announced as going, and withdrawn then", "routes", len(w.held))
		w.phase = going
		w.drained.Reset(goingTime)
	}
}
