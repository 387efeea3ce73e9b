package layer2_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// testAddresses are the addresses in a scenario.
type testAddresses struct {
	heldIP, unheldIP, clientIP netip.Addr
	nodePrefix                 netip.Prefix
}

var (
	ipv4TestAddresses = testAddresses{heldIPv4, otherIPv4, clientIPv4, nodePrefixIPv4}
	ipv6TestAddresses = testAddresses{
		netip.MustParseAddr("fd00:a8::201"), netip.MustParseAddr("fd00:a8::202"),
		netip.MustParseAddr("fd00:a8::100"), netip.MustParsePrefix("fd00:a8::11/64"),
	}
	addressesByFamily = map[string]testAddresses{"IPv4": ipv4TestAddresses, "IPv6": ipv6TestAddresses}
)

var (
	heldIPv4          = netip.MustParseAddr("192.168.0.201")
	otherIPv4         = netip.MustParseAddr("192.168.0.202")
	clientIPv4        = netip.MustParseAddr("192.168.0.100")
	nodePrefixIPv4    = netip.MustParsePrefix("192.168.0.11/24")
	ethernetBroadcast = facts.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	foreignMAC        = facts.MAC{2, 0, 0, 0, 0, 0x99}
)

// harness is an engine with one link, and a client's port on the same segment.
type harness struct {
	testAddresses
	t               testing.TB
	engine          *layer2.Engine
	nodeNamespace   *netnstest.Namespace // nil on a segment in memory
	clientNamespace *netnstest.Namespace // nil on a segment in memory
	link            facts.Link
	clientPort      layer2.Port
	clientMAC       facts.MAC // of the client
	heardFrames     chan layer2.Frame
}

// startEngine runs the engine and the client's reader until the test ends. run works in the network
// namespace of the Wire and returns when its context ends.
func (b *harness) startEngine(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	read := make(chan struct{})
	b.heardFrames = make(chan layer2.Frame, 4096)
	go func() { ended <- run(ctx) }()
	go func() {
		defer close(read)
		_ = b.clientPort.Receive(func(f layer2.Frame) (layer2.Frame, bool) {
			select {
			case b.heardFrames <- f:
			default:
			}
			return layer2.Frame{}, false
		}, nil)
	}()
	b.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("the engine ended with %v", err)
		}
		_ = b.clientPort.Close() // it is only read from by now
		<-read
	})
	if err := b.clientPort.JoinGroup(b.heldIP); err != nil { // to hear the requests for it
		b.t.Fatal(err)
	}
	b.link.Prefixes = []netip.Prefix{b.nodePrefix}
	b.engine.SetLinks(facts.LinkSet{b.link})
	awaitReport[layer2.PortOpened](b, "the link is opened")
}

// holdAddresses makes the engine answer for the addresses, for an hour.
func (b *harness) holdAddresses(addresses ...netip.Addr) {
	var bindings []intent.Binding
	for _, a := range addresses {
		bindings = append(bindings, intent.Binding{Address: a, LinkIndexes: []int{b.link.Index}})
	}
	b.engine.ApplyBindings(bindings, time.Now().Add(time.Hour))
}

// holdNewAddress does the same for an address that is not held yet, and waits for its announcement.
func (b *harness) holdNewAddress(a netip.Addr) {
	b.t.Helper()
	b.holdAddresses(a)
	b.awaitClientFrame("the address is announced", b.gratuitousReply(b.link.MAC, a))
}

// requestFor returns the client's request for an address.
func (b *harness) requestFor(a netip.Addr) layer2.Frame {
	return layer2.Frame{
		EthernetDestination: layer2.RequestDestinationMAC(a), EthernetSource: b.clientMAC, Operation: layer2.Request,
		SenderMAC: b.clientMAC, SenderIP: b.clientIP, TargetIP: a,
	}
}

// gratuitousReply returns an announcement of an address.
func (b *harness) gratuitousReply(mac facts.MAC, a netip.Addr) layer2.Frame {
	all := layer2.AnnouncementDestinationMAC(a)
	return layer2.Frame{
		EthernetDestination: all, EthernetSource: mac, Operation: layer2.Reply,
		SenderMAC: mac, SenderIP: a, TargetMAC: all, TargetIP: a,
	}
}

// noticeFor returns the engine's unicast notice about an address to the client.
func (b *harness) noticeFor(a netip.Addr) layer2.Frame {
	f := layer2.Frame{
		EthernetDestination: b.clientMAC, EthernetSource: b.link.MAC, Operation: layer2.Request,
		SenderMAC: b.link.MAC, SenderIP: a, TargetIP: b.clientIP,
	}
	if a.Is6() {
		f.Operation, f.TargetMAC, f.Unsolicited = layer2.Reply, b.clientMAC, true
	}
	return f
}

func (b *harness) sendFrame(f layer2.Frame) {
	b.t.Helper()
	if err := b.clientPort.Write(f); err != nil {
		b.t.Fatalf("the client sends: %v", err)
	}
}

