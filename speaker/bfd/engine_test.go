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
	t            *testing.T
	network      *bfdtest.Network
	node, router *bfd.Engine
	hosts        [2]*bfdtest.Host
}

// simulateEnginePair runs f with a pair. It returns after both engines have ended.
func simulateEnginePair(t *testing.T, f func(p *enginePair)) {
	synctest.Test(t, func(t *testing.T) {
		p := &enginePair{t: t, network: bfdtest.New()}
		p.hosts = [2]*bfdtest.Host{p.network.AddHost(nodeAddress), p.network.AddHost(routerAddress)}
		p.node, p.router = bfd.New(p.hosts[0], time.Now, 1), bfd.New(p.hosts[1], time.Now, 2)
		// The context of t ends outside of the bubble.
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 2)
		for _, e := range []*bfd.Engine{p.node, p.router} {
			go func() { ended <- e.Run(ctx) }()
		}
		defer func() {
			cancel()
			for range 2 {
				if err := <-ended; err != nil {
					t.Errorf("an engine ended with %v", err)
				}
			}
			for _, h := range p.hosts {
				if n := h.OpenSenderCount(); n != 0 {
					t.Errorf("%d senders are left open", n)
				}
			}
		}()
		f(p)
	})
}

func (p *enginePair) sessionToRouter(profile bfd.Profile) bfd.Session {
	return bfd.Session{Key: bfd.Key{Peer: routerAddress}, Profile: profile}
}

func (p *enginePair) sessionToNode(profile bfd.Profile) bfd.Session {
	return bfd.Session{Key: bfd.Key{Peer: nodeAddress}, Profile: profile}
}

// bringSessionUp sets both sides and waits until the node reports Up.
func (p *enginePair) bringSessionUp(profile bfd.Profile) {
	p.t.Helper()
	p.node.Set([]bfd.Session{p.sessionToRouter(profile)})
	p.router.Set([]bfd.Session{p.sessionToNode(profile)})
	p.waitForEvent("both sides have a session", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
}

// waitForEvent waits for the node's next event and checks it.
func (p *enginePair) waitForEvent(sentence string, want bfd.Event) {
	p.t.Helper()
	select {
	case v := <-p.node.Events():
		if v.Up != want.Up || v.Cause != want.Cause {
			p.t.Fatalf("%s: event %+v, want up %v because %q", sentence, v, want.Up, want.Cause)
		}
	case <-time.After(time.Minute):
		p.t.Fatalf("%s: no event; %+v", sentence, p.node.Status())
	}
}

// expectNoEvent lets time pass and fails on an event.
func (p *enginePair) expectNoEvent(sentence string, d time.Duration) {
	p.t.Helper()
	select {
	case v := <-p.node.Events():
		p.t.Fatalf("%s: event %+v", sentence, v)
	case <-time.After(d):
	}
}

func (p *enginePair) nodeStatus() bfd.Status {
	p.t.Helper()
	all := p.node.Status()
	if len(all) != 1 {
		p.t.Fatalf("%d sessions, want one", len(all))
	}
	return all[0]
}

func TestCutLinkIsDetectedInTime(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.expectNoEvent("the path is fine", 10*time.Minute)
		if s := p.nodeStatus(); s.State != session.Up || s.DetectionTime != 150*time.Millisecond || s.UsedTransmitInterval != 50*time.Millisecond {
			t.Errorf("status %+v, want Up with 3 x 50 ms", s)
		}
		cut := time.Now()
		p.network.SetDeliveryFunc(func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, false })
		p.waitForEvent("the cable is cut", bfd.Event{Cause: session.CauseDetectionExpired})
		if d := time.Since(cut); d > 150*time.Millisecond {
			t.Errorf("noticed after %s, later than the detection time", d)
		}
		p.network.SetDeliveryFunc(func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true })
		p.waitForEvent("the cable is plugged in again", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
		if s := p.nodeStatus(); s.UpEvents != 2 || s.DownEvents != 1 || s.ReportedEvents != 3 {
			t.Errorf("counters %+v, want 2 ups, 1 down, 3 events", s.Counters)
		}
	})
}

func TestOneWayCutIsDetected(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.network.SetDeliveryFunc(func(from, _ netip.Addr) (time.Duration, bool) { return 0, from == routerAddress })
		p.waitForEvent("the router hears nothing", bfd.Event{Cause: session.CauseNeighbourDown})
	})
}

