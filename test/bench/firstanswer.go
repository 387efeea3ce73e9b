package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

const (
	// firstAnswerServiceCount is how many new Services are measured with each value of wireCheck.
	firstAnswerServiceCount = 15
	// maxFirstAnswerRatio is the highest ratio of the medians of the first ARP answers: without the
	// question to the network and with it. The first HTTP answer waits for kube-proxy, too, which
	// learns of the Service at the same time and needs about as long as the question.
	maxFirstAnswerRatio = 0.85
	// firstAnswerRequestsPerSecond is how often the client tries a new Service.
	firstAnswerRequestsPerSecond = 50
)

// firstAnswerPoolsManifest has a pool for each value of wireCheck. Each Service gets an address of
// its own, which no node has held.
const firstAnswerPoolsManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: enforce, namespace: metallb-system}
spec: {addresses: [192.168.0.160-192.168.0.189], autoAssign: false}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: warn, namespace: metallb-system}
spec: {addresses: [192.168.0.200-192.168.0.229], autoAssign: false}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: dashboard, namespace: metallb-system}
spec: {addresses: [192.168.0.240/32]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: enforce, namespace: metallb-system}
spec: {ipAddressPools: [enforce, dashboard]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: warn, namespace: metallb-system}
spec:
  ipAddressPools: [warn]
  gantry: {wireCheck: Warn}
`

// measureFirstAnswer measures from the creation of a Service until a client on the LAN has its
// first answer over HTTP, on a lab of four nodes. The Pods are ready before. With wireCheck Warn a
// node answers for the new address before it has asked the network. Enforce, which asks first, is
// the baseline.
func measureFirstAnswer(ctx context.Context, dir string) error {
	s, err := startLabWithGantry(ctx, lab.Options{Nodes: 4, Dir: dir, ProgressOutput: os.Stderr})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.ApplyManifests(ctx, cluster.ExampleServiceAndDeploymentManifest+"---\n"+firstAnswerPoolsManifest); err != nil {
		return err
	}
	// The first Service warms up all programs.
	if _, err := s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.240:9097"); err != nil {
		return err
	}
	stopCapture, err := s.CaptureNeighborAnswers(ctx, "client")
	if err != nil {
		return err
	}
	warn, enforce := &firstAnswers{firstAddress: 200}, &firstAnswers{firstAddress: 160}
	for i := range firstAnswerServiceCount {
		for _, c := range []*firstAnswers{enforce, warn} {
			if err := c.measureNextService(ctx, s, byte(i)); err != nil {
				return err
			}
		}
	}
	answers, err := stopCapture(append(slices.Clone(warn.addresses), enforce.addresses...)...)
	if err != nil {
		return err
	}
	printMinMedianAndMax("first HTTP answer of a new Service, wireCheck: Warn", warn.httpDelays)
	printMinMedianAndMax("baseline: wireCheck: Enforce, which asks the network first", enforce.httpDelays)
	early := printMinMedianAndMax("first ARP answer of a new Service, wireCheck: Warn", warn.findARPDelays(answers))
	asked := printMinMedianAndMax("baseline: wireCheck: Enforce, which asks the network first", enforce.findARPDelays(answers))
	ratio := float64(early) / float64(asked)
	fmt.Printf("  ratio of the medians for ARP %.2f, at most %.2f. HTTP also waits for kube-proxy.\n", ratio, maxFirstAnswerRatio)
	if ratio > maxFirstAnswerRatio {
		return fmt.Errorf("the ratio of the medians is %.2f, more than %.2f", ratio, maxFirstAnswerRatio)
	}
	return nil
}

// firstAnswers are the measurements with one value of wireCheck.
type firstAnswers struct {
	firstAddress  byte // the last byte of the first address
	addresses     []netip.Addr
	creationTimes []time.Time
	httpDelays    []time.Duration
}

// measureNextService measures one Service.
func (c *firstAnswers) measureNextService(ctx context.Context, s *cluster.Cluster, i byte) error {
	address := netip.AddrFrom4([4]byte{192, 168, 0, c.firstAddress + i})
	createdAt, answeredAt, err := createServiceAndAwaitFirstAnswer(ctx, s, address)
	c.addresses, c.creationTimes = append(c.addresses, address), append(c.creationTimes, createdAt)
	c.httpDelays = append(c.httpDelays, answeredAt.Sub(createdAt))
	return err
}

// findARPDelays returns the time from the creation of each Service until the client received an
// answer for its address.
func (c *firstAnswers) findARPDelays(answers []cluster.NeighborAnswer) []time.Duration {
	var out []time.Duration
	for i, address := range c.addresses {
		if first := slices.IndexFunc(answers, func(a cluster.NeighborAnswer) bool { return a.Address == address }); first >= 0 {
			out = append(out, answers[first].CapturedAt.Sub(c.creationTimes[i]))
		}
	}
	return out
}

// createServiceAndAwaitFirstAnswer creates a Service with the given address. A client requests it
// all the time, as a user who waits would do.
func createServiceAndAwaitFirstAnswer(ctx context.Context, s *cluster.Cluster, address netip.Addr) (createdAt, answeredAt time.Time, err error) {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "tekton-pipelines", Name: fmt.Sprintf("first-answer-%d", address.As4()[3]),
			Annotations: map[string]string{names.AnnotationLoadBalancerIPs: address.String()},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "tekton-dashboard"},
			Ports: []corev1.ServicePort{{Port: 9097}},
		},
	}
	stream := s.StartHTTPStream(ctx, "client", "http://"+address.String()+":9097", firstAnswerRequestsPerSecond)
	defer stream.StopSending()
	createdAt = time.Now()
	if err := s.API.Create(ctx, svc); err != nil {
		return createdAt, createdAt, err
	}
	if err := stream.AwaitMoreAnswers(ctx, 1); err != nil {
		return createdAt, createdAt, fmt.Errorf("waiting for an answer of %s: %w", address, err)
	}
	return createdAt, stream.FirstAnswerTime(), nil
}
