// Command run runs the tests of the packages in its arguments, prints the failed and the skipped
// ones, and ends with a line of counts. First it runs the tests with labs that call t.Parallel,
// some of them beside each other. They wait for most of their time, so meanwhile the command of the
// flag -beside runs and the other tests are compiled, at the lowest priority. The other tests with
// labs run one after the other and have the machine for themselves. With CI=true a skipped test is
// a failure, because what it needs can be installed. Only a feature that this kernel lacks is
// excused.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
	notJudgedLines         []string
	outputByUnfinishedTest map[string]*strings.Builder
	// packages and commands that failed although none of their tests did
	failuresWithoutFailedTest []string
	hasFailedTestByPackage    map[string]bool
	// flags that run the tests in namespaces where an ordinary user may start labs
	goTestFlagsForUserNamespace []string
}

func main() {
	besideLabs := flag.String("beside", "", "a `command` that runs while labs wait")
	flag.Parse()
	t := testTally{outputByUnfinishedTest: map[string]*strings.Builder{}, hasFailedTestByPackage: map[string]bool{}}
	begun := time.Now()
	if os.Geteuid() != 0 {
		t.goTestFlagsForUserNamespace = goTestFlagsForUserNamespace()
	}
	all, err := listTestPackages(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
	t.runAll(all, *besideLabs)
	for _, s := range t.skippedTestLines {
		fmt.Println("skipped:", s)
	}
	for _, s := range t.notJudgedLines {
		fmt.Println(s)
	}
	for _, p := range t.failuresWithoutFailedTest {
		fmt.Println("failed, but no test of it did:", p)
	}
	fmt.Printf("in %d s\n", int(time.Since(begun).Seconds()))
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed+len(t.failuresWithoutFailedTest), len(t.skippedTestLines))
	if t.failed+len(t.failuresWithoutFailedTest) > 0 || (os.Getenv("CI") == "true" && t.hasSkipNotCausedByKernel()) {
		os.Exit(1)
	}
}

// runAll runs the tests of all packages, and the command besideLabs.
func (t *testTally) runAll(all []testPackage, besideLabs string) {
	var withoutLab []string
	compile := "go test -count=1 -run='^$'"
	for _, p := range all {
		compile += " " + p.importPath
		if !p.usesLab {
			withoutLab = append(withoutLab, p.importPath)
		}
	}
	background := []*backgroundCommand{{name: "compiling all tests", shellCommand: compile}}
	if besideLabs != "" {
		// It is first, because the tests with labs compile what both need meanwhile.
		background = append([]*backgroundCommand{{name: besideLabs, shellCommand: besideLabs}}, background...)
	}
	next, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for _, c := range background {
			c.runAtLowPriorityUntil(next)
		}
	}()
	for _, p := range all {
		if len(p.parallelTests) > 0 {
			t.runGoTest([]string{p.importPath}, "-run="+patternOfTests(p.parallelTests))
		}
	}
	close(next)
	<-done
	for _, c := range background {
		t.countBackgroundCommand(c)
	}
	for _, p := range all {
		switch {
		case len(p.parallelTests) > 0:
			t.runGoTest([]string{p.importPath}, "-skip="+patternOfTests(p.parallelTests))
		case p.usesLab:
			t.runGoTest([]string{p.importPath})
		}
	}
	t.runGoTest(withoutLab)
}

// backgroundCommand is a command that runs while labs wait.
type backgroundCommand struct {
	name, shellCommand string
	output             bytes.Buffer
	duration           time.Duration
	err                error
}

// lowestPriority is the nice value at which a process hardly delays others.
const lowestPriority = 19

// runAtLowPriorityUntil runs the command and waits for it. Until labsDone is closed, the processes
// of the command have the lowest priority, so that they use what the labs leave. After that they
// have the priority of this process: others on the machine may be busy all the time.
func (c *backgroundCommand) runAtLowPriorityUntil(labsDone <-chan struct{}) {
	begun := time.Now()
	cmd := exec.Command("sh", "-c", c.shellCommand)
	cmd.Stdout, cmd.Stderr = &c.output, &c.output
	// A process group of its own has a priority of its own, and can be ended as a whole.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.err = cmd.Start(); c.err != nil {
		return
	}
	group, ended := cmd.Process.Pid, make(chan struct{})
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(interrupted)
	go func() {
		// Without the right to change priorities the command has that of this process.
		_ = syscall.Setpriority(syscall.PRIO_PGRP, group, lowestPriority)
		for {
			select {
			case <-ended:
				return
			case <-interrupted:
				_ = syscall.Kill(-group, syscall.SIGTERM)
				os.Exit(1)
			case <-labsDone:
				labsDone = nil
				// The kernel returns 20 minus the nice value.
				if own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0); err == nil {
					_ = syscall.Setpriority(syscall.PRIO_PGRP, group, 20-own)
				}
			}
		}
	}()
	c.err = cmd.Wait()
	close(ended)
	c.duration = time.Since(begun)
}

