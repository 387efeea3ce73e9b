package bfd_test

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/bfdtest"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// TestHostileDatagramsCannotChangeASession checks that a sender without the router's address on the
// router's link, or without knowledge of the session, cannot change a session that is Up.
func TestHostileDatagramsCannotChangeASession(t *testing.T) {
	unknown := netip.MustParseAddr("192.0.2.66")
	for sentence, tc := range map[string]struct {
		forge func(d *bfd.ReceivedDatagram, p *session.Packet)
		want  session.DiscardReason
	}{
		"from beyond a router":                               {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.TTL = 254 }, session.DiscardLowTTL},
		"from an unknown address":                            {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.SourceAddress = unknown }, session.DiscardUnknownSession},
		"from an unknown address, without our discriminator": {func(d *bfd.ReceivedDatagram, p *session.Packet) { d.SourceAddress, p.YourDiscriminator = unknown, 0 }, session.DiscardUnknownSession},
		"on another link":                                    {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.ArrivalInterface = "eth9" }, session.DiscardUnknownSession},
		"in a VRF":                                           {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.VRF = "red" }, session.DiscardUnknownSession},
		"to the port of multihop":                            {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.ArrivedOnMultihopPort = true }, session.DiscardUnknownSession},
		"to another of our addresses":                        {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.DestinationAddress = unknown }, session.DiscardUnknownSession},
		"with a wrong discriminator":                         {func(_ *bfd.ReceivedDatagram, p *session.Packet) { p.YourDiscriminator++ }, session.DiscardUnknownSession},
		"as an echo packet":                                  {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.IsEchoPacket = true }, session.DiscardUnknownSession},
		"an echo packet, cut off":                            {func(d *bfd.ReceivedDatagram, _ *session.Packet) { d.IsEchoPacket, d.Payload = true, []byte{1} }, session.DiscardBadLength},
		"bytes that are not BFD": {func(d *bfd.ReceivedDatagram, _ *session.Packet) {
			d.Payload = []byte("GET / HTTP/1.1\r\nHost: localhost\r\n")
		}, session.DiscardBadVersion},
		"Up without our discriminator":  {func(_ *bfd.ReceivedDatagram, p *session.Packet) { p.YourDiscriminator, p.State = 0, session.Up }, session.DiscardZeroYourDiscriminator},
		"without its own discriminator": {func(_ *bfd.ReceivedDatagram, p *session.Packet) { p.MyDiscriminator = 0 }, session.DiscardZeroMyDiscriminator},
	} {
		simulateEnginePair(t, func(p *enginePair) {
			s := p.nodeSessionToRouter(fastProfile())
			s.Interface, s.LocalAddress = "eth0", nodeAddress
			o := p.routerSessionToNode(fastProfile())
			o.Interface = "eth0"
			p.nodeEngine.SetSessions([]bfd.SessionConfig{s})
			p.routerEngine.SetSessions([]bfd.SessionConfig{o})
			p.waitForNodeEvent("both sides have a session", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
			before := p.nodeEngine.DiscardedPackets()[tc.want]
			packet := session.Packet{State: session.Down, DetectMultiplier: 3, MyDiscriminator: 5, YourDiscriminator: p.nodeStatus().LocalDiscriminator, DesiredMinTxInterval: time.Second, RequiredMinRxInterval: time.Second}
			d := bfd.ReceivedDatagram{SourceAddress: routerAddress, DestinationAddress: nodeAddress, ArrivalInterface: "eth0", TTL: 255}
			if tc.forge(&d, &packet); d.Payload == nil {
				d.Payload = packet.AppendEncoded(nil)
			}
			for range 10000 {
				p.fakeHosts[0].InjectDatagram(d)
			}
			p.expectNoNodeEvent(sentence, time.Second)
			if n := p.nodeEngine.DiscardedPackets()[tc.want] - before; n == 0 {
				t.Errorf("%s: nothing was discarded as %q: %v", sentence, tc.want, p.nodeEngine.DiscardedPackets())
			}
		})
	}
}

