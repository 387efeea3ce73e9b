package steering

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

var (
	start  = time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)
	v4, v6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	webKey = view.ObjectKey{Namespace: "default", Name: "web"}
)

// podOnNode returns an endpoint: the Pod of node n.
func podOnNode(n int) view.SliceEndpoint {
	return view.SliceEndpoint{Address: netip.AddrFrom4([4]byte{10, 244, byte(n), 2}), Node: fmt.Sprintf("node%d", n), IsReady: true}
}

func sliceOf(port uint16, endpoints ...view.SliceEndpoint) view.EndpointSlice {
	return view.EndpointSlice{WithAddresses: &view.SliceEndpoints{
		Ports: []view.TrafficPort{{Name: "http", Port: view.Port{Protocol: "TCP", Number: port}}}, Endpoints: endpoints,
	}}
}

func trafficOn(number uint16) *view.ServiceTraffic {
	return &view.ServiceTraffic{Ports: []view.TrafficPort{{Name: "http", Port: view.Port{Protocol: "TCP", Number: number}}}}
}

// inputs returns a Service with a Pod on node1 to node3, of which node3 has just died.
func inputs(change ...func(*Inputs, *Service)) Inputs {
	s := &Service{Addresses: []netip.Addr{v4}, Traffic: trafficOn(80), Slices: []view.EndpointSlice{sliceOf(8080, podOnNode(1), podOnNode(2), podOnNode(3))}}
	in := Inputs{
		Services: map[view.ObjectKey]*Service{webKey: s}, DeadSinceByNode: map[string]time.Time{"node3": start},
		LinkIndexesByAddress: map[netip.Addr][]int{v4: {2}, v6: {2, 3}},
	}
	for _, c := range change {
		c(&in, s)
	}
	return in
}

func endpoints(texts ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, t := range texts {
		out = append(out, netip.MustParseAddrPort(t))
	}
	return out
}

func steeredWeb() intent.SteeredPort {
	return intent.SteeredPort{
		ServiceAddressPort: intent.ServiceAddressPort{Address: v4, Protocol: intent.TCP, Port: 80}, LinkIndexes: []int{2},
		LivingEndpoints: endpoints("10.244.1.2:8080", "10.244.2.2:8080"), DeadEndpoints: endpoints("10.244.3.2:8080"), Until: start.Add(time.Minute),
	}
}

func compareSteering(t *testing.T, got intent.Steering, want ...intent.SteeredPort) {
	t.Helper()
	if !got.IsSameAs(want) {
		t.Errorf("steered are\n%v\nwant\n%v", got, want)
	}
}