// countBackgroundCommand prints the result of a command that has ended, with its output if it
// failed.
func (t *testTally) countBackgroundCommand(c *backgroundCommand) {
	if c.err == nil {
		fmt.Printf("ok   %s (%.1f s)\n", c.name, c.duration.Seconds())
		return
	}
	fmt.Printf("FAIL %s: %v\n%s\n", c.name, c.err, c.output.String())
	t.failuresWithoutFailedTest = append(t.failuresWithoutFailedTest, c.name)
}

// patternOfTests returns the pattern of go test that matches exactly these tests.
func patternOfTests(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }

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

// testPackage is a package with tests.
type testPackage struct {
	importPath string
	// usesLab is set if its tests may start a lab.
	usesLab bool
	// parallelTests are those of its tests with a lab that call t.Parallel.
	parallelTests []string
}

// listTestPackages returns the packages that match the patterns.
func listTestPackages(patterns []string) ([]testPackage, error) {
	const line = `{{.ImportPath}} {{.Dir}} {{join .TestImports " "}} {{join .XTestImports " "}}`
	cmd := exec.Command("go", append([]string{"list", "-f", line}, patterns...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the packages: %w", err)
	}
	var all []testPackage
	for l := range strings.Lines(string(out)) {
		words := strings.Fields(l)
		p := testPackage{importPath: words[0], usesLab: strings.Contains(l, "/test/lab") || strings.Contains(l, "/test/e2e")}
		if p.usesLab {
			if p.parallelTests, err = findParallelTests(words[1]); err != nil {
				return nil, err
			}
		}
		all = append(all, p)
	}
	return all, nil
}

// findParallelTests returns the tests of a directory that call t.Parallel themselves, and not only
// in subtests.
func findParallelTests(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, fmt.Errorf("listing the tests in %s: %w", dir, err)
	}
	var names []string
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("reading the tests: %w", err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && slices.ContainsFunc(fn.Body.List, isCallOfParallel) {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names, nil
}

// isCallOfParallel reports whether a statement is t.Parallel().
func isCallOfParallel(s ast.Stmt) bool {
	e, ok := s.(*ast.ExprStmt)
	if !ok {
		return false
	}
	call, ok := e.X.(*ast.CallExpr)
	if !ok {
		return false
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	return ok && method.Sel.Name == "Parallel"
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
	if err := cmd.Wait(); err != nil && t.failed+len(t.failuresWithoutFailedTest) == 0 {
		t.failuresWithoutFailedTest = append(t.failuresWithoutFailedTest, fmt.Sprintf("go test: %v", err))
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
		t.collectNotJudgedLines(name)
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
			t.failuresWithoutFailedTest = append(t.failuresWithoutFailedTest, e.Package)
			t.printUnfinishedTests(e.Package)
		}
		fmt.Printf("FAIL %s\n", name)
		fmt.Println(outputOrEmpty(t.outputByUnfinishedTest[name]))
		delete(t.outputByUnfinishedTest, name)
	case "build-fail":
		fmt.Println(outputOrEmpty(t.outputByUnfinishedTest[name]))
	}
}

// notJudgedPrefix begins the line of a check that had no result, because the machine was busy.
const notJudgedPrefix = "not judged: "

// collectNotJudgedLines keeps the lines in which a test says what it could not judge.
func (t *testTally) collectNotJudgedLines(name string) {
	for _, l := range strings.Split(outputOrEmpty(t.outputByUnfinishedTest[name]), "\n") {
		if _, text, found := strings.Cut(l, notJudgedPrefix); found {
			t.notJudgedLines = append(t.notJudgedLines, notJudgedPrefix+name+": "+text)
		}
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
