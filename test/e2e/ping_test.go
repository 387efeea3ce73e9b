package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

// testPingAnswersOnlyWithSetting checks that speakers do not answer pings by default, and that they
// do with the setting.
func testPingAnswersOnlyWithSetting(ctx context.Context, t *testing.T, s *cluster.Cluster, addresses ...netip.Addr) {
	requireNoPingAnswer(t, s, addresses...)
	_, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "set", "env", "daemonset/gantry-speaker", enablePingAnswersEnvironment)
	failOnError(t, err)
	failOnError(t, s.AwaitGantryRollout(ctx))
	requirePingAnswers(ctx, t, s, addresses...)
}

// enablePingAnswersEnvironment turns answers to pings on.
const enablePingAnswersEnvironment = "GANTRY_LAYER2_ANSWER_PING=true"

func requireNoPingAnswer(t *testing.T, s *cluster.Cluster, addresses ...netip.Addr) {
	t.Helper()
	for _, a := range addresses {
		if n, heard := sendPings(t, s, a, 1, time.Second); n > 0 {
			t.Errorf("%s answers pings without the setting: %v", a, heard)
		}
	}
}

func requirePingAnswers(ctx context.Context, t *testing.T, s *cluster.Cluster, addresses ...netip.Addr) {
	t.Helper()
	for _, a := range addresses {
		failOnError(t, cluster.AwaitNoError(ctx, "an answer to a ping of "+a.String(), func(context.Context) error {
			if n, heard := sendPings(t, s, a, 1, time.Second); n != 1 {
				return fmt.Errorf("the client received %v", heard)
			}
			return nil
		}))
		n, heard := sendPings(t, s, a, 5, 30*time.Second)
		if n != 5 {
			t.Errorf("%d of 5 pings of %s were answered: %v", n, a, heard)
		}
		holder := awaitHolderOfAddress(ctx, t, s, a).Status.Node
		if readSpeakerMetric(ctx, t, s, holder, fmt.Sprintf(`gantry_layer2_pings_answered_total{ip="%s"}`, a)) == 0 {
			t.Errorf("the metrics of %s count no ping of %s", holder, a)
		}
	}
}

// sendPings sends a number of pings, and returns the number of answers and all ICMP messages that
// the client received, by type and sender.
func sendPings(t *testing.T, s *cluster.Cluster, a netip.Addr, times int, timeout time.Duration) (answers int, heard map[string]int) {
	t.Helper()
	network, protocol, kind := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeEcho)
	if a.Is6() {
		network, protocol, kind = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest
	}
	var c *icmp.PacketConn
	failOnError(t, s.NamespaceOfHost("client").RunInside(func() (err error) {
		c, err = icmp.ListenPacket(network, "")
		return err
	}))
	defer c.Close()
	id := os.Getpid() & 0xffff
	for seq := range times {
		b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("are you there?")}}).Marshal(nil)
		failOnError(t, err)
		_, err = c.WriteTo(b, &net.IPAddr{IP: a.AsSlice()})
		failOnError(t, err)
	}
	heard = map[string]int{}
	failOnError(t, c.SetReadDeadline(time.Now().Add(timeout)))
	for in := make([]byte, 2048); answers < times; {
		n, from, err := c.ReadFrom(in)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		failOnError(t, err)
		m, err := icmp.ParseMessage(protocol, in[:n])
		if err != nil {
			continue
		}
		heard[fmt.Sprintf("%v from %s", m.Type, from)]++
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && from.String() == a.String() && (m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply) {
			answers++
		}
	}
	return answers, heard
}
