// Command run runs the tests of the packages in its arguments, prints the failed and the skipped
// ones, and ends with a line of counts. Packages that start labs run one after the other, so that
// they do not slow each other down. With CI=true a skipped test is a failure, because what it needs
// can be installed. Only a feature that this kernel lacks is excused.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// testEvent is a line of go test -json.
type testEvent struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// testTally counts results and keeps the output of each test until its result is known.
type testTally struct {
	passed, failed    int
	skipped           []string
	outputByTest      map[string]*strings.Builder
	brokenPackages    []string // packages that failed although none of their tests did
	isFailedByPackage map[string]bool
	// flags that run the tests in namespaces where an ordinary user may start labs
	wrapperFlags []string
}

func main() {
	t := testTally{outputByTest: map[string]*strings.Builder{}, isFailedByPackage: map[string]bool{}}
	begun := time.Now()
	if os.Geteuid() != 0 {
		t.wrapperFlags = wrapperFlags()
	}
	packages, err := listPackages(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
	t.runTests(packages[0])
	t.runTests(packages[1], "-p=1")
	for _, s := range t.skipped {
		fmt.Println("skipped:", s)
	}
	for _, p := range t.brokenPackages {
		fmt.Println("failed, but no test of it did:", p)
	}
	fmt.Printf("in %d s\n", int(time.Since(begun).Seconds()))
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed+len(t.brokenPackages), len(t.skipped))
	if t.failed+len(t.brokenPackages) > 0 || (os.Getenv("CI") == "true" && t.hasAvoidableSkip()) {
		os.Exit(1)
	}
}

// hasAvoidableSkip reports whether a test was skipped for another reason than a missing feature of
// the kernel.
func (t *testTally) hasAvoidableSkip() bool {
	return slices.ContainsFunc(t.skipped, func(s string) bool { return !strings.Contains(s, "this kernel has no ") })
}

// wrapperFlags returns the flags for an ordinary user. If the kernel does not allow user
// namespaces, the tests that need root are skipped.
func wrapperFlags() []string {
	tool, err := filepath.Abs("bin/lab")
	if err == nil {
		err = exec.Command(tool, "inside", "/bin/true").Run()
	}
	if err != nil {
		fmt.Println("an ordinary user cannot start a lab here:", err)
		return nil
	}
	return []string{"-exec", tool + " inside"}
}

// listPackages returns the packages in two groups: those without a lab, and those that may start
// one.
func listPackages(patterns []string) ([2][]string, error) {
	var groups [2][]string
	const line = `{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}`
	cmd := exec.Command("go", append([]string{"list", "-f", line}, patterns...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return groups, fmt.Errorf("listing the packages: %w", err)
	}
	for l := range strings.Lines(string(out)) {
		i := 0
		if strings.Contains(l, "/test/lab") || strings.Contains(l, "/test/e2e") {
			i = 1
		}
		groups[i] = append(groups[i], strings.Fields(l)[0])
	}
	return groups, nil
}

// runTests runs the tests of one group.
func (t *testTally) runTests(packages []string, flags ...string) {
	if len(packages) == 0 {
		return
	}
	args := slices.Concat([]string{"test", "-json", "-count=1", "-timeout=20m"}, flags, t.wrapperFlags, packages)
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run: starting go test:", err)
		os.Exit(1)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e testEvent
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // output of the compiler
			continue
		}
		t.countEvent(e)
	}
	// The events have the results of tests. An error before the first test has no event.
	if err := cmd.Wait(); err != nil && t.failed+len(t.brokenPackages) == 0 {
		t.brokenPackages = append(t.brokenPackages, fmt.Sprintf("go test: %v", err))
	}
}

// countEvent counts an event.
func (t *testTally) countEvent(e testEvent) {
	name := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if t.outputByTest[name] == nil {
			t.outputByTest[name] = &strings.Builder{}
		}
		t.outputByTest[name].WriteString(e.Output)
	case "pass":
		if e.Test == "" {
			fmt.Printf("ok   %s (%.1f s)\n", e.Package, e.Elapsed)
			break
		}
		t.passed++
		delete(t.outputByTest, name)
	case "skip":
		if e.Test == "" {
			break // a package without tests
		}
		t.skipped = append(t.skipped, name+": "+skipReason(t.outputByTest[name]))
	case "fail":
		if e.Test != "" {
			t.failed++
			t.isFailedByPackage[e.Package] = true
		} else if !t.isFailedByPackage[e.Package] {
			t.brokenPackages = append(t.brokenPackages, e.Package)
		}
		fmt.Printf("FAIL %s\n", name)
		if b := t.outputByTest[name]; b != nil {
			fmt.Println(b.String())
		}
	case "build-fail":
		fmt.Println(textOrEmpty(t.outputByTest[name]))
	}
}

func textOrEmpty(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}

// skipReason returns the line with which a test was skipped.
func skipReason(b *strings.Builder) string {
	for _, l := range strings.Split(textOrEmpty(b), "\n") {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			return l
		}
	}
	return "no reason given"
}
