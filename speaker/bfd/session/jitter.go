package session

import (
	"math/rand/v2"
	"time"
)

// TransmitScheduler chooses when periodic packets are due. All sessions of a speaker share one, so
// that their packets are due together: at slots, which are multiples of an interval after a common
// origin. The speaker then wakes once for the packets of several sessions. Only one goroutine may
// use it.
type TransmitScheduler struct {
	random     *rand.Rand
	slotOrigin time.Time
}

// NewTransmitScheduler returns a TransmitScheduler with a source of randomness and a time of the
// first slot. The time should differ between speakers, so that they do not send at the same
// moments.
func NewTransmitScheduler(random *rand.Rand, slotOrigin time.Time) *TransmitScheduler {
	return &TransmitScheduler{random, slotOrigin}
}

const (
	// minTransmitSlotInterval is the shortest slot: that of an interval of 10 ms.
	minTransmitSlotInterval = 500 * time.Microsecond
	// maxTransmitSlotInterval bounds how many packets of slow sessions are due together.
	maxTransmitSlotInterval = 16 * time.Millisecond
	// minSlotsPerTransmitInterval leaves four slots or more to the choice of each packet.
	minSlotsPerTransmitInterval = 16
)

// transmitSlotInterval returns the time between two slots of a session with this packet interval.
// The result is a power of two times the shortest one. So each slot of a slow session is also a
// slot of all faster sessions.
func transmitSlotInterval(interval time.Duration) time.Duration {
	d := minTransmitSlotInterval
	for 2*d*minSlotsPerTransmitInterval <= interval && d < maxTransmitSlotInterval {
		d *= 2
	}
	return d
}

// nextTransmitTime returns when the packet after the one at previous is due. The interval is
// shortened by a random quarter at most, so that systems do not synchronise (RFC 5880 section
// 6.8.7). A multiplier of 1 would need more jitter, but is not allowed here.
func (j *TransmitScheduler) nextTransmitTime(previous time.Time, interval time.Duration) time.Time {
	latest := previous.Add(interval)
	due := latest.Add(-time.Duration(j.random.Int64N(int64(interval)/4 + 1)))
	slot := transmitSlotInterval(interval)
	elapsed := due.Sub(j.slotOrigin) % slot
	if elapsed <= 0 || slot*minSlotsPerTransmitInterval > interval {
		return due // it is at a slot, or the slots are too long for the interval
	}
	if next := due.Add(slot - elapsed); !next.After(latest) {
		return next
	}
	return due.Add(-elapsed)
}
