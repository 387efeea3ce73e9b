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
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
)

// cast is who plays in a scenario.
type cast struct {
	held, other, clientIP netip.Addr
	nodeIP                netip.Prefix
}

var (
	cast4 = cast{held, other, clientIP, nodeIP}
	cast6 = cast{
		netip.MustParseAddr("fd00:a8::201"), netip.MustParseAddr("fd00:a8::202"),
		netip.MustParseAddr("fd00:a8::100"), netip.MustParsePrefix("fd00:a8::11/64"),
	}
	families = map[string]cast{"IPv4": cast4, "IPv6": cast6}
)

var (
	held      = netip.MustParseAddr("192.168.0.201")
	other     = netip.MustParseAddr("192.168.0.202")
	clientIP  = netip.MustParseAddr("192.168.0.100")
	nodeIP    = netip.MustParsePrefix("192.168.0.11/24")
	everybody = facts.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	stranger  = facts.MAC{2, 0, 0, 0, 0, 0x99}
)

// bed is an engine with one link, and a client's port on the same segment.
type bed struct {
	cast
	t          testing.TB
	engine     *layer2.Engine
	node       *sandbox.Room // nil on a segment in memory
	clientRoom *sandbox.Room // the same
	link       facts.Link
	client     layer2.Port
	mac        facts.MAC // of the client
	heard      chan layer2.Frame
}

// start runs the engine and the client's reader until the test ends; run starts the engine's goroutine, which has to
// be in the network namespace of the wire.
func (b *bed) start(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	read := make(chan struct{})
	b.heard = make(chan layer2.Frame, 4096)
	go func() { ended <- run(ctx) }()
	go func() {
		defer close(read)
		_ = b.client.Receive(func(f layer2.Frame) (layer2.Frame, bool) {
			select {
			case b.heard <- f:
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
		_ = b.client.Close() // it is only read from by now
		<-read
	})
	if err := b.client.Join(b.held); err != nil { // to hear who asks for it
		b.t.Fatal(err)
	}
	b.link.Prefixes = []netip.Prefix{b.nodeIP}
	b.engine.SetLinks(facts.LinkSet{b.link})
	report[layer2.PortOpened](b, "the link is opened")
}

// hold makes the engine answer for the addresses, for an hour.
func (b *bed) hold(addresses ...netip.Addr) {
	var claims []intent.Claim
	for _, a := range addresses {
		claims = append(claims, intent.Claim{Address: a, Links: []int{b.link.Index}})
	}
	b.engine.Renew(time.Now().Add(time.Hour))
	b.engine.Apply(claims)
}

// take is hold for an address that is not held yet; it waits until that is so.
func (b *bed) take(a netip.Addr) {
	b.t.Helper()
	b.hold(a)
	b.wantHeard("the address is announced", b.says(b.link.MAC, a))
}

// request is the client asking for an address.
func (b *bed) request(a netip.Addr) layer2.Frame {
	return layer2.Frame{
		Destination: layer2.Asked(a), Source: b.mac, Operation: layer2.Request,
		SenderMAC: b.mac, SenderIP: b.clientIP, TargetIP: a,
	}
}

// says is somebody claiming an address by a gratuitous reply.
func (b *bed) says(mac facts.MAC, a netip.Addr) layer2.Frame {
	all := layer2.Everybody(a)
	return layer2.Frame{
		Destination: all, Source: mac, Operation: layer2.Reply,
		SenderMAC: mac, SenderIP: a, TargetMAC: all, TargetIP: a,
	}
}

// news is the engine telling the client, and nobody else, about an address.
func (b *bed) news(a netip.Addr) layer2.Frame {
	f := layer2.Frame{
		Destination: b.mac, Source: b.link.MAC, Operation: layer2.Request,
		SenderMAC: b.link.MAC, SenderIP: a, TargetIP: b.clientIP,
	}
	if a.Is6() {
		f.Operation, f.TargetMAC, f.Unsolicited = layer2.Reply, b.mac, true
	}
	return f
}

func (b *bed) send(f layer2.Frame) {
	b.t.Helper()
	if err := b.client.Write(f); err != nil {
		b.t.Fatalf("the client sends: %v", err)
	}
}

// answer is the reply that the client should get for a.
func (b *bed) answer(a netip.Addr) layer2.Frame {
	return layer2.Frame{
		Destination: b.mac, Source: b.link.MAC, Operation: layer2.Reply,
		SenderMAC: b.link.MAC, SenderIP: a, TargetMAC: b.mac, TargetIP: b.clientIP,
	}
}

// wantHeard waits until the client hears the frame.
func (b *bed) wantHeard(sentence string, want layer2.Frame) {
	b.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case f := <-b.heard:
			if f == want {
				return
			}
		case <-timeout:
			b.t.Fatalf("%s: the client did not hear %+v", sentence, want)
		}
	}
}

