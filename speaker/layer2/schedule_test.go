package layer2_test

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/speaker/layer2"
)

var testStartTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// collectAnnouncementTimes calls Advance whenever it is due, and returns when each announcement was
// due, in milliseconds.
func collectAnnouncementTimes(t *testing.T, s *layer2.AnnouncementSchedule, from, to time.Time) map[layer2.AddressOnLink][]int64 {
	out := map[layer2.AddressOnLink][]int64{}
	for now := from; !now.After(to); {
		due, next := s.TakeDueAnnouncements(now)
		for _, g := range due {
			out[g] = append(out[g], now.Sub(testStartTime).Milliseconds())
		}
		if next.IsZero() {
			break
		}
		if !next.After(now) {
			t.Fatalf("Advance(%v) wants to be called at %v: a busy loop", now, next)
		}
		now = next
	}
	return out
}

func TestScheduleAnnouncesEachAddressInABurst(t *testing.T) {
	burst := []int64{0, 100, 300, 1100, 2200, 3300, 4400}
	a, b := layer2.AddressOnLink{Address: heldIPv4, LinkIndex: 2}, layer2.AddressOnLink{Address: heldIPv4, LinkIndex: 3}
	tests := map[string]struct {
		do   func(s *layer2.AnnouncementSchedule)
		to   time.Duration
		want map[layer2.AddressOnLink][]int64
	}{
		"nothing is due before the first start": {func(*layer2.AnnouncementSchedule) {}, time.Hour, nil},
		"a burst":                               {func(s *layer2.AnnouncementSchedule) { s.StartBurst(heldIPv4, 2, testStartTime) }, 10 * time.Second, map[layer2.AddressOnLink][]int64{a: burst}},
		"a burst on each of two links": {func(s *layer2.AnnouncementSchedule) {
			s.StartBurst(heldIPv4, 2, testStartTime)
			s.StartBurst(heldIPv4, 3, testStartTime)
		}, 10 * time.Second, map[layer2.AddressOnLink][]int64{a: burst, b: burst}},
		"nothing is announced after the burst without a refresh interval": {func(s *layer2.AnnouncementSchedule) { s.StartBurst(heldIPv4, 2, testStartTime) }, time.Hour, map[layer2.AddressOnLink][]int64{a: burst}},
		"started twice is one burst": {func(s *layer2.AnnouncementSchedule) {
			s.StartBurst(heldIPv4, 2, testStartTime)
			s.StartBurst(heldIPv4, 2, testStartTime)
		}, 10 * time.Second, map[layer2.AddressOnLink][]int64{a: burst}},
		"removed from one of its links": {func(s *layer2.AnnouncementSchedule) {
			s.StartBurst(heldIPv4, 2, testStartTime)
			s.StartBurst(heldIPv4, 3, testStartTime)
			s.RemoveAddressOnLink(heldIPv4, 2)
			s.RemoveAddressOnLink(unheldIPv4, 2)
		}, 10 * time.Second, map[layer2.AddressOnLink][]int64{b: burst}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := layer2.NewAnnouncementSchedule(0)
			tt.do(s)
			if got := collectAnnouncementTimes(t, s, testStartTime, testStartTime.Add(tt.to)); !maps.EqualFunc(got, tt.want, slices.Equal) {
				t.Errorf("due at %v ms, want %v", got, tt.want)
			}
		})
	}
}

// Addresses that were taken together are refreshed at the given interval, and not all at once.
func TestRefreshesAreSpread(t *testing.T) {
	const n, every = 1000, 2 * time.Minute
	s := layer2.NewAnnouncementSchedule(every)
	for i := range n {
		s.StartBurst(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 2, testStartTime)
	}
	burst := testStartTime.Add(10 * time.Second)
	collectAnnouncementTimes(t, s, testStartTime, burst)
	seconds := map[int64]int{}
	for _, at := range collectAnnouncementTimes(t, s, burst, burst.Add(5*every)) {
		if len(at) < 4 || len(at) > 5 {
			t.Fatalf("an address is refreshed %d times in %v, want each %v", len(at), 5*every, every)
		}
		seconds[at[0]/1000]++
		for i := 1; i < len(at); i++ {
			if d := at[i] - at[i-1]; d < every.Milliseconds() || d > every.Milliseconds()+1000 {
				t.Fatalf("refreshed again after %d ms, want %v", d, every)
			}
		}
	}
	for second, count := range seconds {
		if count > n/10 {
			t.Fatalf("%d of %d addresses are refreshed in second %d", count, n, second)
		}
	}
}

