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
	held, other, clientIP netip.Addr
	nodeIP                netip.Prefix
}

var (
	addresses4 = testAddresses{held, other, clientIP, nodeIP}
	addresses6 = testAddresses{
		netip.MustParseAddr("fd00:a8::201"), netip.MustParseAddr("fd00:a8::202"),
		netip.MustParseAddr("fd00:a8::100"), netip.MustParsePrefix("fd00:a8::11/64"),
	}
	addressesByFamily = map[string]testAddresses{"IPv4": addresses4, "IPv6": addresses6}
)

var (
	held              = netip.MustParseAddr("192.168.0.201")
	other             = netip.MustParseAddr("192.168.0.202")
	clientIP          = netip.MustParseAddr("192.168.0.100")
	nodeIP            = netip.MustParsePrefix("192.168.0.11/24")
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
		})
	}()
	b.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Errorf("the engine ended with %v", err)
		}
		_ = b.clientPort.Close() // it is only read from by now
		<-read
	})
	if err := b.clientPort.JoinGroup(b.held); err != nil { // to hear the requests for it
		b.t.Fatal(err)
	}
	b.link.Prefixes = []netip.Prefix{b.nodeIP}
	b.engine.SetLinks(facts.LinkSet{b.link})
	awaitReport[layer2.PortOpened](b, "the link is opened")
}

// holdAddresses makes the engine answer for the addresses, for an hour.
func (b *harness) holdAddresses(addresses ...netip.Addr) {
	var bindings []intent.Binding
	for _, a := range addresses {
		bindings = append(bindings, intent.Binding{Address: a, Links: []int{b.link.Index}})
	}
	b.engine.SetSendDeadline(time.Now().Add(time.Hour))
	b.engine.ApplyBindings(bindings)
}

// holdNewAddress does the same for an address that is not held yet, and waits for its announcement.
func (b *harness) holdNewAddress(a netip.Addr) {
	b.t.Helper()
	b.holdAddresses(a)
	b.wantHeard("the address is announced", b.gratuitousReply(b.link.MAC, a))
}

// requestFor returns the client's request for an address.
func (b *harness) requestFor(a netip.Addr) layer2.Frame {
	return layer2.Frame{
		Destination: layer2.RequestMAC(a), Source: b.clientMAC, Operation: layer2.Request,
		SenderMAC: b.clientMAC, SenderIP: b.clientIP, TargetIP: a,
	}
}

// gratuitousReply returns an announcement of an address.
func (b *harness) gratuitousReply(mac facts.MAC, a netip.Addr) layer2.Frame {
	all := layer2.AnnouncementMAC(a)
	return layer2.Frame{
		Destination: all, Source: mac, Operation: layer2.Reply,
		SenderMAC: mac, SenderIP: a, TargetMAC: all, TargetIP: a,
	}
}

// noticeFor returns the engine's unicast notice about an address to the client.
func (b *harness) noticeFor(a netip.Addr) layer2.Frame {
	f := layer2.Frame{
		Destination: b.clientMAC, Source: b.link.MAC, Operation: layer2.Request,
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
		Destination: b.clientMAC, Source: b.link.MAC, Operation: layer2.Reply,
		SenderMAC: b.link.MAC, SenderIP: a, TargetMAC: b.clientMAC, TargetIP: b.clientIP,
	}
}

