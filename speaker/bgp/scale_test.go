package bgp_test

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// speakerWithManyPeers is a speaker with many peers and routes.
type speakerWithManyPeers struct {
	speaker     *loopbackSpeaker
	routers     []*scriptedRouter
	desired     bgp.DesiredState
	changeCount uint32
}

// startSpeakerWithManyPeers starts a speaker with peers whose sessions are established. Each of the
// routes goes to one peer.
func startSpeakerWithManyPeers(tb testing.TB, peers, routes int) *speakerWithManyPeers {
	m := newLoopbackTransport()
	h := &speakerWithManyPeers{}
	var names []string
	for i := range peers {
		address := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 20)})
		r := m.addRouter(tb, address.String(), nil)
		if i >= routes {
			r.readsNothingUntil = tb.Context().Done()
		}
		h.routers = append(h.routers, r)
		p := scriptedRouterPeer()
		p.Name, p.Address = fmt.Sprintf("tor%d", i), address
		names = append(names, p.Name)
		h.desired.Peers = append(h.desired.Peers, p)
	}
	for i, prefix := range numberedIPv4Prefixes(routes) {
		h.desired.Routes = append(h.desired.Routes, &intent.Route{Prefix: prefix, PeerNames: names[i%peers : i%peers+1]})
	}
	h.speaker = startLoopbackSpeaker(tb, m)
	h.speaker.SetDesiredState(h.desired)
	for i, r := range h.routers {
		if i < routes {
			r.awaitRoute(tb, h.desired.Routes[i].Prefix.String(), "")
		}
	}
	return h
}

func numberedIPv4Prefixes(n int) []netip.Prefix {
	var out []netip.Prefix
	for i := range n {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32))
	}
	return out
}

// changeOneRoute changes the first route, as a change of one Service does, and waits until its
// router has it.
func (h *speakerWithManyPeers) changeOneRoute(tb testing.TB) {
	h.changeCount++
	r := *h.desired.Routes[0]
	r.MED, r.HasMED = h.changeCount, true
	h.desired.Routes = slices.Clone(h.desired.Routes) // as a plan does
	h.desired.Routes[0] = &r
	want := h.routers[0].routeEventCount() + 1
	h.speaker.SetDesiredState(h.desired)
	for h.routers[0].routeEventCount() < want {
		runtime.Gosched()
	}
}

// maxCostRatioOf200PeersToOne is how much longer a change of one route may take with 200 peers than
// with one.
const maxCostRatioOf200PeersToOne = 5

// BenchmarkOneRouteChangeByPeerCount measures how a change of one route depends on the number
// of peers. It fails if the change costs more than what it touches.
func BenchmarkOneRouteChangeByPeerCount(b *testing.B) {
	perChange := map[int]float64{}
	for _, peers := range []int{1, 200} {
		b.Run(fmt.Sprintf("peers=%d", peers), func(b *testing.B) {
			h := startSpeakerWithManyPeers(b, peers, 10000)
			for b.Loop() {
				h.changeOneRoute(b)
			}
			perChange[peers] = b.Elapsed().Seconds() / float64(b.N)
		})
	}
	one, many := perChange[1], perChange[200]
	if one > 0 && many > maxCostRatioOf200PeersToOne*one {
		b.Errorf("a change takes %.0f us with 200 peers and %.0f us with one: %.1f times as long, more than %d", 1e6*many, 1e6*one, many/one, maxCostRatioOf200PeersToOne)
	}
}

// TestUnrelatedNodeAddressChangeReevaluatesNoRoute changes addresses of the node that no session
// uses, as each Pod that starts does with its link. What that allocates does not depend on the
// number of routes.
func TestUnrelatedNodeAddressChangeReevaluatesNoRoute(t *testing.T) {
	const routes, edits, most = 10000, 20, 30
	h := startSpeakerWithManyPeers(t, 1, routes)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range edits {
		h.desired.NodeInternalIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 9, byte(i)})}
		h.changeOneRoute(t)
	}
	runtime.ReadMemStats(&after)
	each := (after.TotalAlloc - before.TotalAlloc) / edits / routes
	t.Logf("%d bytes for each route", each)
	if each > most {
		t.Errorf("an edit allocates %d bytes for each route, more than %d", each, most)
	}
}

// TestPeerAtRestUsesLittleMemory measures the memory of established sessions without traffic, less
// that of the test's routers.
func TestPeerAtRestUsesLittleMemory(t *testing.T) {
	const peers, most = 200, 80 << 10
	used := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := used()
	connectRoutersWithoutSpeaker(t, peers)
	ofRouters := used() - before
	before = used()
	h := startSpeakerWithManyPeers(t, peers, 1)
	awaitNoError(t, "all sessions are established", func() error {
		for _, s := range h.speaker.SessionStatuses() {
			if s.State != bgp.Established {
				return fmt.Errorf("%s is %s", s.PeerName, s.State)
			}
		}
		return nil
	})
	each := (used() - before - ofRouters) / peers
	t.Logf("%d bytes for each peer", each)
	if each > most {
		t.Errorf("a peer takes %d bytes, more than %d", each, most)
	}
	runtime.KeepAlive(h)
}

// connectRoutersWithoutSpeaker connects to as many routers without a speaker.
func connectRoutersWithoutSpeaker(t *testing.T, n int) {
	m := newLoopbackTransport()
	open := message.OpenMessage{ASN: 64512, RouterID: netip.MustParseAddr("192.0.2.11")}
	for i := range n {
		r := m.addRouter(t, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 20)}).String(), nil)
		r.readsNothingUntil = t.Context().Done()
		c, err := net.Dial("tcp", r.listener.Addr().String())
		if err == nil {
			_, err = c.Write(open.Encode())
		}
		if err == nil {
			_, err = message.ReadMessage(c, make([]byte, message.MaxMessageLength))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}
