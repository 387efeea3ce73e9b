package udp_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/bfdtest"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// frrDefaultIntervalsConfig is a router with the default intervals. frrEchoConfig
// enables its echo packets and makes it accept ours.
const (
	frrDefaultIntervalsConfig = `bfd
 profile node
  receive-interval 300
  transmit-interval 300
 exit
 peer 192.168.0.11 local-address 192.168.0.1 interface eth0
  profile node
 exit
exit
`
	frrEchoConfig = `bfd
 profile node
  echo-mode
  echo transmit-interval 50
  echo receive-interval 50
 exit
exit
`
)

func TestEchoDetectsForwardingFailureOfFRR(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "router", frrDefaultIntervalsConfig)
	// FRR accepts this with a warning: its echo packets over IPv6 are not interoperable.
	if err := r.ChangeRunningConfig(t.Context(), frrEchoConfig); err != nil && !strings.Contains(err.Error(), "works correctly for IPv4") {
		t.Fatal(err)
	}
	p := bfdtest.DefaultProfile()
	p.EchoMode = true
	b.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: routerIPv4}, Profile: p}})
	b.waitForEvent("the router is there", routerIPv4, isUpEvent)
	b.awaitNoError("its kernel returns our echo packets", func() error {
		return b.checkStatus(routerIPv4, func(s bfd.SessionStatus) bool { return s.EchoReturned > 20 && !s.Fault.IsSet() })
	})
	b.awaitNoError("the node's kernel returns FRR's echo packets", func() error {
		out, err := r.RunShowCommand(t.Context(), "show bfd peers counters json")
		if err == nil && strings.Contains(string(out), `"echo-packet-input":0`) {
			err = fmt.Errorf("none returned: %s", out)
		}
		return err
	})
	if err := b.NamespaceOfHost("router").RunInside(func() error { return netns.SetSysctl("net/ipv4/ip_forward", "0") }); err != nil {
		t.Fatal(err)
	}
	b.waitForEvent("its forwarding plane fails, bfdd does not", routerIPv4, func(v bfd.Event) bool { return v.Cause == session.CauseEchoFailed && v.IsPathFailure() })
	b.waitForEvent("control packets bring it up again", routerIPv4, isUpEvent)
	b.awaitNoError("the fault that echo packets do not return is reported", func() error {
		return b.checkStatus(routerIPv4, func(s bfd.SessionStatus) bool {
			return s.Fault.Reason == names.ReasonEchoUnsupported && s.State == session.Up
		})
	})
	for _, v := range b.takeQueuedEvents() { // a busy machine may end the session for another cause
		if v.Cause == session.CauseEchoFailed {
			t.Errorf("echo packets end the session again although they are known not to return: %+v", v)
		}
	}
	if err := b.NamespaceOfHost("router").RunInside(func() error { return netns.SetSysctl("net/ipv4/ip_forward", "1") }); err != nil {
		t.Fatal(err)
	}
	b.awaitNoError("it forwards again", func() error { return b.checkAllUp(1) })
}

func TestEchoPacketsReturnOverIPv6(t *testing.T) {
	t.Parallel()
	b := startBFDEngineInLab(t)
	other := &bfdEngineInLab{RoutedLAN: b.RoutedLAN, t: t}
	other.startEngineOn("router", 2)
	p := fastProfile()
	p.EchoMode = true
	b.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: routerIPv6}, Profile: p}})
	other.engine.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: nodeIPv6}, Profile: p}})
	b.awaitNoError("it is up", func() error { return b.checkAllUp(1) })
	for name, e := range map[string]*bfd.Engine{"node": b.engine, "router": other.engine} {
		b.awaitNoError("the kernel across returns the echo packets of the "+name, func() error {
			if s := e.SessionStatuses()[0]; s.EchoReturned < 20 || s.Fault.IsSet() {
				return fmt.Errorf("it is %+v", s)
			}
			return nil
		})
	}
}

// TestEchoSessionsOfALinkShareASocket checks that the kernel offers each packet of a link to one
// socket for echo packets, however many sessions there are.
func TestEchoSessionsOfALinkShareASocket(t *testing.T) {
	t.Parallel()
	near, far := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	connectNamespaces(near, far)
	far.MustRunInside(func() error { return netns.SetSysctl("net/ipv4/ip_forward", "1") })
	a, b := runEngineInNamespace(t, near, 1), runEngineInNamespace(t, far, 2)
	var here, there []bfd.SessionConfig
	p := fastProfile()
	p.EchoMode = true
	for i := range 3 {
		address := netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)})
		far.AddAddressToLink("eth0", address.String()+"/24")
		here = append(here, bfd.SessionConfig{SessionKey: bfd.SessionKey{PeerAddress: address}, Profile: p})
		there = append(there, bfd.SessionConfig{SessionKey: bfd.SessionKey{PeerAddress: nearNamespaceAddress, LocalAddress: address}, Profile: p})
	}
	b.engine.SetSessions(there)
	for _, sessions := range [][]bfd.SessionConfig{here, here[1:], here} {
		a.engine.SetSessions(sessions)
		a.awaitNoError("echo packets of all sessions return", func() error {
			for _, s := range a.engine.SessionStatuses() {
				if s.EchoReturned < 20 {
					return fmt.Errorf("%s: %d of %d returned: %s", s.SessionKey, s.EchoReturned, s.EchoSent, s.Fault.Text)
				}
			}
			return a.checkAllUp(len(sessions))
		})
		if n := countPacketSockets(near); n != 1 {
			t.Errorf("%d packet sockets for %d sessions, want one", n, len(sessions))
		}
	}
	a.engine.SetSessions(nil)
	a.awaitNoError("the socket is closed after the last session", func() error {
		if n := countPacketSockets(near); n != 0 {
			return fmt.Errorf("%d packet sockets are open", n)
		}
		return nil
	})
}

// countPacketSockets returns how many packet sockets a namespace has.
func countPacketSockets(n *netnstest.Namespace) (count int) {
	n.MustRunInside(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/packet")
		count = strings.Count(strings.TrimSpace(string(text)), "\n") // the first line is a heading
		return err
	})
	return count
}
