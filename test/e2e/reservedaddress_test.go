package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

// testBroadcastAddressesAreReported gives Services the network and the broadcast address of the
// nodes' subnet. They are announced, and the condition and an event say that hosts of the subnet
// cannot connect.
func (h *faultTestCluster) testBroadcastAddressesAreReported(ctx context.Context, t *testing.T) {
	failOnError(t, h.ApplyManifests(ctx, poolWithoutAutoAssignManifest("reserved", "192.168.0.0/32, 192.168.0.255/32", "spec: {ipAddressPools: [reserved]}")+
		serviceManifest("network", "metallb.io/loadBalancerIPs: 192.168.0.0", "")+serviceManifest("broadcast", "metallb.io/loadBalancerIPs: 192.168.0.255", "")))
	for service, address := range map[string]string{"network": "192.168.0.0", "broadcast": "192.168.0.255"} {
		failOnError(t, awaitAnnouncedCondition(ctx, h.Cluster, service, "True", names.ReasonBroadcastAddress))
		h.recordSeenReason(string(names.ReasonBroadcastAddress))
		want := regexp.MustCompile(fmt.Sprintf(`Warning .*BroadcastAddress: .*%s is the %s address of the subnet 192\.168\.0\.0/24`, regexp.QuoteMeta(address), service))
		failOnError(t, cluster.AwaitNoError(ctx, "the event about "+address, func(ctx context.Context) error {
			text, err := h.kubectlDescribeService(ctx, service)
			if err == nil && !want.MatchString(text) {
				err = fmt.Errorf("kubectl describe has no %s:\n%s", want, text)
			}
			return err
		}))
		failOnError(t, h.awaitExplanation(ctx, service, kubectlGantryExitNotWell, address+" is announced by layer 2, but "+address+" is the "+service+" address of the subnet", "["+string(names.ReasonBroadcastAddress)+"]"))
		out, err := h.RunKubectl(ctx, "", "delete", "service", service)
		if err != nil || !strings.Contains(out, "deleted") {
			t.Errorf("deleting %s: %s, %v", service, out, err)
		}
	}
}
