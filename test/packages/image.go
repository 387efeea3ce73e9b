package packages

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ImageArchive is the content of a container image's archive.
type ImageArchive struct {
	Tags   []string
	Config struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Config       struct {
			User       string
			Entrypoint []string
			Labels     map[string]string
		} `json:"config"`
	}
	// FileByPath are the files of all layers, by path.
	FileByPath map[string]ImageFile
}

// ImageFile is a file of an Image.
type ImageFile struct {
	Mode    fs.FileMode
	Content []byte
}

// ReadImageArchive reads an archive in the format of `docker save`.
func ReadImageArchive(path string) (*ImageArchive, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the image: %w", err)
	}
	defer f.Close()
	archive, err := readTarFiles(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(archive["manifest.json"].Content, &manifest); err != nil || len(manifest) != 1 {
		return nil, fmt.Errorf("reading manifest.json of %s: %d images, %w", path, len(manifest), err)
	}
	img := &ImageArchive{Tags: manifest[0].RepoTags, FileByPath: map[string]ImageFile{}}
	if err := json.Unmarshal(archive[manifest[0].Config].Content, &img.Config); err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", path, err)
	}
	for _, layer := range manifest[0].Layers {
		z, err := gzip.NewReader(bytes.NewReader(archive[layer].Content))
		if err != nil {
			return nil, fmt.Errorf("reading layer %s: %w", layer, err)
		}
		files, err := readTarFiles(z)
		if err != nil {
			return nil, fmt.Errorf("reading layer %s: %w", layer, err)
		}
		for name, file := range files {
			img.FileByPath[name] = file
		}
	}
	return img, nil
}

func readTarFiles(r io.Reader) (map[string]ImageFile, error) {
	out := map[string]ImageFile{}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(t)
		if err != nil {
			return nil, err
		}
		out[h.Name] = ImageFile{Mode: h.FileInfo().Mode(), Content: content}
	}
}

// WriteFiles writes the image's files below a directory.
func (i *ImageArchive) WriteFiles(dir string) error {
	for name, f := range i.FileByPath {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.Content, f.Mode); err != nil {
			return err
		}
	}
	return nil
}
