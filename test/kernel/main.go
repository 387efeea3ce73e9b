// Command kernel runs tests under Debian's kernel, in a virtual machine without hardware support.
// The kernel of the machine that builds Gantry often lacks what the kernels of clusters have: IPVS,
// VLANs, bonds. The guest sees this machine's own root file system, read-only, below a writable
// layer in its memory. So it needs neither an image nor an installation, and nothing that it
// changes remains. Without arguments the command runs all parts of the suite. With arguments it
// runs them as a command in a guest, prints the output, and exits with the same status.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	runtime.LockOSThread() // the guest ends with the thread that started it, see runShellCommand
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status, err := runCommandLine(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernel:", err)
		status = 1
	}
	os.Exit(status)
}

func runCommandLine(ctx context.Context) (status int, err error) {
	var g guest
	var pattern string
	flag.StringVar(&g.kernelPackage, "package", "linux-image-amd64", "Debian package of the kernel, or a package that depends on it")
	flag.IntVar(&g.memoryMiB, "memory", 5120, "memory of the guest in MiB")
	flag.IntVar(&g.processors, "processors", 2, "processors of the guest")
	flag.DurationVar(&g.runTimeout, "timeout", 2*time.Hour, "ends the guest of one command, or of one part of the suite")
	flag.StringVar(&g.resultsDirectory, "results", filepath.Join("dist", "kernel"), "directory for the console and the logs of the guest")
	flag.StringVar(&pattern, "parts", "", "runs only the parts of the suite whose name matches this regular expression")
	flag.Parse()
	if err := g.prepareKernel(ctx); err != nil {
		return 1, err
	}
	if flag.NArg() == 0 {
		return runSuite(ctx, g, pattern)
	}
	return g.runShellCommand(ctx, quoteForShell(flag.Args()...), os.Stdout)
}

// quoteForShell returns one line for a shell that has exactly these words.
func quoteForShell(words ...string) string {
	var quoted []string
	for _, w := range words {
		quoted = append(quoted, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return strings.Join(quoted, " ")
}
