package preview

import (
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/resource"
)

// ManifestSource says where manifests are.
type ManifestSource struct {
	// Paths are files, directories and URLs, as kubectl apply takes them; "-" is Input.
	Paths []string
	// IsRecursive reads the directories in directories too.
	IsRecursive bool
	Input       io.Reader
}

// ReadManifests returns the objects of the manifests, in their order. Lists are resolved.
func ReadManifests(s ManifestSource) ([]*unstructured.Unstructured, error) {
	builder := resource.NewLocalBuilder().Unstructured().ContinueOnError().Flatten()
	var paths []string
	for _, p := range s.Paths {
		if p == "-" {
			builder = builder.Stream(s.Input, "standard input")
		} else {
			paths = append(paths, p)
		}
	}
	if len(paths) > 0 {
		builder = builder.FilenameParam(false, &resource.FilenameOptions{Filenames: paths, Recursive: s.IsRecursive})
	}
	infos, err := builder.Do().Infos()
	if err != nil {
		return nil, fmt.Errorf("reading the manifests: %w", err)
	}
	var out []*unstructured.Unstructured
	for _, info := range infos {
		u, ok := info.Object.(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("reading the manifests: %T is no object", info.Object)
		}
		out = append(out, u)
	}
	if len(out) == 0 {
		return nil, errors.New("the manifests have no object")
	}
	return out, nil
}
