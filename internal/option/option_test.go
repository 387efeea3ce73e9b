package option

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// parseOptions reads the options from the arguments and the environment.
func parseOptions(environment map[string]string, args ...string) (*CommonOptions, error) {
	c, fs := &CommonOptions{}, pflag.NewFlagSet("program", pflag.ContinueOnError)
	c.DeclareFlags(fs, ":7472", ":7473")
	fs.Int("member-count", 3, "")
	err := ParseFlags(fs, args, func(name string) (string, bool) {
		v, ok := environment[name]
		return v, ok
	})
	return c, err
}

func mustParseOptions(t *testing.T, environment map[string]string, args ...string) *CommonOptions {
	t.Helper()
	c, err := parseOptions(environment, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFlagsWithTheEnvironmentAsFallback(t *testing.T) {
	defaults := CommonOptions{
		Namespace: names.DefaultNamespace, MetricsBindAddress: ":7472", MetricsProtocol: "https", HealthProbeBindAddress: ":7473", LogLevel: "info", BGPMode: "enabled",
	}
	with := func(edit func(*CommonOptions)) CommonOptions {
		c := defaults
		edit(&c)
		return c
	}
	for name, c := range map[string]struct {
		environment map[string]string
		args        []string
		want        CommonOptions
	}{
		"nothing is given": {want: defaults},
		"a flag": {
			args: []string{"--namespace=lb", "--kubeconfig", "/k"},
			want: with(func(c *CommonOptions) { c.Namespace, c.Kubeconfig = "lb", "/k" }),
		},
		"a variable": {
			environment: map[string]string{"GANTRY_METRICS_BIND_ADDRESS": "0", "GANTRY_LOAD_BALANCER_CLASS": "x/y"},
			want:        with(func(c *CommonOptions) { c.MetricsBindAddress, c.LoadBalancerClass = "0", "x/y" }),
		},
		"the flag wins": {
			environment: map[string]string{"GANTRY_BGP": "disabled", "GANTRY_LOG_LEVEL": "warn"}, args: []string{"--bgp=enabled"},
			want: with(func(c *CommonOptions) { c.LogLevel = "warn" }),
		},
		"an empty variable is a value": {
			environment: map[string]string{"GANTRY_NAMESPACE": ""},
			want:        with(func(c *CommonOptions) { c.Namespace = "" }),
		},
		"a variable without the prefix": {environment: map[string]string{"NAMESPACE": "other", "KUBECONFIG": "/k"}, want: defaults},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mustParseOptions(t, c.environment, c.args...); *got != c.want {
				t.Errorf("the options are %+v, want %+v", *got, c.want)
			}
		})
	}
}

func TestUnparsableCommandLinesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		environment map[string]string
		args        []string
		want        []string // parts of the error
	}{
		"an unknown flag": {args: []string{"--colour=red"}, want: []string{"--colour"}},
		"an argument":     {args: []string{"--bgp=disabled", "start"}, want: []string{`"start"`, "there are only flags"}},
		"a variable of another type": {
			environment: map[string]string{"GANTRY_MEMBER_COUNT": "many"},
			want:        []string{"--member-count", "GANTRY_MEMBER_COUNT", `"many"`, "write a int"},
		},
		"a flag of another type": {args: []string{"--member-count=many"}, want: []string{"--member-count", `"many"`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseOptions(c.environment, c.args...)
			requireErrorContaining(t, err, c.want...)
		})
	}
	if _, err := parseOptions(map[string]string{"GANTRY_MEMBER_COUNT": "many"}, "--member-count=4"); err != nil {
		t.Errorf("the variable of a flag that is given: %v", err)
	}
}

func requireErrorContaining(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("there is no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error is %q, want it to contain %q", err, p)
		}
	}
}

func TestInvalidOptionValuesAreRefused(t *testing.T) {
	for arg, want := range map[string][]string{
		"--namespace=":                         {"--namespace", "GANTRY_NAMESPACE", `""`, "name the namespace"},
		"--log-level=verbose":                  {"--log-level", "GANTRY_LOG_LEVEL", `"verbose"`, "debug, info"},
		"--log-level=INFO":                     {"--log-level", `"INFO"`},
		"--bgp=true":                           {"--bgp", "GANTRY_BGP", `"true"`, "enabled or disabled"},
		"--metrics-bind-address=7472":          {"--metrics-bind-address", "GANTRY_METRICS_BIND_ADDRESS", `"7472"`, ":PORT or 0"},
		"--metrics-bind-address=":              {"--metrics-bind-address", `""`, ":PORT or 0"},
		"--metrics-protocol=tls":               {"--metrics-protocol", "GANTRY_METRICS_PROTOCOL", `"tls"`, "https or http"},
		"--health-probe-bind-address=fd00::1":  {"--health-probe-bind-address", "GANTRY_HEALTH_PROBE_BIND_ADDRESS", `"fd00::1"`, ":PORT or 0"},
		"--health-probe-bind-address=10.0.0.1": {"--health-probe-bind-address", `"10.0.0.1"`},
	} {
		t.Run(arg, func(t *testing.T) {
			requireErrorContaining(t, mustParseOptions(t, nil, arg).ValidateValues(), want...)
		})
	}
}

