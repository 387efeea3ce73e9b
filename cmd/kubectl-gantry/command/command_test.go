package command

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// runWithoutKubeconfig runs kubectl gantry without a kubeconfig, and returns its exit status and
// both outputs.
func runWithoutKubeconfig(t *testing.T, args ...string) (status int, out, errOut string) {
	t.Helper()
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	var stdout, stderr bytes.Buffer
	status = RunProgram(t.Context(), ProcessEnvironment{
		Args: args, Out: &stdout, ErrOut: &stderr, Now: time.Now, LookupVariable: func(string) (string, bool) { return "", false },
	})
	return status, stdout.String(), stderr.String()
}

func TestUnreachableClusterErrorIsOneLine(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for _, args := range [][]string{{"explain", "service", "web"}, {"status"}, {"pools"}, {"explain", "address", "192.0.2.1"}} {
		status, out, errOut := runWithoutKubeconfig(t, append([]string{"--server", closed.URL}, args...)...)
		if status != 2 || out != "" || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, "the cluster cannot be reached: ") {
			t.Errorf("%q exits with %d and says %q, %q", args, status, out, errOut)
		}
	}
}

func TestUsageErrorIsOneLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--context", "nowhere", "status"}, "nowhere"},
		{[]string{"explain", "service"}, "accepts 1 arg"},
		{[]string{"explian"}, "unknown command"},
		{[]string{"explain", "servcie", "web"}, `unknown kind "servcie": did you mean service?`},
		{[]string{"explain", "web"}, `unknown kind "web": write KIND NAME; the kinds are address, advertisement, node, peer, pool, service`},
		{[]string{"explain", "servcie/web"}, `unknown kind "servcie": did you mean service?`},
		{[]string{"explain", "service/"}, "explain takes one KIND/NAME, or KIND NAME"},
		{[]string{"explain", "service/web", "service/shop"}, "explain takes one KIND/NAME, or KIND NAME"},
		{[]string{"explain", "pool/first-pool", "--live"}, "--live is only for a service, not for a pool"},
		{[]string{"--server", "http://127.0.0.1:1", "-o", "xml", "status"}, "-o xml: the formats are table, wide, json and yaml"},
	} {
		status, _, errOut := runWithoutKubeconfig(t, c.args...)
		if status != 2 || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, c.want) {
			t.Errorf("%q exits with %d and says %q, want %q", c.args, status, errOut, c.want)
		}
	}
}

// TestUserWithoutRightsIsToldWhatIsRefused is refused everything, and is told what.
func TestUserWithoutRightsIsToldWhatIsRefused(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"not allowed"}`)
	}))
	defer server.Close()
	status, out, errOut := runWithoutKubeconfig(t, "--server", server.URL, "-n", "shop", "explain", "service", "web")
	for _, want := range []string{"you have no right to get services in namespace shop\n", "get services in namespace shop", "list ipaddresspools.metallb.io in namespace metallb-system", "list nodes"} {
		if status != 2 || !strings.Contains(out, want) {
			t.Errorf("it exits with %d and says %s%s, want %q", status, out, errOut, want)
		}
	}
}

// TestAllServicesAreReadAsProtobuf looks at the request for what may be very much.
func TestAllServicesAreReadAsProtobuf(t *testing.T) {
	var mu sync.Mutex
	accepted := map[string]string{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		accepted[r.URL.Path] = r.Header.Get("Accept")
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"not allowed"}`)
	}))
	defer server.Close()
	runWithoutKubeconfig(t, "--server", server.URL, "status")
	mu.Lock()
	defer mu.Unlock()
	if got := accepted["/api/v1/services"]; !strings.HasPrefix(got, "application/vnd.kubernetes.protobuf") {
		t.Errorf("all Services are read as %q; the requests are %q", got, accepted)
	}
}

func TestDateHeaderCorrectsLocalClock(t *testing.T) {
	local := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c := &serverClock{localNow: func() time.Time { return local }}
	for _, step := range []struct {
		date string
		want time.Duration
	}{
		{"", 0}, {"nonsense", 0},
		{local.Add(time.Second).Format(http.TimeFormat), 0}, // the resolution of the header
		{local.Add(-time.Hour).Format(http.TimeFormat), -time.Hour},
	} {
		c.setFromDateHeader(step.date)
		if got := c.now().Sub(local); got != step.want {
			t.Errorf("after the date %q the clock is off by %s, want %s", step.date, got, step.want)
		}
	}
}

// TestShellCompletion completes as the shell and as kubectl ask for it.
func TestShellCompletion(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		program string
		args    []string
		want    []string
	}{
		{"/usr/bin/kubectl-gantry", []string{"__complete", "explain", ""}, []string{"service\t", "node\t", "pool\t", "peer\t", "advertisement\t", "address\t"}},
		{"/usr/bin/kubectl_complete-gantry", []string{"st"}, []string{"status\t"}},
		{"C:\\x\\kubectl-gantry.exe", []string{"__complete", "status", "-o", ""}, []string{"table", "wide", "json", "yaml"}},
	} {
		var stdout bytes.Buffer
		status := RunProgram(t.Context(), ProcessEnvironment{
			ProgramPath: c.program, Args: c.args, Out: &stdout, ErrOut: &bytes.Buffer{}, Now: time.Now, LookupVariable: func(string) (string, bool) { return "", false },
		})
		for _, want := range c.want {
			if status != 0 || !strings.Contains(stdout.String(), want) {
				t.Errorf("%s %q exits with %d and says %q, want %q", c.program, c.args, status, stdout.String(), want)
			}
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if status, out, _ := runWithoutKubeconfig(t, "completion", shell); status != 0 || len(out) < 1000 {
			t.Errorf("completion %s exits with %d and says %q", shell, status, out)
		}
	}
}

// TestFastestResponseDelayIsRecorded measures answers with a clock that the server turns.
func TestFastestResponseDelayIsRecorded(t *testing.T) {
	var mu sync.Mutex
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	delays := []time.Duration{3 * time.Second, 2 * time.Second, 4 * time.Second}
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		now = now.Add(delays[0])
		delays = delays[1:]
	}))
	defer server.Close()
	clock := &serverClock{localNow: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}}
	if got := clock.shortestResponseDelay(); got != 0 {
		t.Errorf("before any answer the fastest took %s", got)
	}
	for range len(delays) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := (&dateHeaderTransport{http.DefaultTransport, clock}).RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	if got := clock.shortestResponseDelay(); got != 2*time.Second {
		t.Errorf("the fastest answer took %s, want 2s", got)
	}
}
