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
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

const (
	// firstAnswerServiceCount is how many new Services are measured with each value of wireCheck.
	firstAnswerServiceCount = 15
	// maxFirstAnswerRatio is the highest ratio of the medians of the first ARP answers: with
	// wireCheck Warn, and of the first released version. The first HTTP answer also waits for
	// kube-proxy, which learns of the address at the same time as the speakers.
	maxFirstAnswerRatio = 0.85
	// firstAnswerPauseInterval is the time between two Services.
	firstAnswerPauseInterval = 2 * time.Second
	// firstAnswerRequestsPerSecond is how often the client tries a new Service.
	firstAnswerRequestsPerSecond = 50
)

// firstAnswerPoolsManifest and firstAnswerWarnPoolManifest have a pool for each value of wireCheck.
// The earlier version knows only the first one. Each Service gets an address of its own, which no
// node has held.
const firstAnswerPoolsManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: enforce, namespace: metallb-system}
spec: {addresses: [192.168.0.160-192.168.0.189], autoAssign: false}
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
`

const firstAnswerWarnPoolManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: warn, namespace: metallb-system}
spec: {addresses: [192.168.0.200-192.168.0.229], autoAssign: false}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: warn, namespace: metallb-system}
spec:
  ipAddressPools: [warn]
  gantry: {wireCheck: Warn}
`

// measureFirstAnswer measures from the creation of a Service until a client on the LAN has its
// first answer over HTTP, on labs of four nodes. The Pods are ready before. With wireCheck Warn a
// node answers for the new address before it has asked the network. Enforce, which asks first, is
// one baseline. The other one is the first released version, which runs in a lab of its own. The
// measurements alternate, so that other work on the machine delays all of them alike.
func measureFirstAnswer(ctx context.Context, dir string) error {
	version, err := cluster.BuildEarlierVersion(ctx, dir+"-build")
	if err != nil {
		return err
	}
	old, err := startLabWithEarlierVersion(ctx, version, lab.Options{Nodes: 4, Dir: dir + "-earlier", ProgressOutput: os.Stderr})
	if err != nil {
		return err
	}
	defer old.Close()
	s, err := startLabWithGantry(ctx, lab.Options{Nodes: 4, Dir: dir, ProgressOutput: os.Stderr})
	if err != nil {
		return err
	}
	defer s.Close()
	warn := &firstAnswers{cluster: s, firstAddress: 200}
	enforce, earlier := &firstAnswers{cluster: s, firstAddress: 160}, &firstAnswers{cluster: old, firstAddress: 160}
	var captures []func(...netip.Addr) ([]cluster.NeighborAnswer, error)
	for _, c := range []*firstAnswers{enforce, earlier} {
		pools := firstAnswerPoolsManifest
		if c == enforce {
			pools += "---\n" + firstAnswerWarnPoolManifest
		}
		if err := c.cluster.ApplyManifests(ctx, cluster.ExampleServiceAndDeploymentManifest+"---\n"+pools); err != nil {
			return err
		}
		// The first Service warms up all programs.
		if _, err := c.cluster.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.240:9097"); err != nil {
			return err
		}
		stopCapture, err := c.cluster.CaptureNeighborAnswers(ctx, "client")
		if err != nil {
			return err
		}
		captures = append(captures, stopCapture)
	}
	for i := range firstAnswerServiceCount {
		for _, c := range []*firstAnswers{earlier, enforce, warn} {
			if err := c.measureNextService(ctx, byte(i)); err != nil {
				return err
			}
			// until the writes about this Service are over
			if err := sleepUnlessCancelled(ctx, firstAnswerPauseInterval); err != nil {
				return err
			}
		}
	}
	answers, err := captures[0](append(slices.Clone(warn.addresses), enforce.addresses...)...)
	if err != nil {
		return err
	}
	earlierAnswers, err := captures[1](earlier.addresses...)
	if err != nil {
		return err
	}
	arpRatio := 0.0
	for _, m := range []struct {
		what                   string
		warn, enforce, earlier []time.Duration
	}{
		{"address", warn.addressDelays, enforce.addressDelays, earlier.addressDelays},
		{arpAnswerName, warn.findARPDelays(answers), enforce.findARPDelays(answers), earlier.findARPDelays(earlierAnswers)},
		{"HTTP answer", warn.httpDelays, enforce.httpDelays, earlier.httpDelays},
	} {
		early := printMinMedianAndMax("first "+m.what+" of a new Service, wireCheck: Warn", m.warn)
		printMinMedianAndMax("baseline: wireCheck: Enforce, which asks the network first", m.enforce)
		before := printMinMedianAndMax("baseline: the first released version", m.earlier)
		ratio := float64(early) / float64(before)
		fmt.Printf("  ratio of the medians, Warn to the first released version: %.2f\n", ratio)
		if m.what == arpAnswerName {
			arpRatio = ratio
		}
	}
	if arpRatio > maxFirstAnswerRatio {
		return fmt.Errorf("the ratio of the medians for ARP is %.2f, more than %.2f", arpRatio, maxFirstAnswerRatio)
	}
	return nil
}

