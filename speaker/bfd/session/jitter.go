package session

import (
	"math/rand/v2"
	"time"
)

// Jitter chooses when periodic packets are due. All sessions of a speaker share one, so that their
// packets are due together: at slots, which are multiples of an interval after a common origin.
// The speaker then wakes once for the packets of several sessions. Only one goroutine may use it.
type Jitter struct {
	random     *rand.Rand
	slotOrigin time.Time
}

// NewJitter returns a Jitter with a source of randomness and a time of the first slot. The time
// should differ between speakers, so that they do not send at the same moments.
func NewJitter(random *rand.Rand, slotOrigin time.Time) *Jitter { return &Jitter{random, slotOrigin} }

const (
	// minSlotInterval is the shortest slot: that of an interval of 10 ms.
	minSlotInterval = 500 * time.Microsecond
	// maxSlotInterval bounds how many packets of slow sessions are due together.
	maxSlotInterval = 16 * time.Millisecond
	// minSlotsPerInterval leaves four slots or more to the choice of each packet.
	minSlotsPerInterval = 16
)

// slotInterval returns the interval of the slots for an interval of packets. Each slot of a slow
// session is also one of the faster sessions.
func slotInterval(interval time.Duration) time.Duration {
	d := minSlotInterval
	for 2*d*minSlotsPerInterval <= interval && d < maxSlotInterval {
		d *= 2
	}
	return d
}

// nextDueTime returns when the packet after the one at previous is due. The interval is shortened
// by a random quarter at most, so that systems do not synchronise (RFC 5880 section 6.8.7). A
// multiplier of 1 would need more jitter, but is not allowed here.
func (j *Jitter) nextDueTime(previous time.Time, interval time.Duration) time.Time {
	latest := previous.Add(interval)
	due := latest.Add(-time.Duration(j.random.Int64N(int64(interval)/4 + 1)))
	slot := slotInterval(interval)
	elapsed := due.Sub(j.slotOrigin) % slot
	if elapsed <= 0 || slot*minSlotsPerInterval > interval {
		return due // it is at a slot, or the slots are too long for the interval
	}
	if next := due.Add(slot - elapsed); !next.After(latest) {
		return next
	}
	return due.Add(-elapsed)
}
