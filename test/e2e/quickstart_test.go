package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
	"github.com/gantry-lb/gantry/test/packages"
)

// quickstartBlock is a code block of docs/quickstart.md: its kind (sh, yaml, frr), its text, and
// the file name that the text before it gives.
type quickstartBlock struct{ language, text, fileName string }

var fencedBlockPattern = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

var manifestFileNamePattern = regexp.MustCompile("`([\\w-]+\\.yaml)`:\\s*$")

// readQuickstartBlocks returns the code blocks of docs/quickstart.md, by section.
func readQuickstartBlocks(t *testing.T) map[string][]quickstartBlock {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(lab.RepositoryRoot(), "docs", "quickstart.md"))
	failOnError(t, err)
	blocks := map[string][]quickstartBlock{}
	for _, part := range strings.Split(string(text), "\n## ")[1:] {
		title, body, _ := strings.Cut(part, "\n")
		for _, at := range fencedBlockPattern.FindAllStringSubmatchIndex(body, -1) {
			b := quickstartBlock{language: body[at[2]:at[3]], text: body[at[4]:at[5]]}
			if m := manifestFileNamePattern.FindStringSubmatch(body[:at[0]]); m != nil {
				b.fileName = m[1]
			}
			blocks[title] = append(blocks[title], b)
		}
	}
	return blocks
}

// quickstartStepRunner follows docs/quickstart.md in a clone of the repository, on the hosts of the
// lab.
type quickstartStepRunner struct {
	*cluster.Cluster
	cloneDir    string
	environment []string
}

func newQuickstartStepRunner(t *testing.T, s *cluster.Cluster) *quickstartStepRunner {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"charts", "config"} {
		failOnError(t, os.Symlink(filepath.Join(lab.RepositoryRoot(), name), filepath.Join(dir, name)))
	}
	home := t.TempDir()
	path := strings.Join([]string{s.ControlPlaneProgramsDir(), filepath.Join(lab.RepositoryRoot(), "bin"), os.Getenv("PATH")}, ":")
	return &quickstartStepRunner{s, dir, append(os.Environ(), "KUBECONFIG="+s.Kubeconfig(), "HOME="+home, "PATH="+path)}
}

// carryOutCodeBlock does what a code block says: it writes a file, runs commands, or starts a
// router with its configuration. A block that is a curl command is fetched on the host from.
func (w *quickstartStepRunner) carryOutCodeBlock(ctx context.Context, t *testing.T, b quickstartBlock, from string) {
	t.Helper()
	switch url, fetches := strings.CutPrefix(strings.TrimSpace(b.text), "curl "); {
	case b.language == "yaml":
		failOnError(t, os.WriteFile(filepath.Join(w.cloneDir, b.fileName), []byte(b.text), 0o600))
	case b.language == "text": // what a command prints
	case b.language == "frr":
		failOnError(t, w.RouterOnHost("router", router.FRR).StartWithConfig(ctx, b.text))
	case b.language != "sh":
		t.Fatalf("this test cannot follow a code block of the kind %q", b.language)
	case fetches:
		_, err := w.FetchURLUntilSuccess(ctx, from, url)
		failOnError(t, err)
	default:
		cmd := exec.CommandContext(ctx, "sh", "-eu")
		cmd.Dir, cmd.Env, cmd.Stdin = w.cloneDir, w.environment, strings.NewReader(b.text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			failOnError(t, fmt.Errorf("%s%w: %s", b.text, err, out))
		}
	}
}

// checkImageOfAllPods checks that each of Gantry's Pods runs the image that the quickstart names.
func checkImageOfAllPods(ctx context.Context, t *testing.T, s *cluster.Cluster, want string) {
	t.Helper()
	images := strings.Fields(runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"))
	if len(images) == 0 {
		t.Error("no Pod of Gantry runs")
	}
	for _, image := range images {
		if image != want {
			t.Errorf("a Pod runs the image %s, want %s", image, want)
		}
	}
}

// TestQuickstartWorks follows docs/quickstart.md literally, once with Helm and once with kustomize.
// The commands of the README are among those of the quickstart, as a test of test/documents
// says.
func TestQuickstartWorks(t *testing.T) {
	t.Parallel()
	for _, m := range []string{packages.DescribeUnbuiltHelmOrKustomize(), router.DescribeMissingPrerequisite(router.FRR)} {
		if m != "" {
			t.Skip(m)
		}
	}
	parts := readQuickstartBlocks(t)
	install, remove := parts["Install"], parts["Uninstall"]
	if len(install) != 4 || len(remove) != 2 {
		t.Fatalf("%d blocks about installing and %d ways to uninstall, want one for Helm, two for kustomize, and the wait after both", len(install), len(remove))
	}
	ways := map[string][]quickstartBlock{"Helm": install[:1], "kustomize": install[1:3]}
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: 3})
	w := newQuickstartStepRunner(t, s)
	for i, way := range []string{"Helm", "kustomize"} {
		t.Run(way, func(t *testing.T) {
			for _, b := range slices.Concat(ways[way], install[3:]) {
				w.carryOutCodeBlock(ctx, t, b, "")
			}
			checkImageOfAllPods(ctx, t, s, "registry.example/gantry:"+packages.ReadVersion())
			for _, part := range []struct{ title, from string }{
				{"Addresses of the nodes' own network", "client"},
				{"Addresses behind routers", "far"},
				{"When something is wrong", "client"},
			} {
				blocks := parts[part.title]
				if len(blocks) == 0 {
					t.Fatalf("docs/quickstart.md has no code block under %q", part.title)
				}
				for _, b := range blocks {
					w.carryOutCodeBlock(ctx, t, b, part.from)
				}
			}
			runKubectl(ctx, t, s, "", "delete", "service,deployment", "web", "--ignore-not-found")
			runKubectl(ctx, t, s, "", "delete", "service", "web-routed")
			w.carryOutCodeBlock(ctx, t, remove[i], "")
		})
	}
	checkNoInstalledObjectLeft(ctx, t, s)
}
