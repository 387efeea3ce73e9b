package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/fitness"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/layer2test"
	"github.com/gantry-lb/gantry/speaker/members/memberstest"
	"github.com/gantry-lb/gantry/speaker/probing"
)

var (
	serviceKey  = view.ObjectKey{Namespace: "default", Name: "web"}
	serviceIPv4 = netip.MustParseAddr("192.168.0.201")
	serviceIPv6 = netip.MustParseAddr("fd00:a8::201")
	clientIPv4  = netip.MustParseAddr("192.168.0.100")
	clientIPv6  = netip.MustParseAddr("fd00:a8::100")
)

// nodeNames are the nodes of the cluster. Each has a speaker.
var nodeNames = []string{"node1", "node2", "node3", "node4"}

// discardingBGPEngine ignores what is announced by BGP.
type discardingBGPEngine struct{}

func (discardingBGPEngine) SetDesiredState(bgp.DesiredState) {}

// clusterOnLAN is a cluster on a segment in memory, with a client that sends requests for the
// addresses of a Service. It runs in a synctest bubble.
type clusterOnLAN struct {
	t             *testing.T
	segment       *layer2test.LAN
	gossip        *memberstest.FakeGossip
	speakerByName map[string]*testSpeaker

	clientPortByFamily map[ipfamily.Family]layer2.Port // of the client
	// guards answerCountByNode and unsolicitedFramesToClient
	mu                sync.Mutex
	answerCountByNode map[string]int // since the last requestOnceAndListAnswerers
	// unsolicited frames to the client, since the last takeUnsolicitedFramesToClient
	unsolicitedFramesToClient []layer2.ARPOrNDPFrame
}

// testSpeaker is an agent with its engine.
type testSpeaker struct {
	*Agent
	name                      string
	lanHost                   *layer2test.LANHost
	gossipMember              *memberstest.FakeMember
	link                      facts.Link
	linkSetsToAgent           chan facts.LinkSet
	proxy                     *fakeServiceProxy
	serviceProxyHealthUpdates chan bool // whether the service proxy answered
	lastSavedCheckpoint       *Checkpoint
	probeQuestionUpdates      chan []probing.Question
	stop                      func()

	mu                 sync.Mutex // guards the fields below
	lastObservedStatus Status
	allElectionEvents  []elect.Event
	probeAnswers       []probing.Answer
	allTraffic         []observedTraffic
}

// observedTraffic is one of the TrafficFacts, with the addresses that the node answered for then.
type observedTraffic struct {
	TrafficFacts
	answeredAddresses []netip.Addr
}

func (o observedTraffic) isAnswered(a netip.Addr) bool {
	return slices.Contains(o.answeredAddresses, a)
}

// fakeServiceProxy answers the health checks of one node.
type fakeServiceProxy struct {
	changedResults chan []facts.ServiceHealthCheckResult
	mu             sync.Mutex // guards checks
	checks         []intent.HealthCheck
}

func (p *fakeServiceProxy) SetChecks(checks []intent.HealthCheck) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.checks = checks
}

func (p *fakeServiceProxy) ChangedResults() <-chan []facts.ServiceHealthCheckResult {
	return p.changedResults
}

// answerChecks gives one outcome to all present health checks, and returns how many there are.
func (p *fakeServiceProxy) answerChecks(outcome facts.ServiceHealthCheckOutcome) int {
	p.mu.Lock()
	var out []facts.ServiceHealthCheckResult
	for _, c := range p.checks {
		out = append(out, facts.ServiceHealthCheckResult{ID: c.ID, Namespace: c.ServiceNamespace, Name: c.ServiceName, Outcome: outcome})
	}
	p.mu.Unlock()
	p.changedResults <- out
	return len(out)
}

// runInSyncedCluster runs f with a cluster whose speakers know everything.
func runInSyncedCluster(t *testing.T, f func(c *clusterOnLAN)) {
	synctest.Test(t, func(t *testing.T) {
		c := &clusterOnLAN{
			t: t, segment: layer2test.NewLAN(), gossip: memberstest.NewFakeGossip(), speakerByName: map[string]*testSpeaker{},
			clientPortByFamily: map[ipfamily.Family]layer2.Port{}, answerCountByNode: map[string]int{},
		}
		c.openClientPorts()
		for _, n := range nodeNames {
			c.startSpeaker(n, nil)
			c.postClusterState(n)
		}
		time.Sleep(15 * time.Second)
		f(c)
	})
}

// clientMAC is the client's Ethernet address.
var clientMAC = facts.MAC{2, 0, 0, 0, 0, 0x64}

