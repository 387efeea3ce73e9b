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

	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/internal/rib"
)

// localRequestTimeout bounds the reading of a request and the writing of its answer.
const localRequestTimeout = 10 * time.Second

// addLocalServer lets the manager run a server at an address of the node itself, which only the
// kubelet, pods/portforward and programs of the node reach. Nothing is served at an empty address
// or at "0".
func addLocalServer(mgr manager.Manager, name, address string, handler http.Handler) error {
	if address == "" || address == option.ListenAddressDisabledValue {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listening for %s on %s: %w", name, address, err)
	}
	return mgr.Add(&manager.Server{
		Name: name, Listener: l, Server: &http.Server{Handler: handler, ReadTimeout: localRequestTimeout, WriteTimeout: localRequestTimeout},
	})
}

// newHealthHandler returns a handler that serves the health checks and nothing else.
func newHealthHandler(healthzChecks, readyzChecks map[string]healthz.Checker) http.Handler {
	mux := http.NewServeMux()
	for path, checks := range map[string]map[string]healthz.Checker{"/healthz": healthzChecks, "/readyz": readyzChecks} {
		h := http.StripPrefix(path, &healthz.Handler{Checks: checks})
		mux.Handle(path, h)
		mux.Handle(path+"/", h)
	}
	return mux
}

// newRoutesHandler returns a handler that serves what is announced to routers. announcedRoutes
// returns an error while the routes are not known.
func newRoutesHandler(announcedRoutes func(context.Context) (any, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+rib.RoutesPagePath, func(w http.ResponseWriter, r *http.Request) {
		routes, err := announcedRoutes(r.Context())
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