// replyFor returns the engine's reply to the client for a.
func (b *harness) replyFor(a netip.Addr) layer2.Frame {
	return layer2.Frame{
		EthernetDestination: b.clientMAC, EthernetSource: b.link.MAC, Operation: layer2.Reply,
		SenderMAC: b.link.MAC, SenderIP: a, TargetMAC: b.clientMAC, TargetIP: b.clientIP,
	}
}

// awaitClientFrame waits until the client hears the frame.
func (b *harness) awaitClientFrame(sentence string, want layer2.Frame) {
	b.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case f := <-b.heardFrames:
			if f == want {
				return
			}
		case <-timeout:
			b.t.Fatalf("%s: the client did not hear %+v", sentence, want)
		}
	}
}

// requireClientSilence asserts that the client hears nothing about a for 300 ms.
func (b *harness) requireClientSilence(sentence string, a netip.Addr) {
	b.t.Helper()
	b.discardHeardFrames()
	timeout := time.After(300 * time.Millisecond)
	for {
		select {
		case f := <-b.heardFrames:
			if f.SenderIP == a && f.SenderMAC == b.link.MAC {
				b.t.Fatalf("%s: the client heard %+v", sentence, f)
			}
		case <-timeout:
			return
		}
	}
}

// unspecifiedAddress is the sender address of a host without an address.
func (b *harness) unspecifiedAddress() netip.Addr {
	if b.heldIP.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (b *harness) discardHeardFrames() {
	for len(b.heardFrames) > 0 {
		<-b.heardFrames
	}
}

// awaitReport waits for the next report of type T.
func awaitReport[T any](b *harness, sentence string) T {
	b.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case r := <-b.engine.Reports():
			if v, ok := r.(T); ok {
				return v
			}
		case <-timeout:
			b.t.Fatalf("%s: no such report came", sentence)
		}
	}
}

