package wire_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

var bothFamilies = []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6}

// newVethNamespace makes a namespace whose eth0 leads to another.
func newVethNamespace(t *testing.T) (room *netnstest.Namespace, link facts.Link) {
	room, peer := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	room.AddVethPair("eth0", peer, "eth0")
	room.MustRunInside(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err == nil {
			link = facts.Link{Index: ifi.Index, Name: "eth0", MAC: facts.MAC(ifi.HardwareAddr)}
		}
		return err
	})
	return room, link
}

func openPort(t *testing.T, room *netnstest.Namespace, link facts.Link, f ipfamily.Family) (port layer2.Port, err error) {
	t.Helper()
	room.MustRunInside(func() error {
		port, err = wire.PacketSocketOpener{}.OpenPort(link, f)
		return nil
	})
	return port, err
}

func TestOpenPortClassifiesErrors(t *testing.T) {
	room, link := newVethNamespace(t)
	for _, f := range bothFamilies {
		t.Run(f.String()+": a link that is not there", func(t *testing.T) {
			if _, err := openPort(t, room, facts.Link{Index: 4711, Name: "eth9"}, f); !errors.Is(err, layer2.ErrLinkDownOrGone) {
				t.Errorf("Open = %v, want that the link is gone", err)
			}
		})
		t.Run(f.String()+": without the capability NET_RAW", func(t *testing.T) {
			var err error
			_ = room.RunInside(context.Background(), func(context.Context) error {
				// only from this thread, which ends with the function
				if err = dropCapabilities(); err == nil {
					_, err = wire.PacketSocketOpener{}.OpenPort(link, f)
				}
				return nil
			})
			if !errors.Is(err, layer2.ErrRawSocketsDenied) {
				t.Errorf("Open = %v, want that raw sockets are denied", err)
			}
		})
	}
}

// dropCapabilities drops every effective capability of the calling thread.
func dropCapabilities() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&h, &data[0]); err != nil {
		return err
	}
	data[0].Effective, data[1].Effective = 0, 0
	return unix.Capset(&h, &data[0])
}

func TestReceiveEndsWhenPortClosesOrFails(t *testing.T) {
	for _, f := range bothFamilies {
		t.Run(f.String()+": with ErrLinkGone when the link goes down", func(t *testing.T) {
			room, link := newVethNamespace(t)
			port, err := openPort(t, room, link, f)
			if err != nil {
				t.Fatal(err)
			}
			defer port.Close()
			ended := startReceiving(port)
			room.MustRunInside(func() error {
				l, err := netlink.LinkByName("eth0")
				return errors.Join(err, netlink.LinkSetDown(l))
			})
			if err := awaitReceiveEnd(t, ended); !errors.Is(err, layer2.ErrLinkDownOrGone) {
				t.Errorf("Receive = %v, want that the link is gone", err)
			}
		})
		t.Run(f.String()+": when the port is closed", func(t *testing.T) {
			room, link := newVethNamespace(t)
			port, err := openPort(t, room, link, f)
			if err != nil {
				t.Fatal(err)
			}
			ended := startReceiving(port)
			if err := port.Close(); err != nil {
				t.Fatal(err)
			}
			if err := awaitReceiveEnd(t, ended); err == nil {
				t.Error("Receive ends without a reason")
			}
		})
	}
}

