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

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
	"github.com/gantry-lb/gantry/speaker/members/hall"
)

// machine is one speaker with real links and sockets, and a client behind a bridge to which its cables lead.
type machine struct {
	t          *testing.T
	node, room *sandbox.Room
	port       layer2.Port // the client's
	own        facts.MAC

	mu sync.Mutex // guards what follows
	// announced and answered are the Ethernet addresses that spoke for the address since they were last forgotten.
	announced, answered map[facts.MAC]bool
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, node: sandbox.New(t), room: sandbox.New(t), announced: map[facts.MAC]bool{}, answered: map[facts.MAC]bool{}}
	watcher := links.New(func() ([]string, error) { return links.DefaultExclude, nil }, slog.New(slog.DiscardHandler))
	engine := layer2.New(wire.Wire{}, time.Now)
	agent := New(Options{
		Self: "node1", Nonce: 1, Timing: elect.DefaultTiming(), Layer2: engine, BGP: routing{}, Links: watcher.Sets(),
		Members: hall.New().Join("node1", netip.MustParseAddr("192.168.0.11"), 1), Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	m.client()
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, part := range []func(context.Context) error{watcher.Run, engine.Run, agent.Run} {
		parts.Go(func() {
			if err := m.node.Run(ctx, part); err != nil {
				t.Errorf("a part of the speaker ended: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		parts.Wait()
	})
	agent.Post(ctx, config(), service(), endpoints(), SetNode(view.Node{Name: "node1"}), Synced())
	return m
}

// client makes the bridge, and listens on it.
func (m *machine) client() {
	m.room.Do(func() error {
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
		m.own = facts.MAC(i.HardwareAddr)
		// A bridge takes the address of a port unless it is given one.
		if err := netlink.LinkSetHardwareAddr(bridge, i.HardwareAddr); err != nil {
			return err
		}
		m.port, err = wire.Wire{}.Open(facts.Link{Index: i.Index, Name: "lan0", MAC: m.own}, layer2.IPv4)
		return err
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = m.port.Receive(func(f layer2.Frame) (layer2.Frame, bool) {
			m.mu.Lock()
			defer m.mu.Unlock()
			switch {
			case f.SenderIP != four:
			case f.TargetIP == four:
				m.announced[f.SenderMAC] = true
			case f.Operation == layer2.Reply:
				m.answered[f.SenderMAC] = true
			}
			return layer2.Frame{}, false
		})
	}()
	m.t.Cleanup(func() {
		_ = m.port.Close()
		<-ended
	})
}

// plug lays a cable from a new link of the node to the bridge.
func (m *machine) plug(name string) facts.MAC {
	m.t.Helper()
	port := "port-" + name
	m.node.Veth(name, m.room, port)
	m.room.Do(func() error {
		p, err := netlink.LinkByName(port)
		bridge, err2 := netlink.LinkByName("lan0")
		return errors.Join(err, err2, netlink.LinkSetMaster(p, bridge))
	})
	var mac facts.MAC
	m.edit(name, func(l netlink.Link) error {
		mac = facts.MAC(l.Attrs().HardwareAddr)
		return nil
	})
	return mac
}

// edit changes a link of the node.
func (m *machine) edit(name string, f func(netlink.Link) error) {
	m.t.Helper()
	m.node.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(l)
	})
}

// want asks until exactly the links with these Ethernet addresses answer.
func (m *machine) want(sentence string, macs ...facts.MAC) {
	m.t.Helper()
	var got map[facts.MAC]bool
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		m.mu.Lock()
		clear(m.answered)
		m.mu.Unlock()
		for range 3 {
			err := m.port.Write(layer2.Frame{
				Destination: layer2.Asked(four), Source: m.own, Operation: layer2.Request, SenderMAC: m.own, SenderIP: asker4, TargetIP: four,
			})
			if err != nil {
				m.t.Fatal(err)
			}
			<-time.After(20 * time.Millisecond) // for all answers
		}
		m.mu.Lock()
		got = map[facts.MAC]bool{}
		for mac := range m.answered {
			got[mac] = true
		}
		m.mu.Unlock()
		if len(got) == len(macs) && !slices.ContainsFunc(macs, func(mac facts.MAC) bool { return !got[mac] }) {
			return
		}
	}
	m.t.Fatalf("%s: %v answer, want %v", sentence, got, macs)
}

// wantAnnounced waits until the link with the Ethernet address has announced the address.
func (m *machine) wantAnnounced(sentence string, mac facts.MAC) {
	m.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		m.mu.Lock()
		done := m.announced[mac]
		m.mu.Unlock()
		if done {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	m.t.Fatalf("%s: the client heard no announcement of %s", sentence, mac)
}

// TestRealLinksComeAndGo follows links that appear, are renamed, get an address later, vanish and come back under their old name.
func TestRealLinksComeAndGo(t *testing.T) {
	m := newMachine(t)
	m.want("there is no link")
	eth0 := m.plug("eth0")
	m.want("a link comes", eth0)
	m.wantAnnounced("a link comes", eth0)
	eth1 := m.plug("eth1")
	m.want("no subnet covers the address: every link is used", eth0, eth1)
	m.node.Address("eth0", "192.168.0.11/24")
	m.want("one link gets an address whose subnet does", eth0)
	m.edit("eth0", func(l netlink.Link) error { return netlink.LinkSetName(l, "lan7") })
	m.want("it is renamed", eth0)
	m.edit("lan7", netlink.LinkDel)
	m.want("it vanishes", eth1)
	again := m.plug("eth0")
	m.node.Address("eth0", "192.168.0.11/24")
	m.want("a link of its first name comes", again)
	m.wantAnnounced("a link of its first name comes", again)
	m.edit("eth0", func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 0x77}) })
	m.want("it gets another Ethernet address", facts.MAC{2, 0, 0, 0, 0, 0x77})
	m.wantAnnounced("it gets another Ethernet address", facts.MAC{2, 0, 0, 0, 0, 0x77})
}