func TestDecideSteersAroundDeadNode(t *testing.T) {
	edit := func(f func(*intent.SteeredPort)) []intent.SteeredPort {
		p := steeredWeb()
		f(&p)
		return []intent.SteeredPort{p}
	}
	for name, tc := range map[string]struct {
		change func(*Inputs, *Service)
		want   []intent.SteeredPort
	}{
		"the living endpoints get the connections": {func(*Inputs, *Service) {}, []intent.SteeredPort{steeredWeb()}},
		"no node is dead":                          {func(in *Inputs, _ *Service) { in.DeadSinceByNode = nil }, nil},
		"a node without an endpoint is dead":       {func(in *Inputs, _ *Service) { in.DeadSinceByNode = map[string]time.Time{"node4": start} }, nil},
		"all endpoints are dead": {func(_ *Inputs, s *Service) {
			s.Slices = []view.EndpointSlice{sliceOf(8080, podOnNode(3))}
		}, nil},
		"kube-proxy does not serve the Service":    {func(_ *Inputs, s *Service) { s.Traffic = nil }, nil},
		"this node does not announce the address":  {func(in *Inputs, _ *Service) { in.LinkIndexesByAddress = nil }, nil},
		"the dead node has been dead for a minute": {func(in *Inputs, _ *Service) { in.DeadSinceByNode["node3"] = start.Add(-time.Minute) }, nil},
		"no endpoint has the address's family":     {func(_ *Inputs, s *Service) { s.Addresses = []netip.Addr{v6} }, nil},
		"the port's name is in no slice":           {func(_ *Inputs, s *Service) { s.Traffic.Ports[0].Name = "other" }, nil},
		"the endpoints' protocol is another one":   {func(_ *Inputs, s *Service) { s.Traffic.Ports[0].Protocol = "UDP" }, nil},
		"the port's protocol is unknown":           {func(_ *Inputs, s *Service) { s.Traffic.Ports[0].Protocol = "DCCP" }, nil},
		"an endpoint on an unknown node counts as living": {func(_ *Inputs, s *Service) { s.Slices[0].WithAddresses.Endpoints[1].Node = "" },
			[]intent.SteeredPort{steeredWeb()}},
		"source ranges of the family restrict the clients": {func(_ *Inputs, s *Service) {
			s.Traffic.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8::/32")}
		}, edit(func(p *intent.SteeredPort) { p.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} })},
		"the Service has session affinity": {func(_ *Inputs, s *Service) { s.Traffic.HasClientAffinity = true },
			edit(func(p *intent.SteeredPort) { p.HasClientAffinity = true })},
		"a terminating endpoint is not chosen while others are ready": {func(_ *Inputs, s *Service) { s.Slices[0].WithAddresses.Endpoints[1].IsReady = false },
			edit(func(p *intent.SteeredPort) { p.LivingEndpoints = endpoints("10.244.1.2:8080") })},
		"the only living endpoints terminate": {func(_ *Inputs, s *Service) {
			s.Slices[0].WithAddresses.Endpoints[0].IsReady, s.Slices[0].WithAddresses.Endpoints[1].IsReady = false, false
		}, []intent.SteeredPort{steeredWeb()}},
		"a dead endpoint that terminates gets nothing anyway": {func(_ *Inputs, s *Service) { s.Slices[0].WithAddresses.Endpoints[2].IsReady = false }, nil},
		"two nodes are dead": {func(in *Inputs, _ *Service) { in.DeadSinceByNode["node1"] = start.Add(-2 * time.Minute) },
			edit(func(p *intent.SteeredPort) {
				p.LivingEndpoints, p.DeadEndpoints = endpoints("10.244.2.2:8080"), endpoints("10.244.1.2:8080", "10.244.3.2:8080")
			})},
		"Pods have different numbers for one named target port": {func(_ *Inputs, s *Service) {
			s.Slices = []view.EndpointSlice{sliceOf(8080, podOnNode(1), podOnNode(3)), sliceOf(9090, podOnNode(2))}
		}, edit(func(p *intent.SteeredPort) { p.LivingEndpoints = endpoints("10.244.1.2:8080", "10.244.2.2:9090") })},
	} {
		t.Run(name, func(t *testing.T) {
			compareSteering(t, Decide(inputs(tc.change), Outcome{}, start.Add(time.Second)).Steering, tc.want...)
		})
	}
}

func TestDecideSteersPortsOfBothFamiliesAndOfSharedAddresses(t *testing.T) {
	in := inputs(func(in *Inputs, s *Service) {
		s.Addresses = []netip.Addr{v6, v4}
		var pods []view.SliceEndpoint
		for _, e := range s.Slices[0].WithAddresses.Endpoints {
			b := netip.MustParseAddr("fd00::").As16()
			b[15] = e.Address.As4()[2]
			e.Address = netip.AddrFrom16(b)
			pods = append(pods, e)
		}
		s.Slices = append(s.Slices, sliceOf(8080, pods...))
		other := &Service{Addresses: []netip.Addr{v4}, Traffic: trafficOn(81), Slices: s.Slices}
		double := &Service{Addresses: []netip.Addr{v4}, Traffic: trafficOn(80), Slices: []view.EndpointSlice{sliceOf(1, podOnNode(1), podOnNode(3))}}
		in.Services[view.ObjectKey{Namespace: "default", Name: "other"}], in.Services[view.ObjectKey{Namespace: "later", Name: "double"}] = other, double
	})
	onPort81, onIPv6 := steeredWeb(), steeredWeb()
	onPort81.Port, onIPv6.Address, onIPv6.LinkIndexes = 81, v6, []int{2, 3}
	onIPv6.LivingEndpoints, onIPv6.DeadEndpoints = endpoints("[fd00::1]:8080", "[fd00::2]:8080"), endpoints("[fd00::3]:8080")
	compareSteering(t, Decide(in, Outcome{}, start).Steering, steeredWeb(), onPort81, onIPv6)
}

