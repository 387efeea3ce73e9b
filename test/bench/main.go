// Command bench measures what the README claims, on a real cluster on this machine: how soon a Service has its address,
// how long a client waits when the holder's cable is cut, and what is lost when its speaker is told to stop. Beside each
// figure stands what the machine itself needs in the same run.
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

	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/stage"
)

// How often each thing is measured.
const (
	services = 30
	cuts     = 20
	stops    = 3
	rate     = 500 // requests a second
)

func main() {
	lab.Reexec()
	ctrllog.SetLogger(logr.Discard())
	if err := lab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	work := run
	if len(os.Args) == 3 && inside[os.Args[1]] != nil {
		work = func(ctx context.Context, args []string) error { return inside[args[0]](ctx, args[1]) }
	}
	if err := work(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parts are what can be measured alone, by name: bench crowds, say.
var parts = []struct {
	name    string
	measure func(ctx context.Context, dir string) error
}{
	{"addresses", addresses},
	{"responder", func(ctx context.Context, _ string) error { return responder(ctx) }},
	{"scale", scale},
	{"crowds", crowds},
	{"moves", moves},
	{"routes", routes},
	{"manyroutes", manyRoutes},
	{"spread", spread},
	{"takeover", func(ctx context.Context, _ string) error { return takeover(ctx) }},
	{"planning", func(context.Context, string) error { return planning() }},
}

func run(ctx context.Context, chosen []string) error {
	dir, err := os.MkdirTemp("", "gantry-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, p := range parts {
		if len(chosen) > 0 && !slices.Contains(chosen, p.name) {
			continue
		}
		if err := p.measure(ctx, filepath.Join(dir, p.name)); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// moves measures single Services, and how their addresses move, on a lab of four nodes.
func moves(ctx context.Context, dir string) error {
	s, err := stage.Start(ctx, lab.Options{Nodes: 4, Dir: dir, Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Install(ctx); err != nil {
		return err
	}
	if err := s.Apply(ctx, stage.Pool); err != nil {
		return err
	}
	if err := allocation(ctx, s); err != nil {
		return err
	}
	if err := s.Apply(ctx, stage.Echo("echo", "node4")); err != nil {
		return err
	}
	if _, err := s.Kubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true"); err != nil {
		return err
	}
	address, err := s.Address(ctx, "default", "echo")
	if err != nil {
		return err
	}
	if err := failover(ctx, s, address.String()+":7000"); err != nil {
		return err
	}
	return handover(ctx, s, address.String()+":7000")
}

// figures prints the smallest, the middle and the largest value.
func figures(what string, v []time.Duration) time.Duration {
	slices.Sort(v)
	m := v[len(v)/2]
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("%-64s min %8.1f  median %8.1f  max %8.1f ms  (n=%d)\n", what, ms(v[0]), ms(m), ms(v[len(v)-1]), len(v))
	return m
}

// allocation measures from the creation of a Service until a watch shows its address. The baseline is what the API server
// takes from the same creation until a watch shows a status that this program writes itself.
func allocation(ctx context.Context, s *stage.Stage) error {
	var given, own []time.Duration
	for i := range services {
		for _, mine := range []bool{true, false} {
			d, err := one(ctx, s, fmt.Sprintf("bench-%d-%t", i, mine), mine)
			if err != nil {
				return err
			}
			if mine {
				own = append(own, d)
			} else {
				given = append(given, d)
			}
		}
	}
	a := figures("a Service's address, from its creation", given)
	b := figures("baseline: creation, and a status written at once, in a watch", own)
	fmt.Printf("  ratio of the medians %.2f\n", float64(a)/float64(b))
	return nil
}

// one creates a Service, waits for its address in a watch, and deletes it. A Service of another class is given its status
// by this program.
func one(ctx context.Context, s *stage.Stage, name string, mine bool) (time.Duration, error) {
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
	return 0, fmt.Errorf("no address for Service %s: %w", name, context.Cause(ctx))
}

// failover cuts the holder's cable again and again while a client asks, every other time so that nobody loses the carrier. The baseline is the longest wait of the same client
// when nothing happens.
func failover(ctx context.Context, s *stage.Stage, target string) error {
	var waits, calm []time.Duration
	holder, err := s.Holder(ctx, "echo", "node4")
	if err != nil {
		return err
	}
	for i := range cuts {
		cut := s.CutCable
		if i%2 == 1 {
			cut = s.CutCableSilently
		}
		stream, err := s.UDP(ctx, "client", target, rate)
		if err != nil {
			return err
		}
		if err := stream.AwaitAnswers(ctx, rate); err != nil {
			return err
		}
		calm = append(calm, stream.Stop().Gap)
		if stream, err = s.UDP(ctx, "client", target, rate); err != nil {
			return err
		}
		if err := stream.AwaitAnswers(ctx, rate/5); err != nil {
			return err
		}
		old := holder
		if err := cut(ctx, old); err != nil {
			return err
		}
		if holder, err = s.Holder(ctx, "echo", old); err != nil {
			return err
		}
		if err := stream.AwaitAnswers(ctx, rate); err != nil {
			return err
		}
		waits = append(waits, stream.Stop().Gap)
		if err := s.PlugCable(ctx, old); err != nil {
			return err
		}
		if err := rejoined(ctx, s); err != nil {
			return err
		}
	}
	figures("without answers after the holder's cable was cut", waits)
	figures("baseline: longest wait of the same client when nothing happens", calm)
	return nil
}

// rejoined waits until every speaker is ready again, and a little longer for the gossip to know it.
func rejoined(ctx context.Context, s *stage.Stage) error {
	if _, err := s.Kubectl(ctx, "", "-n", "metallb-system", "rollout", "status", "--timeout=60s", "daemonset/gantry-speaker"); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	return nil
}

// departure is a way for a holder to go that is planned, and its undoing.
type departure struct {
	what        string
	leave, back func(ctx context.Context, s *stage.Stage, node string) error
}

var departures = []departure{
	{"the holder's speaker is told to stop (SIGTERM)", func(ctx context.Context, s *stage.Stage, node string) error {
		return s.Signal(ctx, node, "gantry-speaker", syscall.SIGTERM)
	}, func(ctx context.Context, s *stage.Stage, _ string) error { return rejoined(ctx, s) }},
	{"the holder's node is drained (gantry.dev/drain)", func(ctx context.Context, s *stage.Stage, node string) error {
		_, err := s.Kubectl(ctx, "", "annotate", "node", node, "gantry.dev/drain=")
		return err
	}, func(ctx context.Context, s *stage.Stage, node string) error {
		_, err := s.Kubectl(ctx, "", "annotate", "node", node, "gantry.dev/drain-")
		return err
	}},
}

// handover has the holder go in each planned way while a client asks, and counts what is lost.
func handover(ctx context.Context, s *stage.Stage, target string) error {
	for _, d := range departures {
		lost, sent := 0, 0
		for range stops {
			o, err := d.once(ctx, s, target)
			if err != nil {
				return err
			}
			lost, sent = lost+o.Lost, sent+o.Sent
		}
		fmt.Printf("%-64s %d of %d requests, %d times\n", "lost when "+d.what, lost, sent, stops)
	}
	return nil
}

// once has the holder go once, and come back.
func (d departure) once(ctx context.Context, s *stage.Stage, target string) (stage.Outcome, error) {
	holder, err := s.Holder(ctx, "echo", "")
	if err != nil {
		return stage.Outcome{}, err
	}
	stream, err := s.UDP(ctx, "client", target, rate)
	if err != nil {
		return stage.Outcome{}, err
	}
	if err := stream.AwaitAnswers(ctx, rate/2); err != nil {
		return stage.Outcome{}, err
	}
	if err := d.leave(ctx, s, holder); err != nil {
		return stage.Outcome{}, err
	}
	if _, err := s.Holder(ctx, "echo", holder); err != nil {
		return stage.Outcome{}, err
	}
	if err := stream.AwaitAnswers(ctx, rate); err != nil {
		return stage.Outcome{}, err
	}
	return stream.Stop(), d.back(ctx, s, holder)
}
