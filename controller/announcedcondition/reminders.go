package announcedcondition

import (
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/internal/priorityqueue"
)

const (
	// faultWarningRepeatInterval is how often the Warning of a lasting fault is repeated: events
	// last an hour.
	faultWarningRepeatInterval = 30 * time.Minute
	// minOverallReminderInterval is the time between two reminders, over all Services: 5 in a
	// second.
	minOverallReminderInterval = 200 * time.Millisecond
	// minTextChangeInterval is the time between two writes of one Service in which only the text
	// changes.
	minTextChangeInterval = 5 * time.Second
	// slotRecheckInterval is how often a Service that waits for its slot looks whether an earlier
	// one is free.
	slotRecheckInterval = time.Minute
	// freshFaultAge is how old the condition of a fault may be whose first Warning is sent at once.
	freshFaultAge = 15 * time.Second
	// failedWarningRetryInterval is how long after a Warning that was not written the next one is
	// due.
	failedWarningRetryInterval = time.Minute
	// unannouncedEventsPerSecond and unannouncedEventBurst bound the events about new Services that
	// are not announced yet. A crowd of Services gets no more: most are announced soon, and the
	// others get a Warning.
	unannouncedEventsPerSecond = 5
	unannouncedEventBurst      = 10
)

// serviceFault is what is remembered of a Service that is not announced as it should be.
type serviceFault struct {
	since time.Time
	// lastWarningOrTextTime is when the last Warning was sent, or the last text was written; zero
	// if that was not in this process.
	lastWarningOrTextTime time.Time
	// reservedSlotTime is when the next reminder or text may be written; zero without a
	// reservation.
	reservedSlotTime time.Time
	// reason is the last Reason that was written.
	reason string
}

// writeSlotPacer gives out the slots in which writes that are not urgent may happen. Any goroutine
// may use it.
type writeSlotPacer struct {
	mu         sync.Mutex // guards all that follows
	nextSlotAt time.Time
	// releasedSlots are slots before nextSlotAt that nobody has any more; nil before the first one.
	releasedSlots *priorityqueue.Queue[*releasedSlot]
}

// releasedSlot is a slot that was reserved, and is not needed.
type releasedSlot struct {
	at       time.Time
	position priorityqueue.Position
}

// takeReleasedSlot returns the first released slot that is not before earliest, if there is one.
// The caller holds mu.
func (p *writeSlotPacer) takeReleasedSlot(earliest time.Time) (slot time.Time, isFound bool) {
	for p.releasedSlots != nil {
		first, isFound := p.releasedSlots.First()
		if !isFound {
			break
		}
		p.releasedSlots.Remove(first)
		if !first.at.Before(earliest) {
			return first.at, true
		}
	}
	return time.Time{}, false
}

// releaseSlot gives a slot back. It must not be used again by the caller.
func (p *writeSlotPacer) releaseSlot(slot time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.releasedSlots == nil {
		p.releasedSlots = priorityqueue.NewQueue(
			func(x, y *releasedSlot) bool { return x.at.Before(y.at) },
			func(s *releasedSlot) *priorityqueue.Position { return &s.position })
	}
	p.releasedSlots.Insert(&releasedSlot{at: slot})
}

// exchangeForEarlierSlot returns a released slot that is earlier than the given one, and not before
// earliest. Without one, it returns the given one.
func (p *writeSlotPacer) exchangeForEarlierSlot(slot, earliest time.Time) time.Time {
	p.mu.Lock()
	released, isFound := p.takeReleasedSlot(earliest)
	p.mu.Unlock()
	if !isFound {
		return slot
	}
	if released.Before(slot) {
		slot, released = released, slot
	}
	p.releaseSlot(released)
	return slot
}

// reserveSlot returns the time of the next free slot that is not before earliest.
func (p *writeSlotPacer) reserveSlot(earliest time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if released, isFound := p.takeReleasedSlot(earliest); isFound {
		return released
	}
	slot := p.nextSlotAt
	if slot.Before(earliest) {
		slot = earliest
	}
	p.nextSlotAt = slot.Add(minOverallReminderInterval)
	return slot
}

// faultMemory remembers the Services with a fault of one kind. Any goroutine may use it.
type faultMemory struct {
	pacer *writeSlotPacer

	mu             sync.Mutex // guards faultByService
	faultByService map[client.ObjectKey]*serviceFault
}

func newFaultMemory(p *writeSlotPacer) *faultMemory {
	return &faultMemory{pacer: p, faultByService: map[client.ObjectKey]*serviceFault{}}
}

// forgetFault removes a Service.
func (m *faultMemory) forgetFault(key client.ObjectKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.faultByService[key]; f != nil {
		m.releaseReservedSlot(f)
		delete(m.faultByService, key)
	}
}