func TestValidOptionValuesAreAccepted(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{"--log-level=all"},
		{"--log-level=none", "--bgp=disabled"},
		{"--metrics-bind-address=0", "--health-probe-bind-address=0"},
		{"--metrics-bind-address=127.0.0.1:1", "--health-probe-bind-address=[::1]:1"},
	} {
		if err := mustParseOptions(t, nil, args...).ValidateValues(); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestLogLevels(t *testing.T) {
	messages := []struct {
		level slog.Level
		text  string
	}{{slog.LevelDebug - 4, "trace"}, {slog.LevelDebug, "debug"}, {slog.LevelInfo, "info"}, {slog.LevelWarn, "warn"}, {slog.LevelError, "error"}}
	for level, want := range map[string]string{
		"all": "trace debug info warn error", "debug": "debug info warn error", "info": "info warn error",
		"warn": "warn error", "error": "error", "none": "",
	} {
		var out bytes.Buffer
		log := mustParseOptions(t, nil, "--log-level="+level).NewLogger(&out)
		for _, m := range messages {
			log.Log(t.Context(), m.level, m.text)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			if !strings.HasPrefix(line, `{"time":`) {
				t.Errorf("the line %q is no JSON", line)
			}
			for _, m := range messages {
				if strings.Contains(line, `"msg":"`+m.text+`"`) {
					got = append(got, m.text)
				}
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("--log-level=%s shows %q, want %q", level, got, want)
		}
	}
}

func TestLogShowsDurationsInSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		90 * time.Second: "90s", 20 * time.Minute: "1200s", 6812345 * time.Microsecond: "6.812s", -2 * time.Second: "-2s",
		250 * time.Millisecond: "250ms", 0: "0s",
	} {
		var out bytes.Buffer
		mustParseOptions(t, nil).NewLogger(&out).Info("again later", "again", d)
		if !strings.Contains(out.String(), `"again":"`+want+`"`) {
			t.Errorf("a log line with %d ns has no %q: %s", d, want, out.String())
		}
	}
}

func TestConfigurationScopeFollowsFlags(t *testing.T) {
	for arg, want := range map[string]configuration.ConfigurationScope{
		"--bgp=enabled":  {Namespace: "lb"},
		"--bgp=disabled": {Namespace: "lb", WithoutBGPKinds: true},
	} {
		if got := mustParseOptions(t, nil, arg, "--namespace=lb").ConfigurationScope(); got != want {
			t.Errorf("%s: the scope is %+v, want %+v", arg, got, want)
		}
	}
}

const validKubeconfig = `apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab, user: me}}]
clusters: [{name: lab, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: me, user: {token: abc}}]
`

func TestLoadRESTConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	load := func(text string) (*rest.Config, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return mustParseOptions(t, nil, "--kubeconfig="+path).LoadRESTConfig()
	}
	config, err := load(validKubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://192.0.2.1:6443" || config.BearerToken != "abc" {
		t.Errorf("the API server is %s with the token %q", config.Host, config.BearerToken)
	}
	if config.QPS >= 0 {
		t.Errorf("the client limits its rate to %v requests a second", config.QPS)
	}
	_, err = load("no: [kubeconfig")
	requireErrorContaining(t, err, "--kubeconfig", path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err = mustParseOptions(t, nil, "--kubeconfig="+path).LoadRESTConfig()
	requireErrorContaining(t, err, "reading how to reach the API server", "--kubeconfig", path, "no such file")
}

func TestLoadRESTConfigFailsOutsidePodWithoutKubeconfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBERNETES_SERVICE_PORT", "")
	_, err := mustParseOptions(t, nil).LoadRESTConfig()
	requireErrorContaining(t, err, "--kubeconfig", "service account")
}

func TestLookupEnvironmentVariable(t *testing.T) {
	t.Setenv("GANTRY_NAMESPACE", "lb")
	if v, ok := LookupProcessEnvironmentVariable("GANTRY_NAMESPACE"); v != "lb" || !ok {
		t.Errorf("the variable is %q, %v", v, ok)
	}
	if v, ok := LookupProcessEnvironmentVariable("GANTRY_OF_NO_FLAG"); ok {
		t.Errorf("a variable that is not set is %q", v)
	}
}

