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

	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/stage"
)

// soakTime is how long the processors are kept busy; make soak does it for ten minutes.
func soakTime(t *testing.T) time.Duration {
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
	ctx, s := start(t, lab.Options{Nodes: 4})
	must(t, s.Apply(ctx, stage.Pool))
	const services = 8
	for i := range services {
		must(t, s.Apply(ctx, stage.Echo(fmt.Sprintf("echo%d", i), "node4")))
	}
	for i := range services {
		_, err := s.Holder(ctx, fmt.Sprintf("echo%d", i), "")
		must(t, err)
	}
	before := taken(ctx, t, s)
	if before["Unheld"] < services {
		t.Fatalf("the metrics say that addresses were taken so often: %v, want %d that nobody held", before, services)
	}
	busy, rest := context.WithTimeout(ctx, soakTime(t))
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
	after := taken(ctx, t, s)
	for reason, n := range after {
		if n != before[reason] {
			t.Errorf("%d addresses were taken for the reason %s though nobody died", n-before[reason], reason)
		}
	}
	t.Logf("no takeover in %v with %d processors busy", soakTime(t), runtime.NumCPU())
}

// taken counts from the speakers' metrics how often addresses were taken, by reason.
func taken(ctx context.Context, t *testing.T, s *stage.Stage) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, counts := range moves(ctx, t, s) {
		for what, n := range counts {
			if reason, ok := strings.CutPrefix(what, "Taken "); ok {
				out[reason] += n
			}
		}
	}
	return out
}
