// Package option reads the command lines of both binaries. The environment variable
// GANTRY_SOME_NAME is the fallback for the flag --some-name; the flag wins. Unknown flags are
// refused. An error names the flag, the variable and the offending text. The package reads no file
// but the kubeconfig.
package option

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// ListenAddressDisabledValue is the value that turns a listening address off.
const ListenAddressDisabledValue = "0"

// The values of --metrics-protocol.
const (
	MetricsProtocolHTTP  = "http"
	MetricsProtocolHTTPS = "https"
)

// CommonOptions are the options of both binaries.
type CommonOptions struct {
	Kubeconfig         string
	Namespace          string
	LoadBalancerClass  string
	MetricsBindAddress string
	MetricsProtocol    string
	// MetricsCertificateDir has the certificate of the metrics; empty for one that is signed by
	// itself, which is also served while the directory has none that can be used.
	MetricsCertificateDir  string
	HealthProbeBindAddress string
	LogLevel               string
	BGPMode                string
	IgnoreExcludeLabel     bool
}

// DeclareFlags declares the flags; metrics and health are the default addresses to listen on.
func (c *CommonOptions) DeclareFlags(fs *pflag.FlagSet, metrics, health string) {
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "path of a kubeconfig; empty uses the Pod's service account")
	fs.StringVar(&c.Namespace, "namespace", names.DefaultNamespace, "namespace of Gantry's own objects and of its configuration")
	fs.StringVar(&c.LoadBalancerClass, "load-balancer-class", "", "serve only Services with this spec.loadBalancerClass; empty serves those without one")
	fs.StringVar(&c.MetricsBindAddress, "metrics-bind-address", metrics, "address:port of the metrics; 0 turns them off")
	fs.StringVar(&c.MetricsProtocol, "metrics-protocol", MetricsProtocolHTTPS, "https: only for tokens whose user may get /metrics; http: for everybody who reaches the port")
	fs.StringVar(&c.MetricsCertificateDir, "metrics-certificate-dir", "", "directory with the certificate of the metrics in the files tls.crt and tls.key; empty: a certificate that is signed by itself")
	fs.StringVar(&c.HealthProbeBindAddress, "health-probe-bind-address", health, "address:port of /healthz and /readyz; 0 turns them off")
	fs.StringVar(&c.BGPMode, "bgp", "enabled", "enabled or disabled: disabled announces only by ARP and NDP, and reads neither BGPPeers nor their Secrets")
	fs.BoolVar(&c.IgnoreExcludeLabel, "ignore-exclude-lb", false, "let nodes announce that have the label "+names.LabelExcludeNode+"; set it on the controller and on the speakers")
	fs.StringVar(&c.LogLevel, "log-level", "info", "all, debug, info, warn, error or none")
}

// ValidateValues says which option has a value that cannot be used.
func (c *CommonOptions) ValidateValues() error {
	if c.Namespace == "" {
		return InvalidOptionError("namespace", c.Namespace, "name the namespace that holds the IPAddressPools")
	}
	if _, ok := logLevelByName[c.LogLevel]; !ok {
		return InvalidOptionError("log-level", c.LogLevel, "write all, debug, info, warn, error or none")
	}
	if c.BGPMode != "enabled" && c.BGPMode != "disabled" {
		return InvalidOptionError("bgp", c.BGPMode, "write enabled or disabled")
	}
	if c.MetricsProtocol != MetricsProtocolHTTP && c.MetricsProtocol != MetricsProtocolHTTPS {
		return InvalidOptionError("metrics-protocol", c.MetricsProtocol, "write https or http")
	}
	for _, l := range []struct{ flag, value string }{
		{"metrics-bind-address", c.MetricsBindAddress}, {"health-probe-bind-address", c.HealthProbeBindAddress},
	} {
		if _, _, err := net.SplitHostPort(l.value); l.value != ListenAddressDisabledValue && err != nil {
			return InvalidOptionError(l.flag, l.value, "write ADDRESS:PORT, :PORT or 0")
		}
	}
	return nil
}

// InvalidOptionError is the error for an option whose value cannot be used.
func InvalidOptionError(flag, value, hint string) error {
	return fmt.Errorf("--%s (or %s): %q cannot be used: %s", flag, environmentVariableOfFlag(flag), value, hint)
}

func environmentVariableOfFlag(flag string) string {
	return "GANTRY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// ParseFlags reads the arguments, then the environment for flags that are not given.
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
		value, ok := lookup(environmentVariableOfFlag(f.Name))
		if f.Changed || !ok || failed != nil {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			failed = InvalidOptionError(f.Name, value, "write a "+f.Value.Type())
		}
	})
	return failed
}

// logLevelByName: "all" shows everything, "none" nothing.
var logLevelByName = map[string]slog.Level{
	"all": -100, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError, "none": 100,
}

// ConfigurationScope is the part of the configuration that is read.
func (c *CommonOptions) ConfigurationScope() configuration.ConfigurationScope {
	return configuration.ConfigurationScope{Namespace: c.Namespace, WithoutBGPKinds: c.BGPMode == "disabled", IgnoreExcludeLabel: c.IgnoreExcludeLabel}
}

// LoadRESTConfig returns how to reach the API server. The client does not limit its own rate: the
// API server's priority and fairness does that better, and an address must not wait for a
// client-side token.
func (c *CommonOptions) LoadRESTConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading how to reach the API server (--kubeconfig %q, or the Pod's service account): %w", c.Kubeconfig, err)
	}
	config.QPS = -1
	return config, nil
}

// LookupProcessEnvironmentVariable reads a variable of the process's environment.
func LookupProcessEnvironmentVariable(name string) (string, bool) { return os.LookupEnv(name) }
