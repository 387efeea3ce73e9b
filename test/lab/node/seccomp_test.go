package node

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The profile denies what container runtimes deny, and allows the sockets that a speaker needs. It
// cannot be taken back, so a child process tries it.
func TestDefaultSeccompProfileDeniesWhatContainersMayNotDo(t *testing.T) {
	const childVariable = "GANTRY_TEST_SECCOMP_CHILD"
	if os.Getenv(childVariable) == "" {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		child.Env = append(os.Environ(), childVariable+"=1")
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := applyDefaultSeccompProfile(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"unshare": unix.Unshare(0), "sethostname": unix.Sethostname([]byte("x")), "mount": unix.Mount("", "/none", "", 0, ""),
		"a socket of AF_VSOCK": openAndCloseSocket(unix.AF_VSOCK, unix.SOCK_STREAM),
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: got %v, want that it is denied", what, err)
		}
	}
	for what, family := range map[string]int{"IPv4": unix.AF_INET, "IPv6": unix.AF_INET6, "netlink": unix.AF_NETLINK} {
		if err := openAndCloseSocket(family, unix.SOCK_DGRAM); err != nil {
			t.Errorf("a socket for %s: %v", what, err)
		}
	}
}

func openAndCloseSocket(family, kind int) error {
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
