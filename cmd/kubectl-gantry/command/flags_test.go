package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// fakeEmptyAPIServer is an API server that knows all kinds and has no object. While it is broken it
// answers nothing.
type fakeEmptyAPIServer struct {
	*httptest.Server
	mu       sync.Mutex // guards all that follows
	isBroken bool
	// impersonatedUsers are those as whom it was asked, paths what it was asked for.
	impersonatedUsers, requestedPaths map[string]bool
}

// apiVersionAndKindByResource has the kinds that kubectl gantry lists.
var apiVersionAndKindByResource = map[string]string{
	"services": "v1/Service", "nodes": "v1/Node", "namespaces": "v1/Namespace", "pods": "v1/Pod", "events": "v1/Event", "secrets": "v1/Secret",
	"deployments": "apps/v1/Deployment", "daemonsets": "apps/v1/DaemonSet", "leases": "coordination.k8s.io/v1/Lease", "endpointslices": "discovery.k8s.io/v1/EndpointSlice",
	"validatingwebhookconfigurations": "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration",
	"ipaddresspools":                  "metallb.io/v1beta1/IPAddressPool", "l2advertisements": "metallb.io/v1beta1/L2Advertisement", "bgpadvertisements": "metallb.io/v1beta1/BGPAdvertisement", "bgppeers": "metallb.io/v1beta2/BGPPeer",
	"bfdprofiles": "metallb.io/v1beta1/BFDProfile", "communities": "metallb.io/v1beta1/Community", "servicel2statuses": "metallb.io/v1beta1/ServiceL2Status", "servicebgpstatuses": "metallb.io/v1beta1/ServiceBGPStatus",
	"speakerstatuses": "gantry.dev/v1alpha1/SpeakerStatus", "bgpsessions": "gantry.dev/v1alpha1/BGPSession", "addressreservations": "gantry.dev/v1alpha1/AddressReservation",
}

func newFakeEmptyAPIServer(t *testing.T) *fakeEmptyAPIServer {
	c := &fakeEmptyAPIServer{impersonatedUsers: map[string]bool{}, requestedPaths: map[string]bool{}}
	c.Server = httptest.NewServer(http.HandlerFunc(c.serveRequest))
	t.Cleanup(c.Close)
	return c
}

func (c *fakeEmptyAPIServer) serveRequest(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isBroken {
		panic(http.ErrAbortHandler)
	}
	c.impersonatedUsers[r.Header.Get("Impersonate-User")], c.requestedPaths[r.URL.Path] = true, true
	w.Header().Set("Content-Type", "application/json")
	path := strings.Split(r.URL.Path, "/")
	kind, isList := apiVersionAndKindByResource[path[len(path)-1]]
	if !isList {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		return
	}
	at := strings.LastIndex(kind, "/")
	version, kind := kind[:at], kind[at+1:]+"List"
	if strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadataList") {
		version, kind = "meta.k8s.io/v1", "PartialObjectMetadataList"
	}
	fmt.Fprintf(w, `{"kind":%q,"apiVersion":%q,"metadata":{},"items":[]}`, kind, version)
}

func (c *fakeEmptyAPIServer) setBroken(isBroken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isBroken = isBroken
}

// commandsReadingCluster are the commands that ask a cluster.
var commandsReadingCluster = [][]string{
	{"status"}, {"preflight"}, {"services"}, {"pools"}, {"holders"}, {"peers"}, {"moves"}, {"routes", "node1"},
	{"explain", "service", "web"}, {"explain", "service/web"}, {"explain", "svc/web"}, {"explain", "pool/first-pool"}, {"explain", "node", "node1"}, {"explain", "pool", "first-pool"}, {"explain", "peer", "tor"}, {"explain", "advertisement", "example"}, {"explain", "address", "192.0.2.1"},
}

