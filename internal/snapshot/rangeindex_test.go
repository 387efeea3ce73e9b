package snapshot

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/v1beta1"
)

// TestRangeIndexFindsEachOverlap inserts random ranges that overlap no other one, and compares each
// answer with a search through all of them.
func TestRangeIndexFindsEachOverlap(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	x := &rangeIndex{}
	var all []poolRange
	overlaps := 0
	for i := range 4000 {
		base, size := random.Intn(1<<16), random.Intn(8)
		a := func(n int) netip.Addr {
			if i%3 == 0 {
				return netip.AddrFrom16([16]byte{0xfd, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
			}
			return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
		}
		r := poolRange{Range: Range{a(base), a(base + size)}, poolName: fmt.Sprint(i)}
		var want poolRange
		for _, o := range all {
			if o.overlaps(r.Range) && (want.poolName == "" || o.First.Less(want.First)) {
				want = o
			}
		}
		got, found := x.findOverlap(r.Range)
		if found != (want.poolName != "") || got != want {
			t.Fatalf("%s overlaps %v (%t), want %v", r, got, found, want)
		}
		if found {
			overlaps++
			continue
		}
		x.insertRange(r)
		all = append(all, r)
	}
	if overlaps < 100 || len(all) < 1000 {
		t.Errorf("%d overlaps and %d others are too few for this test", overlaps, len(all))
	}
}

// TestEntriesDisjointEqualsPairwiseComparison has few random entries of both families, and compares
// the answer with a comparison of each pair.
func TestEntriesDisjointEqualsPairwiseComparison(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	seen := map[bool]int{}
	for range 2000 {
		pools := make([]parsedPool, 3)
		var all []Range
		for i := range 6 {
			low, size := byte(random.Intn(120)), byte(random.Intn(8))
			r := Range{netip.AddrFrom4([4]byte{255, 0, 0, low}), netip.AddrFrom4([4]byte{255, 0, 0, low + size})}
			if i%2 == 0 {
				r = Range{netip.AddrFrom16([16]byte{0xfd, 7: low}), netip.AddrFrom16([16]byte{0xfd, 7: low + size, 15: 1})}
			}
			pools[i/2].entries, all = append(pools[i/2].entries, parsedEntry{Range: r}), append(all, r)
		}
		want := true
		for i, r := range all {
			want = want && !slices.ContainsFunc(all[:i], r.overlaps)
		}
		if got := areEntriesSoundAndDisjoint(pools); got != want {
			t.Fatalf("%v: no entry overlaps another: %t, want %t", all, got, want)
		}
		seen[want]++
	}
	if seen[true] < 100 || seen[false] < 100 {
		t.Errorf("%v are too few for this test", seen)
	}
}

// TestPurposeOfSpecialRangeEqualsFullSearch compares the purpose of each range at the edges of
// those that cannot serve with a search through all of them.
func TestPurposeOfSpecialRangeEqualsFullSearch(t *testing.T) {
	for _, n := range unservableRanges {
		for _, r := range []Range{n.Range, {n.First, n.First}, {n.Last, n.Last}, {n.First.Prev(), n.First}, {n.Last, n.Last.Next()}, {n.First.Prev(), n.First.Prev()}, {n.Last.Next(), n.Last.Next()}} {
			if !r.First.IsValid() || !r.Last.IsValid() {
				continue
			}
			want := ""
			for _, o := range unservableRanges {
				if want == "" && o.Contains(r.First) && o.Contains(r.Last) {
					want = o.purpose
				}
			}
			if got := purposeOfSpecialRange(r); got != want {
				t.Errorf("%s has %q, want %q", r, got, want)
			}
		}
	}
}

// TestBuildCostIsInProportionToTheEntries builds 50,000 entries in a few large pools, in many small
// ones, and in ascending and random order. The measure is the time that it takes to read the same
// entries once, in the same run.
func TestBuildCostIsInProportionToTheEntries(t *testing.T) {
	const entryCount, most = 50_000, 5.0
	for _, poolCount := range []int{5, 5000} {
		for _, shuffled := range []bool{false, true} {
			var texts []string
			for i := range entryCount {
				texts = append(texts, fmt.Sprintf("10.%d.%d.%d/30", i>>14, i>>6&255, i&63<<2))
			}
			if shuffled {
				rand.New(rand.NewSource(1)).Shuffle(len(texts), func(i, j int) { texts[i], texts[j] = texts[j], texts[i] })
			}
			var o ConfigurationObjects
			for chunk := range slices.Chunk(texts, entryCount/poolCount) {
				o.Pools = append(o.Pools, newTestIPAddressPool(fmt.Sprintf("p%05d", len(o.Pools)), 0, chunk...))
			}
			o.PreviousSnapshot, _ = BuildSnapshot(o)
			reading, building := time.Hour, time.Hour
			// The shortest of many times is the one that nothing else on the machine disturbs.
			for round := 0; round < 20 && (round < 3 || float64(building) > most/2*float64(reading)); round++ {
				reading = min(reading, measureCPUTime(func() { parseEntriesAsBaseline(t, o.Pools) }))
				building = min(building, measureCPUTime(func() {
					if _, problems := BuildSnapshot(o); len(problems) > 0 {
						t.Fatal(problems[0])
					}
				}))
			}
			ratio := float64(building) / float64(reading)
			t.Logf("%d entries in %d pools (shuffled: %t): %.1f times the time of reading them", entryCount, poolCount, shuffled, ratio)
			if ratio > most {
				t.Errorf("%d entries in %d pools (shuffled: %t) are built in %.1f times the time of reading them, want at most %.0f", entryCount, poolCount, shuffled, ratio, most)
			}
		}
	}
}

// measureCPUTime returns the processor time of the process, which other programs disturb least.
func measureCPUTime(do func()) time.Duration {
	begun := readCPUTime()
	do()
	return readCPUTime() - begun
}

func readCPUTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// parseEntriesAsBaseline parses each entry and keeps the result, and does nothing else.
func parseEntriesAsBaseline(t *testing.T, pools []v1beta1.IPAddressPool) []Range {
	var out []Range
	for i := range pools {
		for _, text := range pools[i].Spec.Addresses {
			r, err := ParseRange(text)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
	}
	return out
}
