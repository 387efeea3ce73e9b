package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/healthcheck"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/members/memberstest"
	"github.com/gantry-lb/gantry/test/lab/netns"
)

const (
	// twoNetworksNodeCount is the number of nodes. All have a link to the management network, and
	// some a link to the network of the clients.
	twoNetworksNodeCount = 20
	// fewClientLinkCount is how many of them have a link to the clients, if it is few.
	fewClientLinkCount = 3
	// holderLossCount is how often a holder is lost in each case.
	holderLossCount = 10
	// twoNetworksServiceCount is the number of addresses.
	twoNetworksServiceCount = 60
	// maxSlowerTakeoverRatio is the highest ratio of the medians: if few nodes have a link to the
	// clients, or if only this link is lost, and if all nodes have the link and the holder dies.
	maxSlowerTakeoverRatio = 1.7
)

// measureTakeoverByFewCandidates measures how long it takes until other nodes announce the
// addresses of a holder. The speakers run in one process, with real sockets on virtual cables; only
// their gossip is in memory.
func measureTakeoverByFewCandidates(ctx context.Context) error {
	var plain time.Duration
	for _, c := range []struct {
		what            string
		clientLinkCount int
		loseHolder      func(*twoNetworksLAN, *twoNetworksSpeaker) error
	}{
		{"holder dies, all 20 nodes have a link to the clients", twoNetworksNodeCount, (*twoNetworksLAN).cutOff},
		{"holder dies, 3 of 20 nodes have a link to the clients", fewClientLinkCount, (*twoNetworksLAN).cutOff},
		{"holder loses only its link to the clients, as 20 nodes have it", twoNetworksNodeCount, (*twoNetworksLAN).cutFromClients},
	} {
		waits, err := measureHolderLosses(ctx, c.clientLinkCount, c.loseHolder)
		if err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
		median := printMinMedianAndMax(c.what, waits)
		if plain == 0 {
			plain = median
			continue
		}
		ratio := float64(median) / float64(plain)
		fmt.Printf("  ratio of the medians %.2f, at most %.1f\n", ratio, maxSlowerTakeoverRatio)
		if ratio > maxSlowerTakeoverRatio {
			return fmt.Errorf("%s: the ratio of the medians is %.2f, more than %.1f", c.what, ratio, maxSlowerTakeoverRatio)
		}
	}
	return nil
}

// twoNetworksLAN has speakers with a link to the management network. Some of them also have a link
// to the network of the clients, on which a host listens.
type twoNetworksLAN struct {
	takeoverTestLAN
	speakers []*twoNetworksSpeaker
	// changes are what each speaker reads from the cluster.
	changes []agent.PlannerInputChange
}

// twoNetworksSpeaker is the speaker of one node.
type twoNetworksSpeaker struct {
	name          string
	index         int
	namespace     netns.Path
	hasClientLink bool
	clientLinkMAC facts.MAC
	runCount      uint64
	member        *memberstest.FakeMember
	stopParts     func()
}

// The links of a node, and the ports of the two bridges at their other ends.
const (
	clientLinkName, managementLinkName = "eth0", "mgmt0"
	managementBridgeName               = "management"
)

func clientPortName(i int) string     { return fmt.Sprintf("p%d", i) }
func managementPortName(i int) string { return fmt.Sprintf("m%d", i) }

