package assign

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// How long events about assignments wait.
const (
	// eventQuietInterval is how long there must be no work before events are recorded. At ten
	// Services a second they are recorded between two Services.
	eventQuietInterval = 50 * time.Millisecond
	// maxEventDelay is how long an event waits at most while there always is work.
	maxEventDelay = 5 * time.Second
	// maxEventsPerTurn events are recorded at once, and the next ones after eventTurnInterval.
	// client-go drops what is more than 1,000 ahead of the API server.
	maxEventsPerTurn  = 32
	eventTurnInterval = 20 * time.Millisecond
)

// deferredEvents keeps the events about assignments until no Service waits for an address: each
// event costs the API server as much as the status does, and the condition says the same. The
// worker calls it once per turn. All its methods run on the worker's goroutine.
type deferredEvents struct {
	recordEvent func(about *corev1.Service, kind, reason, text string)
	workQueue   *workQueue

	waiting []deferredEvent
	// lastBusy is when there was other work last, lastTurn when events were recorded last.
	lastBusy, lastTurn time.Time
	timer              wakeTimer
}

type deferredEvent struct {
	about              *corev1.Service
	kind, reason, text string
	since              time.Time
}

// addEvent adds an event.
func (d *deferredEvents) addEvent(now time.Time, about *corev1.Service, kind, reason, text string) {
	d.waiting = append(d.waiting, deferredEvent{about, kind, reason, text, now})
}

// recordDueEvents records the events that are due. hasOtherWork says whether a Service is to be
// decided or written.
func (d *deferredEvents) recordDueEvents(now time.Time, hasOtherWork func() bool) {
	if len(d.waiting) == 0 {
		return
	}
	if hasOtherWork() {
		d.lastBusy = now
	}
	due := d.waiting[0].since.Add(maxEventDelay)
	if quiet := d.lastBusy.Add(eventQuietInterval); quiet.Before(due) {
		due = quiet
	}
	if turn := d.lastTurn.Add(eventTurnInterval); turn.After(due) {
		due = turn
	}
	if !due.After(now) {
		n := min(len(d.waiting), maxEventsPerTurn)
		d.recordFirstEvents(n)
		d.lastTurn, due = now, now.Add(eventTurnInterval)
	}
	if len(d.waiting) > 0 {
		d.timer.wakeWorkerAt(due, now, d.workQueue)
	}
}

// recordFirstEvents records the first n events.
func (d *deferredEvents) recordFirstEvents(n int) {
	for _, e := range d.waiting[:n] {
		d.recordEvent(e.about, e.kind, e.reason, e.text)
	}
	clear(d.waiting[:n])
	if d.waiting = d.waiting[n:]; len(d.waiting) == 0 {
		d.waiting = nil
	}
}

// hasServiceWork says whether a Service is to be decided or written.
func (r *ServiceWorker) hasServiceWork() bool {
	return len(r.ledgerWriter.writesAwaitingLedgerEntry) > 0 || r.apiTaskQueue.countUnfinishedTasks() > 0 || !r.workQueue.isEmpty()
}
