package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// readSoakInterval is how long the processors are kept busy; make soak does it for ten minutes.
func readSoakInterval(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("SOAK")
	if s == "" {
		return 6 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("SOAK says how long to soak, like 10m: %v", err)
	}
	return d
}

// TestNoFalseTakeover keeps every processor busy: no living holder may be taken for dead.
func TestNoFalseTakeover(t *testing.T) {
	ctx, s := startCluster(t, lab.Options{Nodes: 4})
	must(t, s.Apply(ctx, cluster.PoolManifest))
	const services = 8
	for i := range services {
		must(t, s.Apply(ctx, cluster.EchoManifest(fmt.Sprintf("echo%d", i), "node4")))
	}
	for i := range services {
		_, err := s.AwaitHolder(ctx, fmt.Sprintf("echo%d", i), "")
		must(t, err)
	}
	before := countTakeovers(ctx, t, s)
	if before["Unheld"] < services {
		t.Fatalf("the metrics say that addresses were taken so often: %v, want %d that nobody held", before, services)
	}
	busy, rest := context.WithTimeout(ctx, readSoakInterval(t))
	defer rest()
	var spinning []*exec.Cmd
	for range runtime.NumCPU() {
		cmd := exec.CommandContext(busy, "sh", "-c", "while :; do :; done")
		must(t, cmd.Start())
		spinning = append(spinning, cmd)
	}
	for _, cmd := range spinning {
		_ = cmd.Wait() // it is killed when the time is over
	}
	after := countTakeovers(ctx, t, s)
	for reason, n := range after {
		if n != before[reason] {
			t.Errorf("%d addresses were taken for the reason %s though nobody died", n-before[reason], reason)
		}
	}
	t.Logf("no takeover in %v with %d processors busy", readSoakInterval(t), runtime.NumCPU())
}

// countTakeovers counts from the speakers' metrics how often addresses were taken, by reason.
func countTakeovers(ctx context.Context, t *testing.T, s *cluster.Cluster) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, counts := range readMoveCounts(ctx, t, s) {
		for what, n := range counts {
			if reason, ok := strings.CutPrefix(what, "Taken "); ok {
				out[reason] += n
			}
		}
	}
	return out
}