// A port does not receive frames that arrive for a link on top of its own.
func TestFramesForAStackedLinkAreNotHeardBelow(t *testing.T) {
	room, peer := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	room.AddVethPair("eth0", peer, "eth0")
	var lower, upper, far facts.Link
	room.MustRunInside(func() (err error) {
		if lower, err = linkByName("eth0"); err != nil {
			return err
		}
		on := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "top0", ParentIndex: lower.Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
		if err = errors.Join(netlink.LinkAdd(on), netlink.LinkSetUp(on)); err == nil {
			upper, err = linkByName("top0")
		}
		return err
	})
	peer.MustRunInside(func() (err error) {
		far, err = linkByName("eth0")
		return err
	})
	for _, f := range bothFamilies {
		t.Run(f.String(), func(t *testing.T) {
			heard := map[string]chan facts.MAC{"eth0": make(chan facts.MAC, 16), "top0": make(chan facts.MAC, 16)}
			for _, l := range []facts.Link{lower, upper} {
				port, err := openPort(t, room, l, f)
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() {
					ended <- port.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
						// not the kernels' own frames
						if f.EthernetSource == far.MAC && f.Operation == layer2.Request {
							heard[l.Name] <- f.EthernetDestination
						}
						return layer2.ARPOrNDPFrame{}, false
					}, nil)
				}()
				defer func() {
					_ = port.Close()
					<-ended
				}()
			}
			asker, err := openPort(t, peer, far, f)
			if err != nil {
				t.Fatal(err)
			}
			defer asker.Close()
			own, target := netip.MustParseAddr("192.168.0.100"), netip.MustParseAddr("192.168.0.201")
			if f == ipfamily.IPv6 {
				own, target = netip.MustParseAddr("fd00:a8::100"), netip.MustParseAddr("fd00:a8::201")
			}
			for _, to := range []facts.Link{upper, lower} {
				q := layer2.ARPOrNDPFrame{EthernetDestination: to.MAC, EthernetSource: far.MAC, Operation: layer2.Request, SenderMAC: far.MAC, SenderIP: own, TargetIP: target}
				if err := asker.WriteFrame(q); err != nil {
					t.Fatal(err)
				}
				select {
				case got := <-heard[to.Name]:
					if got != to.MAC {
						t.Errorf("%s hears what is for %s", to.Name, got)
					}
				case <-time.After(30 * time.Second):
					t.Fatalf("%s hears nothing", to.Name)
				}
			}
			if n := len(heard["eth0"]) + len(heard["top0"]); n > 0 {
				t.Errorf("%d frames are heard twice", n)
			}
		})
	}
}

func linkByName(name string) (facts.Link, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return facts.Link{}, err
	}
	return facts.Link{Index: ifi.Index, Name: name, MAC: facts.MAC(ifi.HardwareAddr)}, nil
}

// startReceiving receives until an error comes.
func startReceiving(p layer2.Port) <-chan error {
	ended := make(chan error, 1)
	go func() {
		ended <- p.ReceiveFrames(func(layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) { return layer2.ARPOrNDPFrame{}, false }, nil)
	}()
	return ended
}

func awaitReceiveEnd(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("Receive does not end")
		return nil
	}
}

func TestFrameOfTheOtherFamilyIsNotSent(t *testing.T) {
	room, link := newVethNamespace(t)
	port, err := openPort(t, room, link, ipfamily.IPv4)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	a := netip.MustParseAddr("fd00:a8::201")
	if err := port.WriteFrame(layer2.ARPOrNDPFrame{Operation: layer2.Reply, SenderIP: a, TargetIP: a}); !errors.Is(err, layer2.ErrFrameNotSent) {
		t.Errorf("Write = %v, want ErrFrameNotSent, so that the port still works", err)
	}
}

// Addresses with the same last three bytes share a group. The group is left with the last of them.
func TestAddressesOfOneGroupShareTheMembership(t *testing.T) {
	room, link := newVethNamespace(t)
	port, err := openPort(t, room, link, ipfamily.IPv6)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	first, second := netip.MustParseAddr("fd00:a8::201"), netip.MustParseAddr("fd00:a9::201")
	joined := func() (n int) {
		room.MustRunInside(func() error {
			groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
			n = bytes.Count(groups, []byte("eth0            ff0200000000000000000001ff000201 "))
			return err
		})
		return n
	}
	for step, tt := range []struct {
		do   func() error
		want int
	}{
		{func() error { return nil }, 0},
		{func() error { return port.JoinGroupOfAddress(first) }, 1},
		{func() error { return port.JoinGroupOfAddress(second) }, 1},
		{func() error { port.LeaveGroupOfAddress(first); return nil }, 1},
		{func() error { port.LeaveGroupOfAddress(second); return nil }, 0},
	} {
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		if got := joined(); got != tt.want {
			t.Errorf("step %d: %d memberships, want %d", step, got, tt.want)
		}
	}
}

// lateAnswerHarness is a node that answers a client for two addresses. The send deadline of the
// answers for one of them passes after the answer was made and before it is sent.
type lateAnswerHarness struct {
	nodeLink, clientLink    facts.Link
	nodePort, clientPort    layer2.Port
	allowedIP, lateAnswerIP netip.Addr
	clientIP                netip.Addr
	answersMadeByNode       chan netip.Addr // the address of each answer that the node made
	answersReceivedByClient chan netip.Addr // the address of each answer that the client received
}

