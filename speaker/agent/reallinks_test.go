package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
	"github.com/gantry-lb/gantry/speaker/members/memberstest"
)

// realLinksHarness is a speaker with real links and sockets. Its links lead to a bridge with a
// client.
type realLinksHarness struct {
	t                              *testing.T
	nodeNamespace, clientNamespace *netnstest.Namespace
	clientPort                     layer2.Port // of the client
	clientMAC                      facts.MAC
	agent                          *Agent
	// addressOfClient is an address for which the client answers.
	addressOfClient netip.Addr

	mu sync.Mutex // guards the fields below
	// framesByAddress has what the node sent for other addresses than that of the Service.
	framesByAddress map[netip.Addr][]frameOfNode
	// macsThatAnnounced and macsThatAnswered are the Ethernet addresses that announced the address,
	// or answered for it.
	macsThatAnnounced, macsThatAnswered map[facts.MAC]bool
}

// frameOfNode is an answer or an announcement that the client received.
type frameOfNode struct {
	receivedAt     time.Time
	isAnnouncement bool
}

func newRealLinksHarness(t *testing.T) *realLinksHarness {
	m := &realLinksHarness{
		t: t, nodeNamespace: netnstest.NewNamespace(t), clientNamespace: netnstest.NewNamespace(t),
		macsThatAnnounced: map[facts.MAC]bool{}, macsThatAnswered: map[facts.MAC]bool{},
		framesByAddress: map[netip.Addr][]frameOfNode{}, addressOfClient: serviceIPv4.Next().Next(),
	}
	watcher := links.NewWatcher(func() ([]string, error) { return links.DefaultExcludePatterns, nil }, slog.New(slog.DiscardHandler))
	engine := layer2.NewEngine(wire.PacketSocketOpener{}, time.Now)
	agent := New(Options{
		NodeName: "node1", RunNonce: 1, ElectionTiming: elect.DefaultTiming(), Layer2Engine: engine, BGPEngine: discardingBGPEngine{}, HealthCheckPoller: &fakeServiceProxy{}, LinkUpdates: watcher.LinkUpdates(),
		GossipMembership: memberstest.NewFakeGossip().Join("node1", netip.MustParseAddr("192.168.0.11"), 1),
		Now:              time.Now, Log: slog.New(slog.DiscardHandler),
	})
	m.agent = agent
	m.connectClient()
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, part := range []func(context.Context) error{watcher.Run, engine.Run, agent.Run} {
		parts.Go(func() {
			if err := m.nodeNamespace.RunInside(ctx, part); err != nil {
				t.Errorf("a part of the speaker failed: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		parts.Wait()
	})
	agent.PostChanges(ctx, exampleSnapshotChange(), exampleServiceChange(), exampleEndpointsChange(), NewNodeUpsertedChange(view.Node{Name: "node1"}), NewClusterSyncedChange())
	return m
}

// connectClient creates the bridge and listens on it.
func (m *realLinksHarness) connectClient() {
	m.clientNamespace.MustRunInside(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "lan0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
			return err
		}
		i, err := net.InterfaceByName("lan0")
		if err != nil {
			return err
		}
		m.clientMAC = facts.MAC(i.HardwareAddr)
		// Without this the bridge takes over the address of a port.
		if err := netlink.LinkSetHardwareAddr(bridge, i.HardwareAddr); err != nil {
			return err
		}
		m.clientPort, err = wire.PacketSocketOpener{}.OpenPort(facts.Link{Index: i.Index, Name: "lan0", MAC: m.clientMAC}, ipfamily.IPv4)
		return err
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = m.clientPort.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
			m.mu.Lock()
			defer m.mu.Unlock()
			switch {
			case f.Operation == layer2.Request && f.TargetIP == m.addressOfClient && f.SenderIP != f.TargetIP:
				answer, why := layer2.BuildReply(f, m.clientMAC)
				return answer, why == layer2.NotDropped
			case f.SenderIP != serviceIPv4 && f.SenderMAC != m.clientMAC:
				m.framesByAddress[f.SenderIP] = append(m.framesByAddress[f.SenderIP], frameOfNode{time.Now(), f.SenderIP == f.TargetIP})
			case f.SenderIP != serviceIPv4:
			case f.TargetIP == serviceIPv4:
				m.macsThatAnnounced[f.SenderMAC] = true
			case f.Operation == layer2.Reply:
				m.macsThatAnswered[f.SenderMAC] = true
			}
			return layer2.ARPOrNDPFrame{}, false
		}, nil)
	}()
	m.t.Cleanup(func() {
		_ = m.clientPort.Close()
		<-ended
	})
}