// wantHeard waits until the client hears the frame.
func (b *harness) wantHeard(sentence string, want layer2.Frame) {
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

// wantSilence asserts that the client hears nothing about a for 300 ms.
func (b *harness) wantSilence(sentence string, a netip.Addr) {
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
	if b.held.Is4() {
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

// scenarios must pass on every kind of Wire.
var scenarios = map[string]func(b *harness){
	"a held address is answered for, another is not": func(b *harness) {
		b.holdNewAddress(b.held)
		b.sendFrame(b.requestFor(b.held))
		b.wantHeard("a request for the held address", b.replyFor(b.held))
		b.sendFrame(b.requestFor(b.other))
		b.wantSilence("a request for another address", b.other)
	},
	"a request to the link's own MAC is answered": func(b *harness) {
		b.holdNewAddress(b.held)
		f := b.requestFor(b.held)
		f.Destination = b.link.MAC
		b.sendFrame(f)
		b.wantHeard("a neighbour sends a unicast request", b.replyFor(b.held))
	},
	"a host that wants the address for itself learns that it is taken": func(b *harness) {
		b.holdNewAddress(b.held)
		f := b.requestFor(b.held)
		f.SenderIP = b.unspecifiedAddress()
		b.sendFrame(f)
		want := b.gratuitousReply(b.link.MAC, b.held) // an IPv6 prober has no address to answer to
		if b.held.Is4() {
			want = b.replyFor(b.held)
			want.TargetIP = b.unspecifiedAddress()
		}
		b.wantHeard("the host probes (RFC 5227 section 2.1.1, RFC 4862 section 5.4)", want)
	},
	"nothing is answered before the send deadline is set": func(b *harness) {
		b.engine.ApplyBindings([]intent.Binding{{Address: b.held, Links: []int{b.link.Index}}})
		b.sendFrame(b.requestFor(b.held))
		b.wantSilence("no send deadline was set", b.held)
		b.holdNewAddress(b.other) // sets the deadline; the first address is not held any more
		b.holdNewAddress(b.held)
		b.sendFrame(b.requestFor(b.held))
		b.wantHeard("the send deadline is in the future", b.replyFor(b.held))
		b.engine.SetSendDeadline(time.Time{})
		b.sendFrame(b.requestFor(b.held))
		b.wantSilence("sending is forbidden again", b.held)
	},
	"answers end at the send deadline": func(b *harness) {
		b.holdNewAddress(b.held)
		b.engine.SetSendDeadline(time.Now().Add(50 * time.Millisecond))
		<-time.After(60 * time.Millisecond)
		b.sendFrame(b.requestFor(b.held))
		b.wantSilence("the send deadline is past", b.held)
	},
	"a new address is announced in the forms of its family": func(b *harness) {
		b.holdAddresses(b.held)
		want := b.gratuitousReply(b.link.MAC, b.held)
		if b.held.Is4() {
			request := want
			request.Operation = layer2.Request
			b.wantHeard("the address is new", request)
		}
		b.wantHeard("the address is new", want)
	},
	"an address that is given up is not answered for": func(b *harness) {
		b.holdNewAddress(b.held)
		b.sendFrame(b.requestFor(b.held))
		b.wantHeard("the address is held", b.replyFor(b.held))
		b.engine.ApplyBindings(nil)
		for len(b.engine.Counters()) > 0 { // until the engine has applied it
			<-time.After(5 * time.Millisecond)
		}
		b.sendFrame(b.requestFor(b.held))
		b.wantSilence("the address is given up", b.held)
	},
	"a probe reports the host that answers": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 7, Address: b.held, Links: []int{b.link.Index}, Attempts: 2, Interval: 100 * time.Millisecond})
		b.wantHeard("the engine probes", layer2.Frame{
			Destination: layer2.RequestMAC(b.held), Source: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.unspecifiedAddress(), TargetIP: b.held,
		})
		answer := b.gratuitousReply(b.clientMAC, b.held)
		if b.held.Is4() {
			answer.Destination, answer.TargetMAC, answer.TargetIP = b.link.MAC, b.link.MAC, b.unspecifiedAddress()
		}
		b.sendFrame(answer)
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 7 || r.Address != b.held || r.NotSent || !slices.Equal(r.Answers, []facts.MAC{b.clientMAC}) {
			b.t.Fatalf("the result is %+v, want the client's answer", r)
		}
	},
	"a probe without answers reports none": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 8, Address: b.held, Links: []int{b.link.Index}, Attempts: 2, Interval: 30 * time.Millisecond})
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 8 || r.NotSent || len(r.Answers) != 0 {
			b.t.Fatalf("the result is %+v, want no answer", r)
		}
	},
	"a probe on a missing link reports that it was not sent": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 9, Address: b.held, Links: []int{b.link.Index + 1000}, Attempts: 1, Interval: time.Millisecond})
		if r := awaitReport[facts.ProbeResult](b, "the probe ends"); !r.NotSent {
			b.t.Fatalf("the result is %+v, want that it was not sent", r)
		}
	},
	"a liveness probe has the link's own address as its sender": func(b *harness) {
		if err := b.clientPort.JoinGroup(b.clientIP); err != nil {
			b.t.Fatal(err)
		}
		b.engine.SendProbe(layer2.Probe{ID: 10, Address: b.clientIP, Links: []int{b.link.Index}, Attempts: 1, Interval: 50 * time.Millisecond, Kind: layer2.LivenessProbe})
		b.wantHeard("the engine probes", layer2.Frame{
			Destination: layer2.RequestMAC(b.clientIP), Source: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.nodeIP.Addr(), TargetIP: b.clientIP,
		})
	},
	"a host that probes the same address is reported as a rival": func(b *harness) {
		b.engine.SendProbe(layer2.Probe{ID: 11, Address: b.held, Links: []int{b.link.Index}, Attempts: 2, Interval: 100 * time.Millisecond})
		b.wantHeard("the engine probes", layer2.Frame{
			Destination: layer2.RequestMAC(b.held), Source: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.unspecifiedAddress(), TargetIP: b.held,
		})
		rival := b.requestFor(b.held)
		rival.SenderIP = b.unspecifiedAddress()
		b.sendFrame(rival)
		r := awaitReport[facts.ProbeResult](b, "the probe ends")
		if r.ID != 11 || r.NotSent || len(r.Answers) != 0 || !slices.Equal(r.RivalProbers, []facts.MAC{b.clientMAC}) {
			b.t.Fatalf("the result is %+v, want the client as a rival", r)
		}
	},
	"a gateway of the link gets a unicast notice": func(b *harness) {
		b.link.ResolvedGateways = []facts.Neighbour{{Address: b.clientIP, MAC: b.clientMAC}}
		b.engine.SetLinks(facts.LinkSet{b.link})
		b.holdAddresses(b.held)
		b.wantHeard("the address is new", b.noticeFor(b.held))
	},
	"a defence announces the address": func(b *harness) {
		b.holdNewAddress(b.held)
		b.discardHeardFrames()
		b.engine.DefendAddress(b.held)
		b.wantHeard("the address is defended", b.gratuitousReply(b.link.MAC, b.held))
	},
	"a foreign host that claims a held address is reported": func(b *harness) {
		b.holdNewAddress(b.held)
		b.sendFrame(b.requestFor(b.held))
		b.wantHeard("the address is held", b.replyFor(b.held))
		b.sendFrame(b.gratuitousReply(foreignMAC, b.held))
		want := facts.Conflict{Address: b.held, MAC: foreignMAC, Link: b.link.Index}
		if r := awaitReport[facts.Conflict](b, "the conflict is reported"); r != want {
			b.t.Fatalf("the report is %+v, want %+v", r, want)
		}
	},
}
