// Command bench measures the figures of docs/figures.md on a real cluster on this machine: how soon
// a Service has its address, how long a client waits after the cable of the holder is cut, and how
// many requests are lost when a speaker stops. With each figure it prints a baseline, which is what
// the machine itself needs in the same run.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// How often each thing is measured.
const (
	assignmentSampleCount   = 30
	cableCutCount           = 20
	repetitionsPerDeparture = 3
	clientRequestsPerSecond = 500 // requests per second
)

func main() {
	lab.RunAsLabPartIfRequested()
	ctrllog.SetLogger(logr.Discard())
	if err := lab.ReexecInUserNamespaceUnlessRoot(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	work := runBenchmarks
	if len(os.Args) == 3 && childProcessMainByArg[os.Args[1]] != nil {
		work = func(ctx context.Context, args []string) error { return childProcessMainByArg[args[0]](ctx, args[1]) }
	}
	if err := work(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// benchmarks are the parts that an argument can select by name, for example "bench crowds".
var benchmarks = []struct {
	name    string
	measure func(ctx context.Context, dir string) error
}{
	{"addresses", measureAllocator},
	{"configuration", func(context.Context, string) error { return measureConfigurationBuildTime() }},
	{"responder", func(ctx context.Context, _ string) error { return measureARPAndNDPResponder(ctx) }},
	{"scale", measureControllerWithManyServices},
	{"latency", measureAssignmentAtCreationRates},
	{"crowds", measureBulkCreation},
	{"toggles", measureAssignmentDuringPortToggles},
	{"tenant", measureAssignmentBesideEditingTenant},
	{"explain", measureKubectlGantryExplain},
	{"moves", measureAssignmentFailoverAndHandover},
	{"firstanswer", measureFirstAnswer},
	{"routes", measureBGPWithFRRRouter},
	{"manyroutes", measureSpeakerWith10000Routes},
	{"announced", measureAnnouncedConditionDelay},
	{"spread", measureHolderSpread},
	{"continuity", measureContinuity},
	{"takeover", func(ctx context.Context, _ string) error { return measureTakeover(ctx) }},
	{"fewcandidates", func(ctx context.Context, _ string) error { return measureTakeoverByFewCandidates(ctx) }},
	{"planning", func(context.Context, string) error { return measurePlanning() }},
}

func runBenchmarks(ctx context.Context, chosen []string) error {
	dir, err := os.MkdirTemp("", "gantry-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, p := range benchmarks {
		if len(chosen) > 0 && !slices.Contains(chosen, p.name) {
			continue
		}
		if err := p.measure(ctx, filepath.Join(dir, p.name)); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// startLabWithGantry starts a lab and installs Gantry in it. The caller closes it.
func startLabWithGantry(ctx context.Context, o lab.Options) (*cluster.Cluster, error) {
	s, err := cluster.StartLabWithoutGantry(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := s.InstallGantry(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// measureAssignmentFailoverAndHandover measures single Services and moves of their addresses, on a
// lab of four nodes.
func measureAssignmentFailoverAndHandover(ctx context.Context, dir string) error {
	s, err := startLabWithGantry(ctx, lab.Options{Nodes: 4, Dir: dir, ProgressOutput: os.Stderr})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest); err != nil {
		return err
	}
	if err := measureAssignment(ctx, s); err != nil {
		return err
	}
	if err := s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("echo", "node4")); err != nil {
		return err
	}
	if _, err := s.RunKubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true"); err != nil {
		return err
	}
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "echo")
	if err != nil {
		return err
	}
	if err := measureFailover(ctx, s, address.String()+":7000"); err != nil {
		return err
	}
	return countLostRequestsInHandovers(ctx, s, address.String()+":7000")
}

// printMinMedianAndMax prints the smallest, the median and the largest value, and returns the
// median.
func printMinMedianAndMax(what string, v []time.Duration) time.Duration {
	slices.Sort(v)
	m := v[len(v)/2]
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("%-64s min %8.1f  median %8.1f  max %8.1f ms  (n=%d)\n", what, ms(v[0]), ms(m), ms(v[len(v)-1]), len(v))
	return m
}

// measureAssignment measures from the creation of a Service until a watch shows its address. The
// baseline is the same with a status that this program writes itself.
func measureAssignment(ctx context.Context, s *cluster.Cluster) error {
	var given, baseline []time.Duration
	for i := range assignmentSampleCount {
		for _, mine := range []bool{true, false} {
			d, err := measureAssignmentOfOneService(ctx, s, fmt.Sprintf("bench-%d-%t", i, mine), mine)
			if err != nil {
				return err
			}
			if mine {
				baseline = append(baseline, d)
			} else {
				given = append(given, d)
			}
		}
	}
	a := printMinMedianAndMax("a Service's address, from its creation", given)
	b := printMinMedianAndMax("baseline: creation, and a status that this program writes, in a watch", baseline)
	fmt.Printf("  ratio of the medians %.2f\n", float64(a)/float64(b))
	return nil
}

// measureAssignmentOfOneService creates a Service, waits until a watch shows its address, and
// deletes it. If mine is true, the Service has another class and this program writes its status.
func measureAssignmentOfOneService(ctx context.Context, s *cluster.Cluster, name string, mine bool) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	w, err := s.API.Watch(ctx, &corev1.ServiceList{}, client.InNamespace("default"), client.MatchingFields{"metadata.name": name})
	if err != nil {
		return 0, fmt.Errorf("watching Services: %w", err)
	}
	defer w.Stop()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}},
	}}
	if mine {
		class := "example.com/bench"
		svc.Spec.LoadBalancerClass = &class
	}
	begun := time.Now()
	if err := s.API.Create(ctx, svc); err != nil {
		return 0, err
	}
	if mine {
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		if err := s.API.Status().Update(ctx, svc); err != nil {
			return 0, err
		}
	}
	for e := range w.ResultChan() {
		if got, ok := e.Object.(*corev1.Service); ok && len(got.Status.LoadBalancer.Ingress) > 0 {
			d := time.Since(begun)
			return d, s.API.Delete(ctx, got)
		}
	}
	return 0, fmt.Errorf("waiting for the address of Service %s: %w", name, context.Cause(ctx))
}

