package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
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
	// maxFirstAnswerRatio is the highest ratio of the medians: without the question to the network
	// and with it.
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
	s, err := cluster.StartLabWithoutGantry(ctx, lab.Options{Nodes: 4, Dir: dir, ProgressOutput: os.Stderr})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.InstallGantry(ctx); err != nil {
		return err
	}
	if err := s.ApplyManifests(ctx, cluster.ExampleServiceAndDeploymentManifest+"---\n"+firstAnswerPoolsManifest); err != nil {
		return err
	}
	// The first Service warms up all programs.
	if _, err := s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.240:9097"); err != nil {
		return err
	}
	var withWarn, withEnforce []time.Duration
	for i := range firstAnswerServiceCount {
		for _, c := range []struct {
			firstAddress byte
			delays       *[]time.Duration
		}{{160, &withEnforce}, {200, &withWarn}} {
			d, err := measureFirstAnswerOfService(ctx, s, netip.AddrFrom4([4]byte{192, 168, 0, c.firstAddress + byte(i)}))
			if err != nil {
				return err
			}
			*c.delays = append(*c.delays, d)
		}
	}
	early := printMinMedianAndMax("first HTTP answer of a new Service, wireCheck: Warn", withWarn)
	asked := printMinMedianAndMax("baseline: wireCheck: Enforce, which asks the network first", withEnforce)
	ratio := float64(early) / float64(asked)
	fmt.Printf("  ratio of the medians %.2f, at most %.2f\n", ratio, maxFirstAnswerRatio)
	if ratio > maxFirstAnswerRatio {
		return fmt.Errorf("the ratio of the medians is %.2f, more than %.2f", ratio, maxFirstAnswerRatio)
	}
	return nil
}

// measureFirstAnswerOfService creates a Service with the given address. A client requests it all
// the time, as a user who waits would do.
func measureFirstAnswerOfService(ctx context.Context, s *cluster.Cluster, address netip.Addr) (time.Duration, error) {
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
	begun := time.Now()
	if err := s.API.Create(ctx, svc); err != nil {
		return 0, err
	}
	if err := stream.AwaitMoreAnswers(ctx, 1); err != nil {
		return 0, fmt.Errorf("waiting for an answer of %s: %w", address, err)
	}
	return stream.FirstAnswerTime().Sub(begun), nil
}
