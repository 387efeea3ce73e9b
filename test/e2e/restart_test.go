package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// gracefulRestartManifest announces all addresses to the router as well. The router keeps the
// routes while the speakers restart.
const gracefulRestartManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, enableGracefulRestart: true}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: all, namespace: metallb-system}
`

// TestAPIServerUnreachable stops the API server. Announced addresses have to stay announced, a dead
// holder is replaced, and speakers that all restart resume what they announced before.
func TestAPIServerUnreachable(t *testing.T) {
	ctx, s := startCluster(t, lab.Options{Nodes: 4, Families: lab.DualStack})
	failOnError(t, s.ApplyManifests(ctx, dualStackPoolManifest))
	failOnError(t, s.ApplyManifests(ctx, withRequiredDualStack(cluster.EchoManifest("echo", "node4"))))
	_, err := s.RunKubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	failOnError(t, err)
	addresses, err := s.AwaitAddresses(ctx, "default", "echo", 2)
	failOnError(t, err)
	_, err = s.AwaitHolders(ctx, "echo", 2)
	failOnError(t, err)
	tor := s.Router("router", router.FRR)
	failOnError(t, tor.Start(ctx, documentedFRRConfig(t)))
	failOnError(t, s.ApplyManifests(ctx, gracefulRestartManifest))
	vip, nodes := netip.PrefixFrom(addresses[0], addresses[0].BitLen()), []string{"node1", "node2", "node3"}
	awaitNextHops(ctx, t, s, vip, "192.168.0.11", "192.168.0.12", "192.168.0.13")

	var holder string // of the first address
	t.Run("all speakers restart", func(t *testing.T) {
		w := watchService(ctx, t, s, addresses)
		w.awaitAnswers(ctx, t, 500) // the speakers save a checkpoint once per second
		failOnError(t, s.StopAPI(ctx))
		w.awaitAnswers(ctx, t, 200) // a lost watch must not withdraw anything
		far, err := s.StartUDPStream(ctx, "far", netip.AddrPortFrom(addresses[0], 7000).String(), 200)
		failOnError(t, err)
		failOnError(t, far.AwaitAnswers(ctx, 50))
		begun := map[string]int{}
		for _, n := range nodes {
			begun[n] = countSessionStarts(ctx, t, s, n)
		}
		for _, n := range []string{"node1", "node2", "node3", "node4"} {
			failOnError(t, s.SignalProgram(ctx, n, "gantry-speaker", syscall.SIGKILL))
		}
		w.awaitAnswers(ctx, t, 300)
		settled := time.Now()
		w.awaitAnswers(ctx, t, 200)
		for a, answers := range w.stopAndCollect(t) {
			late := slices.DeleteFunc(answers, func(x cluster.NeighborAnswer) bool { return x.CapturedAt.Before(settled) })
			macs := answeringMACs(late)
			if len(macs) != 1 {
				t.Fatalf("after the restart %v answer for %s, want one node", macs, a)
			}
			if a == addresses[0] {
				holder = nodeWithMAC(t, s, macs[0])
			}
		}
		failOnError(t, cluster.AwaitNoError(ctx, "new sessions with the router", func(ctx context.Context) error {
			for _, n := range nodes {
				if countSessionStarts(ctx, t, s, n) == begun[n] {
					return fmt.Errorf("the session of %s is still the old one", n)
				}
			}
			out, err := tor.Show(ctx, "show bgp ipv4 unicast "+vip.String())
			if err == nil && strings.Contains(string(out), "stale") {
				err = fmt.Errorf("a route is stale:\n%s", out)
			}
			return err
		}))
		awaitNextHops(ctx, t, s, vip, "192.168.0.11", "192.168.0.12", "192.168.0.13")
		if o := far.Stop(); o.LostCount > 0 {
			t.Errorf("%d of %d requests through the router were lost", o.LostCount, o.SentCount)
		}
	})
	t.Run("a dead holder is replaced", func(t *testing.T) {
		w := watchService(ctx, t, s, addresses)
		failOnError(t, s.CutCable(ctx, holder))
		w.awaitAnswers(ctx, t, 300)
		w.stopAndCollect(t)
		failOnError(t, s.PlugCable(ctx, holder))
	})
	t.Run("the API server comes back", func(t *testing.T) {
		failOnError(t, s.StartAPI(ctx))
		failOnError(t, cluster.AwaitNoError(ctx, "the current holders in the API", func(ctx context.Context) error {
			now, err := s.AwaitHolders(ctx, "echo", 2)
			// it lost its addresses when its cable was cut, and does not take them back
			if err == nil && slices.Contains(now, holder) {
				err = fmt.Errorf("%v announce it, although %s has lost it", now, holder)
			}
			return err
		}))
		failOnError(t, s.ApplyManifests(ctx, cluster.EchoManifest("later", "node4")))
		address, err := s.AwaitAddress(ctx, "default", "later")
		failOnError(t, err)
		stream, err := s.StartUDPStream(ctx, "client", netip.AddrPortFrom(address, 7000).String(), 100)
		failOnError(t, err)
		// kube-proxy retries once a minute after a long outage of the API server.
		for range 3 {
			if err = stream.AwaitAnswers(ctx, 50); err == nil {
				break
			}
		}
		failOnError(t, err)
		stream.Stop()
		_, err = s.RunKubectl(ctx, "", "delete", "service", "echo")
		failOnError(t, err)
		failOnError(t, cluster.AwaitNoError(ctx, "the release of the addresses", func(context.Context) error {
			out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "servicel2statuses", "-l", names.LabelServiceName+"=echo", "-o", "name")
			if err == nil && out != "" {
				err = errors.New(out)
			}
			return err
		}))
	})
}

// nodeWithMAC returns the node with this Ethernet address.
func nodeWithMAC(t *testing.T, s *cluster.Cluster, mac string) string {
	t.Helper()
	for _, n := range []string{"node1", "node2", "node3", "node4"} {
		own, err := s.HostMAC(n)
		failOnError(t, err)
		if own == mac {
			return n
		}
	}
	t.Fatalf("no node has the Ethernet address %s", mac)
	return ""
}
