package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kubernetesVersion is the version of Kubernetes that the lab runs.
const kubernetesVersion = "v1.37.0"

// controlPlanePrograms are the names under which the control plane's binary is linked.
var controlPlanePrograms = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl"}

// RepositoryRoot returns the root of the repository, which it finds from the path of this source
// file.
func RepositoryRoot() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// hasAllControlPlanePrograms reports whether the directory has every program. The usual bundles for
// tests lack most of them.
func hasAllControlPlanePrograms(dir string) bool {
	for _, p := range controlPlanePrograms {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return false
		}
	}
	return true
}

// FindOrBuildControlPlanePrograms returns a directory with the programs of the control plane: that
// of LAB_KUBE or KUBEBUILDER_ASSETS if it has all of them, otherwise one in the user's cache. It
// builds a missing one, which takes about five minutes on two cores, and reports that to progress.
func FindOrBuildControlPlanePrograms(ctx context.Context, progress io.Writer) (string, error) {
	for _, v := range []string{"LAB_KUBE", "KUBEBUILDER_ASSETS"} {
		if dir := os.Getenv(v); dir != "" && hasAllControlPlanePrograms(dir) {
			return dir, nil
		}
	}
	source := filepath.Join(RepositoryRoot(), "test", "lab", "kube")
	sum := sha256.New()
	for _, f := range []string{"go.mod", "go.sum", "main.go"} {
		b, err := os.ReadFile(filepath.Join(source, f))
		if err != nil {
			return "", fmt.Errorf("reading the control plane's source: %w", err)
		}
		sum.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding a cache directory for the control plane: %w", err)
	}
	dir := filepath.Join(cache, "gantry", "kube-"+kubernetesVersion+"-"+hex.EncodeToString(sum.Sum(nil)[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("creating the cache directory: %w", err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("locking the control plane's build: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking the control plane's build: %w", err)
	}
	if hasAllControlPlanePrograms(dir) {
		return dir, nil
	}
	return dir, compileControlPlanePrograms(ctx, source, dir, progress)
}

// compileControlPlanePrograms builds the binary and makes a link to it for each program.
func compileControlPlanePrograms(ctx context.Context, source, dir string, progress io.Writer) error {
	fmt.Fprintf(progress, "compiling Kubernetes %s and etcd from their modules, only this time: about 5 minutes on 2 cores\n", kubernetesVersion)
	v := strings.Split(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	const pkg = "k8s.io/component-base/version."
	flags := fmt.Sprintf("-s -w -X %sgitVersion=%s -X %sgitMajor=%s -X %sgitMinor=%s", pkg, kubernetesVersion, pkg, v[0], pkg, v[1])
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", flags, "-o", filepath.Join(dir, "kube.new"), ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the Go compiler: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	begun := time.Now()
	for {
		select {
		case <-time.After(15 * time.Second):
			fmt.Fprintf(progress, "  still compiling, %d s so far\n", int(time.Since(begun).Seconds()))
			continue
		case err := <-done:
			if err != nil {
				return fmt.Errorf("compiling the control plane: %w\n%s", err, lastLines(out.String(), 20))
			}
		}
		break
	}
	if err := os.Rename(filepath.Join(dir, "kube.new"), filepath.Join(dir, "kube")); err != nil {
		return err
	}
	for _, p := range controlPlanePrograms {
		if err := os.Symlink("kube", filepath.Join(dir, p)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// lastLines returns the last n lines.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
