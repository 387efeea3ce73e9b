package status

import (
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
)

const (
	// flapMemoryInterval is for how long the return of a session counts.
	flapMemoryInterval = 5 * time.Minute
	// firstFlapHoldBackDelay is how long a session must last after its second return within
	// flapMemoryInterval. The delay doubles with each further return, up to
	// maxFlapHoldBackDelay. The first return costs no delay: routers are restarted.
	firstFlapHoldBackDelay = 10 * time.Second
	maxFlapHoldBackDelay   = 40 * time.Second
)

// SessionFlapDamper remembers which sessions ended and returned lately. A session that does so
// again and again is held back: it counts for no Service until it has lasted for a while. So a
// session that flaps does not cost some writes for each Service each time. The zero value remembers
// nothing.
type SessionFlapDamper struct {
	historyByPeer map[string]*sessionHistory
}

type sessionHistory struct {
	establishedCount int
	configuredAt     time.Time
	returnTimes      []time.Time
}

// ObservedSession is what SessionFlapDamper needs of a session.
type ObservedSession struct {
	Peer string
	// EstablishedCount is how often it was established, EstablishedSince since when it is, or zero.
	EstablishedCount int
	EstablishedSince time.Time
	// ConfiguredAt is when the configuration last asked for another session: what was before does
	// not count.
	ConfiguredAt time.Time
}

// ObserveSession takes the state of a session. It returns why the session is held back and for how
// long, and nothing if it is not.
func (r *SessionFlapDamper) ObserveSession(s ObservedSession, now time.Time) (why names.Explanation, heldBackFor time.Duration) {
	h := r.historyByPeer[s.Peer]
	if h == nil || s.EstablishedCount < h.establishedCount || !s.ConfiguredAt.Equal(h.configuredAt) {
		if r.historyByPeer == nil {
			r.historyByPeer = map[string]*sessionHistory{}
		}
		h = &sessionHistory{establishedCount: s.EstablishedCount, configuredAt: s.ConfiguredAt}
		r.historyByPeer[s.Peer] = h
	}
	for range max(s.EstablishedCount, 1) - max(h.establishedCount, 1) {
		h.returnTimes = append(h.returnTimes, now)
	}
	h.establishedCount = s.EstablishedCount
	h.returnTimes = slices.DeleteFunc(h.returnTimes, func(at time.Time) bool { return now.Sub(at) >= flapMemoryInterval })
	if s.EstablishedSince.IsZero() {
		return names.Explanation{}, 0
	}
	delay := requiredUptimeDelayAfterFlaps(len(h.returnTimes))
	heldBackFor = s.EstablishedSince.Add(delay).Sub(now)
	if heldBackFor <= 0 {
		return names.Explanation{}, 0
	}
	return names.NewExplanation(names.ReasonFlapping, "the session is established, and returned %d times within the last %d minutes: it counts again when it has lasted %d s; look at the path, the hold time and BFD", len(h.returnTimes), int(flapMemoryInterval.Minutes()), int(delay.Seconds())), heldBackFor
}

// ForgetOtherPeers forgets the sessions that do not exist any more.
func (r *SessionFlapDamper) ForgetOtherPeers(peers []string) {
	for peer := range r.historyByPeer {
		if !slices.Contains(peers, peer) {
			delete(r.historyByPeer, peer)
		}
	}
}

// requiredUptimeDelayAfterFlaps returns how long a session must last that returned so often.
func requiredUptimeDelayAfterFlaps(returns int) time.Duration {
	if returns < 2 {
		return 0
	}
	return min(firstFlapHoldBackDelay<<min(returns-2, 8), maxFlapHoldBackDelay)
}
