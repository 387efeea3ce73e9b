package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

// measureAssignmentAtLeaderChanges measures how long a Service waits for its address that is
// created just after the leader has got a signal.
func measureAssignmentAtLeaderChanges(ctx context.Context, s *cluster.Cluster) error {
	for _, t := range []struct {
		what string
		sig  syscall.Signal
		n    int
	}{
		{"address of a Service that is created while the leader stops", syscall.SIGTERM, 5},
		{"address of a Service that is created when the leader is killed", syscall.SIGKILL, 2},
	} {
		var waits []time.Duration
		for i := range t.n {
			d, err := measureAssignmentAtLeaderChange(ctx, s, t.sig, fmt.Sprintf("turn-%d-%d", t.sig, i))
			if err != nil {
				return err
			}
			waits = append(waits, d)
		}
		printMinMedianAndMax(t.what, waits)
	}
	return nil
}

func measureAssignmentAtLeaderChange(ctx context.Context, s *cluster.Cluster, sig syscall.Signal, name string) (time.Duration, error) {
	if err := s.AwaitGantryRollout(ctx); err != nil { // both controllers are ready
		return 0, err
	}
	watching, end := context.WithCancel(ctx)
	defer end()
	c, err := s.StartAddressRecorder(watching, "default")
	if err != nil {
		return 0, err
	}
	var l coordinationv1.Lease
	if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.LeaderLease}, &l); err != nil {
		return 0, err
	}
	pod, _, _ := strings.Cut(*l.Spec.HolderIdentity, "_")
	if err := s.SignalProgramOrPod(ctx, "node1", pod, sig); err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := s.API.Create(ctx, cluster.NewService("default", name, "")); err != nil {
		return 0, err
	}
	given, err := c.AwaitAssignmentTimes(ctx, name)
	if err != nil {
		return 0, err
	}
	return given[0].Sub(begun), nil
}

// measureControllerRestart ends every controller and starts one. It measures from the start of its
// process until a waiting Service has its address. The baseline is the time to list the same
// Services.
func measureControllerRestart(ctx context.Context, s *cluster.Cluster, n int) error {
	const deployment = "deployment/gantry-controller"
	if _, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "scale", deployment, "--replicas=0"); err != nil {
		return err
	}
	if _, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=controller", "--timeout=30s"); err != nil {
		return err
	}
	if err := s.API.Create(ctx, cluster.NewService("default", "waits", "")); err != nil {
		return err
	}
	watching, end := context.WithCancel(ctx)
	defer end()
	c, err := s.StartAddressRecorder(watching, "default")
	if err != nil {
		return err
	}
	before, err := s.CountAPIWrites(ctx)
	if err != nil {
		return err
	}
	if _, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "scale", deployment, "--replicas=1"); err != nil {
		return err
	}
	given, err := c.AwaitAssignmentTimes(ctx, "waits")
	if err != nil {
		return err
	}
	begun, err := readStartTimeOfYoungestProcess(filepath.Join("bin", "controller"))
	if err != nil {
		return err
	}
	time.Sleep(3 * time.Second) // if it writes to other Services, it does so now
	now, err := s.CountAPIWrites(ctx)
	if err != nil {
		return err
	}
	printMinMedianAndMax(fmt.Sprintf("restart with %d Services: process start to the next address", n), []time.Duration{given[0].Sub(begun)})
	listed := time.Now()
	if err := s.API.List(ctx, &corev1.ServiceList{}); err != nil {
		return err
	}
	printMinMedianAndMax("baseline: a list of the same Services", []time.Duration{time.Since(listed)})
	fmt.Printf("  writes of Services since then: %d (one is for the waiting Service)\n", now.SubtractEarlierCounts(before)["services/status"])
	return nil
}

// clockTicksPerSecond is the unit of times in /proc (USER_HZ, the same on every architecture of
// Go).
const clockTicksPerSecond = 100

// readStartTimeOfYoungestProcess returns the start of the youngest process whose program's path has
// this suffix.
func readStartTimeOfYoungestProcess(program string) (time.Time, error) {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return time.Time{}, fmt.Errorf("reading the machine's start time: %w", err)
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Time{}, err
	}
	var up float64
	if _, err := fmt.Sscan(string(uptime), &up); err != nil {
		return time.Time{}, fmt.Errorf("reading /proc/uptime: %w", err)
	}
	boot := time.Now().Add(-time.Duration(up * float64(time.Second)))
	var youngest time.Time
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		exe, _ := os.Readlink(filepath.Join(d, "exe"))
		text, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil || !strings.HasSuffix(exe, program) {
			continue
		}
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		var at int64
		if _, err := fmt.Sscan(fields[19], &at); err != nil { // field 22 in proc(5)
			continue
		}
		if t := boot.Add(time.Duration(at) * time.Second / clockTicksPerSecond); t.After(youngest) {
			youngest = t
		}
	}
	if youngest.IsZero() {
		return youngest, fmt.Errorf("no process of %s is running", program)
	}
	return youngest, nil
}
