package layer2

import (
	"net/netip"
	"slices"
	"time"
)

// Gratuitous is one announcement that is due.
type Gratuitous struct {
	Address netip.Addr
	Link    int
}

// rounds are the times of a burst after its start. The first changes the caches of whoever hears it. The others are for
// frames that were lost, for switches that open a port late, and for receivers with a Linux before 4.11, which
// ignore a second change within a second (locktime): hence one at 1.1 s.
var rounds = [...]time.Duration{0, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	1100 * time.Millisecond, 2 * time.Second, 4 * time.Second}

const (
	// refreshInterval is how often a held address is announced after its burst: less than the 300 s after which
	// switches commonly forget where an address is, so that traffic to it is not flooded to every port.
	refreshInterval = 120 * time.Second
	// batch and pace bound the announcements: batch of them each pace, so that many addresses at once do not
	// overrun a switch.
	batch = 50
	pace  = 10 * time.Millisecond
)

// Schedule says when which address is announced on which link. It reads no clock. The zero value is not usable.
type Schedule struct {
	entries map[Gratuitous]*slot
}

type slot struct {
	start time.Time
	round int
	next  time.Time
}

// NewSchedule returns an empty Schedule.
func NewSchedule() *Schedule { return &Schedule{entries: map[Gratuitous]*slot{}} }

// Start begins a burst, or begins the one under way again.
func (s *Schedule) Start(a netip.Addr, link int, now time.Time) {
	s.entries[Gratuitous{a, link}] = &slot{start: now, next: now}
}

// Remove forgets the address on every link.
func (s *Schedule) Remove(a netip.Addr) {
	for g := range s.entries {
		if g.Address == a {
			delete(s.entries, g)
		}
	}
}

// Advance returns what is due, earlier rounds first, and when to be called again; the zero time when nothing is
// scheduled.
func (s *Schedule) Advance(now time.Time) ([]Gratuitous, time.Time) {
	var due []Gratuitous
	var next time.Time
	for g, e := range s.entries {
		if !now.Before(e.next) {
			due = append(due, g)
		} else if next.IsZero() || e.next.Before(next) {
			next = e.next
		}
	}
	slices.SortFunc(due, func(x, y Gratuitous) int {
		if c := s.entries[x].round - s.entries[y].round; c != 0 {
			return c
		}
		if c := x.Address.Compare(y.Address); c != 0 {
			return c
		}
		return x.Link - y.Link
	})
	if len(due) > batch {
		due, next = due[:batch], now.Add(pace)
	}
	for _, g := range due {
		e := s.entries[g]
		e.round++
		if e.round < len(rounds) {
			e.next = e.start.Add(rounds[e.round])
		} else {
			e.next = now.Add(refreshInterval)
		}
		if next.IsZero() || e.next.Before(next) {
			next = e.next
		}
	}
	return due, next
}