// The first announcement of a new address goes out before the repetitions of many others.
func TestNewAddressIsAnnouncedBeforeRepetitions(t *testing.T) {
	s := layer2.NewAnnouncementSchedule(0)
	for i := range 5000 {
		s.StartBurst(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 2, testStartTime)
	}
	late := testStartTime.Add(1500 * time.Millisecond)
	collectAnnouncementTimes(t, s, testStartTime, late)
	s.StartBurst(heldIPv4, 2, late)
	for wait := late; ; {
		due, next := s.TakeDueAnnouncements(wait)
		if i := slices.Index(due, layer2.AddressOnLink{Address: heldIPv4, LinkIndex: 2}); i >= 0 {
			if wait.Sub(late) > 20*time.Millisecond {
				t.Fatalf("the new address is announced after %v", wait.Sub(late))
			}
			return
		}
		wait = next
	}
}

// After any starts and removals, every scheduled address is announced, and no removed one. There
// are never too many at once, nor any sooner again than the burst allows.
func TestScheduleAnnouncesExactlyScheduledAddresses(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, now := layer2.NewAnnouncementSchedule(2*time.Minute), testStartTime
		scheduled := map[layer2.AddressOnLink]time.Time{} // when the burst was started last
		last := map[layer2.AddressOnLink]time.Time{}
		sent := map[layer2.AddressOnLink]bool{}
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			for range rapid.IntRange(0, 80).Draw(rt, "starts") {
				g := layer2.AddressOnLink{Address: netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(rt, "a")}), LinkIndex: rapid.IntRange(1, 2).Draw(rt, "link")}
				if rapid.IntRange(0, 9).Draw(rt, "remove") == 0 {
					s.RemoveAddressOnLink(g.Address, g.LinkIndex)
					delete(scheduled, g)
					delete(sent, g)
				} else {
					s.StartBurst(g.Address, g.LinkIndex, now)
					scheduled[g] = now
					delete(sent, g)
				}
				delete(last, g)
			}
			due, next := s.TakeDueAnnouncements(now)
			if len(due) > 50 {
				rt.Fatalf("%d announcements at once", len(due))
			}
			for _, g := range due {
				if _, ok := scheduled[g]; !ok {
					rt.Fatalf("%v is announced, but was removed", g)
				}
				if at, ok := last[g]; ok && now.Sub(at) < 100*time.Millisecond {
					rt.Fatalf("%v is announced again after %v", g, now.Sub(at))
				}
				last[g], sent[g] = now, true
			}
			if s.Len() != len(scheduled) {
				rt.Fatalf("%d scheduled, want %d", s.Len(), len(scheduled))
			}
			if next.IsZero() != (len(scheduled) == 0) || (!next.IsZero() && !next.After(now)) {
				rt.Fatalf("Advance(%v) with %d scheduled wants to be called at %v", now, len(scheduled), next)
			}
			if next.IsZero() {
				next = now.Add(time.Millisecond)
			}
			now = next
		}
		for range 20 { // at most 512 addresses, 50 each 10 ms
			due, next := s.TakeDueAnnouncements(now)
			for _, g := range due {
				sent[g] = true
			}
			if next.IsZero() {
				break
			}
			now = now.Add(min(next.Sub(now), 10*time.Millisecond))
		}
		for _, g := range slices.SortedFunc(maps.Keys(scheduled), func(x, y layer2.AddressOnLink) int { return cmp.Compare(x.LinkIndex, y.LinkIndex) }) {
			if !sent[g] {
				rt.Fatalf("%v was never announced", g)
			}
		}
	})
}

func BenchmarkTakeDueAnnouncements(b *testing.B) {
	s := layer2.NewAnnouncementSchedule(2 * time.Minute)
	for i := range 10000 {
		s.StartBurst(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 2, testStartTime)
	}
	now := testStartTime
	b.ReportAllocs()
	for b.Loop() {
		_, now = s.TakeDueAnnouncements(now)
	}
}
