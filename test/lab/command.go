package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// holdLabInBackgroundArg as the first argument makes the program keep a lab running in the
// background.
const holdLabInBackgroundArg = "__hold"

// RunCommandLine runs the command line of bin/lab and exits the process with its status.
func RunCommandLine() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "lab", Short: "A Kubernetes cluster in network namespaces of this machine", SilenceUsage: true, SilenceErrors: true, TraverseChildren: true}
	var name string
	root.PersistentFlags().StringVar(&name, "name", "lab", "name of the lab; several labs can run at the same time")
	dir := func() string { return LabDirectory(name) }
	root.AddCommand(newStartLabCommand(dir), newHoldLabInBackgroundCommand(dir), newEndLabCommand(dir), newHostShellCommand(dir), newKubectlCommand(dir))
	root.AddCommand(&cobra.Command{Use: "status", Short: "Show the nodes and their Pods", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return sendRequestAndPrintAnswer(c, dir(), supervisorRequest{Operation: "status"})
	}})
	root.AddCommand(&cobra.Command{Use: "kubeconfig", Short: "Print the path of the kubeconfig", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		_, err := fmt.Fprintln(c.OutOrStdout(), filepath.Join(dir(), "kubeconfig"))
		return err
	}})
	root.AddCommand(&cobra.Command{Use: "build-kube", Short: "Build the control plane's programs", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		path, err := FindOrBuildControlPlanePrograms(c.Context(), c.ErrOrStderr())
		fmt.Fprintln(c.OutOrStdout(), path)
		return err
	}})
	for _, l := range append(newFaultCommands(dir), newRouterCommands(dir)...) {
		root.AddCommand(l)
	}
	for _, c := range root.Commands() { // the commands that need a running lab
		if c.Name() != "up" && c.Name() != holdLabInBackgroundArg && c.Name() != "build-kube" && c.Name() != "kubeconfig" {
			c.PreRunE = func(*cobra.Command, []string) error { return enterLabNamespaces(dir()) }
		}
	}
	root.AddCommand(newRunInUserNamespaceCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// LabDirectory returns the directory of the lab with that name: LAB_DIR if it is set, otherwise one
// below the directory for temporary files.
func LabDirectory(name string) string {
	if dir := os.Getenv("LAB_DIR"); dir != "" {
		return dir
	}
	return filepath.Join(os.TempDir(), "gantry-"+name)
}

func sendRequestAndPrintAnswer(c *cobra.Command, dir string, o supervisorRequest) error {
	text, err := sendSupervisorRequest(c.Context(), dir, o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(c.OutOrStdout(), text)
	return err
}

func addLabOptionFlags(c *cobra.Command, o *Options) {
	c.Flags().IntVar(&o.Nodes, "nodes", 3, "number of nodes, 1 to 20")
	c.Flags().IntVar(&o.Routers, "routers", 1, "number of routers, 1 or 2")
	c.Flags().StringVar(&o.ProxyMode, "proxy-mode", KubeProxyNFTables, "kube-proxy's mode: nftables or iptables")
	c.Flags().StringVar(&o.Families, "families", IPv4Only, "ipv4, ipv6 or dual")
	c.Flags().StringVar(&o.GantryBinDir, "bin-dir", filepath.Join(RepositoryRoot(), "bin"), "directory of Gantry's binaries")
}

// newStartLabCommand starts a background process that holds the lab, and waits until the lab is up.
func newStartLabCommand(dir func() string) *cobra.Command {
	var o Options
	c := &cobra.Command{Use: "up", Short: "Start a lab", Args: cobra.NoArgs}
	addLabOptionFlags(c, &o)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := RemoveStaleLab(dir()); err != nil {
			return err
		}
		if err := ReexecInUserNamespaceUnlessRoot(); err != nil {
			return err
		}
		kube, err := FindOrBuildControlPlanePrograms(c.Context(), c.ErrOrStderr())
		if err != nil {
			return err
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		hold := exec.Command("/proc/self/exe", holdLabInBackgroundArg, "--nodes", strconv.Itoa(o.Nodes), "--routers", strconv.Itoa(o.Routers), "--proxy-mode", o.ProxyMode,
			"--families", o.Families, "--bin-dir", o.GantryBinDir)
		hold.Env = append(os.Environ(), "LAB_DIR="+dir(), "LAB_KUBE="+kube)
		hold.Stdout, hold.Stderr = w, w
		hold.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := hold.Start(); err != nil {
			return fmt.Errorf("starting the lab: %w", err)
		}
		w.Close()
		done := make(chan error, 1)
		go func() { // the pipe closes when the lab is up or has failed
			_, err := io.Copy(c.OutOrStdout(), r)
			done <- err
		}()
		select {
		case <-c.Context().Done():
			_ = hold.Process.Signal(syscall.SIGTERM)
			_ = hold.Wait()
			return errors.New("interrupted; the lab is removed")
		case <-done:
		}
		if _, err := os.Stat(filepath.Join(dir(), "kubeconfig")); err != nil {
			return errors.New("the lab did not start")
		}
		fmt.Fprintf(c.OutOrStdout(), "the lab is up: export KUBECONFIG=%s\n", filepath.Join(dir(), "kubeconfig"))
		return nil
	}
	return c
}

// newRunInUserNamespaceCommand runs a program that starts labs itself, for example a test with
// go test -exec.
func newRunInUserNamespaceCommand() *cobra.Command {
	c := &cobra.Command{Use: "inside PROGRAM [ARGS...]", Short: "Run a program in namespaces in which an ordinary user can start labs", Args: cobra.MinimumNArgs(1)}
	c.DisableFlagParsing = true
	c.RunE = func(_ *cobra.Command, args []string) error { return runInUserNamespace(args) }
	return c
}

// newHoldLabInBackgroundCommand keeps a lab running until a signal ends the process.
func newHoldLabInBackgroundCommand(dir func() string) *cobra.Command {
	o := Options{ProgressOutput: os.Stdout}
	c := &cobra.Command{Use: holdLabInBackgroundArg, Hidden: true, Args: cobra.NoArgs}
	addLabOptionFlags(c, &o)
	c.RunE = func(c *cobra.Command, _ []string) error {
		o.Dir = dir()
		if _, err := os.Stat(o.GantryBinDir); err != nil {
			o.GantryBinDir = ""
		}
		l, err := Start(c.Context(), o)
		if err != nil {
			return err
		}
		defer l.Close()
		if err := os.WriteFile(filepath.Join(o.Dir, "holder"), fmt.Append(nil, os.Getpid()), 0o644); err != nil {
			return err
		}
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		for _, fd := range []int{1, 2} { // closing the pipe tells its reader that the lab is up
			if err := syscall.Dup2(int(null.Fd()), fd); err != nil {
				return err
			}
		}
		select {
		case <-c.Context().Done():
		case <-l.EndedSignal():
		}
		return nil
	}
	return c
}

// RemoveStaleLab removes the files of a crashed lab from dir. It returns an error if a lab runs
// there.
func RemoveStaleLab(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	if isLabRunning(dir) {
		return fmt.Errorf("a lab already runs in %s: end it with bin/lab down", dir)
	}
	return os.RemoveAll(dir)
}

func readPIDFile(dir, fileName string) int {
	b, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// isLabRunning reports whether the supervisor of the lab in dir is alive. The process number may
// have been reused by another program, so it checks the command line too.
func isLabRunning(dir string) bool {
	n := readPIDFile(dir, "pid")
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n))
	return n != 0 && err == nil && strings.Contains(string(line), supervisorArg)
}

func newEndLabCommand(dir func() string) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "End the lab", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if isLabRunning(dir()) {
			_ = syscall.Kill(readPIDFile(dir(), "pid"), syscall.SIGTERM)
		}
		for deadline := time.Now().Add(processStopTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(dir()); err != nil {
				return nil
			}
			if !isLabRunning(dir()) {
				return os.RemoveAll(dir())
			}
		}
		_ = syscall.Kill(readPIDFile(dir(), "pid"), syscall.SIGKILL)
		return os.RemoveAll(dir())
	}}
}

