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

// apiServerOutageTestCluster is a cluster with a dual-stack Service that is announced by ARP, NDP
// and BGP.
type apiServerOutageTestCluster struct {
	*cluster.Cluster
	tor             *lab.Router
	addresses       []netip.Addr
	serviceRoute    netip.Prefix // of the first address
	announcingNodes []string     // that announce it
	// of the first address, once all speakers have restarted
	firstAddressHolderAfterRestart string
}

func startAPIServerOutageTestCluster(t *testing.T) (context.Context, *apiServerOutageTestCluster) {
	t.Helper()
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 4, Families: lab.DualStack})
	o := &apiServerOutageTestCluster{Cluster: s, tor: s.RouterOnHost("router", router.FRR), announcingNodes: []string{"node1", "node2", "node3"}}
	failOnError(t, s.ApplyManifests(ctx, dualStackPoolAndL2AdvertisementManifest))
	failOnError(t, s.ApplyManifests(ctx, withRequiredDualStack(cluster.UDPEchoServiceManifest("echo", "node4"))))
	_, err := s.RunKubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	failOnError(t, err)
	o.addresses, err = s.AwaitServiceAddressCount(ctx, "default", "echo", 2)
	failOnError(t, err)
	_, err = s.AwaitAnnouncingNodeCount(ctx, "echo", 2)
	failOnError(t, err)
	failOnError(t, o.tor.StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	failOnError(t, s.ApplyManifests(ctx, gracefulRestartManifest))
	o.serviceRoute = netip.PrefixFrom(o.addresses[0], o.addresses[0].BitLen())
	awaitNextHopsInRouterKernel(ctx, t, s, o.serviceRoute, "192.168.0.11", "192.168.0.12", "192.168.0.13")
	return ctx, o
}

// TestAnnouncementsSurviveAPIServerOutage stops the API server. Announced addresses have to stay
// announced, a dead holder is replaced, and speakers that all restart resume what they announced
// before. Each scenario begins where the one before it ends.
func TestAnnouncementsSurviveAPIServerOutage(t *testing.T) {
	ctx, o := startAPIServerOutageTestCluster(t)
	t.Run("all speakers restart", func(t *testing.T) { o.testSpeakersRestartWithoutAPIServer(ctx, t) })
	t.Run("a dead holder is replaced", func(t *testing.T) { o.testDeadHolderIsReplaced(ctx, t) })
	t.Run("the API server comes back", func(t *testing.T) { o.testHoldersStayWhenAPIServerReturns(ctx, t) })
}

func (o *apiServerOutageTestCluster) testSpeakersRestartWithoutAPIServer(ctx context.Context, t *testing.T) {
	w := startTrafficAndNeighborCapture(ctx, t, o.Cluster, o.addresses)
	w.awaitMoreAnswersPerStream(ctx, t, 500) // the speakers save a checkpoint once per second
	failOnError(t, o.BlockAPIServer(ctx))
	w.awaitMoreAnswersPerStream(ctx, t, 200) // a lost watch must not withdraw anything
	far, err := o.StartUDPStream(ctx, "far", netip.AddrPortFrom(o.addresses[0], 7000).String(), 200)
	failOnError(t, err)
	failOnError(t, far.AwaitMoreAnswers(ctx, 50))
	begun := map[string]int{}
	for _, n := range o.announcingNodes {
		begun[n] = countBGPSessionEstablishments(ctx, t, o.Cluster, n)
	}
	for _, n := range []string{"node1", "node2", "node3", "node4"} {
		failOnError(t, o.SignalProgramOrPod(ctx, n, "gantry-speaker", syscall.SIGKILL))
	}
	w.awaitMoreAnswersPerStream(ctx, t, 300)
	settled := time.Now()
	w.awaitMoreAnswersPerStream(ctx, t, 200)
	for a, answers := range w.stopAndCollectNeighborAnswers(t) {
		late := slices.DeleteFunc(answers, func(x cluster.NeighborAnswer) bool { return x.CapturedAt.Before(settled) })
		macs := listMACsInOrderOfLastAnswer(late)
		if len(macs) != 1 {
			t.Fatalf("after the restart %v answer for %s, want one node", macs, a)
		}
		if a == o.addresses[0] {
			o.firstAddressHolderAfterRestart = nodeWithMAC(t, o.Cluster, macs[0])
		}
	}
	failOnError(t, cluster.AwaitNoError(ctx, "new sessions with the router", func(ctx context.Context) error {
		for _, n := range o.announcingNodes {
			if countBGPSessionEstablishments(ctx, t, o.Cluster, n) == begun[n] {
				return fmt.Errorf("the session of %s is still the old one", n)
			}
		}
		out, err := o.tor.RunShowCommand(ctx, "show bgp ipv4 unicast "+o.serviceRoute.String())
		if err == nil && strings.Contains(string(out), "stale") {
			err = fmt.Errorf("a route is stale:\n%s", out)
		}
		return err
	}))
	awaitNextHopsInRouterKernel(ctx, t, o.Cluster, o.serviceRoute, "192.168.0.11", "192.168.0.12", "192.168.0.13")
	if outcome := far.StopAndAwaitLateAnswers(); outcome.LostCount > 0 {
		t.Errorf("%d of %d requests through the router were lost", outcome.LostCount, outcome.SentCount)
	}
}

func (o *apiServerOutageTestCluster) testDeadHolderIsReplaced(ctx context.Context, t *testing.T) {
	w := startTrafficAndNeighborCapture(ctx, t, o.Cluster, o.addresses)
	failOnError(t, o.CutCable(ctx, o.firstAddressHolderAfterRestart))
	w.awaitMoreAnswersPerStream(ctx, t, 300)
	w.stopAndCollectNeighborAnswers(t)
	failOnError(t, o.PlugCable(ctx, o.firstAddressHolderAfterRestart))
}

func (o *apiServerOutageTestCluster) testHoldersStayWhenAPIServerReturns(ctx context.Context, t *testing.T) {
	failOnError(t, o.UnblockAPIServer(ctx))
	// It lost its addresses when its cable was cut, and does not take them back.
	awaitHoldersByAddress(ctx, t, o.Cluster, o.addresses, []string{o.firstAddressHolderAfterRestart})
	failOnError(t, o.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("later", "node4")))
	address, err := o.AwaitFirstAddressOfService(ctx, "default", "later")
	failOnError(t, err)
	stream, err := o.StartUDPStream(ctx, "client", netip.AddrPortFrom(address, 7000).String(), 100)
	failOnError(t, err)
	// kube-proxy retries once a minute after a long outage of the API server, and is late on a busy
	// machine.
	for range 3 {
		if err = stream.AwaitMoreAnswers(ctx, 50); err == nil {
			break
		}
	}
	failOnError(t, err)
	stream.StopSending()
	_, err = o.RunKubectl(ctx, "", "delete", "service", "echo")
	failOnError(t, err)
	failOnError(t, cluster.AwaitNoError(ctx, "the release of the addresses", func(context.Context) error {
		out, err := o.RunKubectl(ctx, "", "-n", "metallb-system", "get", "servicel2statuses", "-l", names.LabelServiceName+"=echo", "-o", "name")
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	}))
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
