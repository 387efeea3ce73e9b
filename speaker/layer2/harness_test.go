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
	heldIP, unheldIP, clientIP  netip.Addr
	nodeAddressWithPrefixLength netip.Prefix
}

var (
	ipv4TestAddresses = testAddresses{heldIPv4, unheldIPv4, clientIPv4, nodeAddressWithPrefixLengthIPv4}
	ipv6TestAddresses = testAddresses{
		netip.MustParseAddr("fd00:a8::201"), netip.MustParseAddr("fd00:a8::202"),
		netip.MustParseAddr("fd00:a8::100"), netip.MustParsePrefix("fd00:a8::11/64"),
	}
	addressesByFamily = map[string]testAddresses{"IPv4": ipv4TestAddresses, "IPv6": ipv6TestAddresses}
)

var (
	heldIPv4                        = netip.MustParseAddr("192.168.0.201")
	unheldIPv4                      = netip.MustParseAddr("192.168.0.202")
	clientIPv4                      = netip.MustParseAddr("192.168.0.100")
	nodeAddressWithPrefixLengthIPv4 = netip.MustParsePrefix("192.168.0.11/24")
	ethernetBroadcast               = facts.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	foreignMAC                      = facts.MAC{2, 0, 0, 0, 0, 0x99}
)

// engineWithClient is an engine with one link, and a client's port on the same segment.
type engineWithClient struct {
	testAddresses
	t                   testing.TB
	engine              *layer2.Engine
	nodeNamespace       *netnstest.Namespace // nil on a segment in memory
	clientNamespace     *netnstest.Namespace // nil on a segment in memory
	link                facts.Link
	clientPort          layer2.Port
	clientMAC           facts.MAC // of the client
	framesHeardByClient chan layer2.ARPOrNDPFrame
}

