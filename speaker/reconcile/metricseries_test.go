package reconcile

import (
	"maps"
	"strconv"
	"testing"
)

// TestManyAnnouncedAddressesShareOneSeries: a node that announces thousands of addresses must not
// export thousands of series.
func TestManyAnnouncedAddressesShareOneSeries(t *testing.T) {
	var all []announcedSeries
	for i := range maxAnnouncedSeries {
		all = append(all, announcedSeries{"default/web" + strconv.Itoa(i), protocolLayer2, "192.0.2.1"})
	}
	if got := countBySeries(all); len(got) != maxAnnouncedSeries || got[all[7]] != 1 {
		t.Errorf("%d series, one with the value %d", len(got), got[all[7]])
	}
	all = append(all, announcedSeries{"default/dns", protocolBGP, "192.0.2.2"})
	want := map[announcedSeries]int{{protocol: protocolLayer2}: maxAnnouncedSeries, {protocol: protocolBGP}: 1}
	if got := countBySeries(all); !maps.Equal(got, want) {
		t.Errorf("the series are %v, want %v", got, want)
	}
}
