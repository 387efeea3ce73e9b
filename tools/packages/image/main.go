// Command image writes a container image with Gantry's two programs into an archive that `docker
// load`, `podman load`, `ctr images import` and `kind load image-archive` accept. It needs no
// container engine and downloads nothing. The image holds the programs and a user database of two
// lines.
package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// options are the command-line options.
type options struct {
	programsDirectory, outputArchivePath, imageNameWithTag, architecture, sourceRevision string
}

func main() {
	var o options
	flag.StringVar(&o.programsDirectory, "bin", "bin", "directory of the programs controller and speaker")
	flag.StringVar(&o.outputArchivePath, "o", "dist/image.tar", "archive to write")
	flag.StringVar(&o.imageNameWithTag, "tag", "registry.invalid/gantry:v0.2.0", "name of the image, REPOSITORY:TAG")
	flag.StringVar(&o.architecture, "arch", "amd64", "architecture for which the programs are built")
	flag.StringVar(&o.sourceRevision, "revision", "", "commit from which the programs are built")
	flag.Parse()
	if err := buildAndWriteImageArchive(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// buildAndWriteImageArchive builds the image and writes the archive.
func buildAndWriteImageArchive(o options) error {
	ref, err := name.NewTag(o.imageNameWithTag)
	if err != nil {
		return fmt.Errorf("--tag %q: write REPOSITORY:TAG: %w", o.imageNameWithTag, err)
	}
	img, err := buildImage(o, ref)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.outputArchivePath), 0o755); err != nil {
		return fmt.Errorf("making the directory of the archive: %w", err)
	}
	if err := tarball.WriteToFile(o.outputArchivePath, ref, img); err != nil {
		return fmt.Errorf("writing %s: %w", o.outputArchivePath, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return fmt.Errorf("computing the digest: %w", err)
	}
	fmt.Println(o.outputArchivePath, ref, digest)
	return nil
}

// buildImage puts the programs into one layer. Nothing in it depends on the time, so that equal
// programs give an equal image.
func buildImage(o options, ref name.Tag) (v1.Image, error) {
	content, err := buildLayerTar(o.programsDirectory)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, fmt.Errorf("making the layer: %w", err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("adding the layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the image's configuration: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", o.architecture
	config.Config.User = "65534:65534" // the speaker's manifest sets another user
	config.Config.Entrypoint = []string{"/controller"}
	config.Config.WorkingDir = "/"
	config.Config.Labels = map[string]string{
		"org.opencontainers.image.title":       "gantry",
		"org.opencontainers.image.description": "Gantry's controller and speaker",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.source":      "https://github.com/gantry-lb/gantry",
		"org.opencontainers.image.version":     ref.TagStr(),
		"org.opencontainers.image.revision":    o.sourceRevision,
	}
	return mutate.ConfigFile(img, config)
}

// buildLayerTar returns the content of the layer as a tar archive.
func buildLayerTar(programsDirectory string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(path string, mode int64, content []byte) error {
		h := &tar.Header{Name: path, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("adding %s: %w", path, err)
		}
		_, err := w.Write(content)
		return err
	}
	for _, program := range []string{"controller", "speaker"} {
		content, err := os.ReadFile(filepath.Join(programsDirectory, program))
		if err != nil {
			return nil, fmt.Errorf("reading a program (`make build` writes it): %w", err)
		}
		if err := checkStaticallyLinked(program, content); err != nil {
			return nil, err
		}
		if err := add(program, 0o755, content); err != nil {
			return nil, err
		}
	}
	users := "root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n"
	if err := add("etc/passwd", 0o644, []byte(users)); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}

// checkStaticallyLinked returns an error unless the program runs without shared libraries.
func checkStaticallyLinked(program string, content []byte) error {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("reading %s, which is not a program for Linux: %w", program, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked to shared libraries, which the image does not have: build it with CGO_ENABLED=0", program)
		}
	}
	return nil
}