// newHostShellCommand runs a command, or a shell, on a host of the lab.
func newHostShellCommand(dir func() string) *cobra.Command {
	c := &cobra.Command{Use: "shell HOST [COMMAND...]", Short: "Run a shell or a command on node1..., client, cp, router or far", Args: cobra.MinimumNArgs(1)}
	c.Flags().SetInterspersed(false)
	c.RunE = func(c *cobra.Command, args []string) error {
		if !isLabRunning(dir()) {
			return fmt.Errorf("no lab runs in %s: start one with bin/lab up", dir())
		}
		ns := netns.Path(fmt.Sprintf("/proc/%d/root%s/%s", readPIDFile(dir(), "pid"), netns.NamespaceDir, args[0]))
		if _, err := os.Stat(string(ns)); err != nil {
			return fmt.Errorf("the lab has no host %q", args[0])
		}
		line := args[1:]
		if len(line) == 0 {
			line = []string{"/bin/sh"}
		}
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(dir(), "kubeconfig"), "PS1="+args[0]+"# ")
		if err := ns.RunInside(cmd.Start); err != nil {
			return err
		}
		return cmd.Wait()
	}
	return c
}

func newKubectlCommand(dir func() string) *cobra.Command {
	c := &cobra.Command{Use: "kubectl ARGS...", Short: "Run kubectl as an administrator"}
	c.Flags().SetInterspersed(false) // flags after kubectl belong to kubectl
	c.DisableFlagParsing = true
	c.RunE = func(c *cobra.Command, args []string) error {
		kube, err := FindOrBuildControlPlanePrograms(c.Context(), c.ErrOrStderr())
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(c.Context(), filepath.Join(kube, "kubectl"), args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(dir(), "kubeconfig"))
		return cmd.Run()
	}
	return c
}
