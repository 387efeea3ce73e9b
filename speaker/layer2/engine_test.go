package layer2_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/layer2test"
)

// engineWithClientInMemory is a harness on a segment in memory.
type engineWithClientInMemory struct {
	*engineWithClient
	lan      *layer2test.LAN
	nodeHost *layer2test.LANHost
}

// simulateIPv4 runs f in a bubble with IPv4 addresses.
func simulateIPv4(t *testing.T, f func(s engineWithClientInMemory)) {
	simulateWithOptions(t, ipv4TestAddresses, f)
}

func simulateWithOptions(t *testing.T, c testAddresses, f func(s engineWithClientInMemory), options ...layer2.Option) {
	synctest.Test(t, func(t *testing.T) {
		lan := layer2test.NewLAN()
		node := lan.AddHost("node1")
		mac := facts.MAC{2, 0, 0, 0, 0, 0x64}
		client, err := lan.AddHost("client").OpenPort(facts.Link{Index: 1, Name: "eth0", MAC: mac}, ipfamily.FamilyOf(c.heldIP))
		if err != nil {
			t.Fatal(err)
		}
		b := &engineWithClient{
			testAddresses: c, t: t, clientPort: client, clientMAC: mac, engine: layer2.NewEngine(node, time.Now, options...),
			link: facts.Link{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, 0x0b}},
		}
		b.startEngine(b.engine.Run)
		f(engineWithClientInMemory{engineWithClient: b, lan: lan, nodeHost: node})
	})
}

func TestScenariosInMemory(t *testing.T) {
	for family, c := range addressesByFamily {
		for name, scenario := range scenariosForEveryPortOpener {
			t.Run(family+": "+name, func(t *testing.T) {
				simulateWithOptions(t, c, func(s engineWithClientInMemory) { scenario(s.engineWithClient) })
			})
		}
	}
}

// takeAnnouncementCounts counts the announcements of each address since the last call.
func (s engineWithClientInMemory) takeAnnouncementCounts() map[netip.Addr]int {
	n := map[netip.Addr]int{}
	for _, f := range s.lan.TakeSentFrames() {
		if f.SenderName == "node1" && f.Frame.SenderIP == f.Frame.TargetIP {
			n[f.Frame.SenderIP]++
		}
	}
	return n
}