// startEngine runs the engine and the client's reader until the test ends. run works in the network
// namespace of the Wire and returns when its context ends.
func (b *engineWithClient) startEngine(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	read := make(chan struct{})
	b.framesHeardByClient = make(chan layer2.ARPOrNDPFrame, 4096)
	go func() { ended <- run(ctx) }()
	go func() {
		defer close(read)
		_ = b.clientPort.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
			select {
			case b.framesHeardByClient <- f:
			default:
			}
			return layer2.ARPOrNDPFrame{}, false
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
	if err := b.clientPort.JoinGroupOfAddress(b.heldIP); err != nil { // to hear the requests for it
		b.t.Fatal(err)
	}
	b.link.AddressesWithPrefixLength = []netip.Prefix{b.nodeAddressWithPrefixLength}
	b.engine.SetLinks(facts.LinkSet{b.link})
	awaitReport[layer2.PortOpened](b, "the link is opened")
}

// holdAddresses makes the engine answer for the addresses, for an hour.
func (b *engineWithClient) holdAddresses(addresses ...netip.Addr) {
	var bindings []intent.Binding
	for _, a := range addresses {
		bindings = append(bindings, intent.Binding{Address: a, LinkIndexes: []int{b.link.Index}})
	}
	b.engine.SetBindingsAndSendDeadline(bindings, time.Now().Add(time.Hour))
}

// holdAddressAndAwaitAnnouncement does the same for an address that is not held yet, and waits for
// its announcement.
func (b *engineWithClient) holdAddressAndAwaitAnnouncement(a netip.Addr) {
	b.t.Helper()
	b.holdAddresses(a)
	b.awaitClientFrame("the address is announced", b.gratuitousReplyFrom(b.link.MAC, a))
}

// bindUnannouncedAddress makes the engine answer for the address alone, without an announcement.
func (b *engineWithClient) bindUnannouncedAddress(a netip.Addr) {
	binding := intent.Binding{Address: a, LinkIndexes: []int{b.link.Index}, IsUnannounced: true}
	b.engine.SetBindingsAndSendDeadline([]intent.Binding{binding}, time.Now().Add(time.Hour))
}

// newClientRequest returns the client's request for an address.
func (b *engineWithClient) newClientRequest(a netip.Addr) layer2.ARPOrNDPFrame {
	return layer2.ARPOrNDPFrame{
		EthernetDestination: layer2.RequestDestinationMAC(a), EthernetSource: b.clientMAC, Operation: layer2.Request,
		SenderMAC: b.clientMAC, SenderIP: b.clientIP, TargetIP: a,
	}
}

// gratuitousReplyFrom returns an announcement of an address.
func (b *engineWithClient) gratuitousReplyFrom(mac facts.MAC, a netip.Addr) layer2.ARPOrNDPFrame {
	all := layer2.AnnouncementDestinationMAC(a)
	return layer2.ARPOrNDPFrame{
		EthernetDestination: all, EthernetSource: mac, Operation: layer2.Reply,
		SenderMAC: mac, SenderIP: a, TargetMAC: all, TargetIP: a,
	}
}

// expectedUnicastNotice returns the engine's unicast notice about an address to the client.
func (b *engineWithClient) expectedUnicastNotice(a netip.Addr) layer2.ARPOrNDPFrame {
	f := layer2.ARPOrNDPFrame{
		EthernetDestination: b.clientMAC, EthernetSource: b.link.MAC, Operation: layer2.Request,
		SenderMAC: b.link.MAC, SenderIP: a, TargetIP: b.clientIP,
	}
	if a.Is6() {
		f.Operation, f.TargetMAC, f.Unsolicited = layer2.Reply, b.clientMAC, true
	}
	return f
}

func (b *engineWithClient) sendFrame(f layer2.ARPOrNDPFrame) {
	b.t.Helper()
	if err := b.clientPort.WriteFrame(f); err != nil {
		b.t.Fatalf("the client sends: %v", err)
	}
}

// expectedReplyToClient returns the engine's reply to the client for a.
func (b *engineWithClient) expectedReplyToClient(a netip.Addr) layer2.ARPOrNDPFrame {
	return layer2.ARPOrNDPFrame{
		EthernetDestination: b.clientMAC, EthernetSource: b.link.MAC, Operation: layer2.Reply,
		SenderMAC: b.link.MAC, SenderIP: a, TargetMAC: b.clientMAC, TargetIP: b.clientIP,
	}
}

// awaitClientFrame waits until the client hears the frame.
func (b *engineWithClient) awaitClientFrame(sentence string, want layer2.ARPOrNDPFrame) {
	b.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case f := <-b.framesHeardByClient:
			if f == want {
				return
			}
		case <-timeout:
			b.t.Fatalf("%s: the client did not hear %+v", sentence, want)
		}
	}
}

// requireClientSilence asserts that the client hears nothing about a for 300 ms.
func (b *engineWithClient) requireClientSilence(sentence string, a netip.Addr) {
	b.t.Helper()
	b.discardHeardFrames()
	timeout := time.After(300 * time.Millisecond)
	for {
		select {
		case f := <-b.framesHeardByClient:
			if f.SenderIP == a && f.SenderMAC == b.link.MAC {
				b.t.Fatalf("%s: the client heard %+v", sentence, f)
			}
		case <-timeout:
			return
		}
	}
}

