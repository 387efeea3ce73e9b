package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// userNamespaceVariable in the environment says that the process was put into a user namespace by Enter.
const userNamespaceVariable = "LAB_USER_NAMESPACE"

// unshareCommand is how an ordinary user becomes root of namespaces of its own.
var unshareCommand = []string{"unshare", "--user", "--map-root-user", "--net", "--mount"}

// EnterUserNamespace lets an ordinary user start labs: where the kernel allows it, the process is replaced by itself inside user,
// network and mount namespaces in which it is root. For root nothing happens. Inside there is no network but the labs',
// so what is built of the control plane is built before. A program calls it after Reexec; the error says why there can be
// no lab, as Missing does.
func EnterUserNamespace() error {
	if os.Geteuid() == 0 {
		if os.Getenv(userNamespaceVariable) == "" {
			return nil
		}
		os.Unsetenv(userNamespaceVariable)
		return netns.SetUp("lo") // a new network namespace has it down
	}
	if why := userNamespaceRefusal(); why != "" {
		return fmt.Errorf("starting a lab: %s", why)
	}
	kube, err := BuildKube(context.Background(), os.Stderr)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	env := append(os.Environ(), userNamespaceVariable+"=1", "LAB_KUBE="+kube)
	return replaceProcess(append(append(unshareCommand, self), os.Args[1:]...), env)
}

// userNamespaceRefusal says why this user cannot have a user namespace; empty when it can.
func userNamespaceRefusal() string {
	out, err := exec.Command(unshareCommand[0], append(unshareCommand[1:], "true")...).CombinedOutput()
	if err == nil {
		return ""
	}
	return "root is needed for network namespaces, or a kernel that gives user namespaces to ordinary users: " +
		strings.TrimSpace(string(out)+" ("+err.Error()+")")
}

// joinNamespaces brings an ordinary user's process into the namespaces of the lab in dir, where its API server is.
func joinNamespaces(dir string) error {
	holder := readPID(dir, "holder")
	if os.Geteuid() == 0 || holder == 0 || !isRunning(dir) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	return replaceProcess(append([]string{"nsenter", "--target", strconv.Itoa(holder), "--user", "--net", "--preserve-credentials", self}, os.Args[1:]...), os.Environ())
}

// replaceProcess turns the process into a program; it returns only when that fails.
func replaceProcess(line, env []string) error {
	path, err := exec.LookPath(line[0])
	if err != nil {
		return fmt.Errorf("looking for %s, of the package util-linux: %w", line[0], err)
	}
	if err := syscall.Exec(path, line, env); err != nil {
		return fmt.Errorf("running %s: %w", path, err)
	}
	return nil
}

// runInside runs a program, with its own directory's name in the path, in namespaces that Enter gave.
func runInside(line []string) error {
	if err := EnterUserNamespace(); err != nil {
		return err
	}
	path, err := filepath.Abs(line[0])
	if err != nil {
		return err
	}
	return replaceProcess(append([]string{path}, line[1:]...), os.Environ())
}