// measureFailover cuts the holder's cable again and again while a client sends requests. Every
// other time the holder keeps the carrier. The baseline is the longest wait of the same client
// while nothing happens.
func measureFailover(ctx context.Context, s *cluster.Cluster, target string) error {
	var waits, baseline []time.Duration
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "echo", "node4")
	if err != nil {
		return err
	}
	for i := range cableCutCount {
		cut := s.CutCable
		if i%2 == 1 {
			cut = s.CutCableKeepingCarrier
		}
		stream, err := s.StartUDPStream(ctx, "client", target, clientRequestsPerSecond)
		if err != nil {
			return err
		}
		if err := stream.AwaitMoreAnswers(ctx, clientRequestsPerSecond); err != nil {
			return err
		}
		baseline = append(baseline, stream.StopAndAwaitLateAnswers().LongestTimeWithoutAnswer)
		if stream, err = s.StartUDPStream(ctx, "client", target, clientRequestsPerSecond); err != nil {
			return err
		}
		if err := stream.AwaitMoreAnswers(ctx, clientRequestsPerSecond/5); err != nil {
			return err
		}
		old := holder
		if err := cut(ctx, old); err != nil {
			return err
		}
		if holder, err = s.AwaitSingleAnnouncingNode(ctx, "echo", old); err != nil {
			return err
		}
		if err := stream.AwaitMoreAnswers(ctx, clientRequestsPerSecond); err != nil {
			return err
		}
		waits = append(waits, stream.StopAndAwaitLateAnswers().LongestTimeWithoutAnswer)
		if err := s.PlugCable(ctx, old); err != nil {
			return err
		}
		if err := awaitSpeakersReadyAndGossipSpread(ctx, s); err != nil {
			return err
		}
	}
	printMinMedianAndMax("without answers after the holder's cable was cut", waits)
	printMinMedianAndMax("baseline: longest wait of the same client while nothing happens", baseline)
	return nil
}

// awaitSpeakersReadyAndGossipSpread waits until every speaker is ready again, and then for some
// seconds until the gossip has spread it.
func awaitSpeakersReadyAndGossipSpread(ctx context.Context, s *cluster.Cluster) error {
	if _, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "rollout", "status", "--timeout=60s", "daemonset/gantry-speaker"); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	return nil
}

// plannedDeparture is an orderly way to take the address from its holder, and how to undo it.
type plannedDeparture struct {
	description    string
	leave, restore func(ctx context.Context, s *cluster.Cluster, node string) error
}

var waysToTakeAddressFromHolder = []plannedDeparture{
	{"the holder's speaker stops (SIGTERM)", func(ctx context.Context, s *cluster.Cluster, node string) error {
		return s.SignalProgramOrPod(ctx, node, "gantry-speaker", syscall.SIGTERM)
	}, func(ctx context.Context, s *cluster.Cluster, _ string) error {
		return awaitSpeakersReadyAndGossipSpread(ctx, s)
	}},
	{"the holder's node is drained (gantry.dev/drain)", func(ctx context.Context, s *cluster.Cluster, node string) error {
		_, err := s.RunKubectl(ctx, "", "annotate", "node", node, "gantry.dev/drain=")
		return err
	}, func(ctx context.Context, s *cluster.Cluster, node string) error {
		_, err := s.RunKubectl(ctx, "", "annotate", "node", node, "gantry.dev/drain-")
		return err
	}},
}

// countLostRequestsInHandovers counts the requests of a client that are lost in each planned
// departure of the holder.
func countLostRequestsInHandovers(ctx context.Context, s *cluster.Cluster, target string) error {
	for _, d := range waysToTakeAddressFromHolder {
		lost, sent := 0, 0
		for range repetitionsPerDeparture {
			o, err := d.countLostRequestsInOneDeparture(ctx, s, target)
			if err != nil {
				return err
			}
			lost, sent = lost+o.LostCount, sent+o.SentCount
		}
		fmt.Printf("%-64s %d of %d requests, %d times\n", "lost when "+d.description, lost, sent, repetitionsPerDeparture)
	}
	return nil
}

// countLostRequestsInOneDeparture takes the address from its holder once, and undoes that.
func (d plannedDeparture) countLostRequestsInOneDeparture(ctx context.Context, s *cluster.Cluster, target string) (cluster.RequestStreamResult, error) {
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "echo", "")
	if err != nil {
		return cluster.RequestStreamResult{}, err
	}
	stream, err := s.StartUDPStream(ctx, "client", target, clientRequestsPerSecond)
	if err != nil {
		return cluster.RequestStreamResult{}, err
	}
	if err := stream.AwaitMoreAnswers(ctx, clientRequestsPerSecond/2); err != nil {
		return cluster.RequestStreamResult{}, err
	}
	if err := d.leave(ctx, s, holder); err != nil {
		return cluster.RequestStreamResult{}, err
	}
	if _, err := s.AwaitSingleAnnouncingNode(ctx, "echo", holder); err != nil {
		return cluster.RequestStreamResult{}, err
	}
	if err := stream.AwaitMoreAnswers(ctx, clientRequestsPerSecond); err != nil {
		return cluster.RequestStreamResult{}, err
	}
	return stream.StopAndAwaitLateAnswers(), d.restore(ctx, s, holder)
}
