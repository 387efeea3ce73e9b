package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"k8s.io/client-go/rest"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/option"
)

// healthRequestHeaderTimeout bounds how long the kubelet may take to send a request.
const healthRequestHeaderTimeout = 5 * time.Second

// requiredCRDResources are the resources that must be installed before the controller starts. It
// ends if one of them is missing when it begins to watch.
var requiredCRDResources = append(slices.Clone(configuration.RequiredCRDResources),
	v1beta1.GroupVersion.WithResource("servicel2statuses"), v1beta1.GroupVersion.WithResource("servicebgpstatuses"),
	v1alpha1.GroupVersion.WithResource("addressledgers"), v1alpha1.GroupVersion.WithResource("addressreservations"),
	v1alpha1.GroupVersion.WithResource("addressprobes"), v1alpha1.GroupVersion.WithResource("speakerstatuses"),
	v1alpha1.GroupVersion.WithResource("bgpsessions"))

// awaitCRDsWhileServingHealth waits until the API server serves the kinds that the controller uses.
// Meanwhile it answers the health checks at the address: alive and not ready. Without answers the
// kubelet would restart the controller again and again, with growing delays, and no address would
// be assigned for up to five minutes after the API server is back.
func awaitCRDsWhileServingHealth(ctx context.Context, config *rest.Config, log *slog.Logger, address string) error {
	stop, err := serveAliveButNotReady(ctx, address)
	if err != nil {
		return err
	}
	defer stop() // before the manager takes the address
	return option.AwaitCRDResourcesServed(ctx, config, log, requiredCRDResources...)
}

// serveAliveButNotReady answers the health checks of a waiting controller until stop is called.
// With an empty address or 0 it serves nothing.
func serveAliveButNotReady(ctx context.Context, address string) (stop func(), err error) {
	if address == "" || address == "0" {
		return func() {}, nil
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serving the health checks at %s: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "waiting for the API server to serve the kinds of metallb.io and gantry.dev", http.StatusServiceUnavailable)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: healthRequestHeaderTimeout}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("serving the health checks", "address", address, "error", err)
		}
	}()
	return func() {
		_ = server.Close()
		<-done
	}, nil
}