// wireScenarios must pass on every kind of Wire.
var wireScenarios = map[string]func(b *harness){
	"a held address is answered for, another is not": func(b *harness) {
		b.holdNewAddress(b.heldIP)
		b.sendFrame(b.requestFor(b.heldIP))
		b.awaitClientFrame("a request for the held address", b.replyFor(b.heldIP))
		b.sendFrame(b.requestFor(b.unheldIP))
		b.requireClientSilence("a request for another address", b.unheldIP)
	},
	"a request to the link's own MAC is answered": func(b *harness) {
		b.holdNewAddress(b.heldIP)
		f := b.requestFor(b.heldIP)
		f.EthernetDestination = b.link.MAC
		b.sendFrame(f)
		b.awaitClientFrame("a neighbour sends a unicast request", b.replyFor(b.heldIP))
	},
	"a host that wants the address for itself learns that it is taken": func(b *harness) {
		b.holdNewAddress(b.heldIP)
		f := b.requestFor(b.heldIP)
		f.SenderIP = b.unspecifiedAddress()
		b.sendFrame(f)
		// an IPv6 prober has no address to answer to
		want := b.gratuitousReply(b.link.MAC, b.heldIP)
		if b.heldIP.Is4() {
			want = b.replyFor(b.heldIP)
			want.TargetIP = b.unspecifiedAddress()
		}
		b.awaitClientFrame("the host probes (RFC 5227 section 2.1.1, RFC 4862 section 5.4)", want)
	},
	"nothing is answered before the send deadline is set": func(b *harness) {
		b.engine.ApplyBindings([]intent.Binding{{Address: b.heldIP, LinkIndexes: []int{b.link.Index}}}, time.Time{})
		b.sendFrame(b.requestFor(b.heldIP))
		b.requireClientSilence("no send deadline was set", b.heldIP)
		b.holdNewAddress(b.unheldIP) // sets the deadline; the first address is not held any more
		b.holdNewAddress(b.heldIP)
		b.sendFrame(b.requestFor(b.heldIP))
		b.awaitClientFrame("the send deadline is in the future", b.replyFor(b.heldIP))
		b.engine.SetSendDeadline(time.Time{})
		b.sendFrame(b.requestFor(b.heldIP))
		b.requireClientSilence("sending is forbidden again", b.heldIP)
	},
	"answers end at the send deadline": func(b *harness) {
		b.holdNewAddress(b.heldIP)
		b.engine.SetSendDeadline(time.Now().Add(50 * time.Millisecond))
		<-time.After(60 * time.Millisecond)
		b.sendFrame(b.requestFor(b.heldIP))
		b.requireClientSilence("the send deadline is past", b.heldIP)
	},
	"a new address is announced in the forms of its family": func(b *harness) {
		b.holdAddresses(b.heldIP)
		want := b.gratuitousReply(b.link.MAC, b.heldIP)
		if b.heldIP.Is4() {
			request := want
			request.Operation = layer2.Request
			b.awaitClientFrame("the address is new", request)
		}
		b.awaitClientFrame("the address is new", want)
	},
	"an address that is given up is not answered for": func(b *harness) {
		b.holdNewAddress(b.heldIP)
		b.sendFrame(b.requestFor(b.heldIP))
		b.awaitClientFrame("the address is held", b.replyFor(b.heldIP))
		b.engine.ApplyBindings(nil, time.Now().Add(time.Hour))
		for len(b.engine.Counters()) > 0 { // until the engine has applied it
			<-time.After(5 * time.Millisecond)
		}
		b.sendFrame(b.requestFor(b.heldIP))
		b.requireClientSilence("the address is given up", b.heldIP)
	},
	"a probe reports the host that answers": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 7, Address: b.heldIP, Links: []int{b.link.Index}, Attempts: 2, Interval: 100 * time.Millisecond})
		b.awaitClientFrame("the engine probes", layer2.Frame{
			EthernetDestination: layer2.RequestDestinationMAC(b.heldIP), EthernetSource: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.unspecifiedAddress(), TargetIP: b.heldIP,
		})
		answer := b.gratuitousReply(b.clientMAC, b.heldIP)
		if b.heldIP.Is4() {
			answer.EthernetDestination, answer.TargetMAC, answer.TargetIP = b.link.MAC, b.link.MAC, b.unspecifiedAddress()
		}
		b.sendFrame(answer)
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 7 || r.Address != b.heldIP || r.NotSent || !slices.Equal(r.AnsweringMACs, []facts.MAC{b.clientMAC}) {
			b.t.Fatalf("the result is %+v, want the client's answer", r)
		}
	},
	"a probe without answers reports none": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 8, Address: b.heldIP, Links: []int{b.link.Index}, Attempts: 2, Interval: 30 * time.Millisecond})
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 8 || r.NotSent || len(r.AnsweringMACs) != 0 {
			b.t.Fatalf("the result is %+v, want no answer", r)
		}
	},
	"a probe on a missing link reports that it was not sent": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 9, Address: b.heldIP, Links: []int{b.link.Index + 1000}, Attempts: 1, Interval: time.Millisecond})
		if r := awaitReport[facts.ProbeResult](b, "the probe ends"); !r.NotSent {
			b.t.Fatalf("the result is %+v, want that it was not sent", r)
		}
	},
	"a liveness probe has the link's own address as its sender": func(b *harness) {
		if err := b.clientPort.JoinGroup(b.clientIP); err != nil {
			b.t.Fatal(err)
		}
		b.engine.SendProbe(layer2.Probe{ID: 10, Address: b.clientIP, Links: []int{b.link.Index}, Attempts: 1, Interval: 50 * time.Millisecond, Kind: layer2.LivenessProbe})
		b.awaitClientFrame("the engine probes", layer2.Frame{
			EthernetDestination: layer2.RequestDestinationMAC(b.clientIP), EthernetSource: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.nodePrefix.Addr(), TargetIP: b.clientIP,
		})
	},
	"a host that probes the same address is reported as a rival": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 11, Address: b.heldIP, Links: []int{b.link.Index}, Attempts: 2, Interval: 100 * time.Millisecond})
		b.awaitClientFrame("the engine probes", layer2.Frame{
			EthernetDestination: layer2.RequestDestinationMAC(b.heldIP), EthernetSource: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.unspecifiedAddress(), TargetIP: b.heldIP,
		})
		rival := b.requestFor(b.heldIP)
		rival.SenderIP = b.unspecifiedAddress()
		b.sendFrame(rival)
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 11 || r.NotSent || len(r.AnsweringMACs) != 0 || !slices.Equal(r.RivalMACs, []facts.MAC{b.clientMAC}) {
			b.t.Fatalf("the result is %+v, want the client as a rival", r)
		}
	},
	"a gateway of the link gets a unicast notice": func(b *harness) {
		b.link.ResolvedGateways = []facts.Neighbour{{Address: b.clientIP, MAC: b.clientMAC}}
		b.engine.SetLinks(facts.LinkSet{b.link})
		b.holdAddresses(b.heldIP)
		b.awaitClientFrame("the address is new", b.noticeFor(b.heldIP))
	},
	"a defence announces the address": func(b *harness) {
		b.holdNewAddress(b.heldIP)
		b.discardHeardFrames()
		b.engine.DefendAddress(b.heldIP)
		b.awaitClientFrame("the address is defended", b.gratuitousReply(b.link.MAC, b.heldIP))
	},
	"a foreign host that claims a held address is reported": func(b *harness) {
		b.holdNewAddress(b.heldIP)
		b.sendFrame(b.requestFor(b.heldIP))
		b.awaitClientFrame("the address is held", b.replyFor(b.heldIP))
		b.sendFrame(b.gratuitousReply(foreignMAC, b.heldIP))
		want := facts.Conflict{Address: b.heldIP, MAC: foreignMAC, LinkIndex: b.link.Index}
		if r := awaitReport[facts.Conflict](b, "the conflict is reported"); r != want {
			b.t.Fatalf("the report is %+v, want %+v", r, want)
		}
	},
}
