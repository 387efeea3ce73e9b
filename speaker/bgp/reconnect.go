package bgp

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// The times between two attempts to connect to a router.
const (
	// firstReconnectDelay is the delay after the first failure. It doubles with each further
	// failure.
	firstReconnectDelay = 250 * time.Millisecond
	// defaultMaxReconnectDelay applies where connectTime is not set.
	defaultMaxReconnectDelay = 10 * time.Second
	// minStableSessionInterval is how long a session must be established
	// for an immediate reconnect after its end.
	minStableSessionInterval = 10 * time.Second
)

// recordSessionEndAndScheduleRetry records the end of the session and schedules the
// next attempt: at once after a stable session.
func (w *peerWorker) recordSessionEndAndScheduleRetry() {
	if w.status.State == Established && w.engine.options.Now().Sub(w.status.StateSince) >= minStableSessionInterval {
		w.failedAttemptCount = -1
	}
	w.bfdRecoveryTimer.Stop()
	err := w.session.endReason
	w.session, w.awaitedRouterConfirmation = nil, nil
	w.recordFailureAndScheduleRetry(err)
}

// recordFailureAndScheduleRetry records why there is no session and schedules the next attempt.
func (w *peerWorker) recordFailureAndScheduleRetry(err error) {
	w.routerOpenRejectionReason = ""
	if rejection := (routerOpenRejection{}); errors.As(err, &rejection) {
		w.routerOpenRejectionReason = rejection.reason
	}
	text := w.addLastNotificationToError(err).Error()
	if n := (receivedNotification{}); errors.As(err, &n) && w.status.State != Established && n.notification.Code == message.CodeOpenMessageError {
		now := w.engine.options.Now()
		if w.capabilityFallback = w.capabilityFallback.afterRefusal(&n, now); w.capabilityFallback.describeOmitted(now) != "" {
			text += "; " + w.capabilityFallback.describeOmitted(now)
		}
	}
	if text != w.status.LastError.Text || w.status.State == Established {
		w.log.Warn("no session", "router", w.status.RouterAddress, "error", text)
		w.status.LastError.Text, w.status.LastErrorTime = text, w.engine.options.Now()
	}
	w.status.LastError.Reason = reasonOfFailure(err)
	w.enterState(Idle)
	w.reconnectTimer.Reset(reconnectDelay(w.failedAttemptCount, w.currentDesiredState.peer.MaxReconnectDelay))
	w.failedAttemptCount++
}

// reconnectDelay returns the delay before the next attempt. It doubles with each
// failure up to longest. Up to a quarter is subtracted at random, so that the
// nodes of a rack do not reconnect at the same moment.
func reconnectDelay(failures int, longest time.Duration) time.Duration {
	if failures < 0 {
		return 0
	}
	if longest == 0 {
		longest = defaultMaxReconnectDelay
	}
	d := min(firstReconnectDelay<<min(failures, 20), longest)
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}
