package layer2_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/segment"
)

// simulated is a bed on a segment in memory.
type simulated struct {
	*bed
	lan  *segment.LAN
	node *segment.Host
}

// simulate runs f in a bubble, with IPv4.
func simulate(t *testing.T, f func(s simulated)) { simulateCast(t, cast4, f) }

func simulateCast(t *testing.T, c cast, f func(s simulated), options ...layer2.Option) {
	synctest.Test(t, func(t *testing.T) {
		lan := segment.New()
		node := lan.Host("node1")
		mac := facts.MAC{2, 0, 0, 0, 0, 0x64}
		client, err := lan.Host("client").Open(facts.Link{Index: 1, Name: "eth0", MAC: mac}, layer2.FamilyOf(c.held))
		if err != nil {
			t.Fatal(err)
		}
		b := &bed{
			cast: c, t: t, client: client, mac: mac, engine: layer2.New(node, time.Now, options...),
			link: facts.Link{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, 0x0b}},
		}
		b.start(b.engine.Run)
		f(simulated{bed: b, lan: lan, node: node})
	})
}

func TestScenariosOnASegment(t *testing.T) {
	for family, c := range families {
		for name, scenario := range scenarios {
			t.Run(family+": "+name, func(t *testing.T) {
				simulateCast(t, c, func(s simulated) { scenario(s.bed) })
			})
		}
	}
}

// announced counts the announcements of each address since the last call.
func (s simulated) announced() map[netip.Addr]int {
	n := map[netip.Addr]int{}
	for _, f := range s.lan.Frames() {
		if f.From == "node1" && f.Frame.SenderIP == f.Frame.TargetIP {
			n[f.Frame.SenderIP]++
		}
	}
	return n
}

func TestBursts(t *testing.T) {
	const burst = 14 // seven rounds in two forms
	settle := func() { time.Sleep(10 * time.Second); synctest.Wait() }
	tests := map[string]struct {
		do   func(s simulated)
		want int
	}{
		"the same claims again announce nothing": {func(s simulated) { s.hold(held) }, 0},
		"a link that went away and comes back is announced on": {func(s simulated) {
			s.engine.SetLinks(nil)
			synctest.Wait()
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, burst},
		"a new Ethernet address is announced": {func(s simulated) {
			s.link.MAC[5]++
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, burst},
		"a new subnet on the link announces nothing": {func(s simulated) {
			s.link.Prefixes = nil
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, 0},
		"a port that broke is opened again and announced on": {func(s simulated) { s.node.Break(layer2.ErrLinkGone) }, burst},
		"on request": {func(s simulated) { s.engine.Announce([]netip.Addr{held}) }, burst},
		"an address that is not held is not announced on request": {func(s simulated) { s.engine.Announce([]netip.Addr{other}) }, 0},
		"an address given up and taken again": {func(s simulated) {
			s.engine.Apply(nil)
			synctest.Wait()
			s.hold(held)
		}, burst},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(s simulated) {
				s.hold(held)
				settle()
				if n := s.announced()[held]; n != burst {
					t.Fatalf("a new address is announced %d times, want %d", n, burst)
				}
				tt.do(s)
				settle()
				if n := s.announced(); n[held] != tt.want || n[other] != 0 {
					t.Fatalf("announcements: %v, want %d of %s", n, tt.want, held)
				}
			})
		})
	}
}

func TestHeldAddressesAreRefreshedOnWish(t *testing.T) {
	for name, tt := range map[string]struct {
		options []layer2.Option
		want    int
	}{
		"no wish":               {nil, 0},
		"each two minutes":      {[]layer2.Option{layer2.Refresh(2 * time.Minute)}, 10},
		"never":                 {[]layer2.Option{layer2.Refresh(0)}, 0},
		"each minute and 40 s ": {[]layer2.Option{layer2.Refresh(100 * time.Second)}, 12},
	} {
		t.Run(name, func(t *testing.T) {
			simulateCast(t, cast4, func(s simulated) {
				s.hold(held)
				time.Sleep(150 * time.Second)
				s.announced()
				s.hold(held)
				time.Sleep(10 * time.Minute)
				if n := s.announced()[held]; n != tt.want {
					t.Fatalf("in ten minutes %d refreshing frames of two forms, want %d", n, tt.want)
				}
			}, tt.options...)
		})
	}
}

