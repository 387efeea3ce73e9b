package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/gantry-lb/gantry/internal/rib"
)

// healthAndRoutesServer serves the health checks and what is announced to routers. Its address is
// one of the node itself, so that only the kubelet and pods/portforward reach it.
type healthAndRoutesServer struct {
	healthzChecks, readyzChecks map[string]healthz.Checker
	// announcedRoutesFunc returns an error while the routes are not known.
	announcedRoutesFunc func(context.Context) (any, error)
}

// healthAndRoutesRequestTimeout bounds the reading of a request and the writing of its answer.
const healthAndRoutesRequestTimeout = 10 * time.Second

// addToManager lets the manager run the server. Nothing is served at an empty address or at "0".
func (s *healthAndRoutesServer) addToManager(mgr manager.Manager, address string) error {
	if address == "" || address == "0" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for health checks on %s: %w", address, err)
	}
	return mgr.Add(&manager.Server{
		Name: "health and routes", Listener: l,
		Server: &http.Server{Handler: s.newHandler(), ReadTimeout: healthAndRoutesRequestTimeout, WriteTimeout: healthAndRoutesRequestTimeout},
	})
}

func (s *healthAndRoutesServer) newHandler() http.Handler {
	mux := http.NewServeMux()
	for path, checks := range map[string]map[string]healthz.Checker{"/healthz": s.healthzChecks, "/readyz": s.readyzChecks} {
		h := http.StripPrefix(path, &healthz.Handler{Checks: checks})
		mux.Handle(path, h)
		mux.Handle(path+"/", h)
	}
	mux.HandleFunc("GET "+rib.RoutesPagePath, func(w http.ResponseWriter, r *http.Request) {
		routes, err := s.announcedRoutesFunc(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(routes) // an error means that the reader has gone
	})
	return mux
}
