package allocate

import (
	"net/netip"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

func TestExplainPools(t *testing.T) {
	one := netip.MustParseAddr("192.0.2.1")
	newPool := func(name string, n byte, edit func(*snapshot.Pool)) *snapshot.Pool {
		a := netip.AddrFrom4([4]byte{192, 0, 2, n})
		p := &snapshot.Pool{Name: name, AutoAssign: true, Ranges: []snapshot.Range{{First: a, Last: a}}}
		if edit != nil {
			edit(p)
		}
		return p
	}
	snap := &snapshot.Snapshot{Pools: []*snapshot.Pool{
		newPool("full", 1, nil),
		newPool("manual", 2, func(p *snapshot.Pool) { p.AutoAssign = false }),
		newPool("open", 3, nil),
		newPool("tenant", 4, func(p *snapshot.Pool) {
			p.ServiceAllocation = &snapshot.ServiceAllocation{OnlyListedNamespaces: true, Namespaces: []string{"other"}}
		}),
	}}
	s := &view.Service{Key: view.ObjectKey{Namespace: "default", Name: "web"}, IsLoadBalancer: true, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, PrimaryFamily: ipfamily.IPv4}
	other := *s
	other.Key.Name = "other"
	l := NewLedger()
	l.UseSnapshot(snap)
	l.CommitAssignment(&other, []netip.Addr{one}, "full")
	type answer struct {
		pool    string
		isTried bool
		reason  names.Reason
	}
	check := func(want ...answer) {
		t.Helper()
		got := ExplainPools(s, l, snap)
		if len(got) != len(want) {
			t.Fatalf("%d pools, want %d", len(got), len(want))
		}
		for i, g := range got {
			if now := (answer{g.Pool.Name, g.IsCandidate, g.Reason}); now != want[i] {
				t.Errorf("%+v (%s), want %+v", now, g.Text, want[i])
			}
		}
	}
	check(answer{"full", true, names.ReasonPoolExhausted}, answer{"open", true, ""}, answer{"manual", false, ""}, answer{"tenant", false, names.ReasonPoolNotAllowed})
	s.RequestedPool = "manual"
	check(answer{"manual", true, ""}, answer{"full", false, names.ReasonPoolExhausted}, answer{"open", false, ""}, answer{"tenant", false, names.ReasonPoolNotAllowed})
}