func (c *clusterOnLAN) openClientPorts() {
	host := c.segment.AddHost("client")
	var read sync.WaitGroup
	for _, f := range []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		p, err := host.OpenPort(facts.Link{Index: 1, Name: "eth0", MAC: clientMAC}, f)
		if err != nil {
			c.t.Fatal(err)
		}
		c.clientPortByFamily[f] = p
		read.Go(func() {
			_ = p.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
				c.mu.Lock()
				defer c.mu.Unlock()
				if f.Operation == layer2.Reply && f.EthernetDestination == clientMAC && !f.Unsolicited {
					c.answerCountByNode[c.nodeOfMAC(f.SenderMAC)]++
				} else if f.EthernetDestination == clientMAC {
					c.unsolicitedFramesToClient = append(c.unsolicitedFramesToClient, f)
				}
				return layer2.ARPOrNDPFrame{}, false
			}, nil)
		})
	}
	c.t.Cleanup(func() {
		for _, p := range c.clientPortByFamily {
			_ = p.Close()
		}
		read.Wait()
	})
}

// nodeOfMAC returns the node with the Ethernet address.
func (c *clusterOnLAN) nodeOfMAC(mac facts.MAC) string {
	return fmt.Sprintf("node%d", mac[5])
}

// startSpeaker starts a speaker. checkpoint is that of an earlier run, or nil.
func (c *clusterOnLAN) startSpeaker(name string, checkpoint *Checkpoint) *testSpeaker {
	number := name[len(name)-1] - '0'
	address := netip.AddrFrom4([4]byte{192, 168, 0, 10 + number})
	s := &testSpeaker{
		name: name, linkSetsToAgent: make(chan facts.LinkSet, 8), probeQuestionUpdates: make(chan []probing.Question),
		link: facts.Link{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, number}, AddressesWithPrefixLength: []netip.Prefix{
			netip.PrefixFrom(address, 24), netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:a8::%d", number)), 64),
		}},
	}
	if old := c.speakerByName[name]; old != nil {
		s.lanHost = old.lanHost
	} else {
		s.lanHost = c.segment.AddHost(name)
	}
	c.speakerByName[name] = s
	nonce := uint64(time.Now().UnixNano()) + uint64(number)
	s.gossipMember = c.gossip.Join(name, address, nonce)
	s.serviceProxyHealthUpdates = make(chan bool)
	s.proxy = &fakeServiceProxy{changedResults: make(chan []facts.ServiceHealthCheckResult)}
	engine := layer2.NewEngine(s.lanHost, time.Now)
	s.Agent = New(Options{
		NodeName: name, RunNonce: nonce, ElectionTiming: elect.DefaultTiming(), Layer2Engine: engine, BGPEngine: discardingBGPEngine{}, HealthCheckPoller: s.proxy, GossipMembership: s.gossipMember, LinkUpdates: s.linkSetsToAgent,
		Now: time.Now, Log: slog.New(slog.DiscardHandler), ObserveStatus: s.observeStatus, ObserveTraffic: s.observeTraffic, RestoreFrom: checkpoint,
		ServiceProxyHealthUpdates: s.serviceProxyHealthUpdates, ServiceProxyOptions: fitness.ServiceProxyOptions{IsHealthCheckUsed: true, ProxySilenceTimeout: fitness.DefaultProxySilenceTimeout},
		ProbeQuestionUpdates: s.probeQuestionUpdates, ObserveProbeAnswer: s.observeProbeAnswer,
		SaveCheckpoint: func(m Checkpoint) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lastSavedCheckpoint = &m
		},
	})
	s.linkSetsToAgent <- facts.LinkSet{s.link}
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, part := range []func(context.Context) error{engine.Run, s.Run} {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				c.t.Errorf("a part of %s failed: %v", name, err)
			}
		})
	}
	s.stop = sync.OnceFunc(func() {
		cancel()
		parts.Wait()
		s.gossipMember.Leave()
	})
	c.t.Cleanup(s.stop)
	return s
}

func (s *testSpeaker) observeStatus(status Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastObservedStatus = status
	s.allElectionEvents = append(s.allElectionEvents, status.NewElectionEvents...)
}

// observeTraffic is called by the goroutine that owns the Agent.
func (s *testSpeaker) observeTraffic(f TrafficFacts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allTraffic = append(s.allTraffic, observedTraffic{f, slices.Collect(maps.Keys(s.heldBindingByAddress))})
}

func (s *testSpeaker) observeProbeAnswer(a probing.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probeAnswers = append(s.probeAnswers, a)
}

// lastStatusAndAllEvents returns the last Status, and all Events since the start.
func (s *testSpeaker) lastStatusAndAllEvents() (Status, []elect.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastObservedStatus, slices.Clone(s.allElectionEvents)
}

