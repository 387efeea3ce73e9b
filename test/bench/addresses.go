package main

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// A rate is measured over measuredProcessorTimeInterval of processor time, assignmentsPerBatch
// things at a time.
const (
	measuredProcessorTimeInterval = time.Second
	assignmentsPerBatch           = 1000
)

// measureAllocator measures the allocator without the rest of the controller, on one core and in
// processor time, so that other load on the machine matters less. It decides and records each
// Service of a batch, with different numbers of addresses in use. Releasing them is not measured.
// The baseline is a plain Go map from address to name that gets the same number of entries.
func measureAllocator(_ context.Context, _ string) error {
	runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(runtime.NumCPU())
	cases := []struct {
		name, entry, cluster string
		held, others         int
		order                snapshot.AssignmentOrder
	}{
		{"empty /8", "10.0.0.0/8", "10.96.0.9", 0, 0, snapshot.OrderLowest},
		{"/8 with 1,000,000", "10.0.0.0/8", "10.96.0.9", 1_000_000, 0, snapshot.OrderLowest},
		{"/8 with 1,000,000, round robin", "10.0.0.0/8", "10.96.0.9", 1_000_000, 0, snapshot.OrderRoundRobin},
		{"/8 with 1,000,000, by hash", "10.0.0.0/8", "10.96.0.9", 1_000_000, 0, snapshot.OrderHash},
		{"/12, all but 1,000 held", "10.0.0.0/12", "10.96.0.9", 1<<20 - assignmentsPerBatch, 0, snapshot.OrderLowest},
		{"/8 with 100,000, and 1,000 pools for others", "10.0.0.0/8", "10.96.0.9", 100_000, 1000, snapshot.OrderLowest},
		{"IPv6 /64 with 100,000", "fd00::/64", "fd01::1", 100_000, 0, snapshot.OrderLowest},
		{"IPv6 /64 with 100,000, by hash", "fd00::/64", "fd01::1", 100_000, 0, snapshot.OrderHash},
	}
	for _, c := range cases {
		snap, err := newSnapshotWithOneUsablePool(c.entry, c.order, c.others)
		if err != nil {
			return err
		}
		all := newServiceViews(c.held+assignmentsPerBatch, c.cluster)
		before := heapBytesInUse()
		l := allocate.NewLedger()
		for i := range all[:c.held] {
			if err := decideAndCommitAssignment(l, &all[i], snap); err != nil {
				return err
			}
		}
		each := ""
		if c.held > 0 {
			each = fmt.Sprintf("  %4d bytes each", (heapBytesInUse()-before)/uint64(c.held))
		}
		fresh := all[c.held:]
		var failed error
		ours := measureRatePerProcessorSecond(func() {
			for i := range fresh {
				if err := decideAndCommitAssignment(l, &fresh[i], snap); err != nil {
					failed = err
				}
			}
		}, func() {
			for i := range fresh {
				l.ReleaseService(fresh[i].Key)
			}
		})
		if failed != nil {
			return failed
		}
		baseline, first := newServiceNameByAddressMap(all[:c.held])
		theirs := measureRatePerProcessorSecond(func() {
			a := first
			for i := range fresh {
				baseline[a] = fresh[i].Key.Name
				a = a.Next()
			}
		}, func() {
			a := first
			for range fresh {
				delete(baseline, a)
				a = a.Next()
			}
		})
		fmt.Printf("%-64s %8.2f million/s%s\n", "assignments, "+c.name, ours/1e6, each)
		fmt.Printf("%-64s %8.2f million/s\n", "  a plain Go map with as many entries", theirs/1e6)
	}
	return nil
}

// newSnapshotWithOneUsablePool returns a pool with the entry, and others that admit other
// namespaces only.
func newSnapshotWithOneUsablePool(entry string, order snapshot.AssignmentOrder, others int) (*snapshot.Snapshot, error) {
	r, err := snapshot.ParseRange(entry)
	if err != nil {
		return nil, err
	}
	out := &snapshot.Snapshot{Pools: []*snapshot.Pool{{Name: "a", AutoAssign: true, Ranges: []snapshot.Range{r}, AssignmentOrder: order}}}
	for i := range others {
		r, err := snapshot.ParseRange(fmt.Sprintf("172.%d.%d.0/24", 16+i/256, i%256))
		if err != nil {
			return nil, err
		}
		out.Pools = append(out.Pools, &snapshot.Pool{
			Name: fmt.Sprintf("other-%04d", i), AutoAssign: true, Ranges: []snapshot.Range{r},
			ServiceAllocation: &snapshot.ServiceAllocation{Namespaces: []string{fmt.Sprint("team-", i)}, OnlyListedNamespaces: true},
		})
	}
	return out, nil
}

// newServiceViews returns n Services that differ only in their names.
func newServiceViews(n int, clusterIP string) []view.Service {
	ip := []netip.Addr{netip.MustParseAddr(clusterIP)}
	out := make([]view.Service, n)
	for i := range out {
		out[i] = view.Service{
			Key: view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("service-%07d", i)}, IsLoadBalancer: true, ClusterIPs: ip,
			PrimaryFamily: ipfamily.FamilyOf(ip[0]), FamilyPolicy: view.SingleStack, Ports: []view.Port{{Protocol: "TCP", Number: 80}},
		}
	}
	return out
}

func decideAndCommitAssignment(l *allocate.Ledger, s *view.Service, snap *snapshot.Snapshot) error {
	d := allocate.DecideAssignment(s, l, snap)
	if len(d.Addresses) == 0 {
		return fmt.Errorf("%s got no address: %s", s.Key, d.Text)
	}
	l.CommitAssignment(s, d.Addresses, d.PoolOfFirstAddress)
	return nil
}

// newServiceNameByAddressMap returns a map with an entry for each Service, and the first address
// after them.
func newServiceNameByAddressMap(all []view.Service) (map[netip.Addr]string, netip.Addr) {
	out := map[netip.Addr]string{}
	a := netip.MustParseAddr("10.0.0.0")
	for i := range all {
		out[a] = all[i].Key.Name
		a = a.Next()
	}
	return out, a
}

// measureRatePerProcessorSecond returns how many things per second of processor time do processes,
// assignmentsPerBatch in each call. It calls undo in between and does not measure it.
func measureRatePerProcessorSecond(do, undo func()) float64 {
	n, spent := 0, time.Duration(0)
	do() // allocates the memory that later calls reuse
	undo()
	for spent < measuredProcessorTimeInterval {
		start := processorTime()
		do()
		spent += processorTime() - start
		n += assignmentsPerBatch
		undo()
	}
	return float64(n) / spent.Seconds()
}

// processorTime returns the processor time of this process so far, including garbage collection.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heapBytesInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