// measureHolderLosses loses a holder again and again. It returns for each of its addresses how long
// it took until another node announced it.
func measureHolderLosses(ctx context.Context, clientLinkCount int, loseHolder func(*twoNetworksLAN, *twoNetworksSpeaker) error) ([]time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &twoNetworksLAN{takeoverTestLAN: takeoverTestLAN{gossip: memberstest.NewFakeGossip(), firstAnnouncementTimesByAddress: map[netip.Addr]map[facts.MAC]time.Time{}}}
	var listener sync.WaitGroup
	defer func() {
		cancel()
		for _, s := range c.speakers {
			s.stopParts()
		}
		listener.Wait()
		c.releaseNamespaces()
	}()
	if err := c.buildTwoNetworks(ctx, clientLinkCount, &listener); err != nil {
		return nil, err
	}
	all := c.prepareChanges()
	for _, s := range c.speakers {
		c.startSpeaker(ctx, s)
	}
	if err := c.awaitAnnouncements(ctx, all, func(facts.MAC) bool { return true }); err != nil {
		return nil, fmt.Errorf("waiting for every address to be announced: %w", err)
	}
	if err := sleepUnlessCancelled(ctx, 6*time.Second); err != nil { // until the bursts are over
		return nil, err
	}
	holderByAddress := map[netip.Addr]facts.MAC{}
	for address, by := range c.takeAnnouncements() {
		holderByAddress[address] = lastAnnouncingMAC(by)
	}
	var waits []time.Duration
	for i := range holderLossCount {
		victim, lost := c.chooseHolder(holderByAddress, i)
		if victim == nil {
			return nil, errors.New("no node holds an address")
		}
		c.takeAnnouncements()
		begun := time.Now()
		if err := loseHolder(c, victim); err != nil {
			return nil, err
		}
		if err := c.awaitAnnouncements(ctx, lost, func(m facts.MAC) bool { return m != victim.clientLinkMAC }); err != nil {
			return nil, fmt.Errorf("waiting for the addresses of %s: %w", victim.name, err)
		}
		for address, by := range c.takeAnnouncements() {
			delete(by, victim.clientLinkMAC)
			if !lost[address] || len(by) == 0 {
				continue
			}
			holderByAddress[address] = lastAnnouncingMAC(by)
			waits = append(waits, by[holderByAddress[address]].Sub(begun))
		}
		if err := c.restoreNode(ctx, victim); err != nil {
			return nil, err
		}
	}
	return waits, nil
}

// takeAnnouncements returns the announcements since its last call.
func (c *twoNetworksLAN) takeAnnouncements() map[netip.Addr]map[facts.MAC]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.firstAnnouncementTimesByAddress
	c.firstAnnouncementTimesByAddress = map[netip.Addr]map[facts.MAC]time.Time{}
	return out
}

// chooseHolder returns one of the holders after the other, with its addresses.
func (c *twoNetworksLAN) chooseHolder(holderByAddress map[netip.Addr]facts.MAC, turn int) (*twoNetworksSpeaker, map[netip.Addr]bool) {
	for i := range c.speakers {
		s := c.speakers[(turn+i)%len(c.speakers)]
		held := map[netip.Addr]bool{}
		for address, holder := range holderByAddress {
			if s.hasClientLink && holder == s.clientLinkMAC {
				held[address] = true
			}
		}
		if len(held) > 0 {
			return s, held
		}
	}
	return nil, nil
}

// cutOff cuts all cables of a node behind its switches, as if the node had died.
func (c *twoNetworksLAN) cutOff(s *twoNetworksSpeaker) error {
	s.member.LoseAllMessages()
	return c.bridgeNamespace.RunInside(func() error {
		return errors.Join(netns.AttachLinkToBridge(clientPortName(s.index), ""), netns.AttachLinkToBridge(managementPortName(s.index), ""))
	})
}

// cutFromClients pulls the cable to the clients.
func (c *twoNetworksLAN) cutFromClients(s *twoNetworksSpeaker) error {
	return c.bridgeNamespace.RunInside(func() error { return netns.SetLinkDown(clientPortName(s.index)) })
}

// restoreNode plugs all cables in again, starts the speaker anew, and waits until the others know
// it. So no node counts as one that was dead by mistake.
func (c *twoNetworksLAN) restoreNode(ctx context.Context, s *twoNetworksSpeaker) error {
	s.member.Leave()
	s.stopParts()
	if err := c.bridgeNamespace.RunInside(func() error {
		return errors.Join(netns.AttachLinkToBridge(clientPortName(s.index), "lan"), netns.SetLinkUp(clientPortName(s.index)),
			netns.AttachLinkToBridge(managementPortName(s.index), managementBridgeName))
	}); err != nil {
		return err
	}
	c.startSpeaker(ctx, s)
	return sleepUnlessCancelled(ctx, 2*elect.DefaultTiming().StartupWithoutMembersDelay)
}