func TestWhichEventsStartAnAnnouncementBurst(t *testing.T) {
	const burst = 14 // seven rounds of two frames
	settle := func() { time.Sleep(10 * time.Second); synctest.Wait() }
	tests := map[string]struct {
		do   func(s engineWithClientInMemory)
		want int
	}{
		"the same bindings again announce nothing": {func(s engineWithClientInMemory) { s.holdAddresses(heldIPv4) }, 0},
		"a link that went away and comes back is announced on": {func(s engineWithClientInMemory) {
			s.engine.SetLinks(nil)
			synctest.Wait()
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, burst},
		"a new Ethernet address is announced": {func(s engineWithClientInMemory) {
			s.link.MAC[5]++
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, burst},
		"a new subnet on the link announces nothing": {func(s engineWithClientInMemory) {
			s.link.AddressesWithPrefixLength = nil
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, 0},
		"a port that broke is opened again and announced on":      {func(s engineWithClientInMemory) { s.nodeHost.CloseOpenPortsWithError(layer2.ErrLinkDownOrGone) }, burst},
		"announcements are repeated on request":                   {func(s engineWithClientInMemory) { s.engine.RepeatAnnouncements([]netip.Addr{heldIPv4}) }, burst},
		"an address that is not held is not announced on request": {func(s engineWithClientInMemory) { s.engine.RepeatAnnouncements([]netip.Addr{unheldIPv4}) }, 0},
		"an address given up and taken again": {func(s engineWithClientInMemory) {
			s.engine.SetBindingsAndSendDeadline(nil, time.Now().Add(time.Hour))
			synctest.Wait()
			s.holdAddresses(heldIPv4)
		}, burst},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			simulateIPv4(t, func(s engineWithClientInMemory) {
				s.holdAddresses(heldIPv4)
				settle()
				if n := s.takeAnnouncementCounts()[heldIPv4]; n != burst {
					t.Fatalf("a new address is announced %d times, want %d", n, burst)
				}
				tt.do(s)
				settle()
				if n := s.takeAnnouncementCounts(); n[heldIPv4] != tt.want || n[unheldIPv4] != 0 {
					t.Fatalf("announcements: %v, want %d of %s", n, tt.want, heldIPv4)
				}
			})
		})
	}
}

func TestHeldAddressIsReannouncedEachRefreshInterval(t *testing.T) {
	for name, tt := range map[string]struct {
		options []layer2.Option
		want    int
	}{
		"no option":        {nil, 0},
		"each 2 minutes":   {[]layer2.Option{layer2.WithAnnouncementRefreshInterval(2 * time.Minute)}, 10},
		"interval 0":       {[]layer2.Option{layer2.WithAnnouncementRefreshInterval(0)}, 0},
		"each 100 seconds": {[]layer2.Option{layer2.WithAnnouncementRefreshInterval(100 * time.Second)}, 12},
	} {
		t.Run(name, func(t *testing.T) {
			simulateWithOptions(t, ipv4TestAddresses, func(s engineWithClientInMemory) {
				s.holdAddresses(heldIPv4)
				time.Sleep(150 * time.Second)
				s.takeAnnouncementCounts()
				s.holdAddresses(heldIPv4)
				time.Sleep(10 * time.Minute)
				if n := s.takeAnnouncementCounts()[heldIPv4]; n != tt.want {
					t.Fatalf("in ten minutes %d refreshing frames of two forms, want %d", n, tt.want)
				}
			}, tt.options...)
		})
	}
}

func TestAnnouncementsOfManyAddressesArePaced(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		var addresses []netip.Addr
		for i := range 1000 {
			addresses = append(addresses, netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i % 250)}))
		}
		s.holdAddresses(addresses...)
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		if n := len(s.takeAnnouncementCounts()); n != len(addresses) {
			t.Fatalf("%d of %d addresses are announced in 0.3 s", n, len(addresses))
		}
	})
}

func TestDeniedPortIsReportedOnceAndRetried(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		s.nodeHost.SetErrorOfOpenPort(layer2.ErrRawSocketsDenied)
		s.engine.SetLinks(nil)
		synctest.Wait()
		s.engine.SetLinks(facts.LinkSet{s.link})
		if r := awaitReport[layer2.PortFailed](s.engineWithClient, "the refusal is reported"); !r.IsPermissionDenied() || r.Link.Name != "eth0" {
			t.Fatalf("the report is %+v, want that raw sockets are denied on eth0", r)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(s.engine.Reports()); n != 0 {
			t.Fatalf("the same refusal is reported %d times more", n)
		}
		s.holdAddresses(heldIPv4)
		s.nodeHost.SetErrorOfOpenPort(nil)
		time.Sleep(10 * time.Second)
		awaitReport[layer2.PortOpened](s.engineWithClient, "the port is opened later")
		s.sendFrame(s.newClientRequest(heldIPv4))
		s.awaitClientFrame("the port works", s.expectedReplyToClient(heldIPv4))
	})
}

func TestFlappingPortIsRetriedMoreAndMoreSlowly(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		deadline := time.Now().Add(10 * time.Minute)
		opened := 0
		for time.Now().Before(deadline) {
			s.nodeHost.CloseOpenPortsWithError(layer2.ErrLinkDownOrGone)
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

func TestConflictIsReportedOncePerSecond(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		s.holdAddressAndAwaitAnnouncement(heldIPv4)
		for range 50 { // for 5 s
			s.sendFrame(s.gratuitousReplyFrom(foreignMAC, heldIPv4))
			time.Sleep(100 * time.Millisecond)
		}
		n := 0
		for len(s.engine.Reports()) > 0 {
			if _, ok := (<-s.engine.Reports()).(facts.Conflict); ok {
				n++
			}
		}
		if n != 5 {
			t.Fatalf("%d reports in 5 s, want 5", n)
		}
	})
}

