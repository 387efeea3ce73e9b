package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/stage"
)

// TestMovesLoseNothing moves an address for each reason that a person or Kubernetes may have, while a client asks 500 times
// a second: no request may be lost.
func TestMovesLoseNothing(t *testing.T) {
	for _, mode := range []string{lab.NFTables, lab.IPTables} {
		t.Run(mode, func(t *testing.T) { movesLoseNothing(t, mode) })
	}
}

func movesLoseNothing(t *testing.T, mode string) {
	options, pool := lab.Options{Nodes: 4, ProxyMode: mode}, stage.Pool
	if mode == lab.IPTables { // one is tried with IPv4, the other with IPv6
		options.Families, pool = lab.DualStack, both
	}
	ctx, s := start(t, options)
	must(t, s.Apply(ctx, pool))
	family := func(manifests string) string {
		if mode == lab.IPTables {
			manifests = strings.Replace(manifests, "  type: LoadBalancer\n", "  type: LoadBalancer\n  ipFamilies: [IPv6]\n", 1)
		}
		return manifests
	}
	must(t, s.Apply(ctx, family(stage.Echo("echo", "node4"))))
	kubectl := func(args ...string) {
		t.Helper()
		_, err := s.Kubectl(ctx, "", args...)
		must(t, err)
	}
	kubectl("label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	kubectl("label", "node", "node1", "node2", "node3", "holds=yes")
	address, err := s.Address(ctx, "default", "echo")
	must(t, err)
	target := netip.AddrPortFrom(address, 7000).String()

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
		if mode == lab.IPTables && name != "the exclude label" { // what makes a node leave is the same whatever carries the packets
			continue
		}
		t.Run(name, func(t *testing.T) {
			holder, err := s.Holder(ctx, "echo", "node4")
			must(t, err)
			stream := steady(ctx, t, s, target)
			c.leave(holder)
			next, err := s.Holder(ctx, "echo", holder)
			must(t, err)
			must(t, stream.AwaitAnswers(ctx, 250))
			c.back(holder)
			must(t, stream.AwaitAnswers(ctx, 250))
			lossless(t, stream, fmt.Sprintf("%s handed over to %s", holder, next))
			if still, err := s.Holder(ctx, "echo", ""); err != nil || still != next {
				t.Errorf("%s is back, and the address went from %s to %s (%v)", holder, next, still, err)
			}
		})
	}
	t.Run("a rollout of the speakers", func(t *testing.T) {
		stream := steady(ctx, t, s, target)
		kubectl("-n", "metallb-system", "rollout", "restart", "daemonset/gantry-speaker")
		kubectl("-n", "metallb-system", "rollout", "status", "--timeout=60s", "daemonset/gantry-speaker")
		must(t, stream.AwaitAnswers(ctx, 250))
		lossless(t, stream, "every speaker was replaced")
	})
	if mode == lab.NFTables {
		t.Run("a rebalance", func(t *testing.T) { rebalance(ctx, t, s, target, ad) })
	}
	t.Run("the endpoints of a Service with policy Local move", func(t *testing.T) { localMoves(ctx, t, s, family(local)) })
}

func steady(ctx context.Context, t *testing.T, s *stage.Stage, target string) *stage.Stream {
	t.Helper()
	stream, err := s.UDP(ctx, "client", target, 500)
	must(t, err)
	must(t, stream.AwaitAnswers(ctx, 100))
	return stream
}

func lossless(t *testing.T, stream *stage.Stream, when string) {
	t.Helper()
	if o := stream.Stop(); o.Lost > 0 {
		t.Errorf("%d of %d requests were lost when %s", o.Lost, o.Sent, when)
	}
}

// rebalance makes one node hold everything, and then lets the others have their share.
func rebalance(ctx context.Context, t *testing.T, s *stage.Stage, target string, ad func(string)) {
	for i := range 5 {
		must(t, s.Apply(ctx, stage.Echo(fmt.Sprintf("more%d", i), "node4")))
	}
	holders := func(ctx context.Context) ([]string, error) {
		var out []string
		for _, name := range []string{"echo", "more0", "more1", "more2", "more3", "more4"} {
			h, err := s.Holder(ctx, name, "")
			if err != nil {
				return nil, err
			}
			out = append(out, h)
		}
		return out, nil
	}
	ad("  nodeSelectors:\n  - matchLabels: {kubernetes.io/hostname: node1}\n")
	must(t, stage.Await(ctx, "node1 to hold everything", func(ctx context.Context) error {
		h, err := holders(ctx)
		if err == nil && len(slices.Compact(slices.Clone(h))) != 1 {
			err = fmt.Errorf("the holders are %v", h)
		}
		return err
	}))
	stream := steady(ctx, t, s, target)
	ad("  gantry: {rebalance: Paced}\n")
	must(t, stage.Await(ctx, "an even spread", func(ctx context.Context) error {
		h, err := holders(ctx)
		if err != nil {
			return err
		}
		for _, n := range []string{"node1", "node2", "node3"} {
			if k := len(h) - len(slices.DeleteFunc(slices.Clone(h), func(x string) bool { return x == n })); k > 3 || k == 0 {
				err = errors.Join(err, fmt.Errorf("%s holds %d of %v", n, k, h))
			}
		}
		return err
	}))
	lossless(t, stream, "addresses were rebalanced")
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
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: local}
  ports:
  - {port: 7000, protocol: UDP}
`

// localMoves replaces the only Pod of a Service by one on another node; the old one serves for two seconds after it was told
// to stop.
func localMoves(ctx context.Context, t *testing.T, s *stage.Stage, local string) {
	must(t, s.Apply(ctx, local))
	address, err := s.Address(ctx, "default", "local")
	must(t, err)
	target := netip.AddrPortFrom(address, 7000).String()
	steady(ctx, t, s, target).Stop() // what is lost until it is served for the first time is another matter
	stream := steady(ctx, t, s, target)
	for _, node := range []string{"node2", "node3"} {
		must(t, s.Apply(ctx, strings.Replace(local, "nodeName: node1", "nodeName: "+node, 1)))
		must(t, stage.Await(ctx, "the address to follow the Pod to "+node, func(ctx context.Context) error {
			h, err := s.Holder(ctx, "local", "")
			if err == nil && h != node {
				err = fmt.Errorf("%s holds it", h)
			}
			return err
		}))
		must(t, stream.AwaitAnswers(ctx, 1500)) // until the old Pod is gone
	}
	lossless(t, stream, "the Pod moved from node to node")
}