func TestDecideEndsSteering(t *testing.T) {
	steered := Decide(inputs(), Outcome{}, start)
	withoutDead := func(_ *Inputs, s *Service) {
		s.Slices = []view.EndpointSlice{sliceOf(8080, podOnNode(1), podOnNode(2))}
	}

	t.Run("after a minute", func(t *testing.T) {
		if want := start.Add(time.Minute); !steered.NextDueAt.Equal(want) {
			t.Errorf("the next decision is due at %v, want %v", steered.NextDueAt, want)
		}
		compareSteering(t, Decide(inputs(), steered, start.Add(59*time.Second)).Steering, steeredWeb())
		compareSteering(t, Decide(inputs(), steered, start.Add(60*time.Second)).Steering)
	})
	t.Run("at once when the node is back", func(t *testing.T) {
		back := inputs(func(in *Inputs, _ *Service) { in.DeadSinceByNode = map[string]time.Time{"node4": start} })
		compareSteering(t, Decide(back, steered, start.Add(time.Second)).Steering)
	})
	t.Run("when kube-proxy had time to follow the EndpointSlices", func(t *testing.T) {
		released := Decide(inputs(withoutDead), steered, start.Add(40*time.Second))
		compareSteering(t, released.Steering, steeredWeb())
		if want := start.Add(45 * time.Second); !released.NextDueAt.Equal(want) {
			t.Errorf("the next decision is due at %v, want %v", released.NextDueAt, want)
		}
		still := Decide(inputs(withoutDead), released, start.Add(44*time.Second))
		compareSteering(t, still.Steering, steeredWeb())
		ended := Decide(inputs(withoutDead), still, start.Add(45*time.Second))
		compareSteering(t, ended.Steering)
		compareSteering(t, Decide(inputs(withoutDead), ended, start.Add(46*time.Second)).Steering)
	})
	t.Run("after a minute though kube-proxy had no time", func(t *testing.T) {
		released := Decide(inputs(withoutDead), steered, start.Add(58*time.Second))
		compareSteering(t, Decide(inputs(withoutDead), released, start.Add(time.Minute)).Steering)
	})
	t.Run("new Pods get connections while kube-proxy follows", func(t *testing.T) {
		released := Decide(inputs(func(_ *Inputs, s *Service) {
			s.Slices = []view.EndpointSlice{sliceOf(8080, podOnNode(2), podOnNode(4))}
		}), steered, start.Add(40*time.Second))
		want := steeredWeb()
		want.LivingEndpoints = endpoints("10.244.2.2:8080", "10.244.4.2:8080")
		compareSteering(t, released.Steering, want)
	})
}

func TestAnsweredUDPFlowsMoveWhenTheirNodeIsDeadForLong(t *testing.T) {
	in := inputs(func(in *Inputs, s *Service) {
		s.Traffic.Ports[0].Protocol = "UDP"
		s.Slices[0].WithAddresses.Ports[0].Protocol = "UDP"
		in.DeadSinceByNode["node2"] = start.Add(time.Second)
	})
	var last Outcome
	for _, step := range []struct {
		after time.Duration
		want  []netip.AddrPort
		dueIn time.Duration
	}{
		{time.Second, nil, 3 * time.Second}, {3 * time.Second, endpoints("10.244.3.2:8080"), 4 * time.Second},
		{4 * time.Second, endpoints("10.244.2.2:8080", "10.244.3.2:8080"), 61 * time.Second},
	} {
		last = Decide(in, last, start.Add(step.after))
		if len(last.Steering) != 1 || !slices.Equal(last.Steering[0].LongDeadEndpoints, step.want) {
			t.Errorf("after %v steered is %v, want the answered flows to %v to move", step.after, last.Steering, step.want)
		}
		if want := start.Add(step.dueIn); !last.NextDueAt.Equal(want) {
			t.Errorf("after %v the next decision is due at %v, want %v", step.after, last.NextDueAt, want)
		}
	}
}

