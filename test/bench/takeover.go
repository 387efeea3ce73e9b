package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/healthcheck"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/members/memberstest"
	"github.com/gantry-lb/gantry/test/lab/netns"
)

// takeoverNodeCount is the number of nodes with speakers.
const takeoverNodeCount = 4

// measureTakeover measures how long it takes until another node has announced each of the many
// addresses of a node that is cut off. Agents and engines use real sockets on virtual cables; only
// their gossip is in memory.
func measureTakeover(ctx context.Context) error {
	for _, c := range []struct {
		addresses int
		onlyFirst bool
	}{{1000, false}, {10000, true}} {
		if err := measureTakeoverAfterCut(ctx, c.addresses, c.onlyFirst); err != nil {
			return fmt.Errorf("with %d addresses: %w", c.addresses, err)
		}
	}
	return nil
}

// takeoverTestLAN has speakers on a LAN segment and a host that listens.
type takeoverTestLAN struct {
	gossip          *memberstest.FakeGossip
	bridgeNamespace netns.Path
	agents          []*agent.Agent
	members         []*memberstest.FakeMember
	speakerMACs     []facts.MAC
	releaseFuncs    []func()

	// guards firstAnnouncementTimesByAddress: when each speaker first announced an address, since
	// it was last cleared
	mu                              sync.Mutex
	firstAnnouncementTimesByAddress map[netip.Addr]map[facts.MAC]time.Time
}

// measureTakeoverAfterCut assigns addresses to the nodes, or all of them to the first if onlyFirst
// is true, and cuts the first node off.
func measureTakeoverAfterCut(ctx context.Context, addresses int, onlyFirst bool) error {
	ctx, cancel := context.WithCancel(ctx)
	c := &takeoverTestLAN{gossip: memberstest.NewFakeGossip(), firstAnnouncementTimesByAddress: map[netip.Addr]map[facts.MAC]time.Time{}}
	var parts sync.WaitGroup
	defer func() {
		cancel()
		parts.Wait()
		c.releaseNamespaces()
	}()
	if err := c.buildLANAndStartSpeakers(ctx, &parts); err != nil {
		return err
	}
	// The first speaker found no other members, and takes no address before it has waited for them.
	if err := sleepUnlessCancelled(ctx, 6*elect.DefaultTiming().StartupWithoutMembersDelay); err != nil {
		return err
	}
	all := c.configureSpeakersWithServices(ctx, addresses, onlyFirst)
	if err := c.awaitAnnouncements(ctx, all, func(facts.MAC) bool { return true }); err != nil {
		return fmt.Errorf("waiting for every address to be announced: %w", err)
	}
	if onlyFirst {
		for i := range takeoverNodeCount {
			for _, a := range c.agents {
				a.PostChanges(ctx, agent.NewNodeUpsertedChange(view.Node{Name: nodeName(i)}))
			}
		}
	}
	// until the bursts are over
	if err := sleepUnlessCancelled(ctx, 6*time.Second+time.Duration(addresses)*time.Millisecond); err != nil {
		return err
	}
	dead := c.speakerMACs[0]
	lost := map[netip.Addr]bool{}
	c.mu.Lock()
	for a := range all {
		if last := lastAnnouncingMAC(c.firstAnnouncementTimesByAddress[a]); last == dead {
			lost[a] = true
		}
	}
	c.firstAnnouncementTimesByAddress = map[netip.Addr]map[facts.MAC]time.Time{}
	c.mu.Unlock()
	begun := time.Now()
	if err := c.bridgeNamespace.RunInside(func() error { return netns.AttachLinkToBridge("p0", "") }); err != nil {
		return err
	}
	c.members[0].LoseAllMessages()
	if err := c.awaitAnnouncements(ctx, lost, func(m facts.MAC) bool { return m != dead }); err != nil {
		return fmt.Errorf("waiting for the addresses of the dead node: %w", err)
	}
	var waits []time.Duration
	c.mu.Lock()
	defer c.mu.Unlock()
	for a := range lost {
		for _, at := range c.firstAnnouncementTimesByAddress[a] {
			waits = append(waits, at.Sub(begun))
		}
	}
	printMinMedianAndMax(fmt.Sprintf("announced by another node: %d of %d addresses on %d nodes", len(lost), addresses, takeoverNodeCount), waits)
	if others := len(c.firstAnnouncementTimesByAddress) - len(lost); others > 0 {
		fmt.Printf("  %d addresses moved that the dead node did not hold\n", others)
	}
	return nil
}