func TestProfileChangeKeepsSessionUp(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(bfdtest.DefaultProfile())
		p.node.Set([]bfd.Session{p.sessionToRouter(fastProfile())})
		p.expectNoEvent("one side got faster", 5*time.Second)
		if s := p.nodeStatus(); s.UsedTransmitInterval != 300*time.Millisecond || s.IsPolling {
			t.Errorf("we send every %s, polling %v; the router still takes only one in 300 ms", s.UsedTransmitInterval, s.IsPolling)
		}
		p.router.Set([]bfd.Session{p.sessionToNode(fastProfile())})
		p.expectNoEvent("the other side got faster", 5*time.Second)
		if s := p.nodeStatus(); s.UsedTransmitInterval != 50*time.Millisecond || s.DetectionTime != 150*time.Millisecond {
			t.Errorf("every %s, detection in %s, want 50 and 150 ms", s.UsedTransmitInterval, s.DetectionTime)
		}
		slow := fastProfile()
		slow.TransmitInterval, slow.ReceiveInterval, slow.DetectMultiplier = 2*time.Second, 2*time.Second, 5
		p.node.Set([]bfd.Session{p.sessionToRouter(slow)})
		p.expectNoEvent("one side got slower", time.Minute)
		if s := p.nodeStatus(); s.UsedTransmitInterval != 2*time.Second || s.State != session.Up {
			t.Errorf("every %s, %s; want 2 s and Up", s.UsedTransmitInterval, s.State)
		}
	})
}

func TestRemovalIsSignalledToNeighbour(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.router.Set(nil)
		p.waitForEvent("the router's session is removed", bfd.Event{Cause: session.CauseNeighbourAdminDown})
		if p.expectNoEvent("no event follows", 10*time.Second); p.nodeStatus().RemoteDiagnostic != session.DiagnosticNone {
			t.Errorf("the neighbour is gone, but the status says %s", p.nodeStatus().RemoteDiagnostic)
		}
		p.router.Set([]bfd.Session{p.sessionToNode(fastProfile())})
		p.waitForEvent("it is back", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
		if err := p.node.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		if s := p.router.Status()[0]; s.RemoteDiagnostic != session.DiagnosticAdminDown || s.State != session.Down {
			t.Errorf("the router has %s, the node's diagnostic %q; want Down, administratively", s.State, s.RemoteDiagnostic)
		}
		if p.hosts[0].OpenSenderCount() != 0 {
			t.Error("the node has an open sender after Stop")
		}
		p.node.Set([]bfd.Session{p.sessionToRouter(fastProfile())})
		p.waitForEvent("set again after Stop", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
	})
}

func TestSessionRemovedAndAddedAtOnce(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.bringSessionUp(fastProfile())
		p.node.Set(nil)
		synctest.Wait()
		p.node.Set([]bfd.Session{p.sessionToRouter(fastProfile())})
		p.waitForEvent("set again while AdminDown is signalled", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
		p.expectNoEvent("it stays up", time.Minute)
	})
}

func TestTwoPassiveSidesStayDown(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		passive := fastProfile()
		passive.Passive = true
		p.node.Set([]bfd.Session{p.sessionToRouter(passive)})
		p.router.Set([]bfd.Session{p.sessionToNode(passive)})
		p.expectNoEvent("neither side begins", time.Minute)
		if n := p.nodeStatus().ControlSent; n != 0 {
			t.Errorf("a passive side sent %d packets", n)
		}
		p.router.Set([]bfd.Session{p.sessionToNode(fastProfile())})
		p.waitForEvent("one side begins", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
	})
}