// unspecifiedAddress is the sender address of a host without an address.
func (b *engineWithClient) unspecifiedAddress() netip.Addr {
	if b.heldIP.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (b *engineWithClient) discardHeardFrames() {
	for len(b.framesHeardByClient) > 0 {
		<-b.framesHeardByClient
	}
}

// awaitReport waits for the next report of type T.
func awaitReport[T any](b *engineWithClient, sentence string) T {
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

// busyMachineProbeInterval is the interval of a probe that the client answers, also on a busy
// machine.
const busyMachineProbeInterval = time.Second

// scenariosForEveryPortOpener must pass on every kind of Wire.
var scenariosForEveryPortOpener = map[string]func(b *engineWithClient){
	"a held address is answered for, another is not": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.awaitClientFrame("a request for the held address", b.expectedReplyToClient(b.heldIP))
		b.sendFrame(b.newClientRequest(b.unheldIP))
		b.requireClientSilence("a request for another address", b.unheldIP)
	},
	"a request to the link's own MAC is answered": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		f := b.newClientRequest(b.heldIP)
		f.EthernetDestination = b.link.MAC
		b.sendFrame(f)
		b.awaitClientFrame("a neighbour sends a unicast request", b.expectedReplyToClient(b.heldIP))
	},
	"a host that wants the address for itself learns that it is taken": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		f := b.newClientRequest(b.heldIP)
		f.SenderIP = b.unspecifiedAddress()
		b.sendFrame(f)
		// an IPv6 prober has no address to answer to
		want := b.gratuitousReplyFrom(b.link.MAC, b.heldIP)
		if b.heldIP.Is4() {
			want = b.expectedReplyToClient(b.heldIP)
			want.TargetIP = b.unspecifiedAddress()
		}
		b.awaitClientFrame("the host probes (RFC 5227 section 2.1.1, RFC 4862 section 5.4)", want)
	},
	"nothing is answered before the send deadline is set": func(b *engineWithClient) {
		b.engine.SetBindingsAndSendDeadline([]intent.Binding{{Address: b.heldIP, LinkIndexes: []int{b.link.Index}}}, time.Time{})
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.requireClientSilence("no send deadline was set", b.heldIP)
		// sets the deadline; the first address is not held any more
		b.holdAddressAndAwaitAnnouncement(b.unheldIP)
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.awaitClientFrame("the send deadline is in the future", b.expectedReplyToClient(b.heldIP))
		b.engine.SetSendDeadline(time.Time{})
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.requireClientSilence("sending is forbidden again", b.heldIP)
	},
	"answers end at the send deadline": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		b.engine.SetSendDeadline(time.Now().Add(50 * time.Millisecond))
		<-time.After(60 * time.Millisecond)
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.requireClientSilence("the send deadline is past", b.heldIP)
	},
	"a new address is announced in the forms of its family": func(b *engineWithClient) {
		b.holdAddresses(b.heldIP)
		want := b.gratuitousReplyFrom(b.link.MAC, b.heldIP)
		if b.heldIP.Is4() {
			request := want
			request.Operation = layer2.Request
			b.awaitClientFrame("the address is new", request)
		}
		b.awaitClientFrame("the address is new", want)
	},
	"an address that is not announced yet is answered for": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.unheldIP) // the port is open
		b.bindUnannouncedAddress(b.heldIP)
		for _, isApplied := b.engine.CountersByAddress()[b.heldIP]; !isApplied; _, isApplied = b.engine.CountersByAddress()[b.heldIP] {
			<-time.After(5 * time.Millisecond)
		}
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.awaitClientFrame("the client asks", b.expectedReplyToClient(b.heldIP))
		b.engine.DefendAddress(b.heldIP)
		b.engine.RepeatAnnouncements([]netip.Addr{b.heldIP})
		b.requireClientSilence("the address is not announced yet", b.heldIP)
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
	},
	"an address that is given up is not answered for": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.awaitClientFrame("the address is held", b.expectedReplyToClient(b.heldIP))
		b.engine.SetBindingsAndSendDeadline(nil, time.Now().Add(time.Hour))
		for len(b.engine.CountersByAddress()) > 0 { // until the engine has applied it
			<-time.After(5 * time.Millisecond)
		}
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.requireClientSilence("the address is given up", b.heldIP)
	},
	"a probe reports the host that answers": func(b *engineWithClient) {
		b.engine.SendProbe(layer2.Probe{ID: 7, Address: b.heldIP, LinkIndexes: []int{b.link.Index}, FramesPerLink: 2, FrameInterval: busyMachineProbeInterval})
		b.awaitClientFrame("the engine probes", layer2.ARPOrNDPFrame{
			EthernetDestination: layer2.RequestDestinationMAC(b.heldIP), EthernetSource: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.unspecifiedAddress(), TargetIP: b.heldIP,
		})
		answer := b.gratuitousReplyFrom(b.clientMAC, b.heldIP)
		if b.heldIP.Is4() {
			answer.EthernetDestination, answer.TargetMAC, answer.TargetIP = b.link.MAC, b.link.MAC, b.unspecifiedAddress()
		}
		b.sendFrame(answer)
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 7 || r.Address != b.heldIP || r.NoFrameSent || !slices.Equal(r.AnsweringMACs, []facts.MAC{b.clientMAC}) {
			b.t.Fatalf("the result is %+v, want the client's answer", r)
		}
	},
	"a probe without answers reports none": func(b *engineWithClient) {
		b.engine.SendProbe(layer2.Probe{ID: 8, Address: b.heldIP, LinkIndexes: []int{b.link.Index}, FramesPerLink: 2, FrameInterval: 30 * time.Millisecond})
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 8 || r.NoFrameSent || len(r.AnsweringMACs) != 0 {
			b.t.Fatalf("the result is %+v, want no answer", r)
		}
	},
	"a probe on a missing link reports that it was not sent": func(b *engineWithClient) {
		b.engine.SendProbe(layer2.Probe{ID: 9, Address: b.heldIP, LinkIndexes: []int{b.link.Index + 1000}, FramesPerLink: 1, FrameInterval: time.Millisecond})
		if r := awaitReport[facts.ProbeResult](b, "the probe ends"); !r.NoFrameSent {
			b.t.Fatalf("the result is %+v, want that it was not sent", r)
		}
	},
	"a reachability probe has the link's own address as its sender": func(b *engineWithClient) {
		if err := b.clientPort.JoinGroupOfAddress(b.clientIP); err != nil {
			b.t.Fatal(err)
		}
		b.engine.SendProbe(layer2.Probe{ID: 10, Address: b.clientIP, LinkIndexes: []int{b.link.Index}, FramesPerLink: 1, FrameInterval: 50 * time.Millisecond, Kind: layer2.ProbeKindReachability})
		b.awaitClientFrame("the engine probes", layer2.ARPOrNDPFrame{
			EthernetDestination: layer2.RequestDestinationMAC(b.clientIP), EthernetSource: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.nodeAddressWithPrefixLength.Addr(), TargetIP: b.clientIP,
		})
	},
	"a host that probes the same address is reported as a rival": func(b *engineWithClient) {
		b.engine.SendProbe(layer2.Probe{ID: 11, Address: b.heldIP, LinkIndexes: []int{b.link.Index}, FramesPerLink: 2, FrameInterval: busyMachineProbeInterval})
		b.awaitClientFrame("the engine probes", layer2.ARPOrNDPFrame{
			EthernetDestination: layer2.RequestDestinationMAC(b.heldIP), EthernetSource: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.unspecifiedAddress(), TargetIP: b.heldIP,
		})
		rival := b.newClientRequest(b.heldIP)
		rival.SenderIP = b.unspecifiedAddress()
		b.sendFrame(rival)
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 11 || r.NoFrameSent || len(r.AnsweringMACs) != 0 || !slices.Equal(r.RivalProberMACs, []facts.MAC{b.clientMAC}) {
			b.t.Fatalf("the result is %+v, want the client as a rival", r)
		}
	},
	"a gateway of the link gets a unicast notice": func(b *engineWithClient) {
		b.link.GatewaysWithKnownMAC = []facts.LinkNeighbour{{Address: b.clientIP, MAC: b.clientMAC}}
		b.engine.SetLinks(facts.LinkSet{b.link})
		b.holdAddresses(b.heldIP)
		b.awaitClientFrame("the address is new", b.expectedUnicastNotice(b.heldIP))
	},
	"a defence announces the address": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		b.discardHeardFrames()
		b.engine.DefendAddress(b.heldIP)
		b.awaitClientFrame("the address is defended", b.gratuitousReplyFrom(b.link.MAC, b.heldIP))
	},
	"a foreign host that claims a held address is reported": func(b *engineWithClient) {
		b.holdAddressAndAwaitAnnouncement(b.heldIP)
		b.sendFrame(b.newClientRequest(b.heldIP))
		b.awaitClientFrame("the address is held", b.expectedReplyToClient(b.heldIP))
		b.sendFrame(b.gratuitousReplyFrom(foreignMAC, b.heldIP))
		want := facts.Conflict{Address: b.heldIP, ForeignMAC: foreignMAC, LinkIndex: b.link.Index}
		if r := awaitReport[facts.Conflict](b, "the conflict is reported"); r != want {
			b.t.Fatalf("the report is %+v, want %+v", r, want)
		}
	},
}
