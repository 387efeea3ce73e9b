package allocate

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// newServicesWithClusterIP returns Services with an IPv4 or an IPv6 cluster IP that differ in their
// names.
func newServicesWithClusterIP(n int, cluster string) []view.Service {
	out := make([]view.Service, n)
	ip := []netip.Addr{netip.MustParseAddr(cluster)}
	ports := []view.Port{{Protocol: "TCP", Number: 80}}
	for i := range out {
		out[i] = view.Service{
			Key: view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("service-%07d", i)}, IsLoadBalancer: true, ClusterIPs: ip,
			PrimaryFamily: ipfamily.FamilyOf(ip[0]), FamilyPolicy: view.SingleStack, Ports: ports,
		}
	}
	return out
}

// decideAndCommitAssignment decides and commits.
func decideAndCommitAssignment(tb testing.TB, s *view.Service, l *Ledger, snap *snapshot.Snapshot) Decision {
	d := DecideAssignment(s, l, snap)
	if len(d.Addresses) == 0 {
		tb.Fatalf("%s got nothing: %s", s.Key, d.Text)
	}
	l.CommitAssignment(s, d.Addresses, d.PoolOfFirstAddress)
	return d
}

// BenchmarkAssignAndReleaseAtPoolFillLevels decides, commits and releases for one more Service at
// different fills. The time must not grow with the fill, nor with pools that do not match.
func BenchmarkAssignAndReleaseAtPoolFillLevels(b *testing.B) {
	others := func(to *snapshot.Snapshot, n int) {
		for i := range n {
			p := newPool(b, fmt.Sprintf("other-%04d", i), fmt.Sprintf("172.%d.%d.0/24", 16+i/256, i%256))
			p.ServiceAllocation = &snapshot.ServiceAllocation{Namespaces: []string{fmt.Sprintf("team-%d", i)}, OnlyListedNamespaces: true}
			to.Pools = append(to.Pools, p)
		}
	}
	tests := []struct {
		name, entry, cluster string
		held, others         int
		order                snapshot.AssignmentOrder
	}{
		{"a /8, empty", "10.0.0.0/8", "10.96.0.9", 0, 0, snapshot.OrderLowest},
		{"a /8 with 1,000,000", "10.0.0.0/8", "10.96.0.9", 1_000_000, 0, snapshot.OrderLowest},
		{"a /12, all but one held", "10.0.0.0/12", "10.96.0.9", 1<<20 - 1, 0, snapshot.OrderLowest},
		{"a /12, all but one held, by hash", "10.0.0.0/12", "10.96.0.9", 1<<20 - 1, 0, snapshot.OrderHash},
		{"an IPv6 /64 with 100,000", "fd00::/64", "fd01::1", 100_000, 0, snapshot.OrderLowest},
		{"an IPv6 /64 with 100,000, by hash", "fd00::/64", "fd01::1", 100_000, 0, snapshot.OrderHash},
		{"a /8 with 100,000 beside 1,000 pools for others", "10.0.0.0/8", "10.96.0.9", 100_000, 1000, snapshot.OrderLowest},
	}
	for _, tc := range tests {
		b.Run(tc.name, func(b *testing.B) {
			p := newPool(b, "a", tc.entry)
			p.AssignmentOrder = tc.order
			snap := &snapshot.Snapshot{Pools: []*snapshot.Pool{p}}
			others(snap, tc.others)
			l := NewLedger()
			all := newServicesWithClusterIP(tc.held+1, tc.cluster)
			for i := range all[:tc.held] {
				decideAndCommitAssignment(b, &all[i], l, snap)
			}
			last := &all[tc.held]
			b.ReportAllocs()
			for b.Loop() {
				decideAndCommitAssignment(b, last, l, snap)
				l.ReleaseService(last.Key)
			}
		})
	}
}

// BenchmarkFirstAssignmentOfNewServices assigns addresses to new Services and measures the time per
// Service.
func BenchmarkFirstAssignmentOfNewServices(b *testing.B) {
	tests := []struct {
		name, entry, cluster string
		n                    int
	}{
		{"1,000,000 of a /8", "10.0.0.0/8", "10.96.0.9", 1_000_000},
		{"all of a /12", "10.0.0.0/12", "10.96.0.9", 1 << 20},
		{"100,000 of an IPv6 /64", "fd00::/64", "fd01::1", 100_000},
	}
	for _, tc := range tests {
		b.Run(tc.name, func(b *testing.B) {
			snap := &snapshot.Snapshot{Pools: []*snapshot.Pool{newPool(b, "a", tc.entry)}}
			all := newServicesWithClusterIP(tc.n, tc.cluster)
			runtime.GC()
			b.ReportAllocs()
			l := NewLedger()
			i := 0
			for b.Loop() {
				if i == len(all) {
					b.StopTimer()
					l, i = NewLedger(), 0
					b.StartTimer()
				}
				decideAndCommitAssignment(b, &all[i], l, snap)
				i++
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "assignments/s")
		})
	}
}

// TestLedgerMemoryPerAssignmentIsLimited measures what the Ledger stores for each Service, without
// the names, which belong to the Service.
func TestLedgerMemoryPerAssignmentIsLimited(t *testing.T) {
	tests := map[string]struct {
		entry, cluster string
		order          snapshot.AssignmentOrder
	}{
		"IPv4":          {"10.0.0.0/8", "10.96.0.9", snapshot.OrderLowest},
		"IPv4 by hash":  {"10.0.0.0/8", "10.96.0.9", snapshot.OrderHash},
		"IPv6":          {"fd00::/64", "fd01::1", snapshot.OrderLowest},
		"IPv6, by hash": {"fd00::/64", "fd01::1", snapshot.OrderHash},
	}
	const n = 100_000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, "a", tc.entry)
			p.AssignmentOrder = tc.order
			snap := &snapshot.Snapshot{Pools: []*snapshot.Pool{p}}
			all := newServicesWithClusterIP(n, tc.cluster)
			before := heap()
			l := NewLedger()
			for i := range all {
				decideAndCommitAssignment(t, &all[i], l, snap)
			}
			each := (heap() - before) / n
			t.Logf("%d bytes for each assignment", each)
			if each > 200 {
				t.Errorf("an assignment takes %d bytes, want 200 at most", each)
			}
			runtime.KeepAlive(l)
			runtime.KeepAlive(all)
		})
	}
}
