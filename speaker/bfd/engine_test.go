package bfd_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/bfdtest"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

var (
	nodeAddress   = netip.MustParseAddr("192.0.2.11")
	routerAddress = netip.MustParseAddr("192.0.2.1")
)

// fastProfile has a detection time of 3 x 50 ms.
func fastProfile() bfd.Profile {
	p := bfdtest.DefaultProfile()
	p.ReceiveInterval, p.TransmitInterval = 50*time.Millisecond, 50*time.Millisecond
	return p
}

// enginePair is a node and a router, both with our engine, in virtual time.
type enginePair struct {
	t                        *testing.T
	network                  *bfdtest.FakeNetwork
	nodeEngine, routerEngine *bfd.Engine
	fakeHosts                [2]*bfdtest.FakeHostTransport
}

// simulateEnginePair runs f with a pair. It returns after both engines have ended.
func simulateEnginePair(t *testing.T, f func(p *enginePair)) {
	synctest.Test(t, func(t *testing.T) {
		p := &enginePair{t: t, network: bfdtest.NewFakeNetwork()}
		p.fakeHosts = [2]*bfdtest.FakeHostTransport{p.network.AddHost(nodeAddress), p.network.AddHost(routerAddress)}
		p.nodeEngine, p.routerEngine = bfd.NewEngine(p.fakeHosts[0], time.Now, 1), bfd.NewEngine(p.fakeHosts[1], time.Now, 2)
		// The context of t ends outside of the bubble.
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 2)
		for _, e := range []*bfd.Engine{p.nodeEngine, p.routerEngine} {
			go func() { ended <- e.Run(ctx) }()
		}
		defer func() {
			cancel()
			for range 2 {
				if err := <-ended; err != nil {
					t.Errorf("an engine ended with %v", err)
				}
			}
			for _, h := range p.fakeHosts {
				if n := h.OpenSenderCount(); n != 0 {
					t.Errorf("%d senders are left open", n)
				}
			}
		}()
		f(p)
	})
}

func (p *enginePair) nodeSessionToRouter(profile bfd.Profile) bfd.SessionConfig {
	return bfd.SessionConfig{SessionKey: bfd.SessionKey{PeerAddress: routerAddress}, Profile: profile}
}

func (p *enginePair) routerSessionToNode(profile bfd.Profile) bfd.SessionConfig {
	return bfd.SessionConfig{SessionKey: bfd.SessionKey{PeerAddress: nodeAddress}, Profile: profile}
}

// bringSessionUp sets both sides and waits until the node reports Up.
func (p *enginePair) bringSessionUp(profile bfd.Profile) {
	p.t.Helper()
	p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(profile)})
	p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(profile)})
	p.waitForNodeEvent("both sides have a session", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
}

// waitForNodeEvent waits for the node's next event and checks it.
func (p *enginePair) waitForNodeEvent(sentence string, want bfd.Event) {
	p.t.Helper()
	select {
	case v := <-p.nodeEngine.Events():
		if v.Up != want.Up || v.Cause != want.Cause {
			p.t.Fatalf("%s: event %+v, want up %v because %q", sentence, v, want.Up, want.Cause)
		}
	case <-time.After(time.Minute):
		p.t.Fatalf("%s: no event; %+v", sentence, p.nodeEngine.SessionStatuses())
	}
}

// expectNoNodeEvent lets time pass and fails on an event.
func (p *enginePair) expectNoNodeEvent(sentence string, d time.Duration) {
	p.t.Helper()
	select {
	case v := <-p.nodeEngine.Events():
		p.t.Fatalf("%s: event %+v", sentence, v)
	case <-time.After(d):
	}
}

func (p *enginePair) nodeStatus() bfd.SessionStatus {
	p.t.Helper()
	all := p.nodeEngine.SessionStatuses()
	if len(all) != 1 {
		p.t.Fatalf("%d sessions, want one", len(all))
	}
	return all[0]
}

func TestCutLinkIsDetectedInTime(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.expectNoNodeEvent("the path is fine", 10*time.Minute)
		if s := p.nodeStatus(); s.State != session.Up || s.DetectionTime != 150*time.Millisecond || s.EffectiveTransmitInterval != 50*time.Millisecond {
			t.Errorf("status %+v, want Up with 3 x 50 ms", s)
		}
		cut := time.Now()
		p.network.SetDelayOrLossFunc(func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, false })
		p.waitForNodeEvent("the cable is cut", bfd.Event{Cause: session.CauseDetectionExpired})
		if d := time.Since(cut); d > 150*time.Millisecond {
			t.Errorf("noticed after %s, later than the detection time", d)
		}
		p.network.SetDelayOrLossFunc(func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true })
		p.waitForNodeEvent("the cable is plugged in again", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		if s := p.nodeStatus(); s.UpEvents != 2 || s.DownEvents != 1 || s.ReportedEvents != 3 {
			t.Errorf("counters %+v, want 2 ups, 1 down, 3 events", s.Counters)
		}
	})
}

