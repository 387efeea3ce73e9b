package layer2_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// numberedNeighbour returns the neighbour with that number.
func numberedNeighbour(n int) facts.LinkNeighbour {
	return facts.LinkNeighbour{Address: netip.AddrFrom4([4]byte{192, 168, 0, byte(n)}), MAC: facts.MAC{2, 0, 0, 0, 0, byte(n)}}
}

func TestAskerCacheListsGatewaysAndAskers(t *testing.T) {
	link := facts.Link{Index: 2, GatewaysWithKnownMAC: []facts.LinkNeighbour{numberedNeighbour(1), {Address: netip.MustParseAddr("fe80::1"), MAC: facts.MAC{2, 0, 0, 0, 0, 1}}}}
	tests := map[string]struct {
		do   func(n *layer2.AskerCache)
		at   time.Duration
		want string
	}{
		"gateways get a notice without a request": {func(*layer2.AskerCache) {}, 0, "1"},
		"the latest comes first, after gateways": {func(n *layer2.AskerCache) {
			for i := 5; i < 8; i++ {
				n.RecordRequest(heldIPv4, 2, numberedNeighbour(i), testStartTime)
			}
			n.RecordRequest(heldIPv4, 2, numberedNeighbour(5), testStartTime)
		}, 0, "1 5 7 6"},
		"a gateway that asked gets one notice": {func(n *layer2.AskerCache) { n.RecordRequest(heldIPv4, 2, numberedNeighbour(1), testStartTime) }, 0, "1"},
		"a request on another link":            {func(n *layer2.AskerCache) { n.RecordRequest(heldIPv4, 3, numberedNeighbour(5), testStartTime) }, 0, "1"},
		"a request for another address":        {func(n *layer2.AskerCache) { n.RecordRequest(unheldIPv4, 2, numberedNeighbour(5), testStartTime) }, 0, "1"},
		"a request 29 minutes ago":             {func(n *layer2.AskerCache) { n.RecordRequest(heldIPv4, 2, numberedNeighbour(5), testStartTime) }, 29 * time.Minute, "1 5"},
		"a request 31 minutes ago":             {func(n *layer2.AskerCache) { n.RecordRequest(heldIPv4, 2, numberedNeighbour(5), testStartTime) }, 31 * time.Minute, "1"},
		"the last eight of many": {func(n *layer2.AskerCache) {
			for i := range 100 {
				n.RecordRequest(heldIPv4, 2, numberedNeighbour(100+i), testStartTime)
			}
		}, 0, "1 199 198 197 196 195 194 193 192"},
		"a link that is gone is forgotten": {func(n *layer2.AskerCache) {
			n.RecordRequest(heldIPv4, 2, numberedNeighbour(5), testStartTime)
			n.ForgetLink(2)
		}, 0, "1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := layer2.NewAskerCache()
			tt.do(n)
			var got []string
			for _, who := range n.GatewaysAndAskersToNotify(heldIPv4, link, testStartTime.Add(tt.at)) {
				b := who.Address.As4()
				got = append(got, fmt.Sprint(b[3]))
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("the targets are %s, want %s", text, tt.want)
			}
		})
	}
}

// A flood of requests for more addresses than the cache holds takes no more memory, and newer
// requests are remembered.
func TestAskerCacheIsBounded(t *testing.T) {
	n := layer2.NewAskerCache()
	for i := range 100_000 {
		n.RecordRequest(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 2, numberedNeighbour(5), testStartTime)
	}
	n.RecordRequest(heldIPv4, 2, numberedNeighbour(6), testStartTime)
	if got := n.GatewaysAndAskersToNotify(heldIPv4, facts.Link{Index: 2}, testStartTime); len(got) != 1 || got[0] != numberedNeighbour(6) {
		t.Errorf("the targets are %v, want the last asker", got)
	}
	remembered := 0
	for i := range 100_000 {
		remembered += len(n.GatewaysAndAskersToNotify(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), facts.Link{Index: 2}, testStartTime))
	}
	if remembered > 16384 {
		t.Errorf("%d askers are remembered", remembered)
	}
}
