package explain

import (
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// dualStackServiceEdits give the Service, the pool and the report of node1 an IPv6 address too. Its
// Pod has none.
var dualStackServiceEdits = []manifestEdit{
	{"clusterIPs: [10.96.0.10]", "clusterIPs: [10.96.0.10, 'fd00:96::a'], ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack"},
	{"loadBalancer: {ingress: [{ip: 192.168.0.201}]}", "loadBalancer: {ingress: [{ip: 192.168.0.201}, {ip: 'fd00::1'}]}"},
	{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.0.201-192.168.0.202, 'fd00::/64']"},
}

// TestReadyPodsOfAnotherFamilyAreCounted explains a Service with two families whose Pod has one.
func TestReadyPodsOfAnotherFamilyAreCounted(t *testing.T) {
	const endpoint = "endpoints: [{addresses: [10.244.0.5], nodeName: node1, conditions: {ready: true}}]"
	for _, c := range []struct{ endpoints, want string }{
		{endpoint, "; the selector app=web matches 1 Pod, and 1 is ready, with IPv4 addresses only"},
		{strings.Replace(endpoint, "[{", "[{addresses: [10.244.0.6], nodeName: node2, conditions: {ready: false}}, {", 1), "; the selector app=web matches 2 Pods, and 1 is ready, with IPv4 addresses only"},
		{strings.Replace(endpoint, "ready: true", "ready: false", 1), "; the selector app=web matches 1 Pod, and none is ready"},
	} {
		manifests := applyManifestEdits(t, installationManifests+workingServiceManifests, append(dualStackServiceEdits, manifestEdit{endpoint, c.endpoints}))
		r := explainTestService(t, manifests)
		if r.Result != report.ResultNotWell || r.Reason != names.ReasonNoEndpoints || !strings.HasSuffix(r.Answer, c.want) {
			t.Errorf("%s: %s, want %s", r.Result, r.AnswerWithReason(), c.want)
		}
	}
}
