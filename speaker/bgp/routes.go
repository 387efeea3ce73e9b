package bgp

import (
	"fmt"
	"iter"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// updateTable brings the Table in line with what is desired.
func (w *worker) updateTable() {
	w.status.WantedRoutes = 0
	for range w.peerRoutes() {
		w.status.WantedRoutes++
	}
	w.table.Replace(func(yield func(netip.Prefix, PathAttributes) bool) {
		for r := range w.peerRoutes() {
			if t, ok := w.pathAttributes(r); ok && !yield(r.Prefix, t) {
				return
			}
		}
	})
}

// peerRoutes are the routes that are for this peer.
func (w *worker) peerRoutes() iter.Seq[*intent.Route] {
	return func(yield func(*intent.Route) bool) {
		for _, r := range w.order.allRoutes {
			if slices.Contains(r.Peers, w.name) && !yield(r) {
				return
			}
		}
	}
}

// gracefulShutdownCommunity is the community of routes that are about to go (RFC 8326 section 3).
const gracefulShutdownCommunity = 0xffff0000

// pathAttributes are those that the peer gets a route with now; false when it gets none, as before its first session, or when no message
// has room for it.
func (w *worker) pathAttributes(r *intent.Route) (PathAttributes, bool) {
	if w.shutdown == routesWithdrawn {
		return PathAttributes{}, false
	}
	t := PathAttributes{NextHop: chooseNextHop(message.FamilyOf(r.Prefix), w.extendedNextHop, w.nextHop4, w.nextHop6), Attributes: r.Attributes}
	if t.Bandwidth > 0 {
		t.ExtendedCommunities = append(slices.Clone(t.ExtendedCommunities), linkBandwidthCommunity(w.order.peer.LocalASN, t.Bandwidth))
	}
	if w.shutdown == shutdownAnnounced {
		t.LocalPref = 1 // the lowest: 0 stands for none
		t.Communities = append(slices.Clone(t.Communities), gracefulShutdownCommunity)
		slices.Sort(t.Communities)
		t.Communities = slices.Compact(t.Communities)
	}
	return t, t.NextHop.IsValid() && !r.HasTooManyCommunities()
}

// findWithheld is why the first of the routes that the session does not carry is not announced. Of a node that leaves, none has to be.
func (w *worker) findWithheld() Withheld {
	if w.shutdown != noShutdown || w.status.AnnouncedRoutes >= w.status.WantedRoutes {
		return Withheld{}
	}
	for r := range w.peerRoutes() {
		f := message.FamilyOf(r.Prefix)
		if !slices.Contains(w.status.Families, f) {
			return Withheld{names.ReasonFamilyNotCarried, fmt.Sprintf(
				"the router does not get %s: it takes no routes of %s on this session: activate that address family for this neighbour there", r.Prefix, f)}
		}
		switch t, ok := w.pathAttributes(r); {
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

// linkBandwidthCommunity is the community of that name (draft-ietf-idr-link-bandwidth): a non-transitive one of an AS of two octets,
// and bytes per second as a floating-point number.
func linkBandwidthCommunity(asn uint32, bytes uint64) [8]byte {
	as, bits := message.TwoOctetASN(asn), math.Float32bits(float32(bytes))
	return [8]byte{0x40, 4, byte(as >> 8), byte(as), byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}
}

// stopSession ends the worker as planned.
func (w *worker) stopSession(o workerOrder) {
	w.abortAttempt()
	if o.removed {
		defer w.engine.removeStatus(w)
	}
	s := w.session
	if s == nil {
		return
	}
	switch {
	case o.removed:
		s.terminate(fmt.Errorf("the peer was removed"), w.hardReset(message.NewCease(message.CeaseDeconfigured, "")))
		return
	case !w.order.leaving && s.negotiated.GracefulRestart:
		w.log.Info("the speaker restarts; the router keeps the routes", "router", w.status.Remote)
		s.terminate(fmt.Errorf("the speaker restarts"), nil)
		return
	}
	w.log.Info("taking the routes back before the session ends", "router", w.status.Remote, "routes", w.table.Len())
	for _, step := range []struct {
		phase shutdownPhase
		wait  time.Duration
	}{{shutdownAnnounced, gracefulShutdownDelay}, {routesWithdrawn, withdrawDelay}} {
		if w.shutdown >= step.phase {
			continue
		}
		w.shutdown = step.phase
		w.updateTable()
		select {
		case <-time.After(step.wait):
		case <-s.ended:
			return
		case <-w.ctx.Done():
			return
		}
	}
	s.terminate(fmt.Errorf("the speaker stops"), w.hardReset(message.NewCease(message.CeaseShutdown, "the speaker stops")))
}

// hardReset turns a Cease into one after which the router keeps no routes, where it would.
func (w *worker) hardReset(f *message.Notification) *message.Notification {
	if w.session.negotiated.GracefulNotification {
		return f.AsHardReset()
	}
	return f
}

// setLeaving begins the going of a leaving node's routes, or takes it back.
func (w *worker) setLeaving(yes bool) {
	w.shutdown = noShutdown
	w.shutdownTimer.Stop()
	if yes {
		w.log.Info("the node is leaving: its routes are announced as going, and withdrawn then", "routes", w.table.Len())
		w.shutdown = shutdownAnnounced
		w.shutdownTimer.Reset(gracefulShutdownDelay)
	}
}