// buildTwoNetworks creates the networks and the nodes, and starts the listener.
func (c *twoNetworksLAN) buildTwoNetworks(ctx context.Context, clientLinkCount int, listener *sync.WaitGroup) error {
	var err error
	if c.bridgeNamespace, err = c.newNamespace(); err != nil {
		return err
	}
	if err := c.bridgeNamespace.RunInside(func() error { return errors.Join(netns.AddBridge("lan"), netns.AddBridge(managementBridgeName)) }); err != nil {
		return err
	}
	for i := range twoNetworksNodeCount {
		s := &twoNetworksSpeaker{name: nodeName(i), index: i, hasClientLink: i < clientLinkCount, stopParts: func() {}}
		if s.namespace, err = c.newNamespace(); err != nil {
			return err
		}
		if err := c.connectManagementLink(s); err != nil {
			return err
		}
		if s.hasClientLink {
			link, err := c.connectHost(s.namespace, i)
			if err != nil {
				return err
			}
			s.clientLinkMAC = link.MAC
		}
		c.speakers = append(c.speakers, s)
	}
	host, err := c.newNamespace()
	if err != nil {
		return err
	}
	link, err := c.connectHost(host, twoNetworksNodeCount)
	if err != nil {
		return err
	}
	return c.recordFirstAnnouncementTimes(ctx, host, link, listener)
}

// managementAddress is the address of a node on the management network.
func managementAddress(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, 255, byte(1 + i)}), 16)
}

func (c *twoNetworksLAN) connectManagementLink(s *twoNetworksSpeaker) error {
	port := managementPortName(s.index)
	return errors.Join(netns.AddCable(c.bridgeNamespace, port, s.namespace, managementLinkName), c.bridgeNamespace.RunInside(func() error {
		return errors.Join(netns.AttachLinkToBridge(port, managementBridgeName), netns.SetLinkUp(port))
	}), s.namespace.RunInside(func() error {
		return errors.Join(netns.SetLinkUp(managementLinkName), netns.AddAddress(managementLinkName, managementAddress(s.index)))
	}))
}

// prepareChanges prepares what the speakers read from the cluster, and returns the addresses.
func (c *twoNetworksLAN) prepareChanges() map[netip.Addr]bool {
	first := netip.MustParseAddr("10.1.0.1")
	c.changes = []agent.PlannerInputChange{agent.NewSnapshotReplacedChange(&snapshot.Snapshot{
		Pools:            []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: first, Last: netip.MustParseAddr("10.1.254.255")}}}},
		L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}}},
	})}
	for i := range twoNetworksNodeCount {
		c.changes = append(c.changes, agent.NewNodeUpsertedChange(view.Node{Name: nodeName(i)}))
	}
	all := map[netip.Addr]bool{}
	for i, a := 0, first; i < twoNetworksServiceCount; i, a = i+1, a.Next() {
		k := view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("service-%02d", i)}
		c.changes = append(c.changes, agent.NewServiceUpsertedChange(view.Service{Key: k, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{a}}),
			agent.NewEndpointsReplacedChange(view.Endpoints{Service: k, AnyServing: true, ServingNodes: []string{nodeName(1)}, ReadyNodes: []string{nodeName(1)}}))
		all[a] = true
	}
	c.changes = append(c.changes, agent.NewClusterSyncedChange())
	return all
}

// startSpeaker starts the parts of a speaker that need no API server.
func (c *twoNetworksLAN) startSpeaker(ctx context.Context, s *twoNetworksSpeaker) {
	s.runCount++
	nonce := uint64(s.index+1) + s.runCount*twoNetworksNodeCount
	s.member = c.gossip.Join(s.name, managementAddress(s.index).Addr(), nonce)
	watcher := links.NewWatcher(func() ([]string, error) { return links.DefaultExcludePatterns, nil }, slog.New(slog.DiscardHandler))
	engine := layer2.NewEngine(wire.PacketSocketOpener{}, time.Now)
	a := agent.New(agent.Options{
		NodeName: s.name, RunNonce: nonce, ElectionTiming: elect.DefaultTiming(), Layer2Engine: engine, BGPEngine: noOpBGPEngine{}, GossipMembership: s.member,
		HealthCheckPoller: healthcheck.NewPoller(time.Now, slog.New(slog.DiscardHandler)),
		LinkUpdates:       watcher.LinkUpdates(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { _ = s.namespace.RunInside(func() error { return watcher.Run(ctx) }) })
	parts.Go(func() { _ = s.namespace.RunInside(func() error { return engine.Run(ctx) }) })
	parts.Go(func() { _ = a.Run(ctx) })
	s.stopParts = func() {
		cancel()
		parts.Wait()
	}
	a.PostChanges(ctx, slices.Clone(c.changes)...)
}