func TestSetGCPercentAndStopMemProfile(t *testing.T) {
	earlier := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(earlier) })
	t.Setenv("GOGC", "100")
	SetGCPercentAndStopMemProfile(20)
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC is set, and the percentage is %d, want the user's 100", got)
	}
	if err := os.Unsetenv("GOGC"); err != nil {
		t.Fatal(err)
	}
	SetGCPercentAndStopMemProfile(20)
	if got := debug.SetGCPercent(100); got != 20 {
		t.Errorf("the percentage is %d, want 20", got)
	}
}

// fakeDiscovery is an API server that lists the resources of one group and version. The lists
// follow one another; the last one stays. An empty list is a group that is not installed.
type fakeDiscovery struct {
	resourceListResponses []string
	lastRequestPath       string // of the last request
}

func (d *fakeDiscovery) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	list := d.resourceListResponses[0]
	if d.lastRequestPath = r.URL.Path; len(d.resourceListResponses) > 1 {
		d.resourceListResponses = d.resourceListResponses[1:]
	}
	w.Header().Set("Content-Type", "application/json")
	if list == "" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	var resources []string
	for name := range strings.FieldsSeq(list) {
		resources = append(resources, `{"name":"`+name+`","kind":"K","namespaced":true,"verbs":["get"]}`)
	}
	_, _ = w.Write([]byte(`{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"metallb.io/v1beta1","resources":[` + strings.Join(resources, ",") + `]}`))
}

func TestAwaitCRDResourcesServed(t *testing.T) {
	d := &fakeDiscovery{resourceListResponses: []string{"", "ipaddresspools", "ipaddresspools", "ipaddresspools communities"}}
	server := httptest.NewServer(d)
	defer server.Close()
	var out bytes.Buffer
	err := AwaitCRDResourcesServed(t.Context(), &rest.Config{Host: server.URL}, slog.New(slog.NewJSONHandler(&out, nil)), newResource("metallb.io", "v1beta1", "ipaddresspools"), newResource("metallb.io", "v1beta1", "communities"))
	if err != nil {
		t.Fatal(err)
	}
	if len(d.resourceListResponses) != 1 || d.lastRequestPath != "/apis/metallb.io/v1beta1" {
		t.Errorf("the wait ends %d answers too early, after asking for %s", len(d.resourceListResponses)-1, d.lastRequestPath)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "metallb.io/v1beta1: ") || !strings.Contains(lines[1], `"missing":"communities.metallb.io/v1beta1"`) {
		t.Errorf("the log is %q, want one line for the group and one for communities", lines)
	}
	for _, l := range lines {
		if !strings.Contains(l, "kubectl apply -k config/crd") {
			t.Errorf("the line %q does not say what to do", l)
		}
	}
}

// TestAwaitCRDResourcesNamesMissingGroupVersion has an API server with the kinds of MetalLB only,
// and with a BGPPeer of the first version only.
func TestAwaitCRDResourcesNamesMissingGroupVersion(t *testing.T) {
	for _, missing := range []schema.GroupVersionResource{
		newResource("gantry.dev", "v1alpha1", "addressledgers"), newResource("metallb.io", "v1beta2", "bgppeers"),
	} {
		ctx, cancel := context.WithCancel(t.Context())
		asked := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/apis/metallb.io/v1beta1" {
				if asked++; asked == 2 {
					cancel()
				}
				http.NotFound(w, r)
				return
			}
			(&fakeDiscovery{resourceListResponses: []string{"bgppeers"}}).ServeHTTP(w, r)
		}))
		var out bytes.Buffer
		if err := AwaitCRDResourcesServed(ctx, &rest.Config{Host: server.URL}, slog.New(slog.NewJSONHandler(&out, nil)), newResource("metallb.io", "v1beta1", "bgppeers"), missing); err != nil {
			t.Error(err)
		}
		server.Close()
		cancel()
		if asked < 2 || !strings.Contains(out.String(), missing.GroupVersion().String()+": ") {
			t.Errorf("without %s, it was asked for %d times, and the log is %q", missing, asked, out.String())
		}
	}
}

func newResource(group, version, name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: name}
}

func TestAwaitCRDResourcesEndsWithContext(t *testing.T) {
	server := httptest.NewServer(&fakeDiscovery{resourceListResponses: []string{""}})
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := AwaitCRDResourcesServed(ctx, &rest.Config{Host: server.URL}, slog.New(slog.DiscardHandler), newResource("metallb.io", "v1beta1", "communities")); err != nil {
		t.Error(err)
	}
}

func TestAwaitCRDResourcesFailsIfNoRequestPossible(t *testing.T) {
	err := AwaitCRDResourcesServed(t.Context(), &rest.Config{Host: "://"}, slog.New(slog.DiscardHandler), newResource("metallb.io", "v1beta1", "communities"))
	requireErrorContaining(t, err, "asking which kinds the API server serves")
}
