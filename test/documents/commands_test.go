package documents

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/command"
)

// otherPrograms are programs whose arguments this test does not know, and words of the shell.
var otherPrograms = []string{"arping", "ndisc6", "tcpdump", "ip", "curl", "nft", "oc", "docker", "nc", "chcon", "bin/lab", "bin/crane", "TOKEN", "sh", "vtysh", "birdc", "tar", "for", "do", "done"}

// kubectlVerbs are the verbs of kubectl on the pages, with those that take the kind of an object as
// their first argument.
var kubectlVerbs = map[string]bool{
	"get": true, "describe": true, "wait": true, "annotate": true, "delete": true, "patch": true, "label": true, "edit": true, "expose": true, "scale": true,
	"explain": false, "apply": false, "create": false, "rollout": false, "logs": false, "port-forward": false, "drain": false, "undrain": false, "cordon": false, "uncordon": false, "replace": false, "auth": false, "config": false, "exec": false, "run": false,
}

// kubernetesKinds are the kinds of Kubernetes itself and of FRR-K8s on the pages, as kubectl spells
// them.
var kubernetesKinds = []string{"service", "services", "svc", "secret", "secrets", "deployment", "daemonset", "pods", "pod", "lease", "leases", "node", "nodes", "namespace", "events", "endpointslices", "configmap", "validatingwebhookconfigurations", "crd", "crds", "customresourcedefinition", "customresourcedefinitions", "deploy", "ds",
	"serviceaccount", "role", "rolebinding", "networkpolicy", "clusterrole", "clusterrolebinding", "validatingwebhookconfiguration", "frrconfigurations"}

// commandChecker knows what may be run.
type commandChecker struct {
	kinds       map[string]bool
	makeTargets map[string]bool
	benchmarks  map[string]bool
	chart       map[string]any
}

func newCommandChecker(t *testing.T) *commandChecker {
	t.Helper()
	c := &commandChecker{kinds: map[string]bool{"gantry": true}, makeTargets: map[string]bool{}, benchmarks: map[string]bool{}}
	for _, k := range kubernetesKinds {
		c.kinds[k] = true
	}
	crds, err := filepath.Glob(filepath.Join(repositoryRoot, "config/crd/bases/*.yaml"))
	if err != nil || len(crds) < 10 {
		t.Fatalf("%d CRDs, %v", len(crds), err)
	}
	for _, path := range crds {
		var crd struct {
			Spec struct {
				Names struct {
					Plural, Singular string
					ShortNames       []string
				}
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		for _, name := range append(crd.Spec.Names.ShortNames, crd.Spec.Names.Plural, crd.Spec.Names.Singular) {
			c.kinds[name] = true
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^([a-z0-9-]+):`).FindAllStringSubmatch(readRepositoryFile(t, "Makefile"), -1) {
		c.makeTargets[m[1]] = true
	}
	_, list, _ := strings.Cut(readRepositoryFile(t, "test/bench/main.go"), "\nvar benchmarks = ")
	list, _, _ = strings.Cut(list, "\n}\n\n")
	for _, m := range regexp.MustCompile(`\{"([a-z]+)", `).FindAllStringSubmatch(list, -1) {
		c.benchmarks[m[1]] = true
	}
	if err := yaml.Unmarshal([]byte(readRepositoryFile(t, "charts/gantry/values.yaml")), &c.chart); err != nil {
		t.Fatal(err)
	}
	return c
}

var (
	shellCommentPattern = regexp.MustCompile(`(^|\s)#.*$`)
	quotedPattern       = regexp.MustCompile(`'[^']*'|"[^"]*"`)
	commandEndPattern   = regexp.MustCompile(`&&|\|\||[;|&]|\$\(|\)`)
)

// checkLine checks each command of a line of a shell script. Quoted words count as one.
func (c *commandChecker) checkLine(t *testing.T, line string) error {
	t.Helper()
	line = quotedPattern.ReplaceAllString(shellCommentPattern.ReplaceAllString(line, ""), "QUOTED")
	for _, one := range commandEndPattern.Split(line, -1) {
		words := strings.Fields(one)
		for len(words) > 0 && regexp.MustCompile(`^[A-Z_]+=`).MatchString(words[0]) {
			words = words[1:]
		}
		if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, ">") }); i >= 0 {
			words = words[:i]
		}
		if len(words) == 0 {
			continue
		}
		if err := c.checkCommand(t, words); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(one), err)
		}
	}
	return nil
}

func (c *commandChecker) checkCommand(t *testing.T, words []string) error {
	t.Helper()
	switch args := words[1:]; words[0] {
	case "kubectl":
		return c.checkKubectl(t, args)
	case "helm":
		return c.checkHelm(args)
	case "make":
		for _, target := range args {
			if !strings.Contains(target, "=") && !c.makeTargets[target] {
				return fmt.Errorf("the Makefile has no target %s", target)
			}
		}
	case "go":
		return c.checkGo(args)
	default:
		if !slices.Contains(otherPrograms, words[0]) {
			return fmt.Errorf("this test does not know the program %s", words[0])
		}
	}
	return nil
}

// checkGo checks that the packages and the benchmarks exist.
func (c *commandChecker) checkGo(args []string) error {
	isBench := false
	for _, a := range args {
		switch path, isPath := strings.CutPrefix(a, "./"); {
		case isPath:
			isBench = path == "test/bench"
			if _, err := os.Stat(filepath.Join(repositoryRoot, strings.TrimSuffix(path, "..."))); err != nil {
				return err
			}
		case isBench && !c.benchmarks[a]:
			return fmt.Errorf("test/bench has no benchmark %s", a)
		}
	}
	return nil
}