func sleepUnlessCancelled(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// lastAnnouncingMAC returns the speaker that announced an address last.
func lastAnnouncingMAC(by map[facts.MAC]time.Time) facts.MAC {
	var last facts.MAC
	var at time.Time
	for m, t := range by {
		if t.After(at) {
			last, at = m, t
		}
	}
	return last
}

// newNamespace creates a network namespace, which is released with the others.
func (c *takeoverTestLAN) newNamespace() (netns.Path, error) {
	h, release, err := netns.NewUnnamed()
	if err == nil {
		c.releaseFuncs = append(c.releaseFuncs, release)
	}
	return h, err
}

// releaseNamespaces releases all network namespaces.
func (c *takeoverTestLAN) releaseNamespaces() {
	for _, release := range c.releaseFuncs {
		release()
	}
}

// buildLANAndStartSpeakers creates the segment and starts the speakers and the listener.
func (c *takeoverTestLAN) buildLANAndStartSpeakers(ctx context.Context, parts *sync.WaitGroup) error {
	var err error
	if c.bridgeNamespace, err = c.newNamespace(); err != nil {
		return err
	}
	if err := c.bridgeNamespace.RunInside(func() error { return netns.AddBridge("lan") }); err != nil {
		return err
	}
	for i := range takeoverNodeCount + 1 { // the last one is the listener
		host, err := c.newNamespace()
		if err != nil {
			return err
		}
		l, err := c.connectHost(host, i)
		if err != nil {
			return err
		}
		if i == takeoverNodeCount {
			return c.recordFirstAnnouncementTimes(ctx, host, l, parts)
		}
		c.startSpeaker(ctx, host, l, parts)
	}
	return nil
}

// connectHost connects a host to the segment.
func (c *takeoverTestLAN) connectHost(host netns.Path, i int) (facts.Link, error) {
	port := fmt.Sprintf("p%d", i)
	address := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 255, byte(1 + i)}), 16)
	l := facts.Link{Name: "eth0", AddressesWithPrefixLength: []netip.Prefix{address}}
	err := errors.Join(netns.AddCable(c.bridgeNamespace, port, host, l.Name), c.bridgeNamespace.RunInside(func() error {
		return errors.Join(netns.AttachLinkToBridge(port, "lan"), netns.SetLinkUp(port))
	}), host.RunInside(func() error {
		if err := errors.Join(netns.SetLinkUp(l.Name), netns.AddAddress(l.Name, address)); err != nil {
			return err
		}
		ifi, err := net.InterfaceByName(l.Name)
		if err == nil {
			l.Index, l.MAC = ifi.Index, facts.MAC(ifi.HardwareAddr)
		}
		return err
	}))
	return l, err
}

