// Command run runs the tests of the packages in its arguments, prints the failed and the skipped
// ones, and ends with a line of counts. Packages that start labs run one after the other, so that
// they do not slow each other down. With CI=true a skipped test is a failure, because what it needs
// can be installed. Only a feature that this kernel lacks is excused.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// slowTestSeconds is the duration from which a passed test has a line of its own.
const slowTestSeconds = 30

// packageTimeout ends a package that hangs. The end-to-end tests take 25 minutes on two idle cores,
// and several times as long on a machine that is busy with something else.
const packageTimeout = 2 * time.Hour

// goTestEvent is a line of go test -json.
type goTestEvent struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// testTally counts results and keeps the output of each test until its result is known.
type testTally struct {
	passed, failed         int
	skippedTestLines       []string
	outputByUnfinishedTest map[string]*strings.Builder
	// packages that failed although none of their tests did
	packagesFailedWithoutFailedTest []string
	hasFailedTestByPackage          map[string]bool
	// flags that run the tests in namespaces where an ordinary user may start labs
	goTestFlagsForUserNamespace []string
}

func main() {
	t := testTally{outputByUnfinishedTest: map[string]*strings.Builder{}, hasFailedTestByPackage: map[string]bool{}}
	begun := time.Now()
	if os.Geteuid() != 0 {
		t.goTestFlagsForUserNamespace = goTestFlagsForUserNamespace()
	}
	packages, err := groupPackagesByUseOfLab(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
	t.runGoTest(packages[0])
	t.runGoTest(packages[1], "-p=1")
	for _, s := range t.skippedTestLines {
		fmt.Println("skipped:", s)
	}
	for _, p := range t.packagesFailedWithoutFailedTest {
		fmt.Println("failed, but no test of it did:", p)
	}
	fmt.Printf("in %d s\n", int(time.Since(begun).Seconds()))
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed+len(t.packagesFailedWithoutFailedTest), len(t.skippedTestLines))
	if t.failed+len(t.packagesFailedWithoutFailedTest) > 0 || (os.Getenv("CI") == "true" && t.hasSkipNotCausedByKernel()) {
		os.Exit(1)
	}
}

// hasSkipNotCausedByKernel reports whether a test was skipped for another reason than a missing
// feature of the kernel.
func (t *testTally) hasSkipNotCausedByKernel() bool {
	return slices.ContainsFunc(t.skippedTestLines, func(s string) bool { return !strings.Contains(s, "this kernel has no ") })
}

// goTestFlagsForUserNamespace returns the flags for an ordinary user. If the kernel does not allow
// user namespaces, the tests that need root are skipped.
func goTestFlagsForUserNamespace() []string {
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

// groupPackagesByUseOfLab returns the packages in two groups: those without a lab, and those that
// may start one.
func groupPackagesByUseOfLab(patterns []string) ([2][]string, error) {
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

// runGoTest runs the tests of one group.
func (t *testTally) runGoTest(packages []string, flags ...string) {
	if len(packages) == 0 {
		return
	}
	args := slices.Concat([]string{"test", "-json", "-count=1", "-timeout=" + packageTimeout.String()}, flags, t.goTestFlagsForUserNamespace, packages)
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
		var e goTestEvent
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // output of the compiler
			continue
		}
		t.countAndPrintGoTestEvent(e)
	}
	// The events have the results of tests. An error before the first test has no event.
	if err := cmd.Wait(); err != nil && t.failed+len(t.packagesFailedWithoutFailedTest) == 0 {
		t.packagesFailedWithoutFailedTest = append(t.packagesFailedWithoutFailedTest, fmt.Sprintf("go test: %v", err))
	}
}

// countAndPrintGoTestEvent counts an event.
func (t *testTally) countAndPrintGoTestEvent(e goTestEvent) {
	name := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if t.outputByUnfinishedTest[name] == nil {
			t.outputByUnfinishedTest[name] = &strings.Builder{}
		}
		t.outputByUnfinishedTest[name].WriteString(e.Output)
	case "pass":
		if e.Test == "" {
			fmt.Printf("ok   %s (%.1f s)\n", e.Package, e.Elapsed)
			break
		}
		t.passed++
		if e.Elapsed >= slowTestSeconds && !strings.Contains(e.Test, "/") {
			fmt.Printf("     %s %s (%.1f s)\n", e.Package, e.Test, e.Elapsed)
		}
		delete(t.outputByUnfinishedTest, name)
	case "skip":
		if e.Test == "" {
			break // a package without tests
		}
		t.skippedTestLines = append(t.skippedTestLines, name+": "+findSkipReasonLine(t.outputByUnfinishedTest[name]))
		delete(t.outputByUnfinishedTest, name)
	case "fail":
		if e.Test != "" {
			t.failed++
			t.hasFailedTestByPackage[e.Package] = true
		} else if !t.hasFailedTestByPackage[e.Package] {
			t.packagesFailedWithoutFailedTest = append(t.packagesFailedWithoutFailedTest, e.Package)
			t.printUnfinishedTests(e.Package)
		}
		fmt.Printf("FAIL %s\n", name)
		fmt.Println(outputOrEmpty(t.outputByUnfinishedTest[name]))
		delete(t.outputByUnfinishedTest, name)
	case "build-fail":
		fmt.Println(outputOrEmpty(t.outputByUnfinishedTest[name]))
	}
}

// printUnfinishedTests prints the end of the output of each test of a package that began and has no
// result, because the package panicked or reached its timeout.
func (t *testTally) printUnfinishedTests(goPackage string) {
	const maxBytes = 8000
	for _, name := range slices.Sorted(maps.Keys(t.outputByUnfinishedTest)) {
		test, isOfPackage := strings.CutPrefix(name, goPackage+" ")
		if !isOfPackage || test == "" {
			continue
		}
		output := t.outputByUnfinishedTest[name].String()
		fmt.Printf("unfinished: %s\n%s\n", name, output[max(0, len(output)-maxBytes):])
	}
}

func outputOrEmpty(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}

// findSkipReasonLine returns the line with which a test was skipped.
func findSkipReasonLine(b *strings.Builder) string {
	for _, l := range strings.Split(outputOrEmpty(b), "\n") {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			return l
		}
	}
	return "no reason given"
}