// exampleSnapshotChange has a pool of both families that every node announces.
func exampleSnapshotChange() PlannerInputChange {
	return NewSnapshotReplacedChange(&snapshot.Snapshot{
		Pools: []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{
			{First: serviceIPv4, Last: serviceIPv4.Next()}, {First: serviceIPv6, Last: serviceIPv6.Next()},
		}}},
		L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}}},
	})
}

func exampleServiceChange() PlannerInputChange {
	return NewServiceUpsertedChange(view.Service{
		Key: serviceKey, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{serviceIPv4, serviceIPv6},
	})
}

func exampleEndpointsChange() PlannerInputChange {
	return NewEndpointsReplacedChange(view.Endpoints{
		Service: serviceKey, AnyServing: true, ServingNodes: []string{"node4"}, ReadyNodes: []string{"node4"},
	})
}

// postClusterState posts the whole cluster state to a speaker.
func (c *clusterOnLAN) postClusterState(name string) {
	all := []PlannerInputChange{exampleSnapshotChange(), exampleServiceChange(), exampleEndpointsChange()}
	for _, n := range nodeNames {
		all = append(all, NewNodeUpsertedChange(view.Node{Name: n}))
	}
	c.speakerByName[name].PostChanges(c.t.Context(), append(all, NewClusterSyncedChange())...)
}

// requestOnceAndListAnswerers sends one request for an address. It returns the nodes that answer
// within a millisecond.
func (c *clusterOnLAN) requestOnceAndListAnswerers(a netip.Addr) []string {
	c.t.Helper()
	c.mu.Lock()
	clear(c.answerCountByNode)
	c.mu.Unlock()
	asker := clientIPv4
	if a.Is6() {
		asker = clientIPv6
	}
	err := c.clientPortByFamily[ipfamily.FamilyOf(a)].WriteFrame(layer2.ARPOrNDPFrame{
		EthernetDestination: layer2.RequestDestinationMAC(a), EthernetSource: clientMAC, Operation: layer2.Request,
		SenderMAC: clientMAC, SenderIP: asker, TargetIP: a,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for n := range c.answerCountByNode {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// measureLongestAnswerGap sends requests for the given time. It returns the longest time without an
// answer, and the nodes that answered in order of time.
func (c *clusterOnLAN) measureLongestAnswerGap(a netip.Addr, d time.Duration) (gap time.Duration, order []string) {
	c.t.Helper()
	last := time.Now()
	for end := last.Add(d); time.Now().Before(end); {
		who := c.requestOnceAndListAnswerers(a)
		if text := strings.Join(who, "+"); text != "" && (len(order) == 0 || order[len(order)-1] != text) {
			order = append(order, text)
		}
		if now := time.Now(); len(who) > 0 {
			last = now
		}
		gap = max(gap, time.Since(last))
	}
	return gap, order
}

// requireOneAnsweringSpeaker returns the node that answers for the address. It fails unless exactly
// one does.
func (c *clusterOnLAN) requireOneAnsweringSpeaker(a netip.Addr) *testSpeaker {
	c.t.Helper()
	who := c.requestOnceAndListAnswerers(a)
	if len(who) != 1 {
		c.t.Fatalf("%v answer for %s, want one node\n%s%s", who, a, c.segment, c.gossip)
	}
	return c.speakerByName[who[0]]
}

// takeUnsolicitedFramesToClient returns the frames sent to the client since the last call, without
// answers.
func (c *clusterOnLAN) takeUnsolicitedFramesToClient() []layer2.ARPOrNDPFrame {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.unsolicitedFramesToClient
	c.unsolicitedFramesToClient = nil
	return out
}

// disconnectNode cuts a node off. Gossip does not learn of it.
func (s *testSpeaker) disconnectNode() {
	s.lanHost.Disconnect()
	s.gossipMember.LoseAllMessages()
}

// takeoverCountAndSeconds returns the number of takeovers in the speaker's histogram, and the sum
// of their durations.
func (s *testSpeaker) takeoverCountAndSeconds(t *testing.T) (count uint64, seconds float64) {
	t.Helper()
	families, err := s.metricsRegistry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "gantry_speaker_takeover_seconds" {
			h := f.GetMetric()[0].GetHistogram()
			return h.GetSampleCount(), h.GetSampleSum()
		}
	}
	t.Fatal("the takeover histogram is missing")
	return 0, 0
}

// electionEventCount returns the speaker's counter for an event and a reason.
func (s *testSpeaker) electionEventCount(t *testing.T, event string, reason names.Reason) float64 {
	t.Helper()
	families, err := s.metricsRegistry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			l := m.GetLabel()
			if f.GetName() == "gantry_speaker_moves_total" && l[0].GetValue() == event && l[1].GetValue() == string(reason) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (s *testSpeaker) metricsRegistry(t *testing.T) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(s.Agent); err != nil {
		t.Fatal(err)
	}
	return r
}