func TestFloodOfForgedConflictsIsBounded(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		s.holdAddressAndAwaitAnnouncement(heldIPv4)
		for i := range 20000 {
			s.sendFrame(s.gratuitousReplyFrom(facts.MAC{2, 0xee, 0, byte(i >> 16), byte(i >> 8), byte(i)}, heldIPv4))
			if i%500 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		if n := len(s.engine.Reports()); n > 4097 {
			t.Fatalf("%d reports wait", n)
		}
		s.discardHeardFrames()
		s.sendFrame(s.newClientRequest(heldIPv4))
		s.awaitClientFrame("the address is still answered for", s.expectedReplyToClient(heldIPv4))
	})
}

func TestAddressIsAnsweredOnItsLinksOnly(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		second := s.link
		second.Index, second.MAC = 3, facts.MAC{2, 0, 0, 0, 0, 0x0c}
		s.engine.SetLinks(facts.LinkSet{s.link, second})
		s.engine.SetBindingsAndSendDeadline([]intent.Binding{{Address: heldIPv4, LinkIndexes: []int{second.Index}}}, time.Now().Add(time.Hour))
		time.Sleep(10 * time.Second)
		s.discardHeardFrames()
		s.sendFrame(s.newClientRequest(heldIPv4))
		time.Sleep(time.Second)
		if n := len(s.framesHeardByClient); n != 1 {
			t.Fatalf("%d answers, want one", n)
		}
		if f := <-s.framesHeardByClient; f.SenderMAC != second.MAC {
			t.Fatalf("the answer is of %s, want the link of the binding, %s", f.SenderMAC, second.MAC)
		}
		if n := len(s.engine.Reports()); n != 1 { // for the second port
			t.Fatalf("%d reports: the node takes its other link for a foreign host", n-1)
		}
	})
}

func TestEachOfManyProbesIsReported(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		const n = 6000
		for i := range n {
			a := netip.AddrFrom4([4]byte{10, 1, byte(i / 250), byte(i % 250)})
			s.engine.SendProbe(layer2.Probe{ID: uint64(i), Address: a, LinkIndexes: []int{s.link.Index}, FramesPerLink: 2, FrameInterval: 30 * time.Millisecond})
		}
		seen := map[uint64]bool{}
		for range n {
			r := awaitReport[facts.ProbeResult](s.engineWithClient, fmt.Sprintf("probe %d of %d ends", len(seen)+1, n))
			seen[r.ID] = true
		}
		if len(seen) != n {
			t.Fatalf("%d probes reported, want %d", len(seen), n)
		}
	})
}

// Probes are paced, so that taking thousands of addresses does not flood the segment.
func TestProbesArePaced(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		for i := range 1000 {
			s.engine.SendProbe(layer2.Probe{ID: uint64(i), Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), LinkIndexes: []int{s.link.Index}, FramesPerLink: 2, FrameInterval: 30 * time.Millisecond})
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		within := map[time.Time]int{}
		sent := 0
		for _, f := range s.lan.TakeSentFrames() {
			within[f.SentAt.Truncate(10*time.Millisecond)]++
			sent++
		}
		if sent != 2000 {
			t.Fatalf("%d probes, want two for each address", sent)
		}
		for at, n := range within {
			if n > 200 { // two batches may be in such an interval
				t.Fatalf("%d probes within 10 ms at %v", n, at)
			}
		}
	})
}

// A conflict is answered with one announcement in ten seconds (RFC 5227 section 2.4),
// and counted each time.
func TestDefenceIsRateLimited(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		s.holdAddresses(heldIPv4)
		time.Sleep(10 * time.Second)
		s.takeAnnouncementCounts()
		for range 25 { // for 25 s
			s.engine.DefendAddress(heldIPv4)
			s.engine.DefendAddress(unheldIPv4)
			time.Sleep(time.Second)
		}
		if n := s.takeAnnouncementCounts(); n[heldIPv4] != 6 || n[unheldIPv4] != 0 {
			t.Fatalf("announcements: %v, want three of two forms for %s", n, heldIPv4)
		}
		if n := s.engine.CountersByAddress()[heldIPv4].Conflicts; n != 25 {
			t.Fatalf("%d conflicts are counted, want 25", n)
		}
	})
}

