package manager

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/healthz"

	"github.com/gantry-lb/gantry/internal/rib"
)

// fetchPage gets a page from a handler.
func fetchPage(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// The port of the health checks tells nothing about the cluster.
func TestHealthPortServesOnlyHealthChecks(t *testing.T) {
	ready := errors.New("not yet")
	h := newHealthHandler(map[string]healthz.Checker{"alive": healthz.Ping}, map[string]healthz.Checker{"synced": func(*http.Request) error { return ready }})
	for path, want := range map[string]int{
		"/healthz": 200, "/healthz/": 200, "/healthz/alive": 200, "/readyz": 500, "/other": 404, rib.RoutesPagePath: 404, "/metrics": 404, "/debug/pprof/": 404, "/": 404,
	} {
		if got := fetchPage(h, path).Code; got != want {
			t.Errorf("%s gives %d, want %d", path, got, want)
		}
	}
	ready = nil
	if got := fetchPage(h, "/readyz").Code; got != 200 {
		t.Errorf("/readyz gives %d when the speaker is ready", got)
	}
}

func TestRoutesPortServesRoutes(t *testing.T) {
	h := newRoutesHandler(func(context.Context) (any, error) { return []string{"198.51.100.1/32"}, nil })
	var routes []string
	if err := json.Unmarshal(fetchPage(h, rib.RoutesPagePath).Body.Bytes(), &routes); err != nil || len(routes) != 1 {
		t.Errorf("the routes are %v, %v", routes, err)
	}
	if got := fetchPage(h, "/healthz").Code; got != 404 {
		t.Errorf("/healthz gives %d, want 404", got)
	}
}

// A speaker that waits for the gossip key does not know its routes. An empty list would say that it
// announces none.
func TestRoutesPageFailsUntilRoutesAreKnown(t *testing.T) {
	m := &ControllerRuntimeManager{}
	get := func() *httptest.ResponseRecorder {
		return fetchPage(newRoutesHandler(m.describeAnnouncedRoutes), rib.RoutesPagePath)
	}
	if w := get(); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "has not started BGP yet") {
		t.Errorf("before the routes are known the page is %d %q, want 503 and why", w.Code, w.Body.String())
	}
	m.ServeAnnouncedRoutes(func(context.Context) any { return []string{} })
	if w := get(); w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("without routes the page is %d %q, want 200 and an empty list", w.Code, w.Body.String())
	}
}
