package options

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/links"
)

func TestExcludedInterfacesAreReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "excludel2.yaml")
	exclude := NewExcludedInterfacesReader(path)
	if got, err := exclude(); err != nil || !slices.Equal(got, links.DefaultExcludePatterns) {
		t.Fatalf("without a file: %v (%v), want the default", got, err)
	}
	for _, tt := range []struct {
		text string
		want []string
		err  string
	}{
		{"announcedInterfacesToExclude: [\"^storage.*\", \"^lo$\"]\n", []string{"^storage.*", "^lo$"}, ""},
		{"announcedInterfacesToExclude: []\n", []string{}, ""},
		{"interfaces: [\"^storage.*\"]\n", nil, "unknown field"},
		{"announcedInterfacesToExclude: storage\n", nil, "excluded interfaces"},
		{"announcedInterfacesToExclude: [\"^eth9\"]\n", []string{"^eth9"}, ""},
	} {
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := exclude()
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.err == "") ||
			(err != nil && !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: %v, %v; want %v, %q", tt.text, got, err, tt.want, tt.err)
		}
	}
}

func TestTooShortAnnouncementRefreshIntervalIsRefused(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	for value, want := range map[string]time.Duration{"": 0, "0": 0, "2m": 2 * time.Minute, "1s": -1, "-1m": -1} {
		args := []string{"--node-name", "n"}
		if value != "" {
			args = append(args, "--layer2-refresh-interval", value)
		}
		o, err := ParseOptions(args, none)
		if (err != nil) != (want < 0) || (err == nil && o.AnnouncementRefreshInterval != want) {
			t.Errorf("--layer2-refresh-interval %q gives %v (%v), want %v; -1ns is an error",
				value, o.AnnouncementRefreshInterval, err, want)
		}
	}
}
