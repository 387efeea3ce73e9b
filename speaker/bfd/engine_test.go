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
	"github.com/gantry-lb/gantry/speaker/bfd/cable"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

var (
	nodeAddress   = netip.MustParseAddr("192.0.2.11")
	routerAddress = netip.MustParseAddr("192.0.2.1")
)

// fast is 3 x 50 ms.
func fast() bfd.Profile {
	p := bfd.DefaultProfile()
	p.Receive, p.Transmit = 50*time.Millisecond, 50*time.Millisecond
	return p
}

// pair is a node and a router, both our engine, in virtual time.
type pair struct {
	t            *testing.T
	net          *cable.Net
	node, router *bfd.Engine
	hosts        [2]*cable.Host
}

// simulate runs f with a pair; both engines have ended and told each other so when it returns.
func simulate(t *testing.T, f func(p *pair)) {
	synctest.Test(t, func(t *testing.T) {
		p := &pair{t: t, net: cable.New()}
		p.hosts = [2]*cable.Host{p.net.Host(nodeAddress), p.net.Host(routerAddress)}
		p.node, p.router = bfd.New(p.hosts[0], time.Now, 1), bfd.New(p.hosts[1], time.Now, 2)
		ctx, cancel := context.WithCancel(context.Background()) // that of t ends outside of the bubble
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
				if n := h.Ports(); n != 0 {
					t.Errorf("%d ports are left open", n)
				}
			}
		}()
		f(p)
	})
}

func (p *pair) toRouter(profile bfd.Profile) bfd.Session {
	return bfd.Session{Key: bfd.Key{Peer: routerAddress}, Profile: profile}
}

func (p *pair) toNode(profile bfd.Profile) bfd.Session {
	return bfd.Session{Key: bfd.Key{Peer: nodeAddress}, Profile: profile}
}

// up sets both sides and waits until the node says Up.
func (p *pair) up(profile bfd.Profile) {
	p.t.Helper()
	p.node.Set([]bfd.Session{p.toRouter(profile)})
	p.router.Set([]bfd.Session{p.toNode(profile)})
	p.want("both sides are set", bfd.Event{Up: true, Cause: session.CauseNeighbour})
}

// want waits for the node's next event.
func (p *pair) want(sentence string, want bfd.Event) {
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

// quiet lets time pass in which nothing may happen.
func (p *pair) quiet(sentence string, d time.Duration) {
	p.t.Helper()
	select {
	case v := <-p.node.Events():
		p.t.Fatalf("%s: event %+v", sentence, v)
	case <-time.After(d):
	}
}

func (p *pair) status() bfd.Status {
	p.t.Helper()
	all := p.node.Status()
	if len(all) != 1 {
		p.t.Fatalf("%d sessions, want one", len(all))
	}
	return all[0]
}

func TestUpAndACutCable(t *testing.T) {
	simulate(t, func(p *pair) {
		p.up(fast())
		p.quiet("the path is fine", 10*time.Minute)
		if s := p.status(); s.State != session.Up || s.Detection != 150*time.Millisecond || s.Transmit != 50*time.Millisecond {
			t.Errorf("status %+v, want Up with 3 x 50 ms", s)
		}
		cut := time.Now()
		p.net.SetTravel(func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, false })
		p.want("the cable is cut", bfd.Event{Cause: session.CauseDetectionExpired})
		if d := time.Since(cut); d > 150*time.Millisecond {
			t.Errorf("noticed after %s, later than the detection time", d)
		}
		p.net.SetTravel(func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true })
		p.want("the cable is mended", bfd.Event{Up: true, Cause: session.CauseNeighbour})
		if s := p.status(); s.Ups != 2 || s.Downs != 1 || s.Events != 3 {
			t.Errorf("counters %+v, want 2 ups, 1 down, 3 events", s.Counters)
		}
	})
}

func TestAOneWayCutIsSeenOnBothSides(t *testing.T) {
	simulate(t, func(p *pair) {
		p.up(fast())
		p.net.SetTravel(func(from, _ netip.Addr) (time.Duration, bool) { return 0, from == routerAddress })
		p.want("the router hears nothing", bfd.Event{Cause: session.CauseNeighbourDown})
	})
}