// checkHelm checks the values and the path of the chart.
func (c *commandChecker) checkHelm(args []string) error {
	if slices.Contains(args, metalLBChart) { // its values are not ours
		return nil
	}
	for i, a := range args {
		if a == "charts/gantry" {
			continue
		}
		if strings.HasPrefix(a, "charts/") {
			return fmt.Errorf("there is no chart %s", a)
		}
		if i == 0 || args[i-1] != "--set" {
			continue
		}
		path, _, _ := strings.Cut(a, "=")
		values := c.chart
		for name := range strings.SplitSeq(path, ".") {
			value, exists := values[name]
			if !exists {
				return fmt.Errorf("the chart has no value %s", path)
			}
			values, _ = value.(map[string]any)
		}
	}
	return nil
}

// metalLBChart is the chart of the way back from Gantry.
const metalLBChart = "metallb/metallb"

// kubectlFlagsWithValue are the flags of kubectl on the pages whose value is the next word.
var kubectlFlagsWithValue = []string{"-n", "--namespace", "-o", "-f", "-k", "-l", "-c", "--for"}

func (c *commandChecker) checkKubectl(t *testing.T, args []string) error {
	t.Helper()
	var words, directories []string
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case slices.Contains(kubectlFlagsWithValue, a):
			i++
			if a == "-k" && i < len(args) && args[i] != "." {
				directories = append(directories, args[i])
			}
		case !strings.HasPrefix(a, "-"):
			words = append(words, a)
		}
	}
	for _, d := range directories {
		if _, err := os.Stat(filepath.Join(repositoryRoot, d)); err != nil && !strings.Contains(d, "OVERLAY") {
			return err
		}
	}
	if len(words) == 0 {
		return nil
	}
	if words[0] == "gantry" {
		return checkKubectlGantry(t, args)
	}
	takesKind, known := kubectlVerbs[words[0]]
	switch {
	case !known:
		return fmt.Errorf("this test does not know kubectl %s", words[0])
	case !takesKind || len(words) == 1:
		return nil
	}
	for kind := range strings.SplitSeq(words[1], ",") {
		kind, _, _ = strings.Cut(kind, "/")
		if kind, _, _ = strings.Cut(kind, "."); !c.kinds[kind] && kind != "KIND" {
			return fmt.Errorf("there is no kind %s", kind)
		}
	}
	return nil
}

// checkKubectlGantry asks the plugin for help about the command, so that unknown commands and flags
// are errors.
func checkKubectlGantry(t *testing.T, args []string) error {
	t.Helper()
	at := slices.Index(args, "gantry")
	var out strings.Builder
	e := command.ProcessEnvironment{
		Args: append(slices.Clone(args[at+1:]), "--help"), Out: &out, ErrOut: &out, Now: time.Now,
		LookupVariable: func(string) (string, bool) { return "", false },
	}
	if status := command.RunProgram(t.Context(), e); status != 0 {
		return fmt.Errorf("%s", out.String())
	}
	return nil
}

// TestCommandsExist checks the commands of the pages, in blocks and in sentences: programs, targets
// of make, benchmarks, values of the chart, kinds, commands of kubectl gantry.
func TestCommandsExist(t *testing.T) {
	c := newCommandChecker(t)
	count := 0
	check := func(where, line string) {
		count++
		if err := c.checkLine(t, line); err != nil {
			t.Errorf("%s: %v", where, err)
		}
	}
	for _, p := range readPages(t) {
		for _, m := range inlineCodePattern.FindAllStringSubmatch(p.withoutCodeBlocks(), -1) {
			if regexp.MustCompile(`^(kubectl|make|helm|go run|go test) [^.]`).MatchString(m[1]) && p.path != "CONTRIBUTING.md" && p.path != "ARCHITECTURE.md" {
				check(p.path, m[1])
			}
		}
		for _, b := range p.codeBlocks() {
			if b.language != "sh" {
				continue
			}
			for line := range strings.SplitSeq(strings.ReplaceAll(b.text, "\\\n", " "), "\n") {
				check(fmt.Sprintf("%s:%d", b.page, b.line), line)
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-n")
			cmd.Stdin = strings.NewReader(b.text)
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s:%d: sh cannot parse this: %s", b.page, b.line, text)
			}
		}
	}
	if count < 60 {
		t.Errorf("the pages have %d commands: this test looks in the wrong place", count)
	}
}

// TestRouterConfigurationsAreAccepted lets FRR and BIRD parse their configurations on the pages.
func TestRouterConfigurationsAreAccepted(t *testing.T) {
	count := 0
	for _, p := range readPages(t) {
		for _, b := range p.codeBlocks() {
			if b.language != "frr" && b.language != "bird" {
				continue
			}
			count++
			text, args := b.text, []string{"vtysh", "--config_dir", t.TempDir(), "--dryrun", "-f"}
			if b.language == "bird" {
				args = []string{"bird", "-p", "-c"}
				if !strings.Contains(text, "router id") {
					text = "router id 192.0.2.1;\n" + text
				}
				// A part of a protocol that the page describes elsewhere.
				text = strings.Replace(text, "protocol bgp node1 {\n  bfd graceful", "protocol bgp node1 {\n  local 192.0.2.1 as 65000; neighbor 192.0.2.2 as 64512;\n  bfd graceful", 1)
			}
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skipf("%s is not installed", args[0])
			}
			path := filepath.Join(t.TempDir(), "router.conf")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), args[0], append(args[1:], path)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s:%d: %s: %s\n%s", b.page, b.line, args[0], out, b.text)
			}
		}
	}
	if count < 8 {
		t.Errorf("the pages have %d configurations of routers: this test looks in the wrong place", count)
	}
}
