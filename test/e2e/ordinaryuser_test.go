package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// nobodyUID is a user without any files.
const nobodyUID = 65534

// mountFilesForUserNobodyScript mounts the repository and the control plane where the user nobody
// can read them, and continues as that user.
const mountFilesForUserNobodyScript = `set -e
mount --bind "$KUBE" "$ROOM/kube"
mount --rbind "$REPOSITORY" "$ROOM/repository"
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$STEPS"
`

// firstDemoStepsScript has the first steps of the demonstration, as a person types them.
const firstDemoStepsScript = `set -e
cd "$ROOM/repository"
unshare --user --map-root-user --net --mount true || exit 77
trap 'bin/lab down' EXIT
bin/lab up --nodes 2 --bin-dir "$ROOM/repository/bin"
bin/lab kubectl apply -k config/default >/dev/null
bin/lab kubectl -n metallb-system rollout status --timeout=5m deployment/gantry-controller daemonset/gantry-speaker
echo "$MANIFESTS" | bin/lab kubectl apply -f - >/dev/null
bin/lab kubectl -n tekton-pipelines wait --timeout=3m --for=jsonpath='{.status.loadBalancer.ingress[0].ip}'=192.168.0.201 service/tekton-dashboard
bin/lab kubectl -n tekton-pipelines rollout status --timeout=5m deployment/tekton-dashboard
for i in $(seq 60); do
	bin/lab shell client bash -c 'exec 3<>/dev/tcp/192.168.0.201/9097 && echo hello >&3 && head -1 <&3' && exit 0
	sleep 0.5
done
exit 1
`

// TestOrdinaryUserRunsFirstDemoStepsInLab runs the first steps of the demonstration as a user
// without privileges.
func TestOrdinaryUserRunsFirstDemoStepsInLab(t *testing.T) {
	t.Parallel()
	if m := lab.DescribeMissingPrerequisite(); m != "" {
		t.Skip(m)
	}
	if ids, _ := os.ReadFile("/proc/self/uid_map"); len(strings.Fields(string(ids))) != 3 || strings.Fields(string(ids))[2] != "4294967295" {
		t.Skip("this test already runs as an ordinary user")
	}
	if _, err := os.Stat(filepath.Join(lab.RepositoryRoot(), "bin", "lab")); err != nil {
		t.Skip("bin/lab is not built: make build")
	}
	kube, err := lab.FindOrBuildControlPlanePrograms(t.Context(), os.Stderr)
	failOnError(t, err)
	directory, err := os.MkdirTemp("", "gantry-user-")
	failOnError(t, err)
	t.Cleanup(func() { os.RemoveAll(directory) })
	for _, d := range []string{"kube", "repository", "home"} {
		failOnError(t, os.Mkdir(filepath.Join(directory, d), 0o755))
	}
	failOnError(t, os.Chmod(directory, 0o755))
	failOnError(t, os.Chown(directory, nobodyUID, nobodyUID))
	failOnError(t, os.Chown(filepath.Join(directory, "home"), nobodyUID, nobodyUID))

	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", mountFilesForUserNobodyScript)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(directory, "home"), "LAB_KUBE=" + filepath.Join(directory, "kube"), "LAB_DIR=" + filepath.Join(directory, "lab"),
		"ROOM=" + directory, "KUBE=" + kube, "REPOSITORY=" + lab.RepositoryRoot(), "STEPS=" + firstDemoStepsScript, "MANIFESTS=" + cluster.FirstPoolAndL2AdvertisementManifest + "---\n" + cluster.ExampleServiceAndDeploymentManifest,
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() == 77 {
		t.Skipf("this kernel gives ordinary users no user namespaces: %s", out)
	}
	if err != nil || !strings.Contains(string(out), "pod: tekton-dashboard-") {
		t.Fatalf("the script failed with %v:\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(directory, "lab")); err == nil {
		t.Error(fmt.Errorf("the lab's directory is left in %s", directory))
	}
}
