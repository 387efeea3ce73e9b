package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/gantry-lb/gantry/test/lab/router"
)

// routerDirectory, in the lab's own mounts, takes the files of the routers; its name is short because sockets are in it.
const routerDirectory = "/run/routers"

// Router is a host of the lab that speaks a routing protocol. It ends with the lab.
type Router struct {
	router.Console
	l    *Lab
	host string
}

// Router returns the router on a host, which is router, router2, or any other host of the LAN; Start starts it. kind is
// router.FRR or router.BIRD.
func (l *Lab) Router(host string, kind router.Kind) *Router {
	dir := fmt.Sprintf("/proc/%d/root%s/%s", l.pid, routerDirectory, host)
	return &Router{router.Console{Kind: kind, Dir: dir}, l, host}
}

// Start starts the router with a configuration as an operator writes it, and returns when it has taken it. A router that
// ran on the host before is stopped.
func (r *Router) Start(ctx context.Context, text string) error {
	return r.l.request(ctx, controlRequest{Op: "router-start", Host: r.host, Target: string(r.Kind), Text: text})
}

// Stop ends the router in order: sessions are closed, routes withdrawn.
func (r *Router) Stop(ctx context.Context) error {
	return r.l.request(ctx, controlRequest{Op: "router-stop", Host: r.host})
}

// Kill ends the daemons named (bgpd, bfdd, zebra, staticd, bird), or all, at once.
func (r *Router) Kill(ctx context.Context, names ...string) error {
	return r.l.request(ctx, controlRequest{Op: "router-kill", Host: r.host, Names: names})
}

// Restart starts the daemons that do not run, with the configuration of the last Start.
func (r *Router) Restart(ctx context.Context) error {
	return r.l.request(ctx, controlRequest{Op: "router-restart", Host: r.host})
}

// runningRouters are the routers that the supervisor runs, by host.
type runningRouters struct {
	mu     sync.Mutex // guards m
	byHost map[string]*router.Router
}

func (rs *runningRouters) find(host string) *router.Router {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.byHost[host]
}

// handleRouterRequest carries out what is asked of a router.
func (s *supervisor) handleRouterRequest(ctx context.Context, o controlRequest) error {
	h := s.hostByName[o.Host]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", o.Host)
	}
	r := s.routers.find(o.Host)
	if o.Op == "router-start" {
		if r != nil {
			r.Stop()
		}
		dir, logs := filepath.Join(routerDirectory, o.Host), filepath.Join(s.logDir(), o.Host)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing what the last router left: %w", err)
		}
		if err := os.MkdirAll(logs, 0o755); err != nil {
			return fmt.Errorf("making the directory of the router's logs: %w", err)
		}
		r, err := router.Start(ctx, router.Config{
			Kind: router.Kind(o.Target), NetNS: h.namespace, Dir: dir, LogDir: logs, Text: o.Text,
		})
		if err != nil {
			return err
		}
		s.routers.mu.Lock()
		defer s.routers.mu.Unlock()
		if s.routers.byHost == nil {
			s.routers.byHost = map[string]*router.Router{}
		}
		s.routers.byHost[o.Host] = r
		return nil
	}
	if r == nil {
		return fmt.Errorf("no router was started on %s", o.Host)
	}
	switch o.Op {
	case "router-stop":
		r.Stop()
	case "router-kill":
		return r.Kill(o.Names...)
	case "router-restart":
		return r.Restart(ctx)
	}
	return nil
}

// routerCommands start a router and ask it.
func routerCommands(dir func() string) []*cobra.Command {
	find := func(host string) (*Router, error) {
		if !isRunning(dir()) {
			return nil, fmt.Errorf("no lab runs in %s: bin/lab up brings one up", dir())
		}
		l := &Lab{options: Options{Dir: dir()}, pid: readPID(dir(), "pid")}
		r := l.Router(host, router.FRR)
		if _, err := os.Stat(filepath.Join(r.Dir, "bird.conf")); err == nil {
			r.Kind = router.BIRD
		}
		return r, nil
	}
	start := &cobra.Command{Use: "route HOST frr|bird FILE", Short: "Run FRR or BIRD on a host, with the configuration in a file", Args: cobra.ExactArgs(3)}
	start.RunE = func(c *cobra.Command, args []string) error {
		r, err := find(args[0])
		if err != nil {
			return err
		}
		text, err := os.ReadFile(args[2])
		if err != nil {
			return fmt.Errorf("reading the router's configuration: %w", err)
		}
		r.Kind = router.Kind(args[1])
		return r.Start(c.Context(), string(text))
	}
	show := &cobra.Command{Use: "show HOST WORDS...", Short: "Ask a router, as in: show router bgp summary", Args: cobra.MinimumNArgs(2)}
	show.RunE = func(c *cobra.Command, args []string) error {
		r, err := find(args[0])
		if err != nil {
			return err
		}
		out, err := r.Show(c.Context(), "show "+strings.Join(args[1:], " "))
		fmt.Fprint(c.OutOrStdout(), string(out))
		return err
	}
	return []*cobra.Command{start, show}
}
