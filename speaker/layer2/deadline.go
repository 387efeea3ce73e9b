package layer2

import (
	"sync/atomic"
	"time"
)

// sendDeadline is the time until which answers may be sent. It keeps that time on two clocks, and
// the earlier one counts. The monotonic clock does not move when an operator sets the time back.
// The wall clock does not stop while the machine is suspended. Any goroutine may use it.
type sendDeadline struct {
	referenceTime                time.Time
	monotonicDeadlineNanoseconds atomic.Int64 // nanoseconds since reference
	wallClockDeadlineNanoseconds atomic.Int64 // nanoseconds since 1970
}

// setDeadline sets the deadline. The zero time forbids sending at once.
func (f *sendDeadline) setDeadline(until time.Time) {
	if until.IsZero() {
		f.monotonicDeadlineNanoseconds.Store(0)
		f.wallClockDeadlineNanoseconds.Store(0)
		return
	}
	f.monotonicDeadlineNanoseconds.Store(int64(until.Sub(f.referenceTime)))
	f.wallClockDeadlineNanoseconds.Store(until.UnixNano())
}

// isPast says whether nothing may be sent any more.
func (f *sendDeadline) isPast(now time.Time) bool {
	return int64(now.Sub(f.referenceTime)) >= f.monotonicDeadlineNanoseconds.Load() || now.UnixNano() >= f.wallClockDeadlineNanoseconds.Load()
}
