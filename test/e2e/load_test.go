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

// readSoakInterval returns how long the processors are kept busy. make soak sets it to ten minutes.
func readSoakInterval(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("SOAK")
	if s == "" {
		return 6 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("SOAK is a duration such as 10m: %v", err)
	}
	return d
}

// TestNoFalseTakeoverUnderCPULoad keeps every processor busy. No living holder may be declared
// dead.
func TestNoFalseTakeoverUnderCPULoad(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 4})
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest))
	const services = 8
	for i := range services {
		failOnError(t, s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest(fmt.Sprintf("echo%d", i), "node4")))
	}
	for i := range services {
		_, err := s.AwaitSingleAnnouncingNode(ctx, fmt.Sprintf("echo%d", i), "")
		failOnError(t, err)
	}
	before := countTakeovers(ctx, t, s)
	if before["Unheld"] < services {
		t.Fatalf("the metrics count the taken addresses as %v, want at least %d that no node held", before, services)
	}
	busyCtx, stopBusy := context.WithTimeout(ctx, readSoakInterval(t))
	defer stopBusy()
	var spinning []*exec.Cmd
	for range runtime.NumCPU() {
		cmd := exec.CommandContext(busyCtx, "sh", "-c", "while :; do :; done")
		failOnError(t, cmd.Start())
		spinning = append(spinning, cmd)
	}
	for _, cmd := range spinning {
		_ = cmd.Wait() // its context kills it at the end
	}
	after := countTakeovers(ctx, t, s)
	for reason, n := range after {
		if n != before[reason] {
			t.Errorf("%d addresses were taken for the reason %s although no node died", n-before[reason], reason)
		}
	}
	t.Logf("no takeover in %v with %d processors busy", readSoakInterval(t), runtime.NumCPU())
}

// countTakeovers returns from the speakers' metrics how often addresses were taken, by reason.
func countTakeovers(ctx context.Context, t *testing.T, s *cluster.Cluster) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, counts := range readMoveCounts(ctx, t, s) {
		for move, n := range counts {
			if reason, ok := strings.CutPrefix(move, "Taken "); ok {
				out[reason] += n
			}
		}
	}
	return out
}
