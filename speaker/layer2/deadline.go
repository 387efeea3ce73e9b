package layer2

import (
	"sync/atomic"
	"time"
)

// sendDeadline is the time until which answers may be sent. It keeps that time on two clocks, and
// the earlier one counts. The monotonic clock does not move when an operator sets the time back.
// The wall clock does not stop while the machine is suspended. Any goroutine may use it.
type sendDeadline struct {
	reference time.Time
	monotonic atomic.Int64 // nanoseconds since reference
	wall      atomic.Int64 // nanoseconds since 1970
}

// extendTo sets the deadline. The zero time forbids sending at once.
func (f *sendDeadline) extendTo(until time.Time) {
	if until.IsZero() {
		f.monotonic.Store(0)
		f.wall.Store(0)
		return
	}
	f.monotonic.Store(int64(until.Sub(f.reference)))
	f.wall.Store(until.UnixNano())
}

// isPast says whether nothing may be sent any more.
func (f *sendDeadline) isPast(now time.Time) bool {
	return int64(now.Sub(f.reference)) >= f.monotonic.Load() || now.UnixNano() >= f.wall.Load()
}
