package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// suitePart is a group of tests that share a guest.
type suitePart struct {
	name string
	// shellLine is a line of a shell that runs first. It prints results as tests do.
	shellLine string
	packages  []testedPackage
}

// testedPackage is a package with the tests that run in the guest: the value of -test.run.
type testedPackage struct{ directory, testPattern string }

// loadModulesLine loads the modules on which the other parts rely, by the names that administrators
// know. A test that needs one would load it on demand, under another name.
const loadModulesLine = `uname -a; for m in ip_vs ip_vs_rr vrf bonding 8021q dummy sch_netem macvlan nf_tables nft_reject_ipv4 nft_reject_ipv6; do chroot /proc/1/root /sbin/modprobe $m && echo "--- PASS: module $m" || echo "--- FAIL: module $m"; done`

// suiteParts are the parts. Their tests are also part of make test, where the kernel may lack what
// they need.
var suiteParts = []suitePart{
	{name: "units", shellLine: loadModulesLine, packages: []testedPackage{
		{"speaker/links", "."}, {"speaker/layer2", "^TestScenariosOn(StackedLinks|Veth)$"}, {"speaker/packetrules", "^Test(OpenConnections|StrictConnection|TableOf|KernelWithout)"},
	}},
}

// runSuite runs the parts whose name matches the pattern, each in a guest of its own. A skipped
// test counts as failed: what it needs is the reason for the guest.
func runSuite(ctx context.Context, g guest, pattern string) (status int, err error) {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return 1, fmt.Errorf("the pattern of the parts: %w", err)
	}
	var failedParts []string
	total := testCounts{}
	resultsDirectory := g.resultsDirectory
	for _, part := range suiteParts {
		if !wanted.MatchString(part.name) || ctx.Err() != nil {
			continue
		}
		line, err := part.buildShellLine(ctx, resultsDirectory)
		if err != nil {
			return 1, err
		}
		g.resultsDirectory = filepath.Join(resultsDirectory, part.name)
		if err := os.MkdirAll(g.resultsDirectory, 0o755); err != nil {
			return 1, err
		}
		begun := time.Now()
		counts := testCounts{}
		status, err := g.runCountingTests(ctx, line, &counts)
		if err != nil {
			fmt.Fprintf(os.Stderr, "kernel: %s: %v\n", part.name, err)
		}
		if err != nil || status != 0 || counts.failed+counts.skipped > 0 || counts.passed == 0 {
			failedParts = append(failedParts, part.name)
		}
		fmt.Printf("%s under %s: exit status %d, %d passed, %d failed, %d skipped, in %d s\n",
			part.name, g.kernel.release, status, counts.passed, counts.failed, counts.skipped, int(time.Since(begun).Seconds()))
		total.add(counts)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", total.passed, total.failed, total.skipped)
	if len(failedParts) > 0 || ctx.Err() != nil {
		return 1, errors.Join(ctx.Err(), fmt.Errorf("these parts failed: %s", strings.Join(failedParts, ", ")))
	}
	return 0, nil
}

// buildShellLine compiles the tests of the part on this machine, and returns the line that runs
// them in the guest. A package whose tests fail does not keep the others from running.
func (p suitePart) buildShellLine(ctx context.Context, directory string) (string, error) {
	lines := []string{"failed=0", p.shellLine}
	for _, tested := range p.packages {
		program := filepath.Join(directory, strings.ReplaceAll(tested.directory, "/", "-")+".test")
		if _, err := runHostCommand(ctx, "", "go", "test", "-c", "-o", program, "./"+tested.directory); err != nil {
			return "", err
		}
		lines = append(lines, "(cd "+quoteForShell(tested.directory)+" && "+quoteForShell(program, "-test.v", "-test.timeout=0", "-test.run="+tested.testPattern)+") || failed=1")
	}
	return strings.Join(append(lines, "exit $failed"), "\n"), nil
}

// testCounts are the numbers of results of tests and their subtests.
type testCounts struct{ passed, failed, skipped int }

func (c *testCounts) add(o testCounts) {
	c.passed, c.failed, c.skipped = c.passed+o.passed, c.failed+o.failed, c.skipped+o.skipped
}

// countResultLine counts a line such as "--- PASS: TestIt (0.01s)".
func (c *testCounts) countResultLine(line string) {
	result, isResult := strings.CutPrefix(strings.TrimSpace(line), "--- ")
	if !isResult {
		return
	}
	word, _, _ := strings.Cut(result, ":")
	switch word {
	case "PASS":
		c.passed++
	case "FAIL":
		c.failed++
	case "SKIP":
		c.skipped++
	}
}

// runCountingTests runs a line of a shell in the guest, prints its output and counts the results.
// It leaves out the lines about tests that begin, pause and continue.
func (g *guest) runCountingTests(ctx context.Context, line string, counts *testCounts) (status int, err error) {
	reader, writer := io.Pipe()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		lines := bufio.NewReader(reader)
		for {
			text, err := lines.ReadString('\n')
			counts.countResultLine(text)
			if !slices.ContainsFunc([]string{"=== RUN", "=== PAUSE", "=== CONT", "=== NAME"}, func(p string) bool { return strings.HasPrefix(text, p) }) {
				fmt.Print(text)
			}
			if err != nil {
				return
			}
		}
	}()
	status, err = g.runShellCommand(ctx, line, writer)
	writer.Close()
	<-finished
	return status, err
}
