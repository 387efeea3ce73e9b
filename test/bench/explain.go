package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// The size of the cluster in which a Service is explained, and the limit: twice the time of
// kubectl get, and this.
const (
	explainClusterServiceCount  = 10000
	explainCommandRunCount      = 15
	maxExplainOverTwiceGetDelay = 150 * time.Millisecond
)

// measureKubectlGantryExplain measures how long kubectl gantry explain takes for one of 10,000
// Services, beside kubectl get.
func measureKubectlGantryExplain(ctx context.Context, dir string) error {
	s, err := startOneNodeLabWithLargePool(ctx, dir)
	if err != nil {
		return err
	}
	defer s.Close()
	const namespace, service = "explained", "s05000"
	if _, err := createServicesAndMeasureAssignment(ctx, s, namespace, "", explainClusterServiceCount); err != nil {
		return err
	}
	explain := []string{filepath.Join(lab.RepositoryRoot(), "bin", "kubectl-gantry"), "-n", namespace, "explain", "service", service}
	get := []string{filepath.Join(s.ControlPlaneProgramsDir(), "kubectl"), "-n", namespace, "get", "service", service, "-o", "yaml"}
	out, err := exec.CommandContext(ctx, explain[0], append(explain[1:], "--kubeconfig", s.Kubeconfig())...).Output()
	if !strings.HasPrefix(string(out), namespace+"/"+service+": ") {
		return fmt.Errorf("kubectl gantry explain says %q, and ends with %v", out, err)
	}
	var explained, got []time.Duration
	for range explainCommandRunCount {
		explained, got = append(explained, measureCommandDuration(ctx, s, explain)), append(got, measureCommandDuration(ctx, s, get))
	}
	slices.Sort(explained)
	slices.Sort(got)
	e, g := explained[explainCommandRunCount/2], got[explainCommandRunCount/2]
	limit := 2*g + maxExplainOverTwiceGetDelay
	fmt.Printf("%-64s %d ms\n%-64s %d ms\n", fmt.Sprintf("kubectl gantry explain service, one of %d, median of %d", explainClusterServiceCount, explainCommandRunCount), e.Milliseconds(), "baseline: kubectl get service -o yaml", g.Milliseconds())
	fmt.Printf("  limit: twice the baseline and %d ms: %d ms\n", maxExplainOverTwiceGetDelay.Milliseconds(), limit.Milliseconds())
	if e > limit {
		return fmt.Errorf("an explanation takes %s, more than %s", e, limit)
	}
	return nil
}

// measureCommandDuration returns how long a command takes. Its exit status does not count: a
// Service without advertisement is not well.
func measureCommandDuration(ctx context.Context, s *cluster.Cluster, args []string) time.Duration {
	begun := time.Now()
	cmd := exec.CommandContext(ctx, args[0], append(args[1:], "--kubeconfig", s.Kubeconfig())...)
	_ = cmd.Run()
	return time.Since(begun)
}
