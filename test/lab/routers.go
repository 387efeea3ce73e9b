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

// routerDirectory has the files of the routers, in the lab's own mounts. Its name is short because
// a socket's path has at most 107 bytes.
const routerDirectory = "/run/routers"

// Router is a routing daemon on a host of the lab. It ends with the lab.
type Router struct {
	router.RouterConsole
	lab  *Lab
	host string
}

// RouterOnHost returns the router on a host of the LAN, which may be any host. Start starts it.
// kind is router.FRR or router.BIRD.
func (l *Lab) RouterOnHost(host string, kind router.Kind) *Router {
	dir := fmt.Sprintf("/proc/%d/root%s/%s", l.supervisorPID, routerDirectory, host)
	return &Router{router.RouterConsole{Kind: kind, Dir: dir}, l, host}
}

// StartWithConfig starts the router with a configuration as an operator writes it, and returns when
// the configuration is in effect. A router that already runs on the host is stopped first.
func (r *Router) StartWithConfig(ctx context.Context, text string) error {
	return r.lab.sendControlRequest(ctx, supervisorRequest{Operation: "router-start", LANHost: r.host, ProgramOrPodPrefix: string(r.Kind), RouterConfigText: text})
}

// Stop ends the router in an orderly way: it closes its sessions and withdraws its routes.
func (r *Router) Stop(ctx context.Context) error {
	return r.lab.sendControlRequest(ctx, supervisorRequest{Operation: "router-stop", LANHost: r.host})
}

// KillDaemons sends SIGKILL to the daemons with these names (bgpd, bfdd, zebra, staticd, bird), or
// to all if no name is given.
func (r *Router) KillDaemons(ctx context.Context, names ...string) error {
	return r.lab.sendControlRequest(ctx, supervisorRequest{Operation: "router-kill", LANHost: r.host, RouterDaemonNames: names})
}

// StartEndedDaemons starts the daemons that are not running, with the configuration of the last
// Start.
func (r *Router) StartEndedDaemons(ctx context.Context) error {
	return r.lab.sendControlRequest(ctx, supervisorRequest{Operation: "router-restart", LANHost: r.host})
}

// runningRouters are the routers that the supervisor runs, by host.
type runningRouters struct {
	mu           sync.Mutex // guards routerByHost
	routerByHost map[string]*router.Router
}

func (rs *runningRouters) findByHost(host string) *router.Router {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.routerByHost[host]
}

// handleRouterRequest carries out a request about a router.
func (s *supervisor) handleRouterRequest(ctx context.Context, o supervisorRequest) error {
	h := s.hostByName[o.LANHost]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", o.LANHost)
	}
	r := s.routers.findByHost(o.LANHost)
	if o.Operation == "router-start" {
		if r != nil {
			r.StopDaemonsInOrder()
		}
		dir, logs := filepath.Join(routerDirectory, o.LANHost), filepath.Join(s.logDir(), o.LANHost)
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("removing the files of the last router: %w", err)
		}
		if err := os.MkdirAll(logs, 0o755); err != nil {
			return fmt.Errorf("creating the directory of the router's logs: %w", err)
		}
		r, err := router.Start(ctx, router.Config{
			Kind: router.Kind(o.ProgramOrPodPrefix), NetNS: h.namespace, Dir: dir, LogDir: logs, ConfigText: o.RouterConfigText,
		})
		if err != nil {
			return err
		}
		s.routers.mu.Lock()
		defer s.routers.mu.Unlock()
		if s.routers.routerByHost == nil {
			s.routers.routerByHost = map[string]*router.Router{}
		}
		s.routers.routerByHost[o.LANHost] = r
		return nil
	}
	if r == nil {
		return fmt.Errorf("no router was started on %s", o.LANHost)
	}
	switch o.Operation {
	case "router-stop":
		r.StopDaemonsInOrder()
	case "router-kill":
		return r.KillDaemons(o.RouterDaemonNames...)
	case "router-restart":
		return r.StartEndedDaemons(ctx)
	}
	return nil
}

// newRouterCommands returns the subcommands that start and query a router.
func newRouterCommands(dir func() string) []*cobra.Command {
	find := func(host string) (*Router, error) {
		if !isLabRunning(dir()) {
			return nil, fmt.Errorf("no lab runs in %s: start one with bin/lab up", dir())
		}
		l := &Lab{options: Options{Dir: dir()}, supervisorPID: readPIDFile(dir(), "pid")}
		r := l.RouterOnHost(host, router.FRR)
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
		return r.StartWithConfig(c.Context(), string(text))
	}
	show := &cobra.Command{Use: "show HOST WORDS...", Short: "Query a router, for example: show router bgp summary", Args: cobra.MinimumNArgs(2)}
	show.RunE = func(c *cobra.Command, args []string) error {
		r, err := find(args[0])
		if err != nil {
			return err
		}
		out, err := r.RunShowCommand(c.Context(), "show "+strings.Join(args[1:], " "))
		fmt.Fprint(c.OutOrStdout(), string(out))
		return err
	}
	return []*cobra.Command{start, show}
}
