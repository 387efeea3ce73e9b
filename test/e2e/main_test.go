// Package e2e tries Gantry as its users do: on a real cluster, with manifests as they write them, from a client on the
// LAN. Each test file has its lab, or shares one where nothing that a test leaves disturbs the next.
package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

func TestMain(m *testing.M) {
	lab.Reexec()
	ctrllog.SetLogger(logr.Discard()) // or client-go's complaints about an API server that a test stopped are mixed with the tests' own
	_ = lab.EnterUserNamespace()      // what it says is said again by each test that is skipped
	os.Exit(m.Run())
}

// startCluster brings a lab with Gantry up for one test and its subtests.
func startCluster(t *testing.T, o lab.Options) (context.Context, *cluster.Cluster) {
	t.Helper()
	ctx, s := startClusterWithoutGantry(t, o)
	must(t, s.InstallGantry(ctx))
	return ctx, s
}

// startClusterWithoutGantry brings a lab up in which Gantry is not installed.
func startClusterWithoutGantry(t *testing.T, o lab.Options) (context.Context, *cluster.Cluster) {
	t.Helper()
	if m := lab.MissingPrerequisite(); m != "" {
		t.Skip(m)
	}
	for _, b := range []string{"controller", "speaker"} {
		if _, err := os.Stat(filepath.Join(lab.RepositoryRoot(), "bin", b)); err != nil {
			t.Skip("bin/" + b + " is not built: make build")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute+readSoakInterval(t)+burstTime())
	t.Cleanup(cancel)
	o.Dir, o.Progress = filepath.Join(t.TempDir(), "lab"), os.Stderr
	s, err := cluster.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, s)
		}
		s.Close()
	})
	return ctx, s
}

// keepLogs copies the logs of a lab whose test failed to where a person finds them.
func keepLogs(t *testing.T, s *cluster.Cluster) {
	to := filepath.Join(os.TempDir(), fmt.Sprintf("gantry-e2e-%s-%d", filepath.Base(t.Name()), os.Getpid()))
	if err := os.CopyFS(to, os.DirFS(filepath.Join(s.Dir(), "logs"))); err == nil {
		t.Log("the lab's logs are in", to)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