// connectNewNodeLink connects a new link of the node to the bridge.
func (m *realLinksHarness) connectNewNodeLink(name string) facts.MAC {
	m.t.Helper()
	port := "port-" + name
	m.nodeNamespace.AddVethPair(name, m.clientNamespace, port)
	m.clientNamespace.MustRunInside(func() error {
		p, err := netlink.LinkByName(port)
		bridge, err2 := netlink.LinkByName("lan0")
		return errors.Join(err, err2, netlink.LinkSetMaster(p, bridge))
	})
	var mac facts.MAC
	m.changeLinkInNodeNamespace(name, func(l netlink.Link) error {
		mac = facts.MAC(l.Attrs().HardwareAddr)
		return nil
	})
	return mac
}

// changeLinkInNodeNamespace changes a link of the node.
func (m *realLinksHarness) changeLinkInNodeNamespace(name string, f func(netlink.Link) error) {
	m.t.Helper()
	m.nodeNamespace.MustRunInside(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(l)
	})
}

// awaitAnswersFrom sends requests until exactly the links with these Ethernet addresses answer.
func (m *realLinksHarness) awaitAnswersFrom(sentence string, macs ...facts.MAC) {
	m.t.Helper()
	var got map[facts.MAC]bool
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		m.mu.Lock()
		clear(m.macsThatAnswered)
		m.mu.Unlock()
		for range 3 {
			m.sendClientRequest(serviceIPv4)
			<-time.After(20 * time.Millisecond) // for all answers
		}
		m.mu.Lock()
		got = map[facts.MAC]bool{}
		for mac := range m.macsThatAnswered {
			got[mac] = true
		}
		m.mu.Unlock()
		if len(got) == len(macs) && !slices.ContainsFunc(macs, func(mac facts.MAC) bool { return !got[mac] }) {
			return
		}
	}
	m.t.Fatalf("%s: %v answer, want %v", sentence, got, macs)
}

// sendClientRequest asks for an address.
func (m *realLinksHarness) sendClientRequest(address netip.Addr) {
	m.t.Helper()
	err := m.clientPort.WriteFrame(layer2.ARPOrNDPFrame{
		EthernetDestination: layer2.RequestDestinationMAC(address), EthernetSource: m.clientMAC, Operation: layer2.Request,
		SenderMAC: m.clientMAC, SenderIP: clientIPv4, TargetIP: address,
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// framesAbout returns what the node has sent for an address.
func (m *realLinksHarness) framesAbout(address netip.Addr) []frameOfNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.framesByAddress[address])
}

// awaitAnnouncementFrom waits until the link with the Ethernet address has announced the address.
func (m *realLinksHarness) awaitAnnouncementFrom(sentence string, mac facts.MAC) {
	m.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		m.mu.Lock()
		done := m.macsThatAnnounced[mac]
		m.mu.Unlock()
		if done {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	m.t.Fatalf("%s: the client got no announcement of %s", sentence, mac)
}

// TestAddressesFollowRealLinks: links appear, are renamed, get an address, vanish and come back
// under their old name.
func TestAddressesFollowRealLinks(t *testing.T) {
	m := newRealLinksHarness(t)
	m.awaitAnswersFrom("there is no link")
	eth0 := m.connectNewNodeLink("eth0")
	m.awaitAnswersFrom("a link comes", eth0)
	m.awaitAnnouncementFrom("a link comes", eth0)
	eth1 := m.connectNewNodeLink("eth1")
	m.awaitAnswersFrom("no subnet covers the address: every link is used", eth0, eth1)
	m.nodeNamespace.AddAddressToLink("eth0", "192.168.0.11/24")
	m.awaitAnswersFrom("one link gets an address whose subnet does", eth0)
	m.changeLinkInNodeNamespace("eth0", func(l netlink.Link) error { return netlink.LinkSetName(l, "lan7") })
	m.awaitAnswersFrom("it is renamed", eth0)
	m.changeLinkInNodeNamespace("lan7", netlink.LinkDel)
	m.awaitAnswersFrom("it vanishes", eth1)
	again := m.connectNewNodeLink("eth0")
	m.nodeNamespace.AddAddressToLink("eth0", "192.168.0.11/24")
	m.awaitAnswersFrom("a link of its first name comes", again)
	m.awaitAnnouncementFrom("a link of its first name comes", again)
	m.changeLinkInNodeNamespace("eth0", func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 0x77}) })
	m.awaitAnswersFrom("it gets another Ethernet address", facts.MAC{2, 0, 0, 0, 0, 0x77})
	m.awaitAnnouncementFrom("it gets another Ethernet address", facts.MAC{2, 0, 0, 0, 0, 0x77})
}
