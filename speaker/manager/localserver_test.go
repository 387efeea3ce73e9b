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

func TestHealthAndRoutesServerAnswers(t *testing.T) {
	ready := errors.New("not yet")
	s := &healthAndRoutesServer{
		healthzChecks:       map[string]healthz.Checker{"alive": healthz.Ping},
		readyzChecks:        map[string]healthz.Checker{"synced": func(*http.Request) error { return ready }},
		announcedRoutesFunc: func(context.Context) (any, error) { return []string{"198.51.100.1/32"}, nil },
	}
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		s.newHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	for path, want := range map[string]int{"/healthz": 200, "/healthz/": 200, "/healthz/alive": 200, "/readyz": 500, "/other": 404, rib.RoutesPagePath: 200} {
		if got := get(path).Code; got != want {
			t.Errorf("%s gives %d, want %d", path, got, want)
		}
	}
	ready = nil
	if got := get("/readyz").Code; got != 200 {
		t.Errorf("/readyz gives %d when the speaker is ready", got)
	}
	var routes []string
	if err := json.Unmarshal(get(rib.RoutesPagePath).Body.Bytes(), &routes); err != nil || len(routes) != 1 {
		t.Errorf("the routes are %v, %v", routes, err)
	}
}

// A speaker that waits for the gossip key does not know its routes. An empty list would say that it
// announces none.
func TestRoutesPageFailsUntilRoutesAreKnown(t *testing.T) {
	m := &ControllerRuntimeManager{}
	s := &healthAndRoutesServer{announcedRoutesFunc: m.describeAnnouncedRoutes}
	get := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		s.newHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, rib.RoutesPagePath, nil))
		return w
	}
	if w := get(); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "has not started BGP yet") {
		t.Errorf("before the routes are known the page is %d %q, want 503 and why", w.Code, w.Body.String())
	}
	m.ServeAnnouncedRoutes(func(context.Context) any { return []string{} })
	if w := get(); w.Code != http.StatusOK || strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("without routes the page is %d %q, want 200 and an empty list", w.Code, w.Body.String())
	}
}