func TestANewProfileKeepsTheSessionUp(t *testing.T) {
	simulate(t, func(p *pair) {
		p.up(bfd.DefaultProfile())
		p.node.Set([]bfd.Session{p.toRouter(fast())})
		p.quiet("one side got faster", 5*time.Second)
		if s := p.status(); s.Transmit != 300*time.Millisecond || s.Polling {
			t.Errorf("we send every %s, polling %v; the router still takes only one in 300 ms", s.Transmit, s.Polling)
		}
		p.router.Set([]bfd.Session{p.toNode(fast())})
		p.quiet("the other side got faster", 5*time.Second)
		if s := p.status(); s.Transmit != 50*time.Millisecond || s.Detection != 150*time.Millisecond {
			t.Errorf("every %s, detection in %s, want 50 and 150 ms", s.Transmit, s.Detection)
		}
		slow := fast()
		slow.Transmit, slow.Receive, slow.Multiplier = 2*time.Second, 2*time.Second, 5
		p.node.Set([]bfd.Session{p.toRouter(slow)})
		p.quiet("one side got slower", time.Minute)
		if s := p.status(); s.Transmit != 2*time.Second || s.State != session.Up {
			t.Errorf("every %s, %s; want 2 s and Up", s.Transmit, s.State)
		}
	})
}

func TestRemovingTellsTheNeighbour(t *testing.T) {
	simulate(t, func(p *pair) {
		p.up(fast())
		p.router.Set(nil)
		p.want("the router's session is removed", bfd.Event{Cause: session.CauseNeighbourAdminDown})
		if p.quiet("nothing follows", 10*time.Second); p.status().RemoteDiagnostic != session.NoDiagnostic {
			t.Errorf("the neighbour is gone, yet status says %s", p.status().RemoteDiagnostic)
		}
		p.router.Set([]bfd.Session{p.toNode(fast())})
		p.want("it is back", bfd.Event{Up: true, Cause: session.CauseNeighbour})
		if err := p.node.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		if s := p.router.Status()[0]; s.RemoteDiagnostic != session.AdministrativelyDown || s.State != session.Down {
			t.Errorf("the router has %s, the node's diagnostic %q; want Down, administratively", s.State, s.RemoteDiagnostic)
		}
		if p.hosts[0].Ports() != 0 {
			t.Error("the node's port is open after Stop")
		}
		p.node.Set([]bfd.Session{p.toRouter(fast())})
		p.want("set again after Stop", bfd.Event{Up: true, Cause: session.CauseNeighbour})
	})
}

func TestRemovedAndSetAgainAtOnce(t *testing.T) {
	simulate(t, func(p *pair) {
		p.up(fast())
		p.node.Set(nil)
		synctest.Wait()
		p.node.Set([]bfd.Session{p.toRouter(fast())})
		p.want("set again while the neighbour is being told", bfd.Event{Up: true, Cause: session.CauseNeighbour})
		p.quiet("it stays", time.Minute)
	})
}

func TestTwoPassiveSidesStayDown(t *testing.T) {
	simulate(t, func(p *pair) {
		passive := fast()
		passive.Passive = true
		p.node.Set([]bfd.Session{p.toRouter(passive)})
		p.router.Set([]bfd.Session{p.toNode(passive)})
		p.quiet("nobody begins", time.Minute)
		if n := p.status().ControlOut; n != 0 {
			t.Errorf("a passive side sent %d packets", n)
		}
		p.router.Set([]bfd.Session{p.toNode(fast())})
		p.want("one side begins", bfd.Event{Up: true, Cause: session.CauseNeighbour})
	})
}

func TestEcho(t *testing.T) {
	simulate(t, func(p *pair) {
		echo := bfd.DefaultProfile()
		echo.EchoMode = true
		p.hosts[1].ReturnEchoes()
		p.up(echo)
		p.quiet("echo packets return", time.Minute)
		if s := p.status(); s.EchoIn < 1000 || s.EchoOut != s.EchoIn || s.Fault != (bfd.Fault{}) {
			t.Errorf("%d echo packets sent, %d came back, %v; want one in 50 ms at least and no fault", s.EchoOut, s.EchoIn, s.Fault)
		}
		p.hosts[1].DropEchoes()
		dropped := time.Now()
		p.want("the forwarding plane fails, the control plane does not", bfd.Event{Cause: session.CauseEchoFailed})
		if d := time.Since(dropped); d > 150*time.Millisecond {
			t.Errorf("noticed after %s, want 3 x 50 ms at most", d)
		}
		p.want("control packets alone bring it up again", bfd.Event{Up: true, Cause: session.CauseNeighbour})
		p.quiet("echo never returns, which is no failure", time.Minute)
		if f := p.status().Fault; f.Reason != names.ReasonEchoUnsupported {
			t.Errorf("fault %q, want that echo packets do not return", f)
		}
	})
}

