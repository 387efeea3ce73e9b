package policy

import (
	"regexp"
	"strings"
	"testing"
)

// versionPlaces are the places that name the version of Gantry, with as many as each file has. The
// version itself is in charts/gantry/Chart.yaml: change it there first, and this test names the
// other places.
var versionPlaces = []struct {
	file    string
	pattern *regexp.Regexp
	count   int
}{
	{"charts/gantry/Chart.yaml", regexp.MustCompile(`(?m)^appVersion: (\S+)$`), 1},
	{"Makefile", regexp.MustCompile(`(?m)^VERSION = (\S+)$`), 1},
	{"Dockerfile", regexp.MustCompile(`(?m)^ARG VERSION=(\S+)`), 1},
	{"config/default/controller.yaml", regexp.MustCompile(`image: registry\.invalid/gantry:(\S+)`), 1},
	{"config/default/speaker.yaml", regexp.MustCompile(`image: registry\.invalid/gantry:(\S+)`), 1},
	{"tools/packages/image/main.go", regexp.MustCompile(`"registry\.invalid/gantry:([^"]+)"`), 1},
	{"README.md", regexp.MustCompile(`registry\.example/gantry:([\w.]+\w)|Gantry is version ([\w.]+\w)`), 3},
	{"SECURITY.md", regexp.MustCompile(`Gantry is at version ([\w.]+\w)`), 1},
	{"docs/operator-commands.md", regexp.MustCompile(`registry\.example/gantry:([\w.]+\w)`), 1},
	{"docs/install.md", regexp.MustCompile(`registry\.example/gantry:([\w.]+\w)`), 3},
	{"docs/chart-values.md", regexp.MustCompile(`gantry-([0-9][\w.]*)\.tgz|--version ([\w.]+\w)|(?:gantry|REPOSITORY):([\w.]+\w)`), 4},
}

// TestVersionIsTheSameEverywhere: what one file builds or pushes under a version, another one
// pulls. With a version that stays behind, a node goes on with the image of an earlier one.
func TestVersionIsTheSameEverywhere(t *testing.T) {
	m := regexp.MustCompile(`(?m)^version: (\d+\.\d+\.\d+)$`).FindStringSubmatch(readRepositoryFile(t, "charts", "gantry", "Chart.yaml"))
	if m == nil {
		t.Fatal("charts/gantry/Chart.yaml has no line version: X.Y.Z")
	}
	want := m[1]
	for _, place := range versionPlaces {
		found := place.pattern.FindAllStringSubmatch(readRepositoryFile(t, strings.Split(place.file, "/")...), -1)
		if len(found) < place.count {
			t.Errorf("%s names the version %d times, want %d: this test looks in the wrong place", place.file, len(found), place.count)
		}
		for _, match := range found {
			if got := strings.TrimPrefix(strings.Join(match[1:], ""), "v"); got != want {
				t.Errorf("%s names the version in %q, want v%s, the version in charts/gantry/Chart.yaml", place.file, match[0], want)
			}
		}
	}
}
