package main

import (
	"slices"
	"strings"
	"testing"
)

func TestQuotedWordsStayOneWordEach(t *testing.T) {
	if got, want := quoteForShell("a b", "it's", "$HOME"), `'a b' 'it'\''s' '$HOME'`; got != want {
		t.Errorf("quoted: %s, want %s", got, want)
	}
}

// Each part of an entry begins at a multiple of four bytes, otherwise the kernel stops unpacking.
func TestArchiveEntriesArePadded(t *testing.T) {
	for _, name := range []string{"a", "ab", "abc", "abcd"} {
		for _, content := range []string{"", "x", "xy", "xyz", "wxyz"} {
			entry := encodeArchiveEntry(name, 1, 0o100644, []byte(content))
			if len(entry)%4 != 0 {
				t.Errorf("the entry of %q with %q has %d bytes", name, content, len(entry))
			}
			if header := string(entry[:110]); !strings.HasPrefix(header, "070701") || strings.Trim(header, "0123456789abcdef") != "" {
				t.Errorf("the header is %q", header)
			}
		}
	}
}

func TestModulesWithDependenciesAreParsed(t *testing.T) {
	got := parseModuleDependencies("kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\nkernel/net/llc/llc.ko:\n")
	if want := []string{"kernel/net/802/stp.ko", "kernel/net/llc/llc.ko"}; !slices.Equal(got["kernel/net/bridge/bridge.ko"], want) {
		t.Errorf("the bridge needs %v, want %v", got["kernel/net/bridge/bridge.ko"], want)
	}
	for module, want := range map[string]bool{
		"kernel/net/netfilter/ipvs/ip_vs.ko": true, "kernel/fs/9p/9p.ko": true, "kernel/drivers/net/bonding/bonding.ko": true, "kernel/drivers/gpu/drm/drm.ko": false,
	} {
		if isModuleNeeded(module) != want {
			t.Errorf("%s is needed: %v, want %v", module, !want, want)
		}
	}
}

func TestResultsOfTestsAreCounted(t *testing.T) {
	counts := testCounts{}
	for _, line := range []string{"=== RUN   TestIt", "--- PASS: TestIt (0.00s)", "    --- SKIP: TestIt/bond (0.00s)", "--- FAIL: TestThat (1.00s)", "--- no result"} {
		counts.countResultLine(line)
	}
	if want := (testCounts{passed: 1, failed: 1, skipped: 1}); counts != want {
		t.Errorf("counted %+v, want %+v", counts, want)
	}
}
