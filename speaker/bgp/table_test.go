package bgp_test

import (
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// numberedHostPrefixes returns n host prefixes of both families.
func numberedHostPrefixes(n int) []netip.Prefix {
	var out []netip.Prefix
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if i%2 == 1 {
			a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
		}
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// routesWithMED yields the prefixes with their MED.
func routesWithMED(prefixes map[netip.Prefix]uint32) iter.Seq2[netip.Prefix, bgp.PathAttributes] {
	return func(yield func(netip.Prefix, bgp.PathAttributes) bool) {
		for p, n := range prefixes {
			if !yield(p, bgp.PathAttributes{NextHop: netip.MustParseAddr("10.0.0.1"), Attributes: intent.Attributes{MED: n}}) {
				return
			}
		}
	}
}

// TestPendingChangesAddUpToTheAdjRIBOut changes the table at random while a
// subscriber reads the changes on another goroutine.
func TestPendingChangesAddUpToTheAdjRIBOut(t *testing.T) {
	random, prefixes := rand.New(rand.NewPCG(3, 4)), numberedHostPrefixes(60)
	table := bgp.NewAdjRIBOut()
	has := map[netip.Prefix]uint32{}
	edit := func() {
		for range random.IntN(8) {
			p := prefixes[random.IntN(len(prefixes))]
			if delete(has, p); random.IntN(3) > 0 {
				has[p] = uint32(random.IntN(40))
			}
		}
		table.ReplaceRoutes(routesWithMED(has))
	}
	for range 20 {
		changes := table.Subscribe()
		stop, results := make(chan struct{}), make(chan map[netip.Prefix]uint32)
		go func() {
			received := map[netip.Prefix]uint32{}
			take := func() {
				for _, c := range changes.TakePending() {
					if delete(received, c.Prefix); c.Attributes != nil {
						received[c.Prefix] = c.Attributes.MED
					}
				}
			}
			for {
				select {
				case <-changes.Ready():
					take()
				case <-stop:
					take()
					results <- received
					return
				}
			}
		}()
		for range 30 {
			edit()
		}
		close(stop)
		if received := <-results; !maps.Equal(received, has) {
			t.Fatalf("the subscriber has %v, the table %v", received, has)
		}
	}
}

func TestResendMakesAllRoutesOfAFamilyPending(t *testing.T) {
	prefixes, table := numberedHostPrefixes(4), bgp.NewAdjRIBOut()
	has := map[netip.Prefix]uint32{prefixes[0]: 1, prefixes[1]: 1, prefixes[2]: 1}
	table.ReplaceRoutes(routesWithMED(has))
	previous := table.Subscribe()
	changes := table.Subscribe()
	pending := func(c *bgp.PendingChanges) (out []netip.Prefix) {
		for _, change := range c.TakePending() {
			out = append(out, change.Prefix)
		}
		slices.SortFunc(out, netip.Prefix.Compare)
		return out
	}
	want := func(what string, got []netip.Prefix, want ...netip.Prefix) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: the changes are %v, want %v", what, got, want)
		}
	}
	want("at first", pending(changes), prefixes[0], prefixes[2], prefixes[1])
	want("no changes", pending(changes))
	table.ReplaceRoutes(routesWithMED(has))
	want("the same routes again", pending(changes))
	changes.MarkFamilyForResend(message.FamilyIPv4)
	delete(has, prefixes[0])
	has[prefixes[3]] = 2
	table.ReplaceRoutes(routesWithMED(has))
	want("a family is sent again, with other changes", pending(changes), prefixes[0], prefixes[2], prefixes[3])
	pending(previous)
	table.ReplaceRoutes(routesWithMED(map[netip.Prefix]uint32{}))
	want("nothing for the previous subscriber", pending(previous))
	want("all are withdrawn", pending(changes), prefixes[2], prefixes[1], prefixes[3])
	if n := table.RouteCount(); n != 0 {
		t.Errorf("%d routes remain", n)
	}
}

// TestAdjRIBOutUsesLittleMemoryPerRoute measures the heap for 10,000 routes of one peer.
func TestAdjRIBOutUsesLittleMemoryPerRoute(t *testing.T) {
	const many, most = 10000, 120
	has := map[netip.Prefix]uint32{}
	for _, p := range numberedHostPrefixes(many) {
		has[p] = 7
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	table := bgp.NewAdjRIBOut()
	changes := table.Subscribe()
	table.ReplaceRoutes(routesWithMED(has))
	if n := len(changes.TakePending()); n != many {
		t.Fatalf("%d routes are pending", n)
	}
	each := (int(heap()) - int(before)) / many
	t.Logf("%d bytes for each route", each)
	if each > most {
		t.Errorf("a route takes %d bytes, more than %d", each, most)
	}
	runtime.KeepAlive(table)
	runtime.KeepAlive(has)
}
