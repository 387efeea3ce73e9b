package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeTestFile writes a file that lasts until the test ends.
func writeTestFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMigrateTranslatesFilesWithoutCluster: no kubeconfig is needed for files.
func TestMigrateTranslatesFilesWithoutCluster(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--values", writeTestFile(t, "speaker: {memberlist: {mlBindPort: 7947}}")}, 0, "speaker:\n  gossip:\n    port: 7947\n"},
		{[]string{"--values", writeTestFile(t, "tls: {cipherSuites: a}")}, 1, "#   tls.cipherSuites: Gantry accepts TLS 1.3 only"},
		{[]string{"--values", writeTestFile(t, "tls: {cipherSuites: a}"), "-o", "json"}, 1, `"outcome": "None"`},
		{[]string{"--from-configmap", writeTestFile(t, "address-pools: [{name: a, protocol: layer2, addresses: [192.0.2.0/24]}]")}, 0, "kind: IPAddressPool\n"},
	} {
		status, out, errOut := runWithoutKubeconfig(t, append([]string{"migrate"}, c.args...)...)
		if status != c.status || !strings.Contains(out, c.want) || errOut != "" {
			t.Errorf("%q exits with %d and says %s%s, want %d and %q", c.args, status, out, errOut, c.status, c.want)
		}
	}
	status, _, errOut := runWithoutKubeconfig(t, "migrate", "--values", "/nowhere/values.yaml")
	if status != 2 || !strings.Contains(errOut, "/nowhere/values.yaml") {
		t.Errorf("a file that does not exist gives %d and %q", status, errOut)
	}
}