func TestDecideBoundsEndpointsOfOnePort(t *testing.T) {
	in := inputs(func(_ *Inputs, s *Service) {
		all := []view.SliceEndpoint{podOnNode(3)}
		for i := range 1000 {
			all = append(all, view.SliceEndpoint{Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Node: "node1", IsReady: true})
		}
		s.Slices = []view.EndpointSlice{sliceOf(8080, all...)}
	})
	got := Decide(in, Outcome{}, start).Steering
	if len(got) != 1 || len(got[0].LivingEndpoints) != maxLivingEndpoints {
		t.Fatalf("steered are %v, want one port with %d endpoints", got, maxLivingEndpoints)
	}
	if !slices.IsSortedFunc(got[0].LivingEndpoints, netip.AddrPort.Compare) || len(slices.Compact(got[0].LivingEndpoints)) != maxLivingEndpoints {
		t.Errorf("the endpoints are not sorted, or some are there twice: %v", got[0].LivingEndpoints)
	}
}

func TestFollowDeaths(t *testing.T) {
	all := []string{"node1", "node2"}
	one := FollowDeaths(nil, all, []string{"node2"}, nil, start)
	for name, tc := range map[string]struct {
		members, silent []string
		after           time.Duration
		want            map[string]time.Time
	}{
		"it is still silent":         {all, []string{"node2"}, time.Second, map[string]time.Time{"node2": start}},
		"it is no member any more":   {[]string{"node1"}, nil, time.Second, map[string]time.Time{"node2": start}},
		"it is silent for very long": {all, []string{"node2"}, time.Hour, map[string]time.Time{"node2": start}},
		"it lives":                   {all, nil, time.Second, map[string]time.Time{}},
		"it never comes back":        {[]string{"node1"}, nil, time.Hour, map[string]time.Time{}},
		"another one dies":           {all, all, time.Second, map[string]time.Time{"node2": start, "node1": start.Add(time.Second)}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, FollowDeaths(one, tc.members, tc.silent, nil, start.Add(tc.after))); diff != "" {
				t.Error("the dead nodes differ (-want +got):\n", diff)
			}
		})
	}
	if gone := FollowDeaths(nil, []string{"node1"}, nil, nil, start); len(gone) != 0 {
		t.Errorf("a node that left in order counts as dead: %v", gone)
	}
}

func TestMemberThatVanishesIsDead(t *testing.T) {
	vanishedAt := map[string]time.Time{"node2": start}
	for name, tc := range map[string]struct {
		before  map[string]time.Time
		members []string
		after   time.Duration
		want    map[string]time.Time
	}{
		"it vanished just now":                    {nil, []string{"node1"}, time.Second, vanishedAt},
		"it vanished long ago":                    {nil, []string{"node1"}, time.Hour, map[string]time.Time{}},
		"it is back":                              {vanishedAt, []string{"node1", "node2"}, time.Second, map[string]time.Time{}},
		"it was declared dead before it vanished": {map[string]time.Time{"node2": start.Add(-time.Second)}, []string{"node1"}, time.Second, map[string]time.Time{"node2": start.Add(-time.Second)}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, FollowDeaths(tc.before, tc.members, nil, vanishedAt, start.Add(tc.after))); diff != "" {
				t.Error("the dead nodes differ (-want +got):\n", diff)
			}
		})
	}
}
