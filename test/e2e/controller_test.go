package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// TestControllerRestartKeepsAddresses ends all controllers at once while one Service waits for an
// address, and deletes another Service. After the restart the waiting Service gets the free
// address, and no other address moves.
func TestControllerRestartKeepsAddresses(t *testing.T) {
	t.Parallel()
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 1})
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "192.168.0.201-192.168.0.233", "192.168.0.201-192.168.0.203", 1)))
	for _, name := range []string{"first", "second", "third", "waits"} {
		failOnError(t, s.ApplyManifests(ctx, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n", name)))
		if name == "waits" {
			continue
		}
		_, err := s.AwaitFirstAddressOfService(ctx, "default", name)
		failOnError(t, err)
	}
	// The first address is free when the new controllers start, and it is lower than the others.
	_, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "scale", "deployment", "gantry-controller", "--replicas=0")
	failOnError(t, err)
	_, err = s.RunKubectl(ctx, "", "-n", "metallb-system", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=controller", "--timeout=3m")
	failOnError(t, err)
	_, err = s.RunKubectl(ctx, "", "delete", "svc", "first")
	failOnError(t, err)
	_, err = s.RunKubectl(ctx, "", "-n", "metallb-system", "scale", "deployment", "gantry-controller", "--replicas=2")
	failOnError(t, err)
	for name, want := range map[string]string{"waits": "192.168.0.201", "second": "192.168.0.202", "third": "192.168.0.203"} {
		got, err := s.AwaitFirstAddressOfService(ctx, "default", name)
		failOnError(t, err)
		if got.String() != want {
			t.Errorf("after the restart Service %s has %s, want %s", name, got, want)
		}
	}
	testServicesKeepAddressesOfShrunkPool(ctx, t, s)
	testRetiredRangeGivesOtherAddresses(ctx, t, s)
}

// testServicesKeepAddressesOfShrunkPool removes the addresses from the pool: the Services keep
// them, and their condition says so.
func testServicesKeepAddressesOfShrunkPool(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "192.168.0.201-192.168.0.233", "192.168.0.240", 1)))
	failOnError(t, cluster.AwaitNoError(ctx, "the condition of a Service outside of its smaller pool", func(ctx context.Context) error {
		svc, err := s.GetService(ctx, "default", "second")
		if err != nil {
			return err
		}
		if in := svc.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != "192.168.0.202" {
			t.Fatalf("an edit of the pool took the Service's address: %v", in)
		}
		if c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAddressAssigned); c == nil || c.Reason != "AddressNotInPool" || c.Status != "True" {
			return fmt.Errorf("the conditions are %v", svc.Status.Conditions)
		}
		return nil
	}))
}

// testRetiredRangeGivesOtherAddresses retires the addresses of all three Services. Each Service
// gets another one, and has an address all the time. The pool shows the progress.
func testRetiredRangeGivesOtherAddresses(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	recorder, err := s.StartAddressRecorder(ctx, "default")
	failOnError(t, err)
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "  - 192.168.0.201-192.168.0.233\n",
		"  - 192.168.0.201-192.168.0.203\n  - 192.168.0.210-192.168.0.212\n  gantry:\n    retire:\n      addresses: [192.168.0.201-192.168.0.203]\n      servicesPerMinute: 120\n", 1)))
	failOnError(t, cluster.AwaitNoError(ctx, "the end of the retirement", func(ctx context.Context) error {
		var p v1beta1.IPAddressPool
		if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: "first-pool"}, &p); err != nil {
			return err
		}
		if g := p.Status.Gantry; g == nil || g.Retire == nil || g.Retire.ServicesLeft > 0 || !meta.IsStatusConditionTrue(g.Conditions, names.ConditionPoolRetirementDone) {
			return fmt.Errorf("the status of the pool is %+v", g)
		}
		return nil
	}))
	has := map[string]bool{}
	for _, name := range []string{"waits", "second", "third"} {
		a, err := s.AwaitFirstAddressOfService(ctx, "default", name)
		failOnError(t, err)
		has[a.String()] = true
	}
	if len(has) != 3 || !has["192.168.0.210"] || !has["192.168.0.211"] || !has["192.168.0.212"] {
		t.Errorf("the Services have %v, want the three addresses that are not retired", has)
	}
	// one text for each change of an address
	failOnError(t, cluster.AwaitNoError(ctx, "the watch", func(context.Context) error {
		if n := len(recorder.DescribeDoubleOrLostAddresses()); n < 3 {
			return fmt.Errorf("it has shown %d changes, want 3", n)
		}
		return nil
	}))
	for _, text := range recorder.DescribeDoubleOrLostAddresses() {
		if !strings.Contains(text, `now has "192.168.0.21`) {
			t.Error(text)
		}
	}
}
