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

// TestUserMistakesAreReportedAndCorrectable makes a mistake of each kind, looks for the reason
// where a user would, and corrects the mistake without a restart.
func TestUserMistakesAreReportedAndCorrectable(t *testing.T) {
	t.Parallel()
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2})
	t.Run("a malformed range is rejected with its text", func(t *testing.T) { testMalformedRangeIsRefused(ctx, t, s) })
	t.Run("a Service reports that there is no pool, and recovers", func(t *testing.T) { testNoPoolIsReported(ctx, t, s) })
	t.Run("an advertisement reports an unknown pool, and recovers", func(t *testing.T) { testAdvertisementOfUnknownPoolIsReported(ctx, t, s) })
	t.Run("a Service reports that the pool is full, and recovers when an address is free", func(t *testing.T) { testFullPoolIsReported(ctx, t, s) })
	t.Run("a speaker reports that it lacks NET_RAW, and recovers", func(t *testing.T) { testDeniedRawSocketIsReported(ctx, t, s) })
}

func testMalformedRangeIsRefused(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	for bad, want := range map[string]string{
		"192.168.0.201-192.168.0":      "'192.168.0.201-192.168.0' is no CIDR, range or address",
		" 10.0.0.0/8":                  "' 10.0.0.0/8' is no CIDR, range or address",
		"10.0.0.0/33":                  "'10.0.0.0/33' is no CIDR, range or address",
		"192.168.0.1-fe80::1":          "mixes IPv4 and IPv6",
		"192.168.0.201 to 192.168.0.9": "is no CIDR, range or address",
	} {
		err := s.ApplyManifests(ctx, strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "192.168.0.201-192.168.0.233", fmt.Sprintf("%q", bad), 1))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the entry %q gives %v, want an error with %q", bad, err, want)
		}
	}
	_, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "delete", "l2advertisements", "--all")
	failOnError(t, err)
}

// awaitAddressAssignedReason waits until the condition AddressAssigned of the Service has the
// reason.
func awaitAddressAssignedReason(ctx context.Context, t *testing.T, s *cluster.Cluster, name string, reason names.Reason) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "the reason "+string(reason), func(ctx context.Context) error {
		svc, err := s.GetService(ctx, "tekton-pipelines", name)
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAddressAssigned)
		if c == nil || c.Reason != string(reason) || c.Message == "" {
			return fmt.Errorf("the condition is %v", c)
		}
		return nil
	}))
}

func testNoPoolIsReported(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	failOnError(t, s.ApplyManifests(ctx, cluster.ExampleServiceAndDeploymentManifest))
	awaitAddressAssignedReason(ctx, t, s, "tekton-dashboard", names.ReasonNoPools)
	failOnError(t, cluster.AwaitNoError(ctx, "an event", func(ctx context.Context) error {
		out, err := s.RunKubectl(ctx, "", "-n", "tekton-pipelines", "get", "events", "--field-selector", "reason=AllocationFailed", "-o", "wide")
		if err == nil && !strings.Contains(out, "NoPools") {
			err = fmt.Errorf("events: %s", out)
		}
		return err
	}))
	failOnError(t, awaitExplanation(ctx, s, []string{"service", "tekton-pipelines/tekton-dashboard"}, kubectlGantryExitNotWell, "no address: no IPAddressPool exists in namespace metallb-system", "["+string(names.ReasonNoPools)+"]"))
	pool, _, _ := strings.Cut(cluster.FirstPoolAndL2AdvertisementManifest, "---")
	failOnError(t, s.ApplyManifests(ctx, pool))
	awaitAddressAssignedReason(ctx, t, s, "tekton-dashboard", names.ReasonAssigned)
}

func testAdvertisementOfUnknownPoolIsReported(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	_, ad, _ := strings.Cut(cluster.FirstPoolAndL2AdvertisementManifest, "---")
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(ad, "- first-pool", "- frist-pool", 1)))
	valid := func(reason names.Reason, text string) {
		t.Helper()
		failOnError(t, cluster.AwaitNoError(ctx, "the advertisement's condition", func(ctx context.Context) error {
			var o v1beta1.L2Advertisement
			if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: "example"}, &o); err != nil {
				return err
			}
			if o.Status.Gantry != nil {
				c := meta.FindStatusCondition(o.Status.Gantry.Conditions, names.ConditionValid)
				if c != nil && c.Reason == string(reason) && strings.Contains(c.Message, text) {
					return nil
				}
			}
			return fmt.Errorf("the status is %v", o.Status)
		}))
	}
	valid(names.ReasonUnknownPool, `"frist-pool"`)
	failOnError(t, s.ApplyManifests(ctx, ad))
	valid(names.ReasonValid, "")
	_, err := s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.201:9097/")
	failOnError(t, err)
}

func testFullPoolIsReported(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "192.168.0.201-192.168.0.233", "192.168.0.201", 1)))
	second := strings.ReplaceAll(cluster.ExampleServiceAndDeploymentManifest[strings.LastIndex(cluster.ExampleServiceAndDeploymentManifest, "---"):], "  name: tekton-dashboard", "  name: second")
	failOnError(t, s.ApplyManifests(ctx, second))
	awaitAddressAssignedReason(ctx, t, s, "second", names.ReasonPoolExhausted)
	awaitAddressAssignedReason(ctx, t, s, "tekton-dashboard", names.ReasonAssigned)
	_, err := s.RunKubectl(ctx, "", "-n", "tekton-pipelines", "patch", "svc", "tekton-dashboard", "-p", `{"spec":{"type":"ClusterIP"}}`)
	failOnError(t, err)
	awaitAddressAssignedReason(ctx, t, s, "second", names.ReasonAssigned)
	failOnError(t, cluster.AwaitNoError(ctx, "a ClusterIP Service without an address", func(ctx context.Context) error {
		first, err := s.GetService(ctx, "tekton-pipelines", "tekton-dashboard")
		if err == nil && len(first.Status.LoadBalancer.Ingress) > 0 {
			err = fmt.Errorf("it keeps the address %v", first.Status.LoadBalancer.Ingress)
		}
		return err
	}))
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.201:9097/")
	failOnError(t, err)
}

func testDeniedRawSocketIsReported(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	patch := func(caps string) {
		t.Helper()
		_, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "patch", "daemonset", "gantry-speaker", "-p",
			`{"spec":{"template":{"spec":{"containers":[{"name":"speaker","securityContext":{"capabilities":{"add":`+caps+`}}}]}}}}`)
		failOnError(t, err)
		_, err = s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "rollout", "status", "--timeout=5m", "daemonset/gantry-speaker")
		failOnError(t, err)
	}
	patch("[]")
	failOnError(t, cluster.AwaitNoError(ctx, "an event on the node", func(ctx context.Context) error {
		out, err := s.RunKubectl(ctx, "", "get", "events", "-A", "--field-selector", "reason=announceFailed", "-o", "wide")
		if err == nil && !strings.Contains(out, "RawSocketDenied") {
			err = fmt.Errorf("events: %s", out)
		}
		return err
	}))
	patch(`["NET_RAW", "NET_BIND_SERVICE"]`)
	_, err := s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.201:9097/")
	failOnError(t, err)
}
