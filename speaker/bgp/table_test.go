package bgp_test

import (
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

// setRoutesWithMED gives a table exactly the routes in has, with their MED. all are the prefixes
// that the table may contain.
func setRoutesWithMED(table *bgp.AdjRIBOut, all []netip.Prefix, has map[netip.Prefix]uint32) {
	for _, p := range all {
		if n, ok := has[p]; ok {
			table.SetRoute(p, &bgp.PathAttributes{NextHop: netip.MustParseAddr("10.0.0.1"), Attributes: intent.Attributes{MED: n}})
		} else {
			table.SetRoute(p, nil)
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
		setRoutesWithMED(table, prefixes, has)
	}
	for range 20 {
		changes := table.SubscribeToChanges()
		stop, results := make(chan struct{}), make(chan map[netip.Prefix]uint32)
		go func() {
			received := map[netip.Prefix]uint32{}
			take := func() {
				for _, c := range changes.TakeChanges() {
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
	setRoutesWithMED(table, prefixes, has)
	previous := table.SubscribeToChanges()
	changes := table.SubscribeToChanges()
	pending := func(c *bgp.PendingRouteChanges) (out []netip.Prefix) {
		for _, change := range c.TakeChanges() {
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
	setRoutesWithMED(table, prefixes, has)
	want("the same routes again", pending(changes))
	changes.MarkFamilyForResend(message.FamilyIPv4)
	delete(has, prefixes[0])
	has[prefixes[3]] = 2
	setRoutesWithMED(table, prefixes, has)
	want("a family is sent again, with other changes", pending(changes), prefixes[0], prefixes[2], prefixes[3])
	pending(previous)
	setRoutesWithMED(table, prefixes, nil)
	want("nothing for the previous subscriber", pending(previous))
	want("all are withdrawn", pending(changes), prefixes[2], prefixes[1], prefixes[3])
	if n := table.RouteCount(); n != 0 {
		t.Errorf("%d routes remain", n)
	}
}

// TestAdjRIBOutUsesLittleMemoryPerRoute measures the heap for 10,000 routes of one peer.
func TestAdjRIBOutUsesLittleMemoryPerRoute(t *testing.T) {
	const many, most = 10000, 120
	has, prefixes := map[netip.Prefix]uint32{}, numberedHostPrefixes(many)
	for _, p := range prefixes {
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
	changes := table.SubscribeToChanges()
	setRoutesWithMED(table, prefixes, has)
	if n := len(changes.TakeChanges()); n != many {
		t.Fatalf("%d routes are pending", n)
	}
	each := (int(heap()) - int(before)) / many
	t.Logf("%d bytes for each route", each)
	if each > most {
		t.Errorf("a route takes %d bytes, more than %d", each, most)
	}
	runtime.KeepAlive(table)
	runtime.KeepAlive(has)
	runtime.KeepAlive(prefixes)
}