func TestManyAddressesAreAnnouncedAtAPace(t *testing.T) {
	simulate(t, func(s simulated) {
		var claims []netip.Addr
		for i := range 1000 {
			claims = append(claims, netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i % 250)}))
		}
		s.hold(claims...)
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if n := len(s.announced()); n != len(claims) {
			t.Fatalf("%d of %d addresses are announced in 0.3 s", n, len(claims))
		}
	})
}

func TestRefusedPortIsReportedOnceAndHeals(t *testing.T) {
	simulate(t, func(s simulated) {
		s.node.Refuse(layer2.ErrDenied)
		s.engine.SetLinks(nil)
		synctest.Wait()
		s.engine.SetLinks(facts.LinkSet{s.link})
		if r := report[layer2.PortFailed](s.bed, "the refusal is reported"); !r.Denied() || r.Link.Name != "eth0" {
			t.Fatalf("the report is %+v, want that raw sockets are denied on eth0", r)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(s.engine.Reports()); n != 0 {
			t.Fatalf("the same refusal is reported %d times more", n)
		}
		s.hold(held)
		s.node.Refuse(nil)
		time.Sleep(10 * time.Second)
		report[layer2.PortOpened](s.bed, "the port is opened later")
		s.send(s.request(held))
		s.wantHeard("the port works", s.answer(held))
	})
}

func TestAFlappingPortIsTriedEverMoreSlowly(t *testing.T) {
	simulate(t, func(s simulated) {
		deadline := time.Now().Add(10 * time.Minute)
		opened := 0
		for time.Now().Before(deadline) {
			s.node.Break(layer2.ErrLinkGone)
			time.Sleep(time.Second)
			for len(s.engine.Reports()) > 0 {
				if _, ok := (<-s.engine.Reports()).(layer2.PortOpened); ok {
					opened++
				}
			}
		}
		if opened > 70 {
			t.Fatalf("the port was opened %d times in ten minutes, want about one in ten seconds", opened)
		}
	})
}

func TestStrangersAreReportedOnceASecond(t *testing.T) {
	simulate(t, func(s simulated) {
		s.take(held)
		for range 50 { // for 5 s
			s.send(s.says(stranger, held))
			time.Sleep(100 * time.Millisecond)
		}
		n := 0
		for len(s.engine.Reports()) > 0 {
			if _, ok := (<-s.engine.Reports()).(facts.ForeignClaim); ok {
				n++
			}
		}
		if n != 5 {
			t.Fatalf("%d reports in 5 s, want 5", n)
		}
	})
}

func TestAFloodOfForgedStrangersIsBounded(t *testing.T) {
	simulate(t, func(s simulated) {
		s.take(held)
		for i := range 20000 {
			s.send(s.says(facts.MAC{2, 0xee, 0, byte(i >> 16), byte(i >> 8), byte(i)}, held))
			if i%500 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		if n := len(s.engine.Reports()); n > 4097 {
			t.Fatalf("%d reports wait", n)
		}
		s.drain()
		s.send(s.request(held))
		s.wantHeard("the address is answered for still", s.answer(held))
	})
}

func TestAClaimIsKeptToItsLinks(t *testing.T) {
	simulate(t, func(s simulated) {
		second := s.link
		second.Index, second.MAC = 3, facts.MAC{2, 0, 0, 0, 0, 0x0c}
		s.engine.SetLinks(facts.LinkSet{s.link, second})
		s.engine.Renew(time.Now().Add(time.Hour))
		s.engine.Apply([]intent.Claim{{Address: held, Links: []int{second.Index}}})
		time.Sleep(10 * time.Second)
		s.drain()
		s.send(s.request(held))
		time.Sleep(time.Second)
		if n := len(s.heard); n != 1 {
			t.Fatalf("%d answers, want one", n)
		}
		if f := <-s.heard; f.SenderMAC != second.MAC {
			t.Fatalf("the answer is of %s, want the claim's link %s", f.SenderMAC, second.MAC)
		}
		if n := len(s.engine.Reports()); n != 1 { // the second port
			t.Fatalf("%d reports: the node takes its other link for a stranger", n-1)
		}
	})
}

func TestManyProbesAtOnce(t *testing.T) {
	simulate(t, func(s simulated) {
		const n = 6000
		for i := range n {
			a := netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i % 250)})
			s.engine.Probe(layer2.Probe{ID: uint64(i), Address: a, Links: []int{s.link.Index}, Attempts: 2, Interval: 30 * time.Millisecond})
		}
		seen := map[uint64]bool{}
		for range n {
			r := report[facts.ProbeResult](s.bed, fmt.Sprintf("probe %d of %d ends", len(seen)+1, n))
			seen[r.ID] = true
		}
		if len(seen) != n {
			t.Fatalf("%d probes reported, want %d", len(seen), n)
		}
	})
}

