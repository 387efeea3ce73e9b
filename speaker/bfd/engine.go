package bfd

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/priorityqueue"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

const (
	// lostSocketReopenInterval is how often lost sockets of all sessions are opened again.
	lostSocketReopenInterval = time.Second
	// maxDatagramsPerRound is how many datagrams are read before timers are checked. It is
	// more than a receive buffer holds, so that nothing that arrived in time counts as
	// late, and few enough that a flood does not stop the timers.
	maxDatagramsPerRound = 4096
	// maxQueuedEvents bounds the queue of events. A full queue drops the oldest.
	maxQueuedEvents = 1024
)

// Engine runs sessions. Make it with New. Any goroutine may call
// its methods. All but Run and Stop return at once.
type Engine struct {
	transport         Transport
	now               func() time.Time
	random            *rand.Rand
	transmitScheduler *session.TransmitScheduler

	desiredSessions *latest.Value[[]SessionConfig]
	events          *latest.BoundedQueue[Event]
	statusChanged   *latest.Wake
	stopRequests    chan chan struct{}
	// of the desired sessions, in their order
	publishedSessionStates atomic.Pointer[[]*publishedSessionState]
	discardCounters        discardCounters

	// Only Run uses the following fields.
	sessionsByKey           map[SessionKey]*runningSession
	sessionsByDiscriminator map[uint32]*runningSession // ours
	sessionDeadlineQueue    *priorityqueue.Queue[*runningSession]
	stoppedSessions         []*runningSession // which may be wanted again meanwhile
	stopWaiters             []chan struct{}   // of Stop
	nextLostSocketReopenAt  time.Time
	sendBuffer              []byte
}

// NewEngine returns an Engine without sessions. The seed makes discriminators and
// jitter differ between speakers and between restarts of a speaker.
func NewEngine(transport Transport, now func() time.Time, seed uint64) *Engine {
	random := rand.New(rand.NewPCG(seed, 0))
	return &Engine{
		transport:         transport,
		now:               now,
		random:            random,
		transmitScheduler: session.NewTransmitScheduler(random, now()),
		desiredSessions:   latest.NewValue[[]SessionConfig](),
		events:            latest.NewBoundedQueue[Event](maxQueuedEvents),
		statusChanged:     latest.NewWake(),
		stopRequests:      make(chan chan struct{}, 1),

		sessionsByKey:           map[SessionKey]*runningSession{},
		sessionsByDiscriminator: map[uint32]*runningSession{},
		sessionDeadlineQueue:    newDeadlineQueue(),
	}
}

// SetSessions declares the sessions to run; of two with one Key the first. A session that exists
// keeps running, and negotiates a changed Profile while it is Up. A removed session signals
// AdminDown to its neighbour. The caller must not change the slice afterwards.
func (e *Engine) SetSessions(sessions []SessionConfig) {
	e.desiredSessions.Put(sessions)
	e.transport.Wake()
}

// Events delivers the events in order. A new session is Down. A session that is removed or
// stopped sends no event. A reader that is too slow loses the oldest events.
func (e *Engine) Events() <-chan Event { return e.events.C() }

// StatusChanged is ready to read after the Status of a session changed in more than its Counters.
func (e *Engine) StatusChanged() <-chan struct{} { return e.statusChanged.C() }

