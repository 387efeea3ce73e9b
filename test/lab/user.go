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

// insideVariable in the environment says that the process was put into a user namespace by Enter.
const insideVariable = "LAB_USER_NAMESPACE"

// userNamespace is how an ordinary user becomes root of namespaces of its own.
var userNamespace = []string{"unshare", "--user", "--map-root-user", "--net", "--mount"}

// Enter lets an ordinary user start labs: where the kernel allows it, the process is replaced by itself inside user,
// network and mount namespaces in which it is root. For root nothing happens. Inside there is no network but the labs',
// so what is built of the control plane is built before. A program calls it after Reexec; the error says why there can be
// no lab, as Missing does.
func Enter() error {
	if os.Geteuid() == 0 {
		if os.Getenv(insideVariable) == "" {
			return nil
		}
		os.Unsetenv(insideVariable)
		return netns.SetUp("lo") // a new network namespace has it down
	}
	if why := refusal(); why != "" {
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
	env := append(os.Environ(), insideVariable+"=1", "LAB_KUBE="+kube)
	return replace(append(append(userNamespace, self), os.Args[1:]...), env)
}

// refusal says why this user cannot have a user namespace; empty when it can.
func refusal() string {
	out, err := exec.Command(userNamespace[0], append(userNamespace[1:], "true")...).CombinedOutput()
	if err == nil {
		return ""
	}
	return "root is needed for network namespaces, or a kernel that gives user namespaces to ordinary users: " +
		strings.TrimSpace(string(out)+" ("+err.Error()+")")
}

// join brings an ordinary user's process into the namespaces of the lab in dir, where its API server is.
func join(dir string) error {
	holder := pid(dir, "holder")
	if os.Geteuid() == 0 || holder == 0 || !alive(dir) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	return replace(append([]string{"nsenter", "--target", strconv.Itoa(holder), "--user", "--net", "--preserve-credentials", self}, os.Args[1:]...), os.Environ())
}

// replace turns the process into a program; it returns only when that fails.
func replace(line, env []string) error {
	path, err := exec.LookPath(line[0])
	if err != nil {
		return fmt.Errorf("looking for %s, of the package util-linux: %w", line[0], err)
	}
	if err := syscall.Exec(path, line, env); err != nil {
		return fmt.Errorf("running %s: %w", path, err)
	}
	return nil
}

// inside runs a program, with its own directory's name in the path, in namespaces that Enter gave.
func inside(line []string) error {
	if err := Enter(); err != nil {
		return err
	}
	path, err := filepath.Abs(line[0])
	if err != nil {
		return err
	}
	return replace(append([]string{path}, line[1:]...), os.Environ())
}