func newLateAnswerHarness(t *testing.T, f ipfamily.Family) *lateAnswerHarness {
	t.Helper()
	node, client := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	node.AddVethPair("eth0", client, "eth0")
	h := &lateAnswerHarness{answersMadeByNode: make(chan netip.Addr, 1024), answersReceivedByClient: make(chan netip.Addr, 1024)}
	openEnd := func(n *netnstest.Namespace) (p layer2.Port, l facts.Link) {
		n.MustRunInside(func() (err error) {
			if l, err = linkByName("eth0"); err == nil {
				p, err = wire.PacketSocketOpener{}.OpenPort(l, f)
			}
			return err
		})
		return p, l
	}
	h.nodePort, h.nodeLink = openEnd(node)
	h.clientPort, h.clientLink = openEnd(client)
	h.allowedIP, h.clientIP = netip.MustParseAddr("192.168.0.201"), netip.MustParseAddr("192.168.0.100")
	if f == ipfamily.IPv6 {
		h.allowedIP, h.clientIP = netip.MustParseAddr("fd00:a8::201"), netip.MustParseAddr("fd00:a8::100")
	}
	h.lateAnswerIP = h.allowedIP.Next()
	nodeEnded, clientEnded := make(chan error, 1), make(chan error, 1)
	go func() { nodeEnded <- h.answerAsNode() }()
	go func() { clientEnded <- h.collectAnswers() }()
	t.Cleanup(func() {
		// both are only read from by now
		_ = errors.Join(h.nodePort.Close(), h.clientPort.Close())
		<-nodeEnded
		<-clientEnded
	})
	if err := errors.Join(h.nodePort.JoinGroupOfAddress(h.lateAnswerIP), h.nodePort.JoinGroupOfAddress(h.allowedIP)); err != nil {
		t.Fatal(err)
	}
	return h
}

// answerAsNode answers for both addresses until the port of the node is closed.
func (h *lateAnswerHarness) answerAsNode() error {
	var asked netip.Addr // only the goroutine of Receive uses it
	return h.nodePort.ReceiveFrames(func(q layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
		if q.TargetIP != h.lateAnswerIP && q.TargetIP != h.allowedIP {
			return layer2.ARPOrNDPFrame{}, false
		}
		asked = q.TargetIP
		answer, why := layer2.BuildReply(q, h.nodeLink.MAC)
		return answer, why == layer2.NotDropped
	}, func() bool {
		h.answersMadeByNode <- asked
		return asked != h.lateAnswerIP
	})
}

// collectAnswers collects the answers of the node until the port of the client is closed.
func (h *lateAnswerHarness) collectAnswers() error {
	return h.clientPort.ReceiveFrames(func(a layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
		if a.Operation == layer2.Reply && a.SenderMAC == h.nodeLink.MAC {
			h.answersReceivedByClient <- a.SenderIP
		}
		return layer2.ARPOrNDPFrame{}, false
	}, nil)
}

// sendRequest asks for the address on behalf of the client.
func (h *lateAnswerHarness) sendRequest(t *testing.T, a netip.Addr) {
	t.Helper()
	err := h.clientPort.WriteFrame(layer2.ARPOrNDPFrame{
		EthernetDestination: layer2.RequestDestinationMAC(a), EthernetSource: h.clientLink.MAC, Operation: layer2.Request,
		SenderMAC: h.clientLink.MAC, SenderIP: h.clientIP, TargetIP: a,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitAllowedAnswer asks for the allowed address until the first answer: a link that has just come
// up loses frames.
func (h *lateAnswerHarness) awaitAllowedAnswer(t *testing.T) {
	t.Helper()
	for range 300 {
		h.sendRequest(t, h.allowedIP)
		select {
		case a := <-h.answersReceivedByClient:
			if a != h.allowedIP {
				t.Fatalf("the answer for %s is sent after the deadline", a)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatal("the answer before the deadline is missing")
}

// TestAnswersPastSendDeadlineAreDropped: sending is forbidden after an answer was made and before
// it is sent.
func TestAnswersPastSendDeadlineAreDropped(t *testing.T) {
	for _, f := range bothFamilies {
		t.Run(f.String(), func(t *testing.T) {
			h := newLateAnswerHarness(t, f)
			h.awaitAllowedAnswer(t)
			h.sendRequest(t, h.lateAnswerIP)
			for got := range h.answersMadeByNode { // until the late answer is due
				if got == h.lateAnswerIP {
					break
				}
			}
			for range 10 { // answers to earlier requests may come first
				h.awaitAllowedAnswer(t)
			}
		})
	}
}
