// Package preflight serves the facts of a node for kubectl gantry preflight, instead of a speaker:
// what the kernel allows, how it is set, and which other nodes answer on the port of the gossip. It
// changes nothing on the node, and knows nothing of Kubernetes.
package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/internal/nodefacts"
)

const (
	// readHeaderTimeout bounds a request of kubectl gantry.
	readHeaderTimeout = 5 * time.Second
	// shutdownTimeout bounds the end of the page's server.
	shutdownTimeout = time.Second
	// maxPathsPerRequest bounds how many nodes one request lets the node ask.
	maxPathsPerRequest = 1000
)

// Options say which node serves its facts.
type Options struct {
	NodeName string
	// IsBesideSpeaker is set if a speaker is installed on the node. The port of the gossip is its
	// own, also while it restarts.
	IsBesideSpeaker bool
	// Now returns the time of the node.
	Now func() time.Time
}

// ServeFacts serves the facts of this node until ctx ends. Meanwhile it answers the other nodes on
// the port of the gossip, if that is free and does not belong to a speaker of the node. It returns
// an error if it cannot serve on nodefacts.PagePort.
func ServeFacts(ctx context.Context, o Options) error {
	used := readUsedPorts() // before its own are among them
	if !o.IsBesideSpeaker {
		if answering, err := answerOnGossipPort(ctx); err == nil {
			defer answering.Wait()
		}
	}
	pages := http.NewServeMux()
	pages.HandleFunc(nodefacts.FactsPagePath, func(w http.ResponseWriter, r *http.Request) {
		facts := readFacts(r.Context(), o.Now)
		facts.Node, facts.UsedPorts = o.NodeName, used
		writePage(w, facts)
	})
	pages.HandleFunc(nodefacts.PathsPagePath, func(w http.ResponseWriter, r *http.Request) {
		targets, err := parseTargets(r.URL.Query()[nodefacts.PathsParameter])
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writePage(w, checkPaths(r.Context(), targets))
	})
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(nodefacts.PagePort)))
	if err != nil {
		return fmt.Errorf("serving the facts of the node: %w", err)
	}
	server := &http.Server{Handler: pages, ReadHeaderTimeout: readHeaderTimeout}
	var stopped sync.WaitGroup
	stopped.Go(func() {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		_ = server.Shutdown(bounded)
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the facts of the node: %w", err)
	}
	stopped.Wait()
	return nil
}

func writePage(w http.ResponseWriter, content any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(content)
}

func parseTargets(texts []string) ([]netip.Addr, error) {
	if len(texts) > maxPathsPerRequest {
		return nil, fmt.Errorf("%d addresses, more than %d", len(texts), maxPathsPerRequest)
	}
	var out []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}
