package layer2

import (
	"sync/atomic"
	"time"
)

// sendDeadline is the time until which answers may be sent. It keeps that time on two clocks, and
// the earlier one counts. The monotonic clock does not move when an operator sets the time back.
// The wall clock does not stop while the machine is suspended. Any goroutine may use it.
type sendDeadline struct {
	referenceTime        time.Time
	monotonicNanoseconds atomic.Int64 // nanoseconds since reference
	wallClockNanoseconds atomic.Int64 // nanoseconds since 1970
}

// extendTo sets the deadline. The zero time forbids sending at once.
func (f *sendDeadline) extendTo(until time.Time) {
	if until.IsZero() {
		f.monotonicNanoseconds.Store(0)
		f.wallClockNanoseconds.Store(0)
		return
	}
	f.monotonicNanoseconds.Store(int64(until.Sub(f.referenceTime)))
	f.wallClockNanoseconds.Store(until.UnixNano())
}

// isPast says whether nothing may be sent any more.
func (f *sendDeadline) isPast(now time.Time) bool {
	return int64(now.Sub(f.referenceTime)) >= f.monotonicNanoseconds.Load() || now.UnixNano() >= f.wallClockNanoseconds.Load()
}
