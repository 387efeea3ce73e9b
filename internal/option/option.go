// Package option reads the command lines of both binaries. Every flag --some-name has the environment variable
// GANTRY_SOME_NAME as its fallback; the flag wins. Unknown flags are refused, and an error names the flag, the
// variable and the offending text. It reads no file but the kubeconfig.
package option

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/gantry-lb/gantry/api/names"
)

// ListenOff is the value that switches an address to listen on off.
const ListenOff = "0"

// Common are the options that both binaries have.
type Common struct {
	Kubeconfig             string
	Namespace              string
	LoadBalancerClass      string
	MetricsBindAddress     string
	HealthProbeBindAddress string
	LogLevel               string
	BGP                    string
}

// DeclareFlags declares the flags; metrics and health are the default addresses to listen on.
func (c *Common) DeclareFlags(fs *pflag.FlagSet, metrics, health string) {
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "path of a kubeconfig; empty uses the Pod's service account")
	fs.StringVar(&c.Namespace, "namespace", names.Namespace, "namespace of Gantry's own objects and of its configuration")
	fs.StringVar(&c.LoadBalancerClass, "load-balancer-class", "", "serve only Services with this spec.loadBalancerClass; empty serves those without one")
	fs.StringVar(&c.MetricsBindAddress, "metrics-bind-address", metrics, "address:port of the metrics; 0 switches them off")
	fs.StringVar(&c.HealthProbeBindAddress, "health-probe-bind-address", health, "address:port of /healthz and /readyz; 0 switches them off")
	fs.StringVar(&c.BGP, "bgp", "enabled", "enabled or disabled: disabled announces by ARP and NDP alone, and reads no BGPPeer and no Secret of one")
	fs.StringVar(&c.LogLevel, "log-level", "info", "all, debug, info, warn, error or none")
}

// ValidateValues says which option has a value that cannot be used.
func (c *Common) ValidateValues() error {
	if c.Namespace == "" {
		return InvalidOptionError("namespace", c.Namespace, "name the namespace that holds the IPAddressPools")
	}
	if _, ok := logLevelByName[c.LogLevel]; !ok {
		return InvalidOptionError("log-level", c.LogLevel, "write all, debug, info, warn, error or none")
	}
	if c.BGP != "enabled" && c.BGP != "disabled" {
		return InvalidOptionError("bgp", c.BGP, "write enabled or disabled")
	}
	for _, l := range []struct{ flag, value string }{
		{"metrics-bind-address", c.MetricsBindAddress}, {"health-probe-bind-address", c.HealthProbeBindAddress},
	} {
		if _, _, err := net.SplitHostPort(l.value); l.value != ListenOff && err != nil {
			return InvalidOptionError(l.flag, l.value, "write ADDRESS:PORT, :PORT or 0")
		}
	}
	return nil
}

// InvalidOptionError is the error for an option whose value cannot be used.
func InvalidOptionError(flag, value, hint string) error {
	return fmt.Errorf("--%s (or %s): %q cannot be used: %s", flag, environmentVariable(flag), value, hint)
}

func environmentVariable(flag string) string {
	return "GANTRY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// ParseFlags reads the arguments, then the environment for the flags that were not given.
func ParseFlags(fs *pflag.FlagSet, args []string, lookup func(string) (string, bool)) error {
	fs.SortFlags = false
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: there are only flags", fs.Arg(0))
	}
	var failed error
	fs.VisitAll(func(f *pflag.Flag) {
		value, ok := lookup(environmentVariable(f.Name))
		if f.Changed || !ok || failed != nil {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			failed = InvalidOptionError(f.Name, value, "write a "+f.Value.Type())
		}
	})
	return failed
}

// logLevelByName are the log levels by name. The lowest shows everything, the highest nothing.
var logLevelByName = map[string]slog.Level{
	"all": -100, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError, "none": 100,
}

// NewLogger returns a logger that writes lines of JSON from the level upward.
func (c *Common) NewLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: logLevelByName[c.LogLevel]}))
}

// LoadRESTConfig returns how to reach the API server. The client does not throttle itself: the API server's own priority and
// fairness does that better, and an address should not wait for a token.
func (c *Common) LoadRESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading how to reach the API server (--kubeconfig %q, or the Pod's service account): %w", c.Kubeconfig, err)
	}
	config.QPS = -1
	return config, nil
}

// LookupEnvironment looks a variable up in the process's environment.
func LookupEnvironment(name string) (string, bool) { return os.LookupEnv(name) }