// Stop shuts all sessions down and returns when AdminDown was signalled to the neighbours, which
// takes about 100 ms, or when ctx ends. A later Set starts new sessions.
func (e *Engine) Stop(ctx context.Context) error {
	e.SetSessions(nil)
	done := make(chan struct{})
	select {
	case e.stopRequests <- done:
		e.transport.Wake()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run runs the sessions until ctx ends. Then it shuts them
// down like Stop, closes the Transport and returns.
func (e *Engine) Run(ctx context.Context) error {
	defer e.transport.Close()
	// Run waits only in the Transport.
	stopWaking := context.AfterFunc(ctx, e.transport.Wake)
	defer stopWaking()
	for isEnding := false; ; {
		if !isEnding && ctx.Err() != nil {
			isEnding = true
			e.reconcileSessions(nil)
		}
		e.takeSetAndStopRequests(isEnding)
		e.receiveDatagrams()
		next := e.processDueTimers()
		if len(e.sessionsByKey) == 0 && isEnding {
			return nil
		}
		e.transport.WaitForDatagramUntil(e.now(), next)
	}
}

// takeSetAndStopRequests takes what SetSessions and Stop requested. An engine that ends starts no
// session.
func (e *Engine) takeSetAndStopRequests(isEnding bool) {
	for len(e.stopRequests) > 0 {
		e.stopWaiters = append(e.stopWaiters, <-e.stopRequests)
	}
	select {
	case sessions := <-e.desiredSessions.C():
		if !isEnding {
			e.reconcileSessions(sessions)
		}
	default:
	}
}

// receiveDatagrams reads what arrived. Run calls it before processDueTimers: a
// datagram that waited in a socket while the process did not run was in time.
func (e *Engine) receiveDatagrams() {
	for range maxDatagramsPerRound {
		d, ok := e.transport.Receive()
		if !ok {
			return
		}
		if d.IsEchoPacket {
			e.handleReturnedEcho(d)
			continue
		}
		s, p, discarded := e.findSessionOfDatagram(d)
		if discarded == session.NotDiscarded {
			discarded = s.stepStateMachine(e, e.now(), session.PacketReceived{Packet: p}).DiscardReason
		}
		if s != nil {
			s.recordReceivedDatagram(d, discarded)
		}
		e.discardCounters.countDiscard(discarded)
	}
}

// processDueTimers does what is due and returns when it must be called again.
func (e *Engine) processDueTimers() time.Time {
	now := e.now()
	if !now.Before(e.nextLostSocketReopenAt) {
		e.nextLostSocketReopenAt = now.Add(lostSocketReopenInterval)
		for _, s := range e.sessionsByKey {
			s.reopenLostSockets()
		}
	}
	e.stepDueSessions(now)
	e.removeStoppedSessions()
	next := e.nextLostSocketReopenAt
	if s, ok := e.sessionDeadlineQueue.First(); ok && s.queuedDeadline.Before(next) {
		next = s.queuedDeadline
	}
	if len(e.sessionsByKey) == 0 {
		for _, done := range e.stopWaiters {
			close(done)
		}
		e.stopWaiters = nil
	}
	return next
}

// stepDueSessions steps the sessions whose deadline has come.
func (e *Engine) stepDueSessions(now time.Time) {
	haveReadAll := false
	// A machine whose deadline stays in the past is stepped again after the next datagrams.
	for range len(e.sessionsByKey) + 1 {
		s, ok := e.sessionDeadlineQueue.First()
		if !ok || !s.isDueAt(now) {
			return
		}
		if !haveReadAll && s.machine.HasDetectionTimePassed(now) {
			// The process may not have run between the last read and now.
			haveReadAll = true
			e.transport.WaitForDatagramUntil(now, now)
			e.receiveDatagrams()
			continue
		}
		s.stepStateMachine(e, now, session.TimePassed{})
	}
}

// removeStoppedSessions removes the sessions that have signalled AdminDown and are not wanted
// again.
func (e *Engine) removeStoppedSessions() {
	for _, s := range e.stoppedSessions {
		if s.isDesired || !s.machine.IsStopped() || e.sessionsByKey[s.key] != s {
			continue
		}
		s.sender.Close()
		e.sessionDeadlineQueue.Remove(s)
		delete(e.sessionsByKey, s.key)
		delete(e.sessionsByDiscriminator, s.discriminator)
	}
	e.stoppedSessions = nil
}

// reconcileSessions starts, updates and stops sessions to match the desired ones.
func (e *Engine) reconcileSessions(sessions []SessionConfig) {
	seen, wanted := make(map[SessionKey]bool, len(sessions)), make(map[SessionKey]bool, len(sessions))
	records := make([]*publishedSessionState, 0, len(sessions))
	for _, s := range sessions {
		if seen[s.SessionKey] {
			continue
		}
		seen[s.SessionKey] = true
		if f := s.Validate(); f.IsSet() {
			records = append(records, e.newPublishedStateOfInvalidSession(s, f))
			continue
		}
		wanted[s.SessionKey] = true
		records = append(records, e.startOrUpdateSession(s).publishedState)
	}
	for key, running := range e.sessionsByKey {
		if !wanted[key] && running.isDesired {
			running.isDesired = false
			running.stepStateMachine(e, e.now(), session.StopRequested{})
		}
	}
	e.publishedSessionStates.Store(&records)
	e.statusChanged.Signal()
}

// startOrUpdateSession starts a session, or updates it if it is running.
func (e *Engine) startOrUpdateSession(desired SessionConfig) *runningSession {
	s, exists := e.sessionsByKey[desired.SessionKey]
	if !exists {
		s = &runningSession{key: desired.SessionKey, discriminator: e.newDiscriminator(), echoSecret: e.random.Uint64()}
		s.sender = e.transport.OpenSender(desired.SessionKey, s.discriminator)
		s.machine = session.NewMachine(s.discriminator, desired.toStateMachineConfig(), e.transmitScheduler, e.now())
		e.sessionsByKey[desired.SessionKey], e.sessionsByDiscriminator[s.discriminator] = s, s
		s.updateDeadline(e.sessionDeadlineQueue)
	}
	if s.publishedState == nil || !s.isDesired {
		s.publishedState = &publishedSessionState{statusChanged: e.statusChanged}
	}
	if s.profile != desired.Profile {
		s.profile = desired.Profile
		if exists {
			s.stepStateMachine(e, e.now(), session.ConfigChanged{Config: desired.toStateMachineConfig()})
		}
	}
	s.publishedState.desiredSession.Store(&desired)
	if !s.isDesired && exists {
		s.stepStateMachine(e, e.now(), session.RestartRequested{})
	}
	s.isDesired = true
	s.reopenLostSockets()
	s.publishStateAndFault()
	return s
}

// newDiscriminator returns an unused discriminator. It is random, since
// packets with those from before a restart may still arrive.
func (e *Engine) newDiscriminator() uint32 {
	for {
		d := e.random.Uint32()
		if _, used := e.sessionsByDiscriminator[d]; d != 0 && !used {
			return d
		}
	}
}