func TestEchoDetectsForwardingFailure(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		echo := bfdtest.DefaultProfile()
		echo.EchoMode = true
		p.hosts[1].ReturnEchoes()
		p.bringSessionUp(echo)
		p.expectNoEvent("echo packets return", time.Minute)
		if s := p.nodeStatus(); s.EchoReturned < 1000 || s.EchoSent != s.EchoReturned || s.Fault.IsSet() {
			t.Errorf("%d echo packets sent, %d returned, %v; want at least one in 50 ms and no fault", s.EchoSent, s.EchoReturned, s.Fault)
		}
		p.hosts[1].DropEchoes()
		dropped := time.Now()
		p.waitForEvent("the forwarding plane fails, the control plane does not", bfd.Event{Cause: session.CauseEchoFailed})
		if d := time.Since(dropped); d > 150*time.Millisecond {
			t.Errorf("noticed after %s, want 3 x 50 ms at most", d)
		}
		p.waitForEvent("control packets bring it up again", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
		p.expectNoEvent("echo packets never return, which is no failure", time.Minute)
		if f := p.nodeStatus().Fault; f.Reason != names.ReasonEchoUnsupported {
			t.Errorf("fault %q, want that echo packets do not return", f)
		}
	})
}

func TestEchoUnsupportedIsReported(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		echo := fastProfile()
		echo.EchoMode = true
		p.node.Set([]bfd.Session{p.sessionToRouter(echo)})
		p.router.Set([]bfd.Session{p.sessionToNode(fastProfile())})
		p.waitForEvent("the router accepts no echo packets", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
		synctest.Wait()
		if s := p.nodeStatus(); s.Fault.Reason != names.ReasonEchoUnsupported || s.EchoSent != 0 {
			t.Errorf("fault %+v, %d echo packets sent; want that it accepts none", s.Fault, s.EchoSent)
		}
	})
	simulateEnginePair(t, func(p *enginePair) {
		here, there := p.sessionToRouter(fastProfile()), p.sessionToNode(fastProfile())
		here.Multihop, there.Multihop, here.EchoMode = true, true, true
		p.hosts[1].ReturnEchoes()
		p.node.Set([]bfd.Session{here})
		p.router.Set([]bfd.Session{there})
		p.waitForEvent("the router is several hops away", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
		if s := p.nodeStatus(); s.Fault.Reason != names.ReasonEchoUnsupported || s.EchoSent != 0 {
			t.Errorf("fault %+v, %d echo packets sent; want that they do not return", s.Fault, s.EchoSent)
		}
		select {
		case <-p.node.StatusChanged():
		default:
			t.Error("Changed did not report the new status")
		}
		here.EchoMode = false
		p.node.Set([]bfd.Session{here})
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
				p.hosts[0].FailEchoes(err)
			}
			p.bringSessionUp(echo)
			if reason != names.ReasonEchoUnsupported {
				p.hosts[0].FailSends(err)
				p.waitForEvent("nothing can be sent", bfd.Event{Cause: session.CauseNeighbourDown})
			}
			time.Sleep(2 * time.Second)
			if f := p.nodeStatus().Fault; f.Reason != reason || f.Text == "" {
				t.Errorf("fault %+v, want %s", f, reason)
			}
			p.hosts[0].FailSends(nil)
			p.hosts[0].FailEchoes(nil)
			p.hosts[1].ReturnEchoes()
			time.Sleep(5 * time.Second)
			if s := p.nodeStatus(); s.State != session.Up || s.Fault.IsSet() {
				t.Errorf("once it works again: %s with fault %+v", s.State, s.Fault)
			}
		})
	}
}

func TestAuthenticationIsReported(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		p.node.Set([]bfd.Session{p.sessionToRouter(fastProfile())})
		synctest.Wait()
		b := session.Packet{State: session.Down, DetectMultiplier: 3, MyDiscriminator: 7, DesiredMinTxInterval: time.Second, RequiredMinRxInterval: time.Second}.Append(nil)
		b[1] |= 1 << 2 // the A bit
		b[3] = 28
		p.hosts[0].InjectDatagram(bfd.Datagram{From: routerAddress, To: nodeAddress, TTL: 255, Payload: append(b, 1, 4, 1, 'x')})
		synctest.Wait()
		if s := p.nodeStatus(); s.Fault.Reason != names.ReasonBFDAuthentication || s.State != session.Down {
			t.Errorf("%s with fault %+v, want Down with the authentication fault", s.State, s.Fault)
		}
		p.router.Set([]bfd.Session{p.sessionToNode(fastProfile())})
		p.waitForEvent("the router turns authentication off", bfd.Event{Up: true, Cause: session.CauseNeighbourAnswers})
		if f := p.nodeStatus().Fault; f.IsSet() {
			t.Errorf("fault %+v remains", f)
		}
	})
}