func TestLossInOneDirectionTakesSessionDown(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.network.SetDelayOrLossFunc(func(from, _ netip.Addr) (time.Duration, bool) { return 0, from == routerAddress })
		p.waitForNodeEvent("the router hears nothing", bfd.Event{Cause: session.CauseNeighbourSignalledDown})
	})
}

func TestProfileChangeKeepsSessionUp(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(bfdtest.DefaultProfile())
		p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(fastProfile())})
		p.expectNoNodeEvent("one side got faster", 5*time.Second)
		if s := p.nodeStatus(); s.EffectiveTransmitInterval != 300*time.Millisecond || s.IsPolling {
			t.Errorf("we send every %s, polling %v; the router still takes only one in 300 ms", s.EffectiveTransmitInterval, s.IsPolling)
		}
		p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(fastProfile())})
		p.expectNoNodeEvent("the other side got faster", 5*time.Second)
		if s := p.nodeStatus(); s.EffectiveTransmitInterval != 50*time.Millisecond || s.DetectionTime != 150*time.Millisecond {
			t.Errorf("every %s, detection in %s, want 50 and 150 ms", s.EffectiveTransmitInterval, s.DetectionTime)
		}
		slow := fastProfile()
		slow.TransmitInterval, slow.ReceiveInterval, slow.DetectMultiplier = 2*time.Second, 2*time.Second, 5
		p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(slow)})
		p.expectNoNodeEvent("one side got slower", time.Minute)
		if s := p.nodeStatus(); s.EffectiveTransmitInterval != 2*time.Second || s.State != session.Up {
			t.Errorf("every %s, %s; want 2 s and Up", s.EffectiveTransmitInterval, s.State)
		}
	})
}

func TestRemovalIsSignalledToNeighbour(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.routerEngine.SetSessions(nil)
		p.waitForNodeEvent("the router's session is removed", bfd.Event{Cause: session.CauseNeighbourSignalledAdminDown})
		if p.expectNoNodeEvent("no event follows", 10*time.Second); p.nodeStatus().RemoteDiagnostic != session.DiagnosticNone {
			t.Errorf("the neighbour is gone, but the status says %s", p.nodeStatus().RemoteDiagnostic)
		}
		p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(fastProfile())})
		p.waitForNodeEvent("it is back", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		if err := p.nodeEngine.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		if s := p.routerEngine.SessionStatuses()[0]; s.RemoteDiagnostic != session.DiagnosticAdminDown || s.State != session.Down {
			t.Errorf("the router has %s, the node's diagnostic %q; want Down, administratively", s.State, s.RemoteDiagnostic)
		}
		if p.fakeHosts[0].OpenSenderCount() != 0 {
			t.Error("the node has an open sender after Stop")
		}
		p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(fastProfile())})
		p.waitForNodeEvent("set again after Stop", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
	})
}

func TestSessionReaddedDuringAdminDownComesUp(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.nodeEngine.SetSessions(nil)
		synctest.Wait()
		p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(fastProfile())})
		p.waitForNodeEvent("set again while AdminDown is signalled", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		p.expectNoNodeEvent("it stays up", time.Minute)
	})
}

func TestTwoPassiveSidesStayDown(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		passive := fastProfile()
		passive.Passive = true
		p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(passive)})
		p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(passive)})
		p.expectNoNodeEvent("neither side begins", time.Minute)
		if n := p.nodeStatus().ControlSent; n != 0 {
			t.Errorf("a passive side sent %d packets", n)
		}
		p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(fastProfile())})
		p.waitForNodeEvent("one side begins", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
	})
}

func TestEchoDetectsForwardingFailure(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		echo := bfdtest.DefaultProfile()
		echo.EchoMode = true
		p.fakeHosts[1].EnableEchoReturn()
		p.bringSessionUp(echo)
		p.expectNoNodeEvent("echo packets return", time.Minute)
		if s := p.nodeStatus(); s.EchoReturned < 1000 || s.EchoSent != s.EchoReturned || s.Fault.IsSet() {
			t.Errorf("%d echo packets sent, %d returned, %v; want at least one in 50 ms and no fault", s.EchoSent, s.EchoReturned, s.Fault)
		}
		p.fakeHosts[1].DisableEchoReturn()
		dropped := time.Now()
		p.waitForNodeEvent("the forwarding plane fails, the control plane does not", bfd.Event{Cause: session.CauseEchoFailed})
		if d := time.Since(dropped); d > 150*time.Millisecond {
			t.Errorf("noticed after %s, want 3 x 50 ms at most", d)
		}
		p.waitForNodeEvent("control packets bring it up again", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		p.expectNoNodeEvent("echo packets never return, which is no failure", time.Minute)
		if f := p.nodeStatus().Fault; f.Reason != names.ReasonEchoUnsupported {
			t.Errorf("fault %q, want that echo packets do not return", f)
		}
	})
}

