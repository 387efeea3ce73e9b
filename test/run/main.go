// Command run runs the tests of the packages that its arguments name, prints what failed and what was skipped, and closes
// with a line that counts them. Packages that bring up labs run one after the other, so that they do not slow each
// other down. With CI=true a skipped test is a failure, so that nothing is left out that could be installed; what this kernel
// does not have, nobody can install, and is named.
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

// event is a line of go test -json.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// tally counts outcomes and keeps the output of each test until it is known whether it matters.
type tally struct {
	passed, failed int
	skipped        []string
	output         map[string]*strings.Builder
	broken         []string // packages that failed without a test of theirs failing
	failedIn       map[string]bool
	wrapper        []string // flags that have the tests run where an ordinary user may start labs
}

func main() {
	t := tally{output: map[string]*strings.Builder{}, failedIn: map[string]bool{}}
	begun := time.Now()
	if os.Geteuid() != 0 {
		t.wrapper = wrapper()
	}
	packages, err := list(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
	t.run(packages[0])
	t.run(packages[1], "-p=1")
	for _, s := range t.skipped {
		fmt.Println("skipped:", s)
	}
	for _, p := range t.broken {
		fmt.Println("failed without a test:", p)
	}
	fmt.Printf("in %d s\n", int(time.Since(begun).Seconds()))
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed+len(t.broken), len(t.skipped))
	if t.failed+len(t.broken) > 0 || (os.Getenv("CI") == "true" && t.avoidable()) {
		os.Exit(1)
	}
}

// avoidable says whether a test was skipped for anything but the kernel.
func (t *tally) avoidable() bool {
	return slices.ContainsFunc(t.skipped, func(s string) bool { return !strings.Contains(s, "this kernel has no ") })
}

// wrapper returns the flags for an ordinary user. Where the kernel refuses, the tests that need root are skipped.
func wrapper() []string {
	tool, err := filepath.Abs("bin/lab")
	if err == nil {
		err = exec.Command(tool, "inside", "/bin/true").Run()
	}
	if err != nil {
		fmt.Println("an ordinary user cannot have a lab here:", err)
		return nil
	}
	return []string{"-exec", tool + " inside"}
}

// list returns the packages in two groups: those without a lab, and those that may bring one up.
func list(patterns []string) ([2][]string, error) {
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

// run runs one group.
func (t *tally) run(packages []string, flags ...string) {
	if len(packages) == 0 {
		return
	}
	args := slices.Concat([]string{"test", "-json", "-count=1", "-timeout=20m"}, flags, t.wrapper, packages)
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
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // what the compiler says
			continue
		}
		t.take(e)
	}
	// Outcomes are in the events; what ends go test before there are any is in none.
	if err := cmd.Wait(); err != nil && t.failed+len(t.broken) == 0 {
		t.broken = append(t.broken, fmt.Sprintf("go test: %v", err))
	}
}

// take counts an event.
func (t *tally) take(e event) {
	name := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if t.output[name] == nil {
			t.output[name] = &strings.Builder{}
		}
		t.output[name].WriteString(e.Output)
	case "pass":
		if e.Test == "" {
			fmt.Printf("ok   %s (%.1f s)\n", e.Package, e.Elapsed)
			break
		}
		t.passed++
		delete(t.output, name)
	case "skip":
		if e.Test == "" {
			break // a package without tests
		}
		t.skipped = append(t.skipped, name+": "+reason(t.output[name]))
	case "fail":
		if e.Test != "" {
			t.failed++
			t.failedIn[e.Package] = true
		} else if !t.failedIn[e.Package] {
			t.broken = append(t.broken, e.Package)
		}
		fmt.Printf("FAIL %s\n", name)
		if b := t.output[name]; b != nil {
			fmt.Println(b.String())
		}
	case "build-fail":
		fmt.Println(text(t.output[name]))
	}
}

func text(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}

// reason is the line in which a skipped test said why.
func reason(b *strings.Builder) string {
	for _, l := range strings.Split(text(b), "\n") {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			return l
		}
	}
	return "no reason given"
}
