package options

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/speaker/links"
)

// excludedInterfacesFile is the content of the file, in MetalLB's format.
type excludedInterfacesFile struct {
	InterfaceNamePatterns []string `json:"announcedInterfacesToExclude"`
}

// NewExcludedInterfacesReader returns a function that reads the file of --exclude-interfaces-file.
// If there is no file it returns the default.
func NewExcludedInterfacesReader(path string) links.ExcludePatternsFunc {
	return func() ([]string, error) {
		text, err := os.ReadFile(path)
		if path == "" || errors.Is(err, fs.ErrNotExist) {
			return links.DefaultExcludePatterns, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the excluded interfaces (--exclude-interfaces-file): %w", err)
		}
		var e excludedInterfacesFile
		if err := yaml.UnmarshalStrict(text, &e); err != nil {
			return nil, fmt.Errorf("reading the excluded interfaces in %q (--exclude-interfaces-file): %w",
				path, err)
		}
		return e.InterfaceNamePatterns, nil
	}
}
