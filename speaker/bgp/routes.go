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

// The times between the steps of a shutdown. handoverAtExitTimeout of the speaker must be longer
// than both together.
const (
	// gracefulShutdownWithdrawalDelay is the time between announcing routes with
	// GRACEFUL_SHUTDOWN and withdrawing them. The router installs other paths
	// meanwhile (RFC 8326 section 4.1 asks for the convergence time).
	gracefulShutdownWithdrawalDelay = 500 * time.Millisecond
	// closeAfterWithdrawalDelay is the time between the withdrawal and the end of
	// the session. The router has read the withdrawal by then.
	closeAfterWithdrawalDelay = 100 * time.Millisecond
)

// updateAdjRIBOut updates the Table to the desired routes.
func (w *worker) updateAdjRIBOut() {
	w.status.WantedRouteCount = 0
	for range w.routesOfPeer() {
		w.status.WantedRouteCount++
	}
	w.adjRIBOut.ReplaceRoutes(func(yield func(netip.Prefix, PathAttributes) bool) {
		for r := range w.routesOfPeer() {
			if t, ok := w.attributesToAnnounce(r); ok && !yield(r.Prefix, t) {
				return
			}
		}
	})
}

// routesOfPeer yields the routes for this peer.
func (w *worker) routesOfPeer() iter.Seq[*intent.Route] {
	return func(yield func(*intent.Route) bool) {
		for _, r := range w.currentDesiredState.routesOfAllPeers {
			if slices.Contains(r.PeerNames, w.peerName) && !yield(r) {
				return
			}
		}
	}
}

// gracefulShutdownCommunity is GRACEFUL_SHUTDOWN (RFC 8326 section 3).
const gracefulShutdownCommunity = 0xffff0000

// attributesToAnnounce returns the attributes with which a route is announced now. It
// returns false when the route is not announced: before the first session, after
// the withdrawal, or when its attributes do not fit into a message.
func (w *worker) attributesToAnnounce(r *intent.Route) (PathAttributes, bool) {
	if w.shutdownPhase == routesWithdrawnForShutdown {
		return PathAttributes{}, false
	}
	t := PathAttributes{NextHop: chooseNextHop(message.AFIOf(r.Prefix), w.allowsIPv6NextHopForIPv4, w.ipv4NextHop, w.ipv6NextHop), Attributes: r.Attributes}
	if t.Bandwidth > 0 {
		t.ExtendedCommunities = append(slices.Clone(t.ExtendedCommunities), encodeLinkBandwidthCommunity(w.currentDesiredState.peer.LocalASN, t.Bandwidth))
	}
	if w.shutdownPhase == routesMarkedForShutdown {
		t.LocalPref = 1 // the lowest preference: 0 means the default
		t.Communities = append(slices.Clone(t.Communities), gracefulShutdownCommunity)
		slices.Sort(t.Communities)
		t.Communities = slices.Compact(t.Communities)
	}
	return t, t.NextHop.IsValid() && !r.HasTooManyCommunities()
}

// findWithheldReason returns why the first route that is missing on the session is
// not announced. While the node leaves, no route is missing.
func (w *worker) findWithheldReason() names.Explanation {
	if w.shutdownPhase != routesNotShuttingDown || w.status.AnnouncedRouteCount >= w.status.WantedRouteCount {
		return names.Explanation{}
	}
	for r := range w.routesOfPeer() {
		f := message.AFIOf(r.Prefix)
		if !slices.Contains(w.status.Families, f) {
			return names.Explain(names.ReasonFamilyNotCarried, "the router does not get %s: it does not accept routes of %s on this session: activate that address family for this neighbour there", r.Prefix, f)
		}
		switch t, ok := w.attributesToAnnounce(r); {
		case ok:
		case !t.NextHop.IsValid():
			return names.Explain(names.ReasonNoNextHop, "the router does not get %s: the link of this session has no address that can be the next hop of %s routes: add one to the node's link, or remove dualStackAddressFamily", r.Prefix, f)
		default:
			return names.Explain(names.ReasonTooManyCommunities, "the router does not get %s: it has more communities than fit into a message: remove some from its BGPAdvertisements", r.Prefix)
		}
	}
	return names.Explanation{}
}

// encodeLinkBandwidthCommunity returns the link bandwidth extended community
// (draft-ietf-idr-link-bandwidth): non-transitive, with a two-octet AS
// number and bytes per second as an IEEE 754 number.
func encodeLinkBandwidthCommunity(asn uint32, bytes uint64) [8]byte {
	as, bits := message.TwoOctetASN(asn), math.Float32bits(float32(bytes))
	return [8]byte{0x40, 4, byte(as >> 8), byte(as), byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}
}

// stopSession ends the session in order before the worker ends.
func (w *worker) stopSession(o desiredPeerState) {
	w.abortAttempt()
	if o.peerRemoved {
		defer w.engine.removeStatus(w)
	}
	s := w.session
	if s == nil {
		return
	}
	switch {
	case o.peerRemoved:
		s.endWithNotification(fmt.Errorf("the peer was removed"), w.wrapInHardResetIfNeeded(message.NewCeaseNotification(message.CeaseDeconfigured, "")))
		return
	case !w.currentDesiredState.nodeLeaving && s.negotiated.GracefulRestart:
		w.log.Info("the speaker restarts; the router keeps the routes", "router", w.status.RouterAddress)
		s.endWithNotification(fmt.Errorf("the speaker restarts"), nil)
		return
	}
	w.log.Info("withdrawing the routes before the session ends", "router", w.status.RouterAddress, "routes", w.adjRIBOut.RouteCount())
	for _, step := range []struct {
		phase routeShutdownPhase
		wait  time.Duration
	}{{routesMarkedForShutdown, gracefulShutdownWithdrawalDelay}, {routesWithdrawnForShutdown, closeAfterWithdrawalDelay}} {
		if w.shutdownPhase >= step.phase {
			continue
		}
		w.shutdownPhase = step.phase
		w.updateAdjRIBOut()
		select {
		case <-time.After(step.wait):
		case <-s.ended:
			return
		case <-w.ctx.Done():
			return
		}
	}
	s.endWithNotification(fmt.Errorf("the speaker stops"), w.wrapInHardResetIfNeeded(message.NewCeaseNotification(message.CeaseShutdown, "the speaker stops")))
}

// wrapInHardResetIfNeeded turns a Cease into a Hard Reset if the router
// would keep routes after a Cease (RFC 8538).
func (w *worker) wrapInHardResetIfNeeded(f *message.Notification) *message.Notification {
	if w.session.negotiated.GracefulNotification {
		return f.AsHardReset()
	}
	return f
}

// setLeaving starts the graceful shutdown of a leaving node's routes, or cancels it.
func (w *worker) setLeaving(leaving bool) {
	w.shutdownPhase = routesNotShuttingDown
	w.shutdownTimer.Stop()
	if leaving {
		w.log.Info("the node is leaving: announcing its routes with GRACEFUL_SHUTDOWN, then withdrawing them", "routes", w.adjRIBOut.RouteCount())
		w.shutdownPhase = routesMarkedForShutdown
		w.shutdownTimer.Reset(gracefulShutdownWithdrawalDelay)
	}
}
