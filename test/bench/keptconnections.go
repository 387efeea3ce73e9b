package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

const (
	// keptConnectionsPerURL is how many connections are open during each move.
	keptConnectionsPerURL = 25
	// observedAfterMove is how long the connections are watched after a move has begun.
	observedAfterMove = 8 * time.Second
)

// measureKeptConnections counts the TCP connections that end when addresses move as planned. label
// begins each line.
func measureKeptConnections(ctx context.Context, s *cluster.Cluster, urls []string, label string) error {
	kubectl := func(args ...string) error { _, err := s.RunKubectl(ctx, "", args...); return err }
	_, advertisement, _ := strings.Cut(cluster.FirstPoolAndL2AdvertisementManifest, "---")
	applyAdvertisement := func(extra string) error { return s.ApplyManifests(ctx, advertisement+extra) }
	first, err := firstHolder(ctx, s)
	if err != nil {
		return err
	}
	for _, m := range []struct {
		name  string
		cause func(holder string) error
	}{
		{"SIGTERM of a holder's speaker", func(holder string) error {
			return s.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGTERM)
		}},
		{"drain of a holder", func(holder string) error {
			return kubectl("annotate", "node", holder, names.AnnotationDrainNode+"=true")
		}},
		{"move by hand", func(string) error {
			if err := kubectl("annotate", "nodes", "--all", names.AnnotationDrainNode+"-"); err != nil {
				return err
			}
			return kubectl("annotate", "--overwrite", "service", "everywhere", names.AnnotationRequestedHolder+"="+first)
		}},
		{"move by hand, then a kill of the former holder's speaker", func(holder string) error {
			if err := kubectl("annotate", "--overwrite", "service", "everywhere", names.AnnotationRequestedHolder+"="+otherNode(holder)); err != nil {
				return err
			}
			if _, err := s.AwaitSingleAnnouncingNode(ctx, "everywhere", holder); err != nil {
				return err
			}
			return s.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGKILL)
		}},
		{"edit of a selector", func(holder string) error {
			if err := kubectl("annotate", "service", "everywhere", names.AnnotationRequestedHolder+"-"); err != nil {
				return err
			}
			return applyAdvertisement(fmt.Sprintf("  nodeSelectors:\n  - matchLabels: {kubernetes.io/hostname: %s}\n", otherNode(holder)))
		}},
		{"rebalance", func(string) error {
			if err := applyAdvertisement("  gantry: {rebalance: Paced}\n"); err != nil {
				return err
			}
			// the selector left both addresses on one node
			_, err := s.AwaitAnnouncingNodeCount(ctx, "everywhere", 2)
			return err
		}},
		{"rollout of all speakers", func(string) error {
			return kubectl("-n", "metallb-system", "rollout", "restart", "daemonset/gantry-speaker")
		}},
	} {
		holder, err := firstHolder(ctx, s)
		if err != nil {
			return err
		}
		k, err := s.OpenKeptConnections(ctx, "client", urls, keptConnectionsPerURL)
		if err != nil {
			return err
		}
		if err := m.cause(holder); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(observedAfterMove):
		}
		if err := s.AwaitGantryRollout(ctx); err != nil {
			return err
		}
		if err := k.AwaitMoreAnswersOnEach(ctx); err != nil {
			return err
		}
		failures, longest := k.CloseAndListFailures()
		fmt.Printf("%s, %s: %d of %d open connections ended; the longest time between two answers is %d ms\n",
			label, m.name, len(failures), len(urls)*keptConnectionsPerURL, longest.Milliseconds())
	}
	return applyAdvertisement("")
}

// otherNode returns a node that is not the given one.
func otherNode(node string) string {
	if node == "node1" {
		return "node2"
	}
	return "node1"
}

// firstHolder returns a node that announces an address.
func firstHolder(ctx context.Context, s *cluster.Cluster) (string, error) {
	out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "servicel2statuses", "-o", "jsonpath={.items[*].status.node}")
	if err != nil {
		return "", err
	}
	holders := strings.Fields(out)
	if len(holders) == 0 {
		return "", fmt.Errorf("no node announces the Service")
	}
	return holders[0], nil
}