func TestInvalidProbeDoesNotHarmThePort(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		s.engine.SendProbe(layer2.Probe{ID: 1, LinkIndexes: []int{s.link.Index}, FramesPerLink: 1, FrameInterval: time.Millisecond})
		if r := awaitReport[facts.ProbeResult](s.engineWithClient, "the probe ends"); !r.NoFrameSent {
			t.Fatalf("the result is %+v, want that it was not sent", r)
		}
		s.holdAddressAndAwaitAnnouncement(heldIPv4)
		s.sendFrame(s.newClientRequest(heldIPv4))
		s.awaitClientFrame("the port works", s.expectedReplyToClient(heldIPv4))
	})
}

func TestPortFailedIsPermissionDenied(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"denied":  {fmt.Errorf("opening: %w", layer2.ErrRawSocketsDenied), true},
		"another": {errors.New("no buffers"), false},
	} {
		if got := (layer2.PortFailed{Err: tt.err}).IsPermissionDenied(); got != tt.want {
			t.Errorf("%s: Denied() = %v", name, got)
		}
	}
}

// portOpenerBlockingOnLink is a PortOpener whose OpenPort waits for release when the link has this
// index.
type portOpenerBlockingOnLink struct {
	layer2.PortOpener
	blockingLinkIndex int
	releaseSignal     chan struct{}
}

func (o portOpenerBlockingOnLink) OpenPort(l facts.Link, f ipfamily.Family) (layer2.Port, error) {
	if l.Index == o.blockingLinkIndex {
		<-o.releaseSignal
	}
	return o.PortOpener.OpenPort(l, f)
}

// The engine may find new links and new bindings at the same moment. A gateway in these links gets
// its notice about each new address all the same, because no later event repeats it.
func TestGatewayOfLinksSetBeforeBindingsGetsNotice(t *testing.T) {
	for range 50 { // select takes one of the two at random
		simulateIPv4(t, func(s engineWithClientInMemory) {
			slow := facts.Link{Index: 9, Name: "eth9", MAC: facts.MAC{2, 0, 0, 0, 0, 0x99}}
			opener := portOpenerBlockingOnLink{s.lan.AddHost("node2"), slow.Index, make(chan struct{})}
			s.engine = layer2.NewEngine(opener, time.Now)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- s.engine.Run(ctx) }()
			defer func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			s.engine.SetLinks(facts.LinkSet{s.link})
			awaitReport[layer2.PortOpened](s.engineWithClient, "the link is opened")
			s.engine.SetLinks(facts.LinkSet{s.link, slow})
			synctest.Wait() // the engine opens the slow link now
			s.link.GatewaysWithKnownMAC = []facts.LinkNeighbour{{Address: s.clientIP, MAC: s.clientMAC}}
			s.engine.SetLinks(facts.LinkSet{s.link, slow})
			s.holdAddresses(s.heldIP)
			close(opener.releaseSignal)
			s.awaitClientFrame("the address is new", s.expectedUnicastNotice(s.heldIP))
		})
	}
}

// A bond of mode balance-alb announces with the Ethernet address of a port, and may hear that
// itself.
func TestFramesOfOwnBondPortsAreNoConflicts(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		s.link.PortMACs = []facts.MAC{foreignMAC}
		s.engine.SetLinks(facts.LinkSet{s.link})
		s.holdAddressAndAwaitAnnouncement(heldIPv4)
		s.sendFrame(s.gratuitousReplyFrom(foreignMAC, heldIPv4))
		synctest.Wait()
		select {
		case r := <-s.engine.Reports():
			t.Errorf("the engine reports %+v", r)
		default:
		}
	})
}
