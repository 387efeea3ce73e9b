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

// layer2Options are the options about ARP and NDP.
type layer2Options struct {
	ExcludeInterfacesFile string
	RefreshInterval       time.Duration
	AnswerPing            bool
}

// minRefreshInterval keeps thousands of addresses from being announced more often than switches forget.
const minRefreshInterval = 10 * time.Second

func (o *layer2Options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.ExcludeInterfacesFile, "exclude-interfaces-file", "/etc/gantry/excludel2.yaml", "file whose announcedInterfacesToExclude lists expressions of interfaces on which nothing is announced; read again when it changes, and the usual container interfaces are excluded while there is none")
	fs.BoolVar(&o.AnswerPing, "layer2-answer-ping", false, "answer pings of held addresses; not for kube-proxy in ipvs mode, where the kernel does")
	fs.DurationVar(&o.RefreshInterval, "layer2-refresh-interval", 0, "announce held addresses by ARP and NDP again this often, for networks that forget them; 0 is off, else at least 10s")
}

func (o *layer2Options) validate() error {
	if o.RefreshInterval != 0 && o.RefreshInterval < minRefreshInterval {
		return option.InvalidOptionError("layer2-refresh-interval", o.RefreshInterval.String(), "write 0, or 10s or more")
	}
	return nil
}

// engineOptions returns what the options ask of the engine.
func (o *layer2Options) engineOptions(w wire.Wire) []layer2.Option {
	out := []layer2.Option{layer2.WithRefreshInterval(o.RefreshInterval)}
	if o.AnswerPing {
		out = append(out, layer2.WithPingWire(w))
	}
	return out
}

// excludedInterfaces is the file's content, in the format that users of this API know.
type excludedInterfaces struct {
	Patterns []string `json:"announcedInterfacesToExclude"`
}

// readExclusionsFrom reads the file each time; no file is the default.
func readExclusionsFrom(path string) links.ExcludePatternsFunc {
	return func() ([]string, error) {
		text, err := os.ReadFile(path)
		if path == "" || errors.Is(err, fs.ErrNotExist) {
			return links.DefaultExcludePatterns, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the excluded interfaces (--exclude-interfaces-file): %w", err)
		}
		var e excludedInterfaces
		if err := yaml.UnmarshalStrict(text, &e); err != nil {
			return nil, fmt.Errorf("reading the excluded interfaces in %q (--exclude-interfaces-file): %w", path, err)
		}
		return e.Patterns, nil
	}
}
