package lab

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// order is what the outside asks of the supervisor. Only the fields that the operation needs are set.
type order struct {
	Op     string        // see serve
	Host   string        // a host of the LAN
	Target string        // a program, or the beginning of a Pod's name
	Signal int           // for "signal"
	Groups [][]string    // for "partition"
	Proto  string        // "tcp" or "udp", for "block"
	Port   int           // for "block"
	Delay  time.Duration // for "slow"
	Filter string        // for "capture"
	File   string        // for "capture"
	Text   string        // for "router-start"
	Names  []string      // for "router-kill"
}

// serve carries one order out. What goes wrong is the answer's text, with status 500.
func (s *supervisor) serve(w http.ResponseWriter, r *http.Request) {
	var o order
	err := json.NewDecoder(r.Body).Decode(&o)
	if err == nil {
		err = s.obey(r, w, o)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (s *supervisor) obey(r *http.Request, w http.ResponseWriter, o order) error {
	switch o.Op {
	case "cut":
		return s.cut(o.Host)
	case "cut-silently":
		return s.cutSilently(o.Host)
	case "plug":
		return s.plug(o.Host)
	case "partition":
		return s.partition(o.Groups)
	case "heal":
		return s.heal()
	case "kill":
		return s.kill(o.Host)
	case "revive":
		return s.revive(r.Context(), o.Host)
	case "signal":
		return s.signal(o.Host, o.Target, syscall.Signal(o.Signal))
	case "stop-api":
		s.relay.stop()
	case "start-api":
		return s.relay.start()
	case "slow-api":
		s.relay.slow(o.Delay)
	case "block":
		return s.block(o.Host, o.Proto, o.Port)
	case "unblock":
		return s.unblock(o.Host)
	case "capture":
		return s.capture(o)
	case "router-start", "router-stop", "router-kill", "router-restart":
		return s.router(r.Context(), o)
	case "status":
		s.status(w)
	default:
		return fmt.Errorf("no operation %q", o.Op)
	}
	return nil
}

// signal sends a signal to a program or a Pod of a node.
func (s *supervisor) signal(host, target string, sig syscall.Signal) error {
	if s.procs.signal(host+"/"+target, sig) == nil || s.procs.signal(target, sig) == nil {
		return nil
	}
	if r := s.routers.on(host); r != nil && r.Signal(sig, target) == nil {
		return nil
	}
	s.mu.Lock()
	r := s.agents[host]
	s.mu.Unlock()
	if r == nil {
		return fmt.Errorf("no node %q is up, and no program %q runs", host, target)
	}
	return r.agent.Signal(target, sig)
}

// block drops what comes to a port of a host, and what it sends to that port of others.
func (s *supervisor) block(host, proto string, port int) error {
	match := proto + " dport " + strconv.Itoa(port) + " drop\n"
	return s.nft(host, "add table inet lab\n"+
		"add chain inet lab in { type filter hook input priority -300; }\n"+
		"add chain inet lab out { type filter hook output priority -300; }\n"+
		"add rule inet lab in "+match+"add rule inet lab out "+match)
}

// unblock lifts every block of a host.
func (s *supervisor) unblock(host string) error {
	return s.nft(host, "add table inet lab\ndelete table inet lab\n")
}

func (s *supervisor) nft(name, rules string) error {
	h := s.hosts[name]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", name)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.ns.Do(cmd.Run); err != nil {
		return fmt.Errorf("setting rules on %s: %w: %s", name, err, out.String())
	}
	return nil
}

// capture writes what passes a host's link to the LAN into a file until its program, "capture", is signalled.
func (s *supervisor) capture(o order) error {
	h := s.hosts[o.Host]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", o.Host)
	}
	path := filepath.Join(s.o.Dir, "captures", o.File)
	args := append([]string{"-i", lanLink, "-U", "-n", "-Z", "root", "-w", path}, strings.Fields(o.Filter)...)
	_, err := s.procs.start(h.ns, s.logs(), o.Host+"/capture", "tcpdump", args...)
	return err
}

func (s *supervisor) status(w http.ResponseWriter) {
	fmt.Fprintf(w, "kube-proxy mode: %s\n", s.o.ProxyMode)
	for i := 1; i <= s.o.Nodes; i++ {
		name := nodeName(i)
		s.mu.Lock()
		r := s.agents[name]
		s.mu.Unlock()
		state := "up"
		if r == nil {
			state = "down"
		}
		fmt.Fprintf(w, "%s %s %v\n", name, state, s.hosts[name].addresses)
		if r != nil {
			r.agent.Print(w)
		}
	}
}