// releaseReservedSlot ends the reservation of a slot, if there is one. The caller holds mu.
func (m *faultMemory) releaseReservedSlot(f *serviceFault) {
	if !f.reservedSlotTime.IsZero() {
		m.pacer.releaseSlot(f.reservedSlotTime)
		f.reservedSlotTime = time.Time{}
	}
}

// recordFault adds a Service, and returns since when it has a fault.
func (m *faultMemory) recordFault(key client.ObjectKey, now time.Time) (since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.findOrCreateFault(key, now).since
}

// findOrCreateFault returns the fault of the Service, which begins now if there is none. The caller
// holds mu.
func (m *faultMemory) findOrCreateFault(key client.ObjectKey, now time.Time) *serviceFault {
	f := m.faultByService[key]
	if f == nil {
		f = &serviceFault{since: now}
		m.faultByService[key] = f
	}
	return f
}

// recordWarning records that a Warning was sent.
func (m *faultMemory) recordWarning(key client.ObjectKey, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.findOrCreateFault(key, now)
	m.releaseReservedSlot(f)
	f.lastWarningOrTextTime = now
}

// recordNormalEvent records that an event was sent which is no Warning yet: the first Warning is
// due when the fault is not fresh any more.
func (m *faultMemory) recordNormalEvent(key client.ObjectKey, now time.Time) {
	m.recordWarning(key, now.Add(freshFaultAge-faultWarningRepeatInterval))
}

// recordFailedWarning records that the API server did not take a Warning.
func (m *faultMemory) recordFailedWarning(key client.ObjectKey, now time.Time) {
	m.recordWarning(key, now.Add(failedWarningRetryInterval-faultWarningRepeatInterval))
}

// delayUntilReminder returns how long to wait before the next reminder about the Service.
func (m *faultMemory) delayUntilReminder(key client.ObjectKey, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reserveSlotAndGetDelay(m.findOrCreateFault(key, now), faultWarningRepeatInterval, now)
}

// delayOrRecordTextChange returns how long to wait before a text that changed under one Reason may
// be written. The caller writes it if that is 0.
func (m *faultMemory) delayOrRecordTextChange(key client.ObjectKey, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.findOrCreateFault(key, now)
	wait := m.reserveSlotAndGetDelay(f, minTextChangeInterval, now)
	if wait == 0 {
		f.lastWarningOrTextTime = now
	}
	return wait
}

// cancelTextChange ends the reservation for a text that need not be written any more. Otherwise the
// next text would use the slot, which is then over, at the same time as those of other Services.
// Another text gets the slot.
func (m *faultMemory) cancelTextChange(key client.ObjectKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.faultByService[key]; f != nil {
		m.releaseReservedSlot(f)
	}
}

// reserveSlotAndGetDelay reserves a slot for the Service, at least interval after the last one,
// unless it has one. It returns 0 and ends the reservation once the slot has come. Otherwise it
// returns when to ask again: others may have given earlier slots back by then. The caller holds mu.
func (m *faultMemory) reserveSlotAndGetDelay(f *serviceFault, interval time.Duration, now time.Time) time.Duration {
	if wait := interval - now.Sub(f.lastWarningOrTextTime); !f.lastWarningOrTextTime.IsZero() && wait > 0 {
		return wait
	}
	if f.reservedSlotTime.IsZero() {
		f.reservedSlotTime = m.pacer.reserveSlot(now)
	} else if f.reservedSlotTime.After(now) {
		f.reservedSlotTime = m.pacer.exchangeForEarlierSlot(f.reservedSlotTime, now)
	}
	if wait := f.reservedSlotTime.Sub(now); wait > 0 {
		return min(wait, slotRecheckInterval)
	}
	f.reservedSlotTime = time.Time{}
	return 0
}

// hasReportedFault reports whether a Warning about the Service was sent.
func (m *faultMemory) hasReportedFault(key client.ObjectKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.faultByService[key]
	return f != nil && !f.lastWarningOrTextTime.IsZero()
}

// servicesWithFault returns the Services with a fault.
func (m *faultMemory) servicesWithFault() []client.ObjectKey {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]client.ObjectKey, 0, len(m.faultByService))
	for k := range m.faultByService {
		out = append(out, k)
	}
	return out
}

// recordReason records the Reason of a Service with a fault.
func (m *faultMemory) recordReason(key client.ObjectKey, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.faultByService[key]; f != nil {
		f.reason = reason
	}
}

// countByReason counts the Services by Reason.
func (m *faultMemory) countByReason() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]int{}
	for _, f := range m.faultByService {
		if f.reason != "" {
			out[f.reason]++
		}
	}
	return out
}

// hasFault reports whether the Service has a fault.
func (m *faultMemory) hasFault(key client.ObjectKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known := m.faultByService[key]
	return known
}