// wantSilence asserts that the client is told nothing about a for a while.
func (b *bed) wantSilence(sentence string, a netip.Addr) {
	b.t.Helper()
	b.drain()
	timeout := time.After(300 * time.Millisecond)
	for {
		select {
		case f := <-b.heard:
			if f.SenderIP == a && f.SenderMAC == b.link.MAC {
				b.t.Fatalf("%s: the client heard %+v", sentence, f)
			}
		case <-timeout:
			return
		}
	}
}

// nobody is the address of who has none.
func (b *bed) nobody() netip.Addr {
	if b.held.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (b *bed) drain() {
	for len(b.heard) > 0 {
		<-b.heard
	}
}

// report waits for the next report of the kind.
func report[T any](b *bed, sentence string) T {
	b.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case r := <-b.engine.Reports():
			if v, ok := r.(T); ok {
				return v
			}
		case <-timeout:
			b.t.Fatalf("%s: no such report", sentence)
		}
	}
}

// scenarios hold on every kind of wire.
var scenarios = map[string]func(b *bed){
	"a held address is answered for, another is not": func(b *bed) {
		b.take(b.held)
		b.send(b.request(b.held))
		b.wantHeard("the held address is asked for", b.answer(b.held))
		b.send(b.request(b.other))
		b.wantSilence("another address is asked for", b.other)
	},
	"a request to the link's own MAC is answered": func(b *bed) {
		b.take(b.held)
		f := b.request(b.held)
		f.Destination = b.link.MAC
		b.send(f)
		b.wantHeard("a neighbour checks whether the address is still here", b.answer(b.held))
	},
	"a host that wants the address for itself learns that it is taken": func(b *bed) {
		b.take(b.held)
		f := b.request(b.held)
		f.SenderIP = b.nobody()
		b.send(f)
		want := b.says(b.link.MAC, b.held) // the asker of IPv6 has no address to answer to
		if b.held.Is4() {
			want = b.answer(b.held)
			want.TargetIP = b.nobody()
		}
		b.wantHeard("the host probes (RFC 5227 section 2.1.1, RFC 4862 section 5.4)", want)
	},
	"nothing is answered before the fence is renewed": func(b *bed) {
		b.engine.Apply([]intent.Claim{{Address: b.held, Links: []int{b.link.Index}}})
		b.send(b.request(b.held))
		b.wantSilence("the fence is closed", b.held)
		b.take(b.other) // renews; the claim on the first address is given up
		b.take(b.held)
		b.send(b.request(b.held))
		b.wantHeard("the fence is open", b.answer(b.held))
		b.engine.Renew(time.Time{})
		b.send(b.request(b.held))
		b.wantSilence("the fence is closed again", b.held)
	},
	"answers end when the fence runs out": func(b *bed) {
		b.take(b.held)
		b.engine.Renew(time.Now().Add(50 * time.Millisecond))
		<-time.After(60 * time.Millisecond)
		b.send(b.request(b.held))
		b.wantSilence("the time is over", b.held)
	},
	"a new address is announced in the forms of its family": func(b *bed) {
		b.hold(b.held)
		want := b.says(b.link.MAC, b.held)
		if b.held.Is4() {
			request := want
			request.Operation = layer2.Request
			b.wantHeard("the address is new", request)
		}
		b.wantHeard("the address is new", want)
	},
	"an address that is given up is silent": func(b *bed) {
		b.take(b.held)
		b.send(b.request(b.held))
		b.wantHeard("the address is held", b.answer(b.held))
		b.engine.Apply(nil)
		for len(b.engine.Counters()) > 0 { // until the engine has taken it in
			<-time.After(5 * time.Millisecond)
		}
		b.send(b.request(b.held))
		b.wantSilence("the address is given up", b.held)
	},
	"a probe reports who answers": func(b *bed) {
		b.engine.Probe(layer2.Probe{ID: 7, Address: b.held, Links: []int{b.link.Index}, Attempts: 2, Interval: 100 * time.Millisecond})
		b.wantHeard("the engine asks", layer2.Frame{
			Destination: layer2.Asked(b.held), Source: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.nobody(), TargetIP: b.held,
		})
		answer := b.says(b.mac, b.held)
		if b.held.Is4() {
			answer.Destination, answer.TargetMAC, answer.TargetIP = b.link.MAC, b.link.MAC, b.nobody()
		}
		b.send(answer)
		r := report[facts.ProbeResult](b, "the probe ends")
		if r.ID != 7 || r.Address != b.held || r.Unasked || !slices.Equal(r.Answers, []facts.MAC{b.mac}) {
			b.t.Fatalf("the result is %+v, want the client's answer", r)
		}
	},
	"a probe that nobody answers reports silence": func(b *bed) {
		b.engine.Probe(layer2.Probe{ID: 8, Address: b.held, Links: []int{b.link.Index}, Attempts: 2, Interval: 30 * time.Millisecond})
		r := report[facts.ProbeResult](b, "the probe ends")
		if r.ID != 8 || r.Unasked || len(r.Answers) != 0 {
			b.t.Fatalf("the result is %+v, want silence", r)
		}
	},
	"a probe on a link that is not there reports that nobody was asked": func(b *bed) {
		b.engine.Probe(layer2.Probe{ID: 9, Address: b.held, Links: []int{b.link.Index + 1000}, Attempts: 1, Interval: time.Millisecond})
		if r := report[facts.ProbeResult](b, "the probe ends"); !r.Unasked {
			b.t.Fatalf("the result is %+v, want that nobody was asked", r)
		}
	},
	"a neighbour is asked from the link's own address": func(b *bed) {
		if err := b.client.Join(b.clientIP); err != nil {
			b.t.Fatal(err)
		}
		b.engine.Probe(layer2.Probe{ID: 10, Address: b.clientIP, Links: []int{b.link.Index}, Attempts: 1, Interval: 50 * time.Millisecond, Kind: layer2.Ask})
		b.wantHeard("the engine asks", layer2.Frame{
			Destination: layer2.Asked(b.clientIP), Source: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.nodeIP.Addr(), TargetIP: b.clientIP,
		})
	},
	"a host that asks for the same address for itself meanwhile is a rival": func(b *bed) {
		b.engine.Probe(layer2.Probe{ID: 11, Address: b.held, Links: []int{b.link.Index}, Attempts: 2, Interval: 100 * time.Millisecond})
		b.wantHeard("the engine asks", layer2.Frame{
			Destination: layer2.Asked(b.held), Source: b.link.MAC, Operation: layer2.Request,
			SenderMAC: b.link.MAC, SenderIP: b.nobody(), TargetIP: b.held,
		})
		rival := b.request(b.held)
		rival.SenderIP = b.nobody()
		b.send(rival)
		r := report[facts.ProbeResult](b, "the probe ends")
		if r.ID != 11 || r.Unasked || len(r.Answers) != 0 || !slices.Equal(r.Rivals, []facts.MAC{b.mac}) {
			b.t.Fatalf("the result is %+v, want the client as a rival", r)
		}
	},
	"a router of the link is told directly": func(b *bed) {
		b.link.Routers = []facts.Neighbour{{Address: b.clientIP, MAC: b.mac}}
		b.engine.SetLinks(facts.LinkSet{b.link})
		b.hold(b.held)
		b.wantHeard("the address is new", b.news(b.held))
	},
	"a defence announces the address": func(b *bed) {
		b.take(b.held)
		b.drain()
		b.engine.Defend(b.held)
		b.wantHeard("the address is defended", b.says(b.link.MAC, b.held))
	},
	"a stranger that speaks for a held address is reported": func(b *bed) {
		b.take(b.held)
		b.send(b.request(b.held))
		b.wantHeard("the address is held", b.answer(b.held))
		b.send(b.says(stranger, b.held))
		want := facts.ForeignClaim{Address: b.held, MAC: stranger, Link: b.link.Index}
		if r := report[facts.ForeignClaim](b, "the stranger is reported"); r != want {
			b.t.Fatalf("the report is %+v, want %+v", r, want)
		}
	},
}