// TestLowTTLOverMultihopIsReported checks the fault, since the profile sets the minimum TTL.
func TestLowTTLOverMultihopIsReported(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		s := p.nodeSessionToRouter(fastProfile())
		s.Multihop = true
		p.nodeEngine.SetSessions([]bfd.SessionConfig{s})
		synctest.Wait()
		packet := session.Packet{State: session.Down, DetectMultiplier: 3, MyDiscriminator: 5, DesiredMinTxInterval: time.Second, RequiredMinRxInterval: time.Second}
		d := bfd.ReceivedDatagram{SourceAddress: routerAddress, DestinationAddress: nodeAddress, ArrivedOnMultihopPort: true, TTL: 253, Payload: packet.AppendEncoded(nil)}
		p.fakeHosts[0].InjectDatagram(d)
		synctest.Wait()
		if s := p.nodeStatus(); s.Fault.Reason != names.ReasonBFDTTLTooLow || s.State != session.Down {
			t.Errorf("a packet with TTL 253: %s, %+v", s.State, s.Fault)
		}
		d.TTL = 254
		p.fakeHosts[0].InjectDatagram(d)
		synctest.Wait()
		if s := p.nodeStatus(); s.Fault.IsSet() || s.State != session.Init {
			t.Errorf("a packet with TTL 254: %s, %+v", s.State, s.Fault)
		}
	})
}

// TestMostSpecificOfSeveralSessionsGetsThePacket checks that the
// session with the more specific key gets the packet.
func TestMostSpecificOfSeveralSessionsGetsThePacket(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		plain, bound := p.nodeSessionToRouter(fastProfile()), p.nodeSessionToRouter(fastProfile())
		bound.Interface = "eth1"
		p.nodeEngine.SetSessions([]bfd.SessionConfig{plain, bound})
		synctest.Wait()
		packet := session.Packet{State: session.Down, DetectMultiplier: 3, MyDiscriminator: 5, DesiredMinTxInterval: time.Second, RequiredMinRxInterval: time.Second}
		p.fakeHosts[0].InjectDatagram(bfd.ReceivedDatagram{SourceAddress: routerAddress, DestinationAddress: nodeAddress, ArrivalInterface: "eth1", TTL: 255, Payload: packet.AppendEncoded(nil)})
		synctest.Wait()
		if all := p.nodeEngine.SessionStatuses(); all[0].State != session.Down || all[1].State != session.Init {
			t.Errorf("a packet on eth1 brought the session of any link to %s and that of eth1 to %s", all[0].State, all[1].State)
		}
	})
}

func TestMetricsCountPacketsAndEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := bfd.NewEngine(bfdtest.NewFakeNetwork().AddHost(nodeAddress), time.Now, 1)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- e.Run(ctx) }()
		linkLocal := netip.MustParseAddr("fe80::1")
		e.SetSessions([]bfd.SessionConfig{
			{SessionKey: bfd.SessionKey{PeerAddress: linkLocal, Interface: "eth0"}, Profile: fastProfile()},
			{SessionKey: bfd.SessionKey{PeerAddress: linkLocal, Interface: "eth1"}, Profile: fastProfile()},
			{SessionKey: bfd.SessionKey{PeerAddress: routerAddress}, Profile: fastProfile()},
			{SessionKey: bfd.SessionKey{PeerAddress: routerAddress, LocalAddress: nodeAddress}, Profile: fastProfile()},
			{SessionKey: bfd.SessionKey{PeerAddress: routerAddress, VRF: "red"}, Profile: fastProfile()},
		})
		synctest.Wait()
		r := prometheus.NewPedanticRegistry()
		r.MustRegister(e)
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		for _, f := range families {
			counts[f.GetName()] = len(f.GetMetric())
		}
		for _, name := range []string{
			"session_up", "control_packet_input", "control_packet_output", "echo_packet_input", "echo_packet_output",
			"session_up_events", "session_down_events", "zebra_notifications",
		} {
			if n := counts["metallb_bfd_"+name]; n != 4 {
				t.Errorf("metallb_bfd_%s has %d label sets, want 4: two links, and the router in and outside of a VRF", name, n)
			}
		}
		cancel()
		<-ended
	})
}
