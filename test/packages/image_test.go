package packages

import (
	"bytes"
	"debug/elf"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// buildImageArchive builds an image of the programs in bin/, as `make image` does.
func buildImageArchive(t *testing.T, out string) {
	t.Helper()
	bin := filepath.Join(RepositoryRoot(), "bin")
	for _, p := range []string{"image", "controller", "speaker"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			t.Skip("bin/" + p + " is not built: make build packages-tools")
		}
	}
	cmd := exec.Command(filepath.Join(bin, "image"), "-bin", bin, "-o", out, "-tag", "registry.example/gantry:v9", "-revision", "abc")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
}

func TestImageHoldsOnlyStaticPrograms(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	buildImageArchive(t, out)
	img, err := ReadImageArchive(out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]string{"controller", "etc/passwd", "speaker"}, slices.Sorted(maps.Keys(img.FileByPath))); diff != "" {
		t.Errorf("the image has other files than the two programs and the user database:\n%s", diff)
	}
	for _, program := range []string{"controller", "speaker"} {
		f := img.FileByPath[program]
		if f.Mode != 0o755 {
			t.Errorf("%s has mode %v, want 0755: the container's user does not own it", program, f.Mode)
		}
		e, err := elf.NewFile(bytes.NewReader(f.Content))
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		for _, p := range e.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s is linked to libraries, which the image does not have", program)
			}
		}
	}
	c := img.Config
	if c.OS != "linux" || c.Architecture != "amd64" || c.Config.User != "65534:65534" || !slices.Equal(c.Config.Entrypoint, []string{"/controller"}) {
		t.Errorf("the image's configuration is %+v", c)
	}
	if !slices.Equal(img.Tags, []string{"registry.example/gantry:v9"}) {
		t.Errorf("the image has the tags %v", img.Tags)
	}
	for label, want := range map[string]string{"title": "gantry", "version": "v9", "revision": "abc", "licenses": "Apache-2.0"} {
		if got := c.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("the label %s is %q, want %q", label, got, want)
		}
	}
}

func TestImageIsReproducible(t *testing.T) {
	dir := t.TempDir()
	var archives [2][]byte
	for i, name := range []string{"a.tar", "b.tar"} {
		buildImageArchive(t, filepath.Join(dir, name))
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = b
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same programs made two different images")
	}
}