func TestEchoUnsupportedIsReported(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		echo := fastProfile()
		echo.EchoMode = true
		p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(echo)})
		p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(fastProfile())})
		p.waitForNodeEvent("the router accepts no echo packets", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		synctest.Wait()
		if s := p.nodeStatus(); s.Fault.Reason != names.ReasonEchoUnsupported || s.EchoSent != 0 {
			t.Errorf("fault %+v, %d echo packets sent; want that it accepts none", s.Fault, s.EchoSent)
		}
	})
	simulateEnginePair(t, func(p *enginePair) {
		here, there := p.nodeSessionToRouter(fastProfile()), p.routerSessionToNode(fastProfile())
		here.Multihop, there.Multihop, here.EchoMode = true, true, true
		p.fakeHosts[1].EnableEchoReturn()
		p.nodeEngine.SetSessions([]bfd.SessionConfig{here})
		p.routerEngine.SetSessions([]bfd.SessionConfig{there})
		p.waitForNodeEvent("the router is several hops away", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		if s := p.nodeStatus(); s.Fault.Reason != names.ReasonEchoUnsupported || s.EchoSent != 0 {
			t.Errorf("fault %+v, %d echo packets sent; want that they do not return", s.Fault, s.EchoSent)
		}
		select {
		case <-p.nodeEngine.StatusChanged():
		default:
			t.Error("Changed did not report the new status")
		}
		here.EchoMode = false
		p.nodeEngine.SetSessions([]bfd.SessionConfig{here})
		synctest.Wait()
		if f := p.nodeStatus().Fault; f.IsSet() {
			t.Errorf("fault %+v remains", f)
		}
	})
}

func TestSendErrorsAreReported(t *testing.T) {
	for reason, err := range map[names.Reason]error{
		names.ReasonBFDPortInUse:    bfd.ErrPortInUse,
		names.ReasonBFDUnsent:       errors.New("no such link"),
		names.ReasonEchoUnsupported: bfd.ErrEchoUnsupported,
	} {
		simulateEnginePair(t, func(p *enginePair) {
			echo := fastProfile()
			echo.EchoMode = true
			if reason == names.ReasonEchoUnsupported {
				p.fakeHosts[0].SetEchoSendError(err)
			}
			p.bringSessionUp(echo)
			if reason != names.ReasonEchoUnsupported {
				p.fakeHosts[0].SetControlSendError(err)
				p.waitForNodeEvent("nothing can be sent", bfd.Event{Cause: session.CauseNeighbourSignalledDown})
			}
			time.Sleep(2 * time.Second)
			if f := p.nodeStatus().Fault; f.Reason != reason || f.Text == "" {
				t.Errorf("fault %+v, want %s", f, reason)
			}
			p.fakeHosts[0].SetControlSendError(nil)
			p.fakeHosts[0].SetEchoSendError(nil)
			p.fakeHosts[1].EnableEchoReturn()
			time.Sleep(5 * time.Second)
			if s := p.nodeStatus(); s.State != session.Up || s.Fault.IsSet() {
				t.Errorf("once it works again: %s with fault %+v", s.State, s.Fault)
			}
		})
	}
}

func TestNeighbourWithAuthenticationIsAFault(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.nodeEngine.SetSessions([]bfd.SessionConfig{p.nodeSessionToRouter(fastProfile())})
		synctest.Wait()
		b := session.Packet{State: session.Down, DetectMultiplier: 3, MyDiscriminator: 7, DesiredMinTxInterval: time.Second, RequiredMinRxInterval: time.Second}.AppendEncoded(nil)
		b[1] |= 1 << 2 // the A bit
		b[3] = 28
		p.fakeHosts[0].InjectDatagram(bfd.ReceivedDatagram{SourceAddress: routerAddress, DestinationAddress: nodeAddress, TTL: 255, Payload: append(b, 1, 4, 1, 'x')})
		synctest.Wait()
		if s := p.nodeStatus(); s.Fault.Reason != names.ReasonBFDAuthentication || s.State != session.Down {
			t.Errorf("%s with fault %+v, want Down with the authentication fault", s.State, s.Fault)
		}
		p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(fastProfile())})
		p.waitForNodeEvent("the router turns authentication off", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		if f := p.nodeStatus().Fault; f.IsSet() {
			t.Errorf("fault %+v remains", f)
		}
	})
}
