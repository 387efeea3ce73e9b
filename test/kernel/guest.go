package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// guest is a virtual machine that runs one command.
type guest struct {
	kernelPackage         string
	memoryMiB, processors int
	runTimeout            time.Duration
	resultsDirectory      string

	kernel        unpackedKernel
	initramfsPath string
}

// prepareKernel provides the kernel and the initramfs.
func (g *guest) prepareKernel(ctx context.Context) (err error) {
	if g.resultsDirectory, err = filepath.Abs(g.resultsDirectory); err != nil {
		return err
	}
	if err := os.MkdirAll(g.resultsDirectory, 0o755); err != nil {
		return fmt.Errorf("creating the directory of the results: %w", err)
	}
	if g.kernel, err = findOrDownloadKernel(ctx, g.kernelPackage); err != nil {
		return err
	}
	g.initramfsPath = filepath.Join(g.resultsDirectory, "initramfs.gz")
	return g.kernel.writeInitramfs(ctx, g.initramfsPath)
}

// kernelCommandLine has the console for the messages of the kernel, and turns off what only costs
// time in a guest: protections against other guests, and watchdogs that a slow machine triggers.
// The clock is that of the host, so nothing has to check it. The last word tells tests where they
// run.
const kernelCommandLine = "console=ttyS0 panic=-1 mitigations=off nokaslr nowatchdog tsc=reliable rcupdate.rcu_cpu_stall_suppress=1 loglevel=5 gantry.guest"

// qemuArguments returns the arguments of qemu. KVM is not used: where machines are virtual
// themselves, it is often missing or hangs.
func (g *guest) qemuArguments() []string {
	share := func(path, tag, options string) string {
		return "local,path=" + path + ",mount_tag=" + tag + ",security_model=none,multidevs=remap" + options
	}
	return []string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", strconv.Itoa(g.processors), "-m", strconv.Itoa(g.memoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", g.kernel.imagePath(), "-initrd", g.initramfsPath, "-append", kernelCommandLine,
		"-serial", "file:" + filepath.Join(g.resultsDirectory, "console.log"),
		"-virtfs", share("/", "root", ",readonly=on"), "-virtfs", share(g.resultsDirectory, "results", ""),
	}
}

// runShellCommand starts the guest, runs a line of a shell there, in the current directory of this
// process, and returns its exit status. The output goes to output while the command runs.
func (g *guest) runShellCommand(ctx context.Context, line string, output io.Writer) (status int, err error) {
	directory, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	statusFile := filepath.Join(g.resultsDirectory, "status")
	if err := os.RemoveAll(statusFile); err != nil {
		return 1, err
	}
	script := describeEnvironmentForShell() + "cd " + quoteForShell(directory) + "\n" + line + "\n"
	if err := os.WriteFile(filepath.Join(g.resultsDirectory, "command"), []byte(script), 0o600); err != nil {
		return 1, fmt.Errorf("writing the command for the guest: %w", err)
	}
	outputFile, err := os.Create(filepath.Join(g.resultsDirectory, "output"))
	if err != nil {
		return 1, fmt.Errorf("creating the file for the output: %w", err)
	}
	defer outputFile.Close()
	ctx, cancel := context.WithTimeout(ctx, g.runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", g.qemuArguments()...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("starting the guest: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	runError := copyUntilEnded(output, outputFile, ended)
	text, err := os.ReadFile(statusFile)
	if err != nil {
		return 1, errors.Join(ctx.Err(), runError, fmt.Errorf("the guest ended without an exit status; the last lines of its console:\n%s", g.readConsoleEnd()))
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// outputPollInterval is how often the output of the guest is looked for. No event tells this
// machine that the guest has written to a shared file.
const outputPollInterval = 200 * time.Millisecond

// copyUntilEnded copies what is appended to a file, until ended has an error or nil, which it
// returns.
func copyUntilEnded(to io.Writer, from io.Reader, ended <-chan error) error {
	for {
		select {
		case err := <-ended:
			_, copyError := io.Copy(to, from)
			return errors.Join(err, copyError)
		case <-time.After(outputPollInterval):
			if _, err := io.Copy(to, from); err != nil {
				return errors.Join(err, <-ended)
			}
		}
	}
}

// readConsoleEnd returns the last lines that the kernel of the guest wrote.
func (g *guest) readConsoleEnd() string {
	const lineCount = 20
	text, _ := os.ReadFile(filepath.Join(g.resultsDirectory, "console.log"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-lineCount):], "\n")
}

// passedVariables are the environment variables that a command in the guest gets from this process.
var passedVariables = []string{"PATH", "HOME", "XDG_CACHE_HOME", "LAB_KUBE", "KUBEBUILDER_ASSETS"}

func describeEnvironmentForShell() string {
	var out strings.Builder
	for _, name := range passedVariables {
		if value, ok := os.LookupEnv(name); ok {
			fmt.Fprintf(&out, "export %s=%s\n", name, quoteForShell(value))
		}
	}
	return out.String()
}
