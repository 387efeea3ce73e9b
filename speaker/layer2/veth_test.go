package layer2_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
)

// onVeth makes a bed of two namespaces with a real cable between them.
func onVeth(t testing.TB, c cast) *bed {
	node, client := sandbox.New(t), sandbox.New(t)
	node.Veth("eth0", client, "eth0")
	node.Address("eth0", c.nodeIP.String())
	client.Address("eth0", netip.PrefixFrom(c.clientIP, c.nodeIP.Bits()).String())
	b := &bed{cast: c, t: t, node: node, engine: layer2.New(wire.Wire{}, time.Now)}
	node.Do(func() (err error) {
		b.link, err = linkOf("eth0")
		return err
	})
	client.Do(func() error {
		l, err := linkOf("eth0")
		if err != nil {
			return err
		}
		b.mac = l.MAC
		b.client, err = wire.Wire{}.Open(l, layer2.FamilyOf(c.held))
		return err
	})
	b.start(func(ctx context.Context) error { return node.Run(ctx, b.engine.Run) })
	return b
}

func linkOf(name string) (facts.Link, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return facts.Link{}, err
	}
	if len(ifi.HardwareAddr) != 6 {
		return facts.Link{}, fmt.Errorf("%s has no Ethernet address", name)
	}
	return facts.Link{Index: ifi.Index, Name: name, MAC: facts.MAC(ifi.HardwareAddr)}, nil
}

func TestScenariosOnARealCable(t *testing.T) {
	for family, c := range families {
		for name, scenario := range scenarios {
			t.Run(family+": "+name, func(t *testing.T) {
				t.Parallel()
				scenario(onVeth(t, c))
			})
		}
	}
}

// BenchmarkAnswerOverVeth is the time from the client's request to the answer in its hands, two sockets and a cable
// included.
func BenchmarkAnswerOverVeth(b *testing.B) {
	bed := onVeth(b, cast4)
	bed.take(held)
	bed.send(bed.request(held))
	bed.wantHeard("the address is held", bed.answer(held))
	want := bed.answer(held)
	b.ReportAllocs()
	for b.Loop() {
		bed.send(bed.request(held))
		for f := range bed.heard {
			if f == want {
				break
			}
		}
	}
}
