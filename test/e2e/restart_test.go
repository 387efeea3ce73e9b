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

// gracefulRestartManifest has the nodes announce to the router, too, which keeps their routes while they restart.
const gracefulRestartManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, enableGracefulRestart: true}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: all, namespace: metallb-system}
`

// TestAPIServerUnreachable has everything happen to the speakers while nobody can ask the API server: what is announced stays
// announced, a dead holder is replaced, and speakers that are all started again go on where they were.
func TestAPIServerUnreachable(t *testing.T) {
	ctx, s := startCluster(t, lab.Options{Nodes: 4, Families: lab.DualStack})
	must(t, s.Apply(ctx, dualStackPool))
	must(t, s.Apply(ctx, requireDualStack(cluster.EchoManifest("echo", "node4"))))
	_, err := s.Kubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	must(t, err)
	addresses, err := s.AwaitAddresses(ctx, "default", "echo", 2)
	must(t, err)
	_, err = s.AwaitHolders(ctx, "echo", 2)
	must(t, err)
	tor := s.Router("router", router.FRR)
	must(t, tor.Start(ctx, documentedFRRConfig(t)))
	must(t, s.Apply(ctx, gracefulRestartManifest))
	vip, nodes := netip.PrefixFrom(addresses[0], addresses[0].BitLen()), []string{"node1", "node2", "node3"}
	awaitNextHops(ctx, t, s, vip, "192.168.0.11", "192.168.0.12", "192.168.0.13")

	var holder string // of the first address
	t.Run("every speaker is started again", func(t *testing.T) {
		w := watchService(ctx, t, s, addresses)
		w.awaitAnswers(ctx, t, 500) // the speakers keep what they know once a second
		must(t, s.StopAPI(ctx))
		w.awaitAnswers(ctx, t, 200) // nothing is withdrawn because a watch was lost
		far, err := s.StreamUDP(ctx, "far", netip.AddrPortFrom(addresses[0], 7000).String(), 200)
		must(t, err)
		must(t, far.AwaitAnswers(ctx, 50))
		begun := map[string]int{}
		for _, n := range nodes {
			begun[n] = countSessionStarts(ctx, t, s, n)
		}
		for _, n := range []string{"node1", "node2", "node3", "node4"} {
			must(t, s.SignalProgram(ctx, n, "gantry-speaker", syscall.SIGKILL))
		}
		w.awaitAnswers(ctx, t, 300)
		settled := time.Now()
		w.awaitAnswers(ctx, t, 200)
		for a, answers := range w.stopAndCollect(t) {
			late := slices.DeleteFunc(answers, func(x cluster.NeighborAnswer) bool { return x.At.Before(settled) })
			who := answeringMACs(late)
			if len(who) != 1 {
				t.Fatalf("after the restart %s is answered for by %v, want one node", a, who)
			}
			if a == addresses[0] {
				holder = nodeWithMAC(t, s, who[0])
			}
		}
		must(t, cluster.Await(ctx, "the sessions with the router to be there again", func(ctx context.Context) error {
			for _, n := range nodes {
				if countSessionStarts(ctx, t, s, n) == begun[n] {
					return fmt.Errorf("not that of %s", n)
				}
			}
			out, err := tor.Show(ctx, "show bgp ipv4 unicast "+vip.String())
			if err == nil && strings.Contains(string(out), "stale") {
				err = fmt.Errorf("a route is stale:\n%s", out)
			}
			return err
		}))
		awaitNextHops(ctx, t, s, vip, "192.168.0.11", "192.168.0.12", "192.168.0.13")
		if o := far.Stop(); o.Lost > 0 {
			t.Errorf("%d of %d requests through the router were lost", o.Lost, o.Sent)
		}
	})
	t.Run("and a dead holder is replaced", func(t *testing.T) {
		w := watchService(ctx, t, s, addresses)
		must(t, s.CutCable(ctx, holder))
		w.awaitAnswers(ctx, t, 300)
		w.stopAndCollect(t)
		must(t, s.PlugCable(ctx, holder))
	})
	t.Run("the API server comes back", func(t *testing.T) {
		must(t, s.StartAPI(ctx))
		must(t, cluster.Await(ctx, "the Service's status to tell who holds it now", func(ctx context.Context) error {
			now, err := s.AwaitHolders(ctx, "echo", 2)
			if err == nil && slices.Contains(now, holder) { // it was cut off, and takes nothing back
				err = fmt.Errorf("%v announce it, though %s gave it up", now, holder)
			}
			return err
		}))
		must(t, s.Apply(ctx, cluster.EchoManifest("later", "node4")))
		address, err := s.AwaitAddress(ctx, "default", "later")
		must(t, err)
		stream, err := s.StreamUDP(ctx, "client", netip.AddrPortFrom(address, 7000).String(), 100)
		must(t, err)
		// kube-proxy asks the API server again once a minute after it was away for long.
		for range 3 {
			if err = stream.AwaitAnswers(ctx, 50); err == nil {
				break
			}
		}
		must(t, err)
		stream.Stop()
		_, err = s.Kubectl(ctx, "", "delete", "service", "echo")
		must(t, err)
		must(t, cluster.Await(ctx, "the addresses to be given up", func(context.Context) error {
			out, err := s.Kubectl(ctx, "", "-n", "metallb-system", "get", "servicel2statuses", "-l", names.LabelServiceName+"=echo", "-o", "name")
			if err == nil && out != "" {
				err = errors.New(out)
			}
			return err
		}))
	})
}

// nodeWithMAC returns the node with the Ethernet address.
func nodeWithMAC(t *testing.T, s *cluster.Cluster, mac string) string {
	t.Helper()
	for _, n := range []string{"node1", "node2", "node3", "node4"} {
		own, err := s.HostMAC(n)
		must(t, err)
		if own == mac {
			return n
		}
	}
	t.Fatalf("no node has the Ethernet address %s", mac)
	return ""
}
