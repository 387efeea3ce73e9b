package layer2

import (
	"sync/atomic"
	"time"
)

// fence says until when answers may be sent. It keeps the time on both clocks: the monotonic one, which an operator who
// sets the time back does not move, and the wall clock, which goes on while the machine is suspended. The earlier
// one counts. Any goroutine may use it.
type fence struct {
	base      time.Time
	monotonic atomic.Int64 // nanoseconds since base
	wall      atomic.Int64 // nanoseconds since 1970
}

// renew moves the end; the zero time closes the fence at once.
func (f *fence) renew(until time.Time) {
	if until.IsZero() {
		f.monotonic.Store(0)
		f.wall.Store(0)
		return
	}
	f.monotonic.Store(int64(until.Sub(f.base)))
	f.wall.Store(until.UnixNano())
}

// closed says that nothing may be sent.
func (f *fence) closed(now time.Time) bool {
	return int64(now.Sub(f.base)) >= f.monotonic.Load() || now.UnixNano() >= f.wall.Load()
}