func TestEchoWhereItCannotBeLeavesControlPacketsToWatch(t *testing.T) {
	simulate(t, func(p *pair) {
		echo := fast()
		echo.EchoMode = true
		p.node.Set([]bfd.Session{p.toRouter(echo)})
		p.router.Set([]bfd.Session{p.toNode(fast())})
		p.want("the router takes no echo packets", bfd.Event{Up: true, Cause: session.CauseNeighbour})
		synctest.Wait()
		if s := p.status(); s.Fault.Reason != names.ReasonEchoUnsupported || s.EchoOut != 0 {
			t.Errorf("fault %+v, %d echo packets sent; want that it takes none", s.Fault, s.EchoOut)
		}
	})
	simulate(t, func(p *pair) {
		here, there := p.toRouter(fast()), p.toNode(fast())
		here.Multihop, there.Multihop, here.EchoMode = true, true, true
		p.hosts[1].ReturnEchoes()
		p.node.Set([]bfd.Session{here})
		p.router.Set([]bfd.Session{there})
		p.want("the router is several hops away", bfd.Event{Up: true, Cause: session.CauseNeighbour})
		if s := p.status(); s.Fault.Reason != names.ReasonEchoUnsupported || s.EchoOut != 0 {
			t.Errorf("fault %+v, %d echo packets sent; want that they would not return", s.Fault, s.EchoOut)
		}
		select {
		case <-p.node.Changed():
		default:
			t.Error("nobody is told that there is something to see")
		}
		here.EchoMode = false
		p.node.Set([]bfd.Session{here})
		synctest.Wait()
		if f := p.status().Fault; f != (bfd.Fault{}) {
			t.Errorf("fault %+v is left", f)
		}
	})
}

func TestFaultsAreTold(t *testing.T) {
	for reason, err := range map[names.Reason]error{
		names.ReasonBFDPortInUse:    bfd.ErrPortInUse,
		names.ReasonBFDUnsent:       errors.New("no such link"),
		names.ReasonEchoUnsupported: bfd.ErrEchoUnsupported,
	} {
		simulate(t, func(p *pair) {
			echo := fast()
			echo.EchoMode = true
			if reason == names.ReasonEchoUnsupported {
				p.hosts[0].RefuseEchoes(err)
			}
			p.up(echo)
			if reason != names.ReasonEchoUnsupported {
				p.hosts[0].Refuse(err)
				p.want("nothing can be sent", bfd.Event{Cause: session.CauseNeighbourDown})
			}
			time.Sleep(2 * time.Second)
			if f := p.status().Fault; f.Reason != reason || f.Text == "" {
				t.Errorf("fault %+v, want %s", f, reason)
			}
			p.hosts[0].Refuse(nil)
			p.hosts[0].RefuseEchoes(nil)
			p.hosts[1].ReturnEchoes()
			time.Sleep(5 * time.Second)
			if s := p.status(); s.State != session.Up || s.Fault != (bfd.Fault{}) {
				t.Errorf("once it works again: %s with fault %+v", s.State, s.Fault)
			}
		})
	}
}

func TestAuthenticationIsRefusedInWords(t *testing.T) {
	simulate(t, func(p *pair) {
		p.node.Set([]bfd.Session{p.toRouter(fast())})
		synctest.Wait()
		b := session.Packet{State: session.Down, Multiplier: 3, Mine: 7, DesiredTx: time.Second, RequiredRx: time.Second}.Append(nil)
		b[1] |= 1 << 2 // the A bit
		b[3] = 28
		p.hosts[0].Inject(bfd.Datagram{From: routerAddress, To: nodeAddress, TTL: 255, Payload: append(b, 1, 4, 1, 'x')})
		synctest.Wait()
		if s := p.status(); s.Fault.Reason != names.ReasonBFDAuthentication || s.State != session.Down {
			t.Errorf("%s with fault %+v, want Down because of authentication", s.State, s.Fault)
		}
		p.router.Set([]bfd.Session{p.toNode(fast())})
		p.want("the router turns authentication off", bfd.Event{Up: true, Cause: session.CauseNeighbour})
		if f := p.status().Fault; f != (bfd.Fault{}) {
			t.Errorf("fault %+v is left", f)
		}
	})
}
