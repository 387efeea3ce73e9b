package layer2

import (
	"net/netip"
	"testing"
)

// TestManyAddressesShareOneSeries: a node with thousands of addresses must not export thousands of
// series.
func TestManyAddressesShareOneSeries(t *testing.T) {
	counters := map[netip.Addr]AddressCounters{}
	add := func(n int) {
		for a := netip.MustParseAddr("10.0.0.1"); len(counters) < n; a = a.Next() {
			counters[a] = AddressCounters{RequestsReceived: 2, RepliesSent: 1}
		}
	}
	add(maxAddressesWithOwnMetrics)
	if got := countersByMetricLabel(counters); len(got) != maxAddressesWithOwnMetrics || got["10.0.0.1"].RequestsReceived != 2 {
		t.Errorf("%d series, and %+v", len(got), got["10.0.0.1"])
	}
	add(maxAddressesWithOwnMetrics + 1)
	got := countersByMetricLabel(counters)
	if want := (AddressCounters{RequestsReceived: 2 * (maxAddressesWithOwnMetrics + 1), RepliesSent: maxAddressesWithOwnMetrics + 1}); len(got) != 1 || got[""] != want {
		t.Errorf("%d series, and %+v, want one with %+v", len(got), got[""], want)
	}
}
