package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/test/cluster"
)

// poolWithProbeAndUsedAddressesManifest has addresses that other hosts use: the router uses
// 192.168.0.240 and fd00:a8::400, and node2 uses 192.168.0.241.
const poolWithProbeAndUsedAddressesManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: asking
  namespace: metallb-system
spec:
  autoAssign: false
  addresses:
  - 192.168.0.240-192.168.0.243
  - fd00:a8::400-fd00:a8::403
  gantry:
    probe:
      quarantine: 1h
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata:
  name: asking
  namespace: metallb-system
spec:
  ipAddressPools:
  - asking
`

// testAddressesInUseAreSkipped checks that addresses which other hosts or nodes use are skipped,
// and that the next free ones are assigned and announced.
func testAddressesInUseAreSkipped(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	for _, add := range []struct{ host, address string }{{"router", "192.168.0.240/24"}, {"router", "fd00:a8::400/64"}, {"node2", "192.168.0.241/24"}} {
		failOnError(t, s.NamespaceOfHost(add.host).RunInside(exec.Command("ip", "address", "add", add.address, "dev", "eth0", "nodad").Run))
	}
	failOnError(t, s.ApplyManifests(ctx, poolWithProbeAndUsedAddressesManifest))
	web := strings.ReplaceAll(dualStackEchoManifest, "name: echo", "name: asked")
	web = strings.Replace(web, "kind: Service\nmetadata:\n", "kind: Service\nmetadata:\n  annotations:\n    metallb.io/address-pool: asking\n", 1)
	failOnError(t, s.ApplyManifests(ctx, web))
	got, err := s.AwaitServiceAddressCount(ctx, "default", "asked", 2)
	failOnError(t, err)
	if want := []netip.Addr{netip.MustParseAddr("192.168.0.242"), netip.MustParseAddr("fd00:a8::401")}; !slices.Equal(got, want) {
		t.Errorf("the Service has %v, want %v: the others are in use", got, want)
	}
	for _, a := range got {
		startUDPStream(ctx, t, s, netip.AddrPortFrom(a, 7000).String()).StopSending()
	}
	failOnError(t, cluster.AwaitNoError(ctx, "the reports of the used addresses", func(ctx context.Context) error {
		return checkQuarantineReported(ctx, s, "192.168.0.240", "192.168.0.241", "fd00:a8::400")
	}))
	failOnError(t, cluster.AwaitNoError(ctx, "the deletion of the AddressProbes", func(ctx context.Context) error {
		var open v1alpha1.AddressProbeList
		if err := s.API.List(ctx, &open); err != nil {
			return err
		}
		if len(open.Items) > 0 {
			return fmt.Errorf("%d AddressProbes are left", len(open.Items))
		}
		return nil
	}))

	// An operator asks what a node hears of both addresses, while a node holds each.
	failOnError(t, cluster.AwaitNoError(ctx, "the answer to a node", func(ctx context.Context) error {
		out, status, err := runKubectlGantryOnHost(ctx, s, "client", "probe", "service", "asked", "--from", "node", "node1")
		if err != nil || status != 0 || !strings.Contains(out, "✓ 192.168.0.242 ARP from node1: ") || !strings.Contains(out, "✓ fd00:a8::401 NDP from node1: ") {
			return fmt.Errorf("%v: it exits with %d: %s", err, status, out)
		}
		return nil
	}))

	// A Service that requests such an address gets the reason.
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(cluster.UDPEchoServiceManifest("named", "node3"), "kind: Service\nmetadata:\n", "kind: Service\nmetadata:\n  annotations:\n    metallb.io/loadBalancerIPs: 192.168.0.240\n", 1)))
	failOnError(t, cluster.AwaitNoError(ctx, "the reason", func(ctx context.Context) error {
		svc, err := s.GetService(ctx, "default", "named")
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAddressAssigned)
		if c == nil || c.Reason != string(names.ReasonQuarantined) || !strings.Contains(c.Message, "answered for it on the segment") {
			return fmt.Errorf("the condition is %v", c)
		}
		return nil
	}))
}

// checkQuarantineReported returns an error unless an event reports one of the addresses and the
// AddressLedger has all of them. Kubernetes merges similar events, so only one is certain.
func checkQuarantineReported(ctx context.Context, s *cluster.Cluster, addresses ...string) error {
	var events eventsv1.EventList
	if err := s.API.List(ctx, &events, client.InNamespace("default")); err != nil {
		return err
	}
	reportsQuarantine := func(e eventsv1.Event) bool {
		return strings.HasPrefix(e.Note, string(names.ReasonQuarantined)) &&
			slices.ContainsFunc(addresses, func(a string) bool { return strings.Contains(e.Note, "answered for "+a+" ") })
	}
	if !slices.ContainsFunc(events.Items, reportsQuarantine) {
		return fmt.Errorf("no event reports a quarantine")
	}
	var ledger v1alpha1.AddressLedger
	if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.WithheldAddressesLedger}, &ledger); err != nil {
		return err
	}
	for _, a := range addresses {
		isRecorded := func(w v1alpha1.WithheldAddress) bool {
			return w.Address == a && w.Reason == string(names.ReasonQuarantined) && w.By != ""
		}
		if !slices.ContainsFunc(ledger.Spec.Withheld, isRecorded) {
			return fmt.Errorf("the AddressLedger lacks %s: %v", a, ledger.Spec.Withheld)
		}
	}
	return nil
}
