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

// userNamespaceMarkerVariable is set in the environment of a process that
// ReexecInUserNamespaceUnlessRoot has put into a user namespace.
const userNamespaceMarkerVariable = "LAB_USER_NAMESPACE"

// unshareCommand makes an ordinary user root in new namespaces.
var unshareCommand = []string{"unshare", "--user", "--map-root-user", "--net", "--mount"}

// ReexecInUserNamespaceUnlessRoot lets an ordinary user start labs. If the kernel allows it, the
// process runs itself again inside user, network and mount namespaces in which it is root. For root
// it does nothing. The new namespaces have no network except that of the labs, so it builds the
// control plane before it enters them. A program calls it after Reexec. The error says why no lab
// is possible, as DescribeMissingPrerequisite does.
func ReexecInUserNamespaceUnlessRoot() error {
	if os.Geteuid() == 0 {
		if os.Getenv(userNamespaceMarkerVariable) == "" {
			return nil
		}
		os.Unsetenv(userNamespaceMarkerVariable)
		return netns.SetLinkUp("lo") // it is down in a new network namespace
	}
	if why := describeUserNamespaceRefusal(); why != "" {
		return fmt.Errorf("starting a lab: %s", why)
	}
	kube, err := FindOrBuildControlPlanePrograms(context.Background(), os.Stderr)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the path of this program: %w", err)
	}
	env := append(os.Environ(), userNamespaceMarkerVariable+"=1", "LAB_KUBE="+kube)
	return replaceProcess(append(append(unshareCommand, self), os.Args[1:]...), env)
}

// describeUserNamespaceRefusal returns why this user cannot have a user namespace, or "" if it can.
func describeUserNamespaceRefusal() string {
	out, err := exec.Command(unshareCommand[0], append(unshareCommand[1:], "true")...).CombinedOutput()
	if err == nil {
		return ""
	}
	return "network namespaces need root, or a kernel that allows user namespaces to ordinary users: " +
		strings.TrimSpace(string(out)+" ("+err.Error()+")")
}

// enterLabNamespaces moves the process of an ordinary user into the namespaces of the lab in dir,
// where the API server is.
func enterLabNamespaces(dir string) error {
	holder := readPIDFile(dir, "holder")
	if os.Geteuid() == 0 || holder == 0 || !isLabRunning(dir) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the path of this program: %w", err)
	}
	return replaceProcess(append([]string{"nsenter", "--target", strconv.Itoa(holder), "--user", "--net", "--preserve-credentials", self}, os.Args[1:]...), os.Environ())
}

// replaceProcess runs a program in place of this process. It returns only if that fails.
func replaceProcess(line, env []string) error {
	path, err := exec.LookPath(line[0])
	if err != nil {
		return fmt.Errorf("finding %s, which is in the package util-linux: %w", line[0], err)
	}
	if err := syscall.Exec(path, line, env); err != nil {
		return fmt.Errorf("running %s: %w", path, err)
	}
	return nil
}

// runInUserNamespace runs a program, given by its path, in the namespaces of
// ReexecInUserNamespaceUnlessRoot.
func runInUserNamespace(line []string) error {
	if err := ReexecInUserNamespaceUnlessRoot(); err != nil {
		return err
	}
	path, err := filepath.Abs(line[0])
	if err != nil {
		return err
	}
	return replaceProcess(append([]string{path}, line[1:]...), os.Environ())
}