// Questions are paced: thousands of addresses to take are no flood.
func TestProbesArePaced(t *testing.T) {
	simulate(t, func(s simulated) {
		for i := range 1000 {
			s.engine.Probe(layer2.Probe{ID: uint64(i), Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Links: []int{s.link.Index}, Attempts: 2, Interval: 30 * time.Millisecond})
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		within := map[time.Time]int{}
		sent := 0
		for _, f := range s.lan.Frames() {
			within[f.At.Truncate(10*time.Millisecond)]++
			sent++
		}
		if sent != 2000 {
			t.Fatalf("%d questions, want two for each address", sent)
		}
		for at, n := range within {
			if n > 200 { // two batches may share such a slot
				t.Fatalf("%d questions within 10 ms at %v", n, at)
			}
		}
	})
}

// A stranger's claim is met with one announcement in ten seconds (RFC 5227 section 2.4), and counted each time.
func TestADefenceIsRateLimited(t *testing.T) {
	simulate(t, func(s simulated) {
		s.hold(held)
		time.Sleep(10 * time.Second)
		s.announced()
		for range 25 { // for 25 s
			s.engine.Defend(held)
			s.engine.Defend(other)
			time.Sleep(time.Second)
		}
		if n := s.announced(); n[held] != 6 || n[other] != 0 {
			t.Fatalf("announcements: %v, want three of two forms for %s", n, held)
		}
		if n := s.engine.Counters()[held].Conflicts; n != 25 {
			t.Fatalf("%d conflicts are counted, want 25", n)
		}
	})
}

func TestAnUnusableProbeDoesNotHarmThePort(t *testing.T) {
	simulate(t, func(s simulated) {
		s.engine.Probe(layer2.Probe{ID: 1, Links: []int{s.link.Index}, Attempts: 1, Interval: time.Millisecond})
		if r := report[facts.ProbeResult](s.bed, "the probe ends"); !r.Unasked {
			t.Fatalf("the result is %+v, want that nobody was asked", r)
		}
		s.take(held)
		s.send(s.request(held))
		s.wantHeard("the port works", s.answer(held))
	})
}

func TestPortFailedTellsDenialApart(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"denied":  {fmt.Errorf("opening: %w", layer2.ErrDenied), true},
		"another": {errors.New("no buffers"), false},
	} {
		if got := (layer2.PortFailed{Err: tt.err}).Denied(); got != tt.want {
			t.Errorf("%s: Denied() = %v", name, got)
		}
	}
}
