package layer2

import (
	"sync/atomic"
	"time"
)

// sendDeadline says until when answers may be sent. It keeps the time on both clocks: the monotonic one, which an operator who
// sets the time back does not move, and the wall clock, which goes on while the machine is suspended. The earlier
// one counts. Any goroutine may use it.
type sendDeadline struct {
	reference time.Time
	monotonic atomic.Int64 // nanoseconds since base
	wall      atomic.Int64 // nanoseconds since 1970
}

// extendTo moves the end; the zero time closes the fence at once.
func (f *sendDeadline) extendTo(until time.Time) {
	if until.IsZero() {
		f.monotonic.Store(0)
		f.wall.Store(0)
		return
	}
	f.monotonic.Store(int64(until.Sub(f.reference)))
	f.wall.Store(until.UnixNano())
}

// isPast says that nothing may be sent.
func (f *sendDeadline) isPast(now time.Time) bool {
	return int64(now.Sub(f.reference)) >= f.monotonic.Load() || now.UnixNano() >= f.wall.Load()
}