// startSpeaker starts the parts of a speaker that need no API server.
func (c *takeoverTestLAN) startSpeaker(ctx context.Context, host netns.Path, l facts.Link, parts *sync.WaitGroup) {
	name := nodeName(len(c.agents))
	member := c.gossip.Join(name, l.AddressesWithPrefixLength[0].Addr(), uint64(len(c.agents)+1))
	engine := layer2.NewEngine(wire.PacketSocketOpener{}, time.Now)
	links := make(chan facts.LinkSet, 1)
	links <- facts.LinkSet{l}
	a := agent.New(agent.Options{
		NodeName: name, RunNonce: uint64(len(c.agents) + 1), ElectionTiming: elect.DefaultTiming(), Layer2Engine: engine, BGPEngine: noOpBGPEngine{}, GossipMembership: member,
		HealthCheckPoller: healthcheck.NewPoller(time.Now, slog.New(slog.DiscardHandler)),
		LinkUpdates:       links, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	c.agents, c.members, c.speakerMACs = append(c.agents, a), append(c.members, member), append(c.speakerMACs, l.MAC)
	parts.Go(func() { _ = host.RunInside(func() error { return engine.Run(ctx) }) })
	parts.Go(func() { _ = a.Run(ctx) })
}

// noOpBGPEngine is a BGP engine that does nothing.
type noOpBGPEngine struct{}

// SetDesiredState does nothing.
func (noOpBGPEngine) SetDesiredState(bgp.DesiredState) {}

// recordFirstAnnouncementTimes records when each speaker first announces an address.
func (c *takeoverTestLAN) recordFirstAnnouncementTimes(ctx context.Context, host netns.Path, l facts.Link, parts *sync.WaitGroup) error {
	var port layer2.Port
	if err := host.RunInside(func() (err error) {
		port, err = wire.PacketSocketOpener{}.OpenPort(l, ipfamily.IPv4)
		return err
	}); err != nil {
		return err
	}
	parts.Go(func() {
		<-ctx.Done()
		_ = port.Close()
	})
	parts.Go(func() {
		_ = port.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
			if f.SenderIP == f.TargetIP {
				c.mu.Lock()
				if c.firstAnnouncementTimesByAddress[f.SenderIP] == nil {
					c.firstAnnouncementTimesByAddress[f.SenderIP] = map[facts.MAC]time.Time{}
				}
				if c.firstAnnouncementTimesByAddress[f.SenderIP][f.SenderMAC].IsZero() {
					c.firstAnnouncementTimesByAddress[f.SenderIP][f.SenderMAC] = time.Now()
				}
				c.mu.Unlock()
			}
			return layer2.ARPOrNDPFrame{}, false
		}, nil)
	})
	return nil
}

// configureSpeakersWithServices configures every speaker with a Service for each address, and
// returns the addresses. If onlyFirst is true, all nodes except the first are excluded.
func (c *takeoverTestLAN) configureSpeakersWithServices(ctx context.Context, addresses int, onlyFirst bool) map[netip.Addr]bool {
	first := netip.MustParseAddr("10.1.0.1")
	all := map[netip.Addr]bool{}
	changes := []agent.PlannerInputChange{agent.NewSnapshotReplacedChange(&snapshot.Snapshot{
		Pools:            []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: first, Last: netip.MustParseAddr("10.1.254.255")}}}},
		L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}}},
	})}
	for i := range takeoverNodeCount {
		changes = append(changes, agent.NewNodeUpsertedChange(view.Node{Name: nodeName(i), IsExcluded: onlyFirst && i > 0}))
	}
	a := first
	for i := range addresses {
		k := view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("service-%05d", i)}
		changes = append(changes, agent.NewServiceUpsertedChange(view.Service{Key: k, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{a}}),
			agent.NewEndpointsReplacedChange(view.Endpoints{Service: k, AnyServing: true, ServingNodes: []string{nodeName(1)}, ReadyNodes: []string{nodeName(1)}}))
		all[a] = true
		a = a.Next()
	}
	for _, s := range c.agents {
		s.PostChanges(ctx, append(changes, agent.NewClusterSyncedChange())...)
	}
	return all
}

// awaitAnnouncements waits until each address has been announced by a speaker that from accepts.
func (c *takeoverTestLAN) awaitAnnouncements(ctx context.Context, addresses map[netip.Addr]bool, from func(facts.MAC) bool) error {
	missing := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := 0
		for a := range addresses {
			found := false
			for m := range c.firstAnnouncementTimesByAddress[a] {
				found = found || from(m)
			}
			if !found {
				n++
			}
		}
		return n
	}
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for end := time.Now().Add(time.Minute); ; {
		n := missing()
		switch {
		case n == 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(end):
			return fmt.Errorf("%d of %d are missing after a minute", n, len(addresses))
		}
		<-t.C
	}
}
