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

// host is a neighbour with that number.
func host(n int) facts.Neighbour {
	return facts.Neighbour{Address: netip.AddrFrom4([4]byte{192, 168, 0, byte(n)}), MAC: facts.MAC{2, 0, 0, 0, 0, byte(n)}}
}

func TestNeighbours(t *testing.T) {
	link := facts.Link{Index: 2, Routers: []facts.Neighbour{host(1), {Address: netip.MustParseAddr("fe80::1"), MAC: facts.MAC{2, 0, 0, 0, 0, 1}}}}
	tests := map[string]struct {
		do   func(n *layer2.Neighbours)
		at   time.Duration
		want string
	}{
		"routers are told though they never asked": {func(*layer2.Neighbours) {}, 0, "1"},
		"the latest comes first, after routers": {func(n *layer2.Neighbours) {
			for i := 5; i < 8; i++ {
				n.Asked(held, 2, host(i), epoch)
			}
			n.Asked(held, 2, host(5), epoch)
		}, 0, "1 5 7 6"},
		"a router that asked is told once": {func(n *layer2.Neighbours) { n.Asked(held, 2, host(1), epoch) }, 0, "1"},
		"on another link":                  {func(n *layer2.Neighbours) { n.Asked(held, 3, host(5), epoch) }, 0, "1"},
		"for another address":              {func(n *layer2.Neighbours) { n.Asked(other, 2, host(5), epoch) }, 0, "1"},
		"not long ago":                     {func(n *layer2.Neighbours) { n.Asked(held, 2, host(5), epoch) }, 29 * time.Minute, "1 5"},
		"long ago":                         {func(n *layer2.Neighbours) { n.Asked(held, 2, host(5), epoch) }, 31 * time.Minute, "1"},
		"the last ones of many": {func(n *layer2.Neighbours) {
			for i := range 100 {
				n.Asked(held, 2, host(100+i), epoch)
			}
		}, 0, "1 199 198 197 196 195 194 193 192"},
		"a link that is gone is forgotten": {func(n *layer2.Neighbours) {
			n.Asked(held, 2, host(5), epoch)
			n.Forget(2)
		}, 0, "1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := layer2.NewNeighbours()
			tt.do(n)
			var got []string
			for _, who := range n.Who(held, link, epoch.Add(tt.at)) {
				b := who.Address.As4()
				got = append(got, fmt.Sprint(b[3]))
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("told: %s, want %s", text, tt.want)
			}
		})
	}
}

// A flood of questions for more addresses than there is room for costs no more memory, and newer ones are remembered.
func TestNeighboursAreBounded(t *testing.T) {
	n := layer2.NewNeighbours()
	for i := range 100_000 {
		n.Asked(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 2, host(5), epoch)
	}
	n.Asked(held, 2, host(6), epoch)
	if got := n.Who(held, facts.Link{Index: 2}, epoch); len(got) != 1 || got[0] != host(6) {
		t.Errorf("told: %v, want the last asker", got)
	}
	remembered := 0
	for i := range 100_000 {
		remembered += len(n.Who(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), facts.Link{Index: 2}, epoch))
	}
	if remembered > 16384 {
		t.Errorf("%d askers are remembered", remembered)
	}
}