// TestEachCommandTakesTheCommonFlags runs each command in each format, as another user, and for all
// namespaces.
func TestEachCommandTakesTheCommonFlags(t *testing.T) {
	for _, args := range commandsReadingCluster {
		for _, format := range []string{"table", "wide", "json", "yaml"} {
			c := newFakeEmptyAPIServer(t)
			all := append([]string{"--server", c.URL, "-o", format, "--as", "jane", "-A", "-n", "shop"}, args...)
			status, out, errOut := runWithoutKubeconfig(t, all...)
			if isWell := status == 0; errOut != "" || out == "" || isWell != slices.Contains([]string{"services", "holders", "peers", "moves"}, args[0]) {
				t.Errorf("%q exits with %d and says %q, %q: only an empty table is well", all, status, out, errOut)
			}
			var answer map[string]any
			err := yaml.Unmarshal([]byte(out), &answer) // reads JSON too
			switch isObject := err == nil && answer["result"] != nil; {
			case isObject != (format == "json" || format == "yaml"):
				t.Errorf("%q prints %q", all, out)
			case json.Valid([]byte(out)) != (format == "json"):
				t.Errorf("%q prints %q", all, out)
			}
			if c.impersonatedUsers[""] || !c.impersonatedUsers["jane"] {
				t.Errorf("%q asks as %v, want jane alone", all, c.impersonatedUsers)
			}
		}
	}
}

// TestContextFlagChoosesClusterAndNamespace has a kubeconfig with two contexts.
func TestContextFlagChoosesClusterAndNamespace(t *testing.T) {
	one, other := newFakeEmptyAPIServer(t), newFakeEmptyAPIServer(t)
	path := filepath.Join(t.TempDir(), "config")
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: one
clusters: [{name: one, cluster: {server: %q}}, {name: other, cluster: {server: %q}}]
users: [{name: jane, user: {token: x}}]
contexts: [{name: one, context: {cluster: one, user: jane}}, {name: other, context: {cluster: other, user: jane, namespace: shop}}]
`, one.URL, other.URL)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	runWithoutKubeconfig(t, "--kubeconfig", path, "--context", "other", "explain", "service", "web")
	if len(one.requestedPaths) > 0 || !other.requestedPaths["/api/v1/namespaces/shop/services/web"] {
		t.Errorf("the first cluster is asked for %v, and the other one for %v", one.requestedPaths, other.requestedPaths)
	}
}

// TestServicesOfOneOrAllNamespacesAreListed asks for the Services of one namespace and of all of
// them.
func TestServicesOfOneOrAllNamespacesAreListed(t *testing.T) {
	for _, tc := range []struct{ flag, want string }{{"--namespace=shop", "/api/v1/namespaces/shop/services/web"}, {"-A", "/api/v1/services"}} {
		c := newFakeEmptyAPIServer(t)
		runWithoutKubeconfig(t, "--server", c.URL, tc.flag, "explain", "service", "web")
		if !c.requestedPaths[tc.want] {
			t.Errorf("%s reads %v, want %s among them", tc.flag, c.requestedPaths, tc.want)
		}
	}
}

// lockedBuffer is a buffer that two goroutines use.
type lockedBuffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) countOccurrences(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), text)
}

// TestWatchFlagRepeatsAnswer watches a cluster that cannot be reached for a while, until the user
// interrupts it. The exit status is that of the last answer.
func TestWatchFlagRepeatsAnswer(t *testing.T) {
	c := newFakeEmptyAPIServer(t)
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out, errOut lockedBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- RunProgram(ctx, ProcessEnvironment{
			Args: []string{"--server", c.URL, "--watch", "status"}, Out: &out, ErrOut: &errOut, Now: time.Now, LookupVariable: func(string) (string, bool) { return "", false },
		})
	}()
	await := func(what string, isTrue func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !isTrue(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waiting for %s", what)
			}
		}
	}
	const answer = "Gantry is not well"
	await("the first answer", func() bool { return out.countOccurrences(answer) > 0 })
	c.setBroken(true)
	await("an error", func() bool { return errOut.countOccurrences("the cluster cannot be reached: ") > 0 })
	before := out.countOccurrences(answer)
	c.setBroken(false)
	await("another answer", func() bool { return out.countOccurrences(answer) > before })
	interrupt()
	if status := <-ended; status != 1 || out.countOccurrences("\x1b") > 0 {
		t.Errorf("it exits with %d, want 1, and writes codes of a terminal to a file %d times", status, out.countOccurrences("\x1b"))
	}
}
