package bgp

import (
	"fmt"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// The times between the steps of a shutdown. handoverAtExitTimeout of the speaker must be longer
// than the longest of both together.
const (
	// defaultStopWithdrawalDelay is the time between announcing routes with GRACEFUL_SHUTDOWN
	// and withdrawing them when the speaker stops. The router installs other paths meanwhile (RFC
	// 8326 section 4.1 asks for the convergence time). maxStopWithdrawalDelay is the longest one.
	defaultStopWithdrawalDelay = 500 * time.Millisecond
	maxStopWithdrawalDelay     = 2 * time.Second
	// defaultDrainDelay is the same time for a node that is drained and serves on, and for the
	// routes of endpoints that terminate.
	defaultDrainDelay = 10 * time.Second
	// closeAfterWithdrawalDelay is the time between the withdrawal and the end of
	// the session. The router has read the withdrawal by then.
	closeAfterWithdrawalDelay = 100 * time.Millisecond
)

// gracefulShutdownPhase is the progress of a leaving node's routes.
type gracefulShutdownPhase uint8

const (
	routesAnnouncedNormally     gracefulShutdownPhase = iota
	routesWithShutdownCommunity                       // announced with GRACEFUL_SHUTDOWN
	routesWithdrawnForShutdown
)

// gracefulRouteShutdown is the graceful shutdown of a peer's routes.
type gracefulRouteShutdown struct {
	phase             gracefulShutdownPhase
	shutdownStartedAt time.Time
	timer             *time.Timer // for the withdrawal
}

// drainDelayOfPeer is how long the routes of a drained node, or of terminating endpoints, stay.
func drainDelayOfPeer(p *intent.Peer) time.Duration {
	if p.HasDrainDelay {
		return p.DrainDelay
	}
	return defaultDrainDelay
}

// stopWithdrawalDelayOfPeer is how long the routes of a speaker that stops stay.
func stopWithdrawalDelayOfPeer(p *intent.Peer) time.Duration {
	if p.HasDrainDelay {
		return min(p.DrainDelay, maxStopWithdrawalDelay)
	}
	return defaultStopWithdrawalDelay
}

// startOrCancelRouteShutdown starts the graceful shutdown of a leaving node's routes, or cancels
// it. Without a session the router has no routes, and gets none.
func (w *peerWorker) startOrCancelRouteShutdown(leaving bool) {
	w.routeShutdown.timer.Stop()
	switch {
	case !leaving:
		w.routeShutdown.phase = routesAnnouncedNormally
	case w.session == nil:
		w.routeShutdown.phase = routesWithdrawnForShutdown
	default:
		w.log.Info("the node is leaving: announcing its routes with GRACEFUL_SHUTDOWN, then withdrawing them", "routes", w.routes.adjRIBOut.RouteCount())
		w.routeShutdown.phase, w.routeShutdown.shutdownStartedAt = routesWithShutdownCommunity, w.engine.options.Now()
	}
	w.resetWithdrawalTimer()
}

// resetWithdrawalTimer sets the time of the withdrawal of a leaving node's routes. The delay counts
// from the start of the drain, also after an edit.
func (w *peerWorker) resetWithdrawalTimer() {
	if w.routeShutdown.phase == routesWithShutdownCommunity {
		w.routeShutdown.timer.Reset(drainDelayOfPeer(&w.currentDesiredState.peer) - w.engine.options.Now().Sub(w.routeShutdown.shutdownStartedAt))
	}
}

// withdrawRoutesForShutdown withdraws the routes of a leaving node.
func (w *peerWorker) withdrawRoutesForShutdown() {
	w.routeShutdown.timer.Stop()
	w.routeShutdown.phase = routesWithdrawnForShutdown
	w.updateAdjRIBOut()
}

// endSessionBeforeWorkerStops ends the session in order before the worker ends.
func (w *peerWorker) endSessionBeforeWorkerStops(o desiredPeerState) {
	w.abortConnectAttempt()
	if o.peerRemoved {
		defer w.engine.removeStatus(w)
	}
	s := w.session
	if s == nil {
		return
	}
	if !o.peerRemoved && !o.nodeLeaving && !w.currentDesiredState.nodeLeaving && s.negotiated.GracefulRestart {
		w.log.Info("the speaker restarts; the router keeps the routes", "router", w.status.RouterAddress)
		s.endWithNotification(fmt.Errorf("the speaker restarts"), nil)
		return
	}
	reason, cease := fmt.Errorf("the speaker stops"), message.NewCeaseNotification(message.CeaseShutdown, "the speaker stops")
	if o.peerRemoved {
		reason, cease = fmt.Errorf("the peer was removed"), message.NewCeaseNotification(message.CeaseDeconfigured, "")
	}
	w.log.Info("withdrawing the routes before the session ends", "router", w.status.RouterAddress, "routes", w.routes.adjRIBOut.RouteCount())
	if w.withdrawRoutesGracefully(s) {
		s.endWithNotification(reason, w.wrapInHardResetIfNeeded(cease))
	}
}

// withdrawRoutesGracefully announces the routes with GRACEFUL_SHUTDOWN and then withdraws them. It
// returns false if the session ends meanwhile.
func (w *peerWorker) withdrawRoutesGracefully(s *session) bool {
	now := w.engine.options.Now()
	if w.routeShutdown.phase == routesAnnouncedNormally {
		w.routeShutdown.phase, w.routeShutdown.shutdownStartedAt = routesWithShutdownCommunity, now
		w.updateAdjRIBOut()
	}
	if w.routeShutdown.phase == routesWithShutdownCommunity {
		left := stopWithdrawalDelayOfPeer(&w.currentDesiredState.peer) - now.Sub(w.routeShutdown.shutdownStartedAt)
		if w.routes.adjRIBOut.RouteCount() > 0 && !w.waitUnlessSessionEnds(s, left) {
			return false
		}
		w.routeShutdown.phase = routesWithdrawnForShutdown
		w.updateAdjRIBOut()
		return w.waitUnlessSessionEnds(s, closeAfterWithdrawalDelay)
	}
	return true
}

// waitUnlessSessionEnds waits. It returns false if the session ends meanwhile.
func (w *peerWorker) waitUnlessSessionEnds(s *session, delay time.Duration) bool {
	select {
	case <-time.After(delay):
		return true
	case <-s.endedSignal:
	case <-w.ctx.Done():
	}
	return false
}

// wrapInHardResetIfNeeded turns a Cease into a Hard Reset if the router
// would keep routes after a Cease (RFC 8538).
func (w *peerWorker) wrapInHardResetIfNeeded(f *message.Notification) *message.Notification {
	if w.session.negotiated.GracefulNotification {
		return f.AsHardReset()
	}
	return f
}
