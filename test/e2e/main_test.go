// Package e2e tests Gantry as users see it: on a real cluster, with manifests as they write them,
// and from a client on the LAN. Each test has a lab of its own. Subtests share it, so each one
// restores what it changed. A test that calls t.Parallel runs beside other such tests, each with
// its lab. A test that judges times, or that may lose no request, does not call it and has the
// machine for itself.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

func TestMain(m *testing.M) {
	lab.RunAsLabPartIfRequested()
	cluster.RunAsMetalLBSpeakerIfRequested()
	// keeps the log of client-go, for example on an API server that a test stopped, out of the
	// tests' output
	ctrllog.SetLogger(logr.Discard())
	_ = lab.ReexecInUserNamespaceUnlessRoot() // each skipped test repeats the error
	flag.Parse()
	if err := limitParallelTests(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// What limits the number of labs that run beside each other. memoryPerLab is what a lab of three
// nodes needs in bytes, with room to spare. A lab of a test that calls t.Parallel takes about a
// third of a processor. All namespaces of a machine share the kernel's two tables of neighbors, of
// 1,024 entries each, and a large lab takes 200 of them.
const (
	memoryPerLab     = 2 << 30
	labsPerProcessor = 2
	maxParallelLabs  = 4
)

// limitParallelTests sets how many tests run beside each other, and so how many labs. The flag
// -parallel takes precedence.
func limitParallelTests() error {
	isGiven := false
	flag.Visit(func(f *flag.Flag) { isGiven = isGiven || f.Name == "test.parallel" })
	if isGiven {
		return nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("reading the size of the memory: %w", err)
	}
	n := min(maxParallelLabs, labsPerProcessor*runtime.NumCPU(), int(uint64(info.Totalram)*uint64(info.Unit)/memoryPerLab))
	return flag.Set("test.parallel", strconv.Itoa(max(n, 1)))
}

// labLifeTimeout limits the life of a lab. The longest test takes four minutes on two idle cores.
const labLifeTimeout = 25 * time.Minute

// extraLabLifeTimeout is how much longer a lab may run than those of most tests.
var extraLabLifeTimeout time.Duration

// startLabWithGantry starts a lab with Gantry for one test and its subtests.
func startLabWithGantry(t *testing.T, o lab.Options) (context.Context, *cluster.Cluster) {
	t.Helper()
	ctx, s := startLabWithoutGantry(t, o)
	failOnError(t, s.InstallGantry(ctx))
	return ctx, s
}

// startLabWithoutGantry starts a lab in which Gantry is not installed.
func startLabWithoutGantry(t *testing.T, o lab.Options) (context.Context, *cluster.Cluster) {
	t.Helper()
	if m := lab.DescribeMissingPrerequisite(); m != "" {
		t.Skip(m)
	}
	for _, b := range []string{"controller", "speaker"} {
		if _, err := os.Stat(filepath.Join(lab.RepositoryRoot(), "bin", b)); err != nil {
			t.Skip("bin/" + b + " is not built: make build")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), labLifeTimeout+readSoakInterval(t)+extraTimeoutForLongBurstRun()+extraLabLifeTimeout)
	t.Cleanup(cancel)
	o.Dir, o.ProgressOutput = filepath.Join(t.TempDir(), "lab"), os.Stderr
	s, err := cluster.StartLabWithoutGantry(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			copyLogsAfterTest(t, s)
		}
		s.Close()
	})
	return ctx, s
}

// copyLogsAfterTest copies the logs of a lab to a directory that remains after the test.
func copyLogsAfterTest(t *testing.T, s *cluster.Cluster) {
	to := filepath.Join(os.TempDir(), fmt.Sprintf("gantry-e2e-%s-%d", filepath.Base(t.Name()), os.Getpid()))
	if err := os.CopyFS(to, os.DirFS(filepath.Join(s.Dir(), "logs"))); err == nil {
		t.Log("the lab's logs are in", to)
	}
}

func failOnError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
