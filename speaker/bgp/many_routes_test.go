package bgp_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// countRoutesAndUpdatesFromNode returns how many routes and UPDATEs FRR has received from the first
// node.
func countRoutesAndUpdatesFromNode(t *testing.T, r *router.Router) (routes, updates int) {
	t.Helper()
	out, err := r.RunShowCommand(t.Context(), "show bgp neighbors 192.168.0.11 json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]struct {
		Families map[string]struct {
			Accepted int `json:"acceptedPrefixCounter"`
		} `json:"addressFamilyInfo"`
		Messages struct{ UpdatesRecv int } `json:"messageStats"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	n := all["192.168.0.11"]
	return n.Families["ipv4Unicast"].Accepted, n.Messages.UpdatesRecv
}

// TestOneRouteChangeSendsOneUpdate announces many routes, then changes one
// route, then settings of the peer that are not in the OPEN.
func TestOneRouteChangeSendsOneUpdate(t *testing.T) {
	const many = 10000
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.Engine)
	p := exampleExternalPeer()
	d := bgp.DesiredState{Peers: []intent.Peer{p}}
	for i := range many {
		d.Routes = append(d.Routes, &intent.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32), PeerNames: []string{"tor"}})
	}
	s.SetDesiredState(d)
	st := s.waitForEstablished("tor")
	awaitNoError(t, "the router has them all", func() error {
		if n, _ := countRoutesAndUpdatesFromNode(t, frr); n != many {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
	t.Logf("that took %s from the session's start", time.Since(st.StateSince))
	_, before := countRoutesAndUpdatesFromNode(t, frr)
	d.Routes = d.Routes[:many-1]
	begun := time.Now()
	s.SetDesiredState(d)
	awaitNoError(t, "the router removes one route", func() error {
		if n, _ := countRoutesAndUpdatesFromNode(t, frr); n != many-1 {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
	t.Logf("that took %s", time.Since(begun))
	p.MaxReconnectDelay, p.KeepaliveTime = time.Minute, 7*time.Second
	d.Peers = []intent.Peer{p}
	d.Routes = append([]*intent.Route{{Prefix: netip.MustParsePrefix(servicePrefix), PeerNames: []string{"tor"}}}, d.Routes...)
	s.SetDesiredState(d)
	waitForFRRRoute(t, frr, servicePrefix)
	if _, after := countRoutesAndUpdatesFromNode(t, frr); after != before+2 {
		t.Errorf("two changes of one route each cost %d UPDATEs", after-before)
	}
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 || st.AnnouncedRouteCount != many || st.WantedRouteCount != many {
		t.Errorf("the session is %+v", st)
	}
	for name, want := range map[string]float64{
		"metallb_bgp_session_up": 1, "metallb_bgp_announced_prefixes_total": many, "metallb_bgp_pending_prefixes_total": many,
		"gantry_bgp_sessions_established_total": 1, "metallb_bgp_opens_received": 1, "metallb_bgp_notifications_sent": 0,
	} {
		if got := readMetricWithOneSeries(t, registry, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got := readMetricWithOneSeries(t, registry, "metallb_bgp_updates_total"); got < 3 || got > many {
		t.Errorf("metallb_bgp_updates_total is %v", got)
	}
}

// TestRandomEditsKeepSession makes random edits as fast as
// possible and checks the router's routes at the end.
func TestRandomEditsKeepSession(t *testing.T) {
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(frrExternalNeighbourConfig)})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix)})
	s.waitForEstablished("tor")
	random := rand.New(rand.NewPCG(7, 9))
	var want map[string]int // the metric of each route
	for range 1000 {
		want = map[string]int{}
		var d bgp.DesiredState
		p.MaxReconnectDelay, p.KeepaliveTime = time.Duration(random.IntN(9))*time.Second, time.Duration(random.IntN(9))*time.Second
		d.Peers = []intent.Peer{p}
		for i := range 20 {
			if random.IntN(2) == 0 {
				continue
			}
			r := exampleRoutes(fmt.Sprintf("198.51.100.%d/32", i))[0]
			r.MED, r.HasMED, r.PrependCount = uint32(random.IntN(100)), true, uint8(random.IntN(3))
			r.Communities = []uint32{64512<<16 | uint32(random.IntN(5))}
			d.Routes = append(d.Routes, r)
			want[r.Prefix.String()] = int(r.MED)
		}
		d.NodeLeaving = random.IntN(50) == 0
		s.SetDesiredState(d)
		if random.IntN(4) == 0 { // or the engine would only see the latest value
			time.Sleep(time.Duration(random.IntN(4)) * time.Millisecond)
		}
		if d.NodeLeaving {
			d.NodeLeaving = false
			s.SetDesiredState(d)
		}
	}
	awaitNoError(t, "the router has the latest routes", func() error {
		if n, _ := countRoutesAndUpdatesFromNode(t, frr); n != len(want) {
			return fmt.Errorf("it has %d routes, want %d", n, len(want))
		}
		for prefix, med := range want {
			if got := frrPaths(t, frr, prefix); len(got) != 1 || got[0].MED == nil || *got[0].MED != med || strings.Contains(got[0].Community.String, "graceful") {
				return fmt.Errorf("%s is %+v, want the metric %d", prefix, got, med)
			}
		}
		return nil
	})
	if st := s.peerStatus("tor"); st.EstablishedCount != 1 {
		t.Errorf("the session was established %d times", st.EstablishedCount)
	}
}

// readMetricWithOneSeries returns the value of a metric with one series, that of the router.
func readMetricWithOneSeries(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
		labels := map[string]string{}
		for _, l := range f.Metric[0].Label {
			labels[l.GetName()] = l.GetValue()
		}
		if len(f.Metric) != 1 || !maps.Equal(labels, map[string]string{"peer": "192.168.0.1:179", "bgppeer": "tor"}) {
			t.Fatalf("%s has %v", name, f.Metric)
		}
		return f.Metric[0].GetGauge().GetValue() + f.Metric[0].GetCounter().GetValue()
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
