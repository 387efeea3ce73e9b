package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links"
)

// layer2Options are the options for ARP and NDP.
type layer2Options struct {
	ExcludeInterfacesFile string
	RefreshInterval       time.Duration
	AnswerPing            bool
}

// minAnnouncementRefreshInterval keeps the load of thousands of announced addresses low.
const minAnnouncementRefreshInterval = 10 * time.Second

func (o *layer2Options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.ExcludeInterfacesFile, "exclude-interfaces-file", "/etc/gantry/excludel2.yaml",
		"file with the list announcedInterfacesToExclude: regular expressions for interfaces "+
			"on which nothing is announced; changes take effect at once, and without the file the usual container interfaces are excluded")
	fs.BoolVar(&o.AnswerPing, "layer2-answer-ping", false,
		"answer pings to held addresses; do not use it with kube-proxy in ipvs mode, where the kernel answers")
	fs.DurationVar(&o.RefreshInterval, "layer2-refresh-interval", 0,
		"announce held addresses by ARP and NDP again at this interval, for networks that forget them; "+
			"0 for never, else at least 10s")
}

func (o *layer2Options) validate() error {
	if o.RefreshInterval != 0 && o.RefreshInterval < minAnnouncementRefreshInterval {
		return option.InvalidOptionError("layer2-refresh-interval", o.RefreshInterval.String(), "write 0, or 10s or more")
	}
	return nil
}

// engineOptions returns the options for the layer-2 engine.
func (o *layer2Options) engineOptions(w wire.Wire) []layer2.Option {
	out := []layer2.Option{layer2.WithRefreshInterval(o.RefreshInterval)}
	if o.AnswerPing {
		out = append(out, layer2.WithPingResponders(w))
	}
	return out
}

// excludedInterfacesFile is the content of the file, in MetalLB's format.
type excludedInterfacesFile struct {
	Patterns []string `json:"announcedInterfacesToExclude"`
}

// newExclusionReader returns a function that reads the file. If there is no file it returns the
// default.
func newExclusionReader(path string) links.ExcludePatternsFunc {
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
		return e.Patterns, nil
	}
}
