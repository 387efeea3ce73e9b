package bfd

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

const (
	// checkInterval is how often lost sockets are opened again for sessions that do not send.
	checkInterval = time.Second
	// perRound is how many datagrams are taken before what is due is looked at: more than a receive buffer holds, so that
	// nothing that arrived in time counts as late, and few enough that a flood does not stop the clock.
	perRound = 4096
	// eventQueue is how many events wait for a reader; more drop the oldest.
	eventQueue = 4096
)

// Engine runs sessions. Make it with New; its methods may be called from any goroutine and return at once, but for Run
// and Stop.
type Engine struct {
	wire   Wire
	now    func() time.Time
	random *rand.Rand

	desired chan []Session // holds the latest value only
	events  chan Event
	changed chan struct{}
	idle    chan chan struct{}
	records atomic.Pointer[[]*record] // of the desired sessions, in their order
	counted counted

	// Run owns all that follows.
	live      map[Key]*live
	byLocal   map[uint32]*live // by our discriminator
	queue     []Event
	waiting   []chan struct{} // of Stop
	nextCheck time.Time
	buffer    []byte
}

// New returns an Engine without sessions. The seed makes discriminators and jitter differ between speakers and lives of a
// speaker.
func New(wire Wire, now func() time.Time, seed uint64) *Engine {
	return &Engine{
		wire: wire, now: now, random: rand.New(rand.NewPCG(seed, 0)),
		desired: make(chan []Session, 1), events: make(chan Event), changed: make(chan struct{}, 1), idle: make(chan chan struct{}),
		live: map[Key]*live{}, byLocal: map[uint32]*live{},
	}
}

// Set makes the engine run exactly these sessions, of two with one Key the first. A session that stays goes on, with its new
// Profile negotiated while it is Up; one that is left out is ended administratively, and its neighbour told. Nobody edits the
// sessions afterwards.
func (e *Engine) Set(sessions []Session) {
	for {
		select {
		case e.desired <- sessions:
			return
		default:
		}
		select {
		case <-e.desired:
		default:
		}
	}
}

// Events delivers, in order, that sessions came Up and went Down. A session is Down when it is first Set. One that is
// removed or stopped sends no event. Whoever does not read loses the oldest.
func (e *Engine) Events() <-chan Event { return e.events }

// Changed is ready to read after the Status of a session has changed in more than its Counters.
func (e *Engine) Changed() <-chan struct{} { return e.changed }

// Stop ends all sessions administratively and returns when the neighbours were told, which takes about 100 ms, or when ctx
// ends. A later Set begins anew.
func (e *Engine) Stop(ctx context.Context) error {
	e.Set(nil)
	done := make(chan struct{})
	select {
	case e.idle <- done:
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

// Run serves until ctx ends. Then it tells the neighbours like Stop, closes the Wire and returns.
func (e *Engine) Run(ctx context.Context) error {
	defer e.wire.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	ending := ctx.Done()
	for {
		var events chan Event
		var head Event
		if len(e.queue) > 0 {
			events, head = e.events, e.queue[0]
		}
		select {
		case <-ending:
			ending = nil
			e.reconcile(nil)
		case sessions := <-e.desired:
			if ending != nil {
				e.reconcile(sessions)
			}
		case done := <-e.idle:
			e.waiting = append(e.waiting, done)
		case events <- head:
			e.queue = e.queue[1:]
		case <-e.wire.Ready():
		case <-timer.C:
		}
		if len(e.desired) > 0 && ending != nil {
			e.reconcile(<-e.desired)
		}
		e.receive()
		next := e.work()
		if len(e.live) == 0 && ending == nil {
			return nil
		}
		timer.Reset(next)
	}
}

// receive takes in what arrived. It comes before work: what waited in a socket while this process did not run was in time.
func (e *Engine) receive() {
	for range perRound {
		d, ok := e.wire.Receive()
		if !ok {
			return
		}
		if d.Echo {
			e.receiveEcho(d)
			continue
		}
		l, p, why := e.match(d)
		if why == session.Accepted {
			why = l.step(e, session.Received{Packet: p}).Discard
		}
		if l != nil {
			l.heed(d, why)
		}
		e.counted.discard(why)
	}
}

// work does what is due and returns how long it may wait until the next call.
func (e *Engine) work() time.Duration {
	now := e.now()
	check := !now.Before(e.nextCheck)
	if check {
		e.nextCheck = now.Add(checkInterval)
	}
	next := e.nextCheck
	for k, l := range e.live {
		if check {
			l.check()
		}
		if at := l.machine.Next(); !at.IsZero() && !now.Before(at) {
			l.step(e, session.Tick{})
		}
		if l.machine.Stopped() && !l.wanted {
			l.port.Close()
			delete(e.live, k)
			delete(e.byLocal, l.local)
			continue
		}
		if at := l.machine.Next(); !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	if len(e.live) == 0 {
		for _, done := range e.waiting {
			close(done)
		}
		e.waiting = nil
	}
	return max(next.Sub(e.now()), 0)
}

// reconcile makes the sessions those that are desired.
func (e *Engine) reconcile(sessions []Session) {
	seen, wanted := make(map[Key]bool, len(sessions)), make(map[Key]bool, len(sessions))
	records := make([]*record, 0, len(sessions))
	for _, s := range sessions {
		if seen[s.Key] {
			continue
		}
		seen[s.Key] = true
		if f := s.Check(); f != (Fault{}) {
			records = append(records, e.refused(s, f))
			continue
		}
		wanted[s.Key] = true
		records = append(records, e.want(s).record)
	}
	for k, l := range e.live {
		if !wanted[k] && l.wanted {
			l.wanted = false
			l.step(e, session.Stop{})
		}
	}
	e.records.Store(&records)
	poke(e.changed)
}

// want runs a session, which may be running already.
func (e *Engine) want(s Session) *live {
	l, running := e.live[s.Key]
	if !running {
		l = &live{key: s.Key, local: e.discriminator(), secret: e.random.Uint64()}
		l.port = e.wire.Open(s.Key, l.local)
		l.machine = session.New(l.local, s.config(), e.random, e.now())
		e.live[s.Key], e.byLocal[l.local] = l, l
	}
	if l.record == nil || !l.wanted {
		l.record = &record{changed: e.changed}
	}
	if l.profile != s.Profile {
		l.profile = s.Profile
		if running {
			l.step(e, session.Configure{Config: s.config()})
		}
	}
	l.record.profile.Store(&s)
	if !l.wanted && running {
		l.step(e, session.Start{})
	}
	l.wanted = true
	l.check()
	l.publish()
	return l
}

// discriminator returns one that is not in use: random, since after a restart the old ones may still be on their way.
func (e *Engine) discriminator() uint32 {
	for {
		d := e.random.Uint32()
		if _, used := e.byLocal[d]; d != 0 && !used {
			return d
		}
	}
}

// queued adds an event.
func (e *Engine) queued(v Event) {
	if len(e.queue) == eventQueue {
		e.queue = e.queue[1:]
	}
	e.queue = append(e.queue, v)
}
