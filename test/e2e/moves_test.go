package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/stage"
)

// TestMovesLoseNothing moves the addresses of a Service for each reason that a person or Kubernetes may have, while a client asks
// both of them, 500 times a second by datagrams and 50 times by connections: no question may be lost.
func TestMovesLoseNothing(t *testing.T) {
	for _, mode := range []string{lab.NFTables, lab.IPTables} {
		t.Run(mode, func(t *testing.T) { movesLoseNothing(t, mode) })
	}
}

// echoing is a Service of both families, by UDP and TCP on the same port, whose only Pod runs on node4.
func echoing(name string) string {
	return dual(strings.NewReplacer(
		"    - {containerPort: 7000, protocol: UDP}\n", "    - {containerPort: 7000, protocol: UDP}\n    - {containerPort: 7000, protocol: TCP}\n",
		"  - {port: 7000, protocol: UDP}\n", "  - {name: datagrams, port: 7000, protocol: UDP}\n  - {name: connections, port: 7000, protocol: TCP}\n",
	).Replace(stage.Echo(name, "node4")))
}

func movesLoseNothing(t *testing.T, mode string) {
	ctx, s := start(t, lab.Options{Nodes: 4, ProxyMode: mode, Families: lab.DualStack})
	must(t, s.Apply(ctx, both))
	must(t, s.Apply(ctx, echoing("echo")))
	kubectl := func(args ...string) {
		t.Helper()
		_, err := s.Kubectl(ctx, "", args...)
		must(t, err)
	}
	kubectl("label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	kubectl("label", "node", "node1", "node2", "node3", "holds=yes")
	addresses, err := s.Addresses(ctx, "default", "echo", 2)
	must(t, err)

	ad := func(extra string) {
		t.Helper()
		_, doc, _ := strings.Cut(stage.Pool, "---")
		must(t, s.Apply(ctx, doc+extra))
	}
	leaves := map[string]struct{ leave, back func(node string) }{
		"the exclude label": {
			func(n string) {
				kubectl("label", "node", n, "node.kubernetes.io/exclude-from-external-load-balancers=")
			},
			func(n string) {
				kubectl("label", "node", n, "node.kubernetes.io/exclude-from-external-load-balancers-")
			},
		},
		"the out-of-service taint": {
			func(n string) {
				kubectl("taint", "node", n, "node.kubernetes.io/out-of-service=nodeshutdown:NoSchedule")
			},
			func(n string) { kubectl("taint", "node", n, "node.kubernetes.io/out-of-service-") },
		},
		"a shutdown of the kubelet": {
			func(n string) { must(t, s.Ready(ctx, n, corev1.ConditionFalse, "node is shutting down")) },
			func(n string) { must(t, s.Ready(ctx, n, corev1.ConditionTrue, "")) },
		},
		"the drain annotation": {
			func(n string) { kubectl("annotate", "node", n, "gantry.dev/drain=") },
			func(n string) { kubectl("annotate", "node", n, "gantry.dev/drain-") },
		},
		"a node selector that leaves the node out": {
			func(n string) {
				kubectl("label", "node", n, "holds-")
				ad("  nodeSelectors:\n  - matchLabels: {holds: \"yes\"}\n")
			},
			func(n string) {
				kubectl("label", "node", n, "holds=yes")
				ad("")
			},
		},
		"the speaker is deleted": {
			func(n string) {
				kubectl("-n", "metallb-system", "delete", "pod", "--wait=false", "-l", "app.kubernetes.io/component=speaker", "--field-selector", "spec.nodeName="+n)
			},
			func(string) {
				kubectl("-n", "metallb-system", "rollout", "status", "--timeout=60s", "daemonset/gantry-speaker")
			},
		},
	}
	for name, c := range leaves {
		t.Run(name, func(t *testing.T) {
			holders := awaitHolders(ctx, t, s, addresses, nil)
			before := moves(ctx, t, s)
			f := steady(ctx, t, s, 500, addresses...)
			leaving := slices.Compact(slices.Sorted(maps.Values(holders)))
			for _, n := range leaving { // both holders at once, unless they are one
				c.leave(n)
			}
			next := awaitHolders(ctx, t, s, addresses, leaving)
			f.goOn(ctx, t)
			handedOver(ctx, t, s, before, leaving)
			for _, n := range leaving {
				c.back(n)
			}
			f.goOn(ctx, t)
			f.lossless(t, 1, fmt.Sprintf("%v handed over to %v", holders, next))
			if still := awaitHolders(ctx, t, s, addresses, nil); !maps.Equal(still, next) {
				t.Errorf("%v are back, and the addresses went from %v to %v", leaving, next, still)
			}
		})
	}
	notPinged(t, s, addresses...)
	t.Run("a rollout of the speakers", func(t *testing.T) {
		f := steady(ctx, t, s, 500, addresses...)
		kubectl("-n", "metallb-system", "set", "env", "daemonset/gantry-speaker", answerPing)
		kubectl("-n", "metallb-system", "rollout", "status", "--timeout=60s", "daemonset/gantry-speaker")
		f.goOn(ctx, t)
		f.lossless(t, 4, "every speaker was replaced")
	})
	t.Run("which answer pings now", func(t *testing.T) { pinged(ctx, t, s, addresses...) })
	t.Run("the endpoints of a Service with policy Local move", func(t *testing.T) { localMoves(ctx, t, s) })
	t.Run("a rebalance", func(t *testing.T) { rebalance(ctx, t, s, addresses, ad) }) // once nobody has come or gone for ten seconds
	if mode == lab.IPTables {                                                        // TestTheSegment has it with nftables
		t.Run("a link flaps", func(t *testing.T) { linkFlaps(ctx, t, s, addresses[0]) })
	}
}

// awaitHolders waits until each address has one holder, none of them among those named, and returns them by address.
func awaitHolders(ctx context.Context, t *testing.T, s *stage.Stage, addresses []netip.Addr, not []string) map[netip.Addr]string {
	t.Helper()
	out := map[netip.Addr]string{}
	for _, a := range addresses {
		must(t, stage.Await(ctx, "another holder of "+a.String(), func(context.Context) error {
			if out[a] = holderOf(ctx, t, s, a).Status.Node; slices.Contains(not, out[a]) {
				return fmt.Errorf("it is %s", out[a])
			}
			return nil
		}))
	}
	return out
}

// moves are how often each node took or gave an address up, by event and reason.
func moves(ctx context.Context, t *testing.T, s *stage.Stage) map[string]map[string]int {
	t.Helper()
	out := map[string]map[string]int{}
	for _, node := range []string{"node1", "node2", "node3", "node4"} {
		body, err := s.AwaitFetch(ctx, node, "http://127.0.0.1:7473/metrics")
		must(t, err)
		out[node] = map[string]int{}
		for line := range strings.Lines(body) {
			var n int
			var event, reason string
			line = strings.NewReplacer(`"`, " ", "}", " ").Replace(line)
			if _, err := fmt.Sscanf(line, "gantry_speaker_moves_total{event= %s ,reason= %s   %d", &event, &reason, &n); err == nil {
				out[node][event+" "+reason] = n
			}
		}
	}
	return out
}

// handedOver checks that the moves since before are counted as what they are: the addresses were handed over, and nobody was taken
// for dead. Those who left may have been started again.
func handedOver(ctx context.Context, t *testing.T, s *stage.Stage, before map[string]map[string]int, left []string) {
	t.Helper()
	handed := 0
	for node, now := range moves(ctx, t, s) {
		if slices.Contains(left, node) {
			continue
		}
		handed += now["Taken HandedOver"] - before[node]["Taken HandedOver"]
		for _, reason := range []string{"Taken HolderGone", "Taken Unheld"} {
			if n := now[reason] - before[node][reason]; n > 0 {
				t.Errorf("%s counts %d moves as %q", node, n, reason)
			}
		}
	}
	if handed < 2 {
		t.Errorf("%d moves are counted as Taken HandedOver, want both addresses", handed)
	}
}

// flows are a client's questions to addresses: of each, by datagrams and by connections.
type flows map[string]*stage.Stream

// steady begins to ask each of the addresses, rate times a second by datagrams, and a tenth of that by connections.
func steady(ctx context.Context, t *testing.T, s *stage.Stage, rate int, addresses ...netip.Addr) flows {
	t.Helper()
	f := flows{}
	for _, a := range addresses {
		target := netip.AddrPortFrom(a, 7000).String()
		udp, err := s.UDP(ctx, "client", target, rate)
		must(t, err)
		f["by UDP of "+target], f["by TCP of "+target] = udp, s.TCP(ctx, "client", target, rate/10)
	}
	f.goOn(ctx, t)
	return f
}

// goOn waits until each flow has about half a second's answers more.
func (f flows) goOn(ctx context.Context, t *testing.T) {
	t.Helper()
	var more errgroup.Group
	for how, stream := range f {
		n := 250
		if strings.HasPrefix(how, "by TCP") {
			n = 25
		}
		more.Go(func() error { return stream.AwaitAnswers(ctx, n) })
	}
	must(t, more.Wait())
}

// lossless checks that no question was lost while each address moved so often.
func (f flows) lossless(t *testing.T, moves int, when string) {
	t.Helper()
	for how, stream := range f {
		o := stream.Stop()
		n := torn(o.Failures, moves)
		if o.Lost > n {
			t.Errorf("%d of %d questions %s were lost when %s: %v", o.Lost-n, o.Sent, how, when, o.Failures)
		}
		if n > 0 {
			t.Logf("%d of %d questions %s were under way at the instant of a move", n, o.Sent, how)
		}
	}
}

// torn counts the connections that ended because their address moved while they were under way: kube-proxy on the former holder
// knew them, and on the next one it does not. All that a move tears were under way at one instant; what else failed is lost.
func torn(failures []stage.Failure, moves int) (n int) {
	left := slices.DeleteFunc(slices.Clone(failures), func(f stage.Failure) bool {
		return !errors.Is(f.Err, syscall.ECONNRESET) && !errors.Is(f.Err, syscall.EPIPE)
	})
	slices.SortFunc(left, func(x, y stage.Failure) int { return x.Ended.Compare(y.Ended) })
	for all := len(left); moves > 0 && len(left) > 0; moves-- {
		instant := left[0].Ended
		left = slices.DeleteFunc(left, func(f stage.Failure) bool { return !f.Begun.After(instant) })
		n = all - len(left)
	}
	return n
}

// TestTorn: what is excused is what one instant of each move explains, and nothing else.
func TestTorn(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	reset := func(begun, ended int) stage.Failure {
		return stage.Failure{Begun: at(begun), Ended: at(ended), Err: fmt.Errorf("reading: %w", syscall.ECONNRESET)}
	}
	for name, tt := range map[string]struct {
		failures []stage.Failure
		moves    int
		want     int
	}{
		"none":                          {nil, 1, 0},
		"two at one instant":            {[]stage.Failure{reset(0, 5), reset(3, 9)}, 1, 2},
		"two one after the other":       {[]stage.Failure{reset(0, 5), reset(6, 9)}, 1, 1},
		"each at a move":                {[]stage.Failure{reset(6, 9), reset(0, 5)}, 2, 2},
		"an address that did not move":  {[]stage.Failure{reset(0, 5)}, 0, 0},
		"a connection that was refused": {[]stage.Failure{{Begun: at(0), Ended: at(5), Err: syscall.ECONNREFUSED}}, 1, 0},
		"silence":                       {[]stage.Failure{{Begun: at(0), Ended: at(5000), Err: context.DeadlineExceeded}}, 1, 0},
	} {
		if got := torn(tt.failures, tt.moves); got != tt.want {
			t.Errorf("%s: %d are excused, want %d", name, got, tt.want)
		}
	}
}

// rebalance makes one node hold everything, and then lets the others have their share.
func rebalance(ctx context.Context, t *testing.T, s *stage.Stage, addresses []netip.Addr, ad func(string)) {
	must(t, s.Apply(ctx, echoing("more0")+"---\n"+echoing("more1")))
	for _, name := range []string{"more0", "more1"} {
		more, err := s.Addresses(ctx, "default", name, 2)
		must(t, err)
		addresses = append(addresses, more...)
	}
	spread := func(what string, check func(held map[string]int) error) {
		t.Helper()
		must(t, stage.Await(ctx, what, func(ctx context.Context) error {
			var list v1beta1.ServiceL2StatusList
			if err := s.API.List(ctx, &list, client.InNamespace(names.Namespace)); err != nil {
				return err
			}
			held, all := map[string]int{}, 0
			for _, o := range list.Items {
				if g := o.Status.Gantry; g != nil { // the status comes after the object
					held[o.Status.Node] += len(g.Addresses)
					all += len(g.Addresses)
				}
			}
			if all != len(addresses) {
				return fmt.Errorf("%v hold %d addresses, want %d", held, all, len(addresses))
			}
			return check(held)
		}))
	}
	ad("  nodeSelectors:\n  - matchLabels: {kubernetes.io/hostname: node1}\n")
	spread("node1 to hold everything", func(held map[string]int) error {
		if len(held) != 1 {
			return fmt.Errorf("they are held like this: %v", held)
		}
		return nil
	})
	f := steady(ctx, t, s, 100, addresses...)
	ad("  gantry: {rebalance: Paced}\n")
	most := (len(addresses)*11 + 29) / 30 // ceil(1.1 x share) of three nodes
	spread("an even spread", func(held map[string]int) error {
		for _, n := range []string{"node1", "node2", "node3"} {
			if held[n] > most || held[n] == 0 {
				return fmt.Errorf("they are held like this: %v", held)
			}
		}
		return nil
	})
	f.lossless(t, 1, "addresses were rebalanced")
}

const local = `apiVersion: apps/v1
kind: Deployment
metadata: {name: local}
spec:
  replicas: 1
  selector: {matchLabels: {app: local}}
  template:
    metadata: {labels: {app: local}}
    spec:
      nodeName: node1
      terminationGracePeriodSeconds: 10
      containers:
      - name: echo
        image: echo
        ports:
        - {containerPort: 7000, protocol: UDP}
        - {containerPort: 7000, protocol: TCP}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: local}
  ports:
  - {name: datagrams, port: 7000, protocol: UDP}
  - {name: connections, port: 7000, protocol: TCP}
`

// localMoves replaces the only Pod of a Service by one on another node; the old one serves for two seconds after it was told
// to stop.
func localMoves(ctx context.Context, t *testing.T, s *stage.Stage) {
	local := dual(local)
	must(t, s.Apply(ctx, local))
	addresses, err := s.Addresses(ctx, "default", "local", 2)
	must(t, err)
	for _, stream := range steady(ctx, t, s, 500, addresses...) {
		stream.Stop() // what is lost until it is served for the first time is another matter
	}
	f := steady(ctx, t, s, 500, addresses...)
	for _, node := range []string{"node2", "node3"} {
		must(t, s.Apply(ctx, strings.Replace(local, "nodeName: node1", "nodeName: "+node, 1)))
		for _, a := range addresses {
			must(t, stage.Await(ctx, a.String()+" to follow the Pod to "+node, func(context.Context) error {
				if h := holderOf(ctx, t, s, a).Status.Node; h != node {
					return fmt.Errorf("%s holds it", h)
				}
				return nil
			}))
		}
		for range 5 { // until the old Pod is gone
			f.goOn(ctx, t)
		}
	}
	f.lossless(t, 2, "the Pod moved from node to node")
	_, err = s.Kubectl(ctx, "", "delete", "--wait=false", "deployment/local", "service/local")
	must(t, err)
}