const arpAnswerName = "ARP answer"

// startLabWithEarlierVersion starts a lab with the first released version. The caller closes it.
func startLabWithEarlierVersion(ctx context.Context, v *cluster.EarlierVersion, o lab.Options) (*cluster.Cluster, error) {
	o.GantryBinDir = v.BinDir
	s, err := cluster.StartLabWithoutGantry(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := s.InstallEarlierVersion(ctx, v); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// firstAnswers are the measurements with one value of wireCheck.
type firstAnswers struct {
	cluster                   *cluster.Cluster
	firstAddress              byte // the last byte of the first address
	addresses                 []netip.Addr
	creationTimes             []time.Time
	addressDelays, httpDelays []time.Duration
}

// measureNextService measures one Service.
func (c *firstAnswers) measureNextService(ctx context.Context, i byte) error {
	address := netip.AddrFrom4([4]byte{192, 168, 0, c.firstAddress + i})
	f, err := createServiceAndAwaitFirstAnswer(ctx, c.cluster, address)
	c.addresses, c.creationTimes = append(c.addresses, address), append(c.creationTimes, f.createdAt)
	c.addressDelays = append(c.addressDelays, f.assignedAt.Sub(f.createdAt))
	c.httpDelays = append(c.httpDelays, f.answeredAt.Sub(f.createdAt))
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

// firstAnswerTimes are the times of one new Service. assignedAt is when a watch showed its address.
type firstAnswerTimes struct{ createdAt, assignedAt, answeredAt time.Time }

// createServiceAndAwaitFirstAnswer creates a Service with the given address. A client requests it
// all the time, as a user who waits would do.
func createServiceAndAwaitFirstAnswer(ctx context.Context, s *cluster.Cluster, address netip.Addr) (firstAnswerTimes, error) {
	var out firstAnswerTimes
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
	w, err := s.API.Watch(ctx, &corev1.ServiceList{}, client.InNamespace(svc.Namespace), client.MatchingFields{"metadata.name": svc.Name})
	if err != nil {
		return out, fmt.Errorf("watching Services: %w", err)
	}
	defer w.Stop()
	stream := s.StartHTTPStream(ctx, "client", "http://"+address.String()+":9097", firstAnswerRequestsPerSecond)
	defer stream.StopSending()
	out.createdAt = time.Now()
	if err := s.API.Create(ctx, svc); err != nil {
		return out, err
	}
	for e := range w.ResultChan() {
		if got, ok := e.Object.(*corev1.Service); ok && len(got.Status.LoadBalancer.Ingress) > 0 {
			out.assignedAt = time.Now()
			break
		}
	}
	if err := stream.AwaitMoreAnswers(ctx, 1); err != nil {
		return out, fmt.Errorf("waiting for an answer of %s: %w", address, err)
	}
	out.answeredAt = stream.FirstAnswerTime()
	return out, nil
}
