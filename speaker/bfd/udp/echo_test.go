package udp_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// frrText4 is a router with the default intervals, and frrEcho what makes it send echo packets itself and take ours.
const (
	frrText4 = `bfd
 profile node
  receive-interval 300
  transmit-interval 300
 exit
 peer 192.168.0.11 local-address 192.168.0.1 interface eth0
  profile node
 exit
exit
`
	frrEcho = `bfd
 profile node
  echo-mode
  echo transmit-interval 50
  echo receive-interval 50
 exit
exit
`
)

func TestEchoWithFRR(t *testing.T) {
	t.Parallel()
	b := lay(t)
	r := b.route(router.FRR, "router", frrText4)
	// FRR takes this, and warns that its echo packets over IPv6 are of a kind of its own.
	if err := r.Configure(t.Context(), frrEcho); err != nil && !strings.Contains(err.Error(), "works correctly for IPv4") {
		t.Fatal(err)
	}
	p := bfd.DefaultProfile()
	p.EchoMode = true
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: router4}, Profile: p}})
	b.want("the router is there", router4, isUp)
	b.eventually("its kernel returns our echo packets", func() error {
		return b.status(router4, func(s bfd.Status) bool { return s.EchoIn > 20 && s.Fault == (bfd.Fault{}) })
	})
	b.eventually("the node's kernel returns FRR's", func() error {
		out, err := r.Show(t.Context(), "show bfd peers counters json")
		if err == nil && strings.Contains(string(out), `"echo-packet-input":0`) {
			err = fmt.Errorf("none came back: %s", out)
		}
		return err
	})
	before := b.engine.Status()[0].Downs
	if err := b.Host("router").Do(func() error { return netns.Sysctl("net/ipv4/ip_forward", "0") }); err != nil {
		t.Fatal(err)
	}
	b.want("its forwarding plane fails, bfdd does not", router4, func(v bfd.Event) bool { return v.Cause == session.CauseEchoFailed && v.Failed() })
	b.want("control packets bring it up again", router4, isUp)
	b.eventually("that echo packets do not return is told", func() error {
		return b.status(router4, func(s bfd.Status) bool {
			return s.Fault.Reason == names.ReasonEchoUnsupported && s.State == session.Up && s.Downs == before+1
		})
	})
	if err := b.Host("router").Do(func() error { return netns.Sysctl("net/ipv4/ip_forward", "1") }); err != nil {
		t.Fatal(err)
	}
	b.eventually("it forwards again", func() error { return b.allUp(1) })
}

func TestEchoOverIPv6(t *testing.T) {
	t.Parallel()
	b := lay(t)
	other := &bed{Bed: b.Bed, t: t}
	other.startOn("router", 2)
	p := fast()
	p.EchoMode = true
	b.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: router6}, Profile: p}})
	other.engine.Set([]bfd.Session{{Key: bfd.Key{Peer: node6}, Profile: p}})
	b.eventually("it is up", func() error { return b.allUp(1) })
	for name, e := range map[string]*bfd.Engine{"node": b.engine, "router": other.engine} {
		b.eventually("the kernel across returns the echo packets of the "+name, func() error {
			if s := e.Status()[0]; s.EchoIn < 20 || s.Fault != (bfd.Fault{}) {
				return fmt.Errorf("it is %+v", s)
			}
			return nil
		})
	}
}
