package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// The size of the cluster, and how often each thing is measured.
const (
	planningServiceCount      = 10000
	planningNodeCount         = 100
	planningSingleChangeCount = 2000
	planningFullPlanCount     = 20
)

// threadProcessorTime returns the processor time of the calling thread. The main goroutine has a
// thread of its own.
func threadProcessorTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// measurePlanning measures how long a speaker of a large cluster plans after a change of one
// Service, and after one that affects all Services. It needs no lab.
func measurePlanning() error {
	first := netip.MustParseAddr("10.0.0.0")
	p := plan.NewPlanner(plan.Inputs{SelfNode: "node-000", Snapshot: &snapshot.Snapshot{
		Pools:            []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: first, Last: netip.MustParseAddr("10.255.255.255")}}}},
		L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}}},
	}})
	for i := range planningNodeCount {
		p.SetNode(view.Node{Name: fmt.Sprintf("node-%03d", i)})
	}
	key := func(i int) view.ObjectKey {
		return view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("service-%05d", i)}
	}
	endpoints := func(i int) view.Endpoints {
		return view.Endpoints{Service: key(i), AnyServing: true, ServingNodes: []string{"node-001"}, ReadyNodes: []string{"node-001"}}
	}
	a := first
	for i := range planningServiceCount {
		a = a.Next()
		p.SetService(view.Service{Key: key(i), IsLoadBalancer: true, AssignedAddresses: []netip.Addr{a}})
		p.SetEndpoints(endpoints(i))
	}
	if got := len(p.Update().ChangedBids); got != planningServiceCount {
		return fmt.Errorf("%d addresses are planned, want %d", got, planningServiceCount)
	}
	var one, busy, all []time.Duration
	for i := range planningSingleChangeCount {
		k := i * 7 % planningServiceCount
		if i%2 == 1 { // the endpoints that the last change removed come back
			p.SetEndpoints(endpoints((i - 1) * 7 % planningServiceCount))
		} else {
			p.SetEndpoints(view.Endpoints{Service: key(k)})
		}
		worked, begun := threadProcessorTime(), time.Now()
		if d := p.Update(); len(d.ChangedBids)+len(d.AddressesWithoutBid) != 1 {
			return fmt.Errorf("a change of one Service changed %d addresses", len(d.ChangedBids)+len(d.AddressesWithoutBid))
		}
		one, busy = append(one, time.Since(begun)), append(busy, threadProcessorTime()-worked)
	}
	for i := range planningFullPlanCount {
		p.SetNode(view.Node{Name: "node-new", IsExcluded: i%2 == 0})
		begun := time.Now()
		p.Update()
		all = append(all, time.Since(begun))
	}
	slices.Sort(one)
	slices.Sort(busy)
	fmt.Printf("%-64s median %.0f, longest %.0f us; in processor time %.0f and %.0f us (n=%d)\n", fmt.Sprintf("planning a change of one of %d Services", planningServiceCount),
		inMicroseconds(one[len(one)/2]), inMicroseconds(one[len(one)-1]), inMicroseconds(busy[len(busy)/2]), inMicroseconds(busy[len(busy)-1]), len(one))
	printMinMedianAndMax("planning all of them again, as after a new node", all)
	return nil
}
