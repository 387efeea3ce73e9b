package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
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
		return s.capture(r.Context(), w, o)
	case "capture-end":
		return s.endCapture(o)
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

// capture writes what passes a host's link to the LAN into a file of its own, until its program is signalled. The answer, one
// word each, is the program's name and the file's; by then everything that passes is seen.
func (s *supervisor) capture(ctx context.Context, w io.Writer, o order) error {
	h := s.hosts[o.Host]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", o.Host)
	}
	name := fmt.Sprintf("capture%d", s.captures.Add(1))
	file := o.Host + "-" + name + ".pcap"
	path := filepath.Join(s.o.Dir, "captures", file)
	args := append([]string{"-i", lanLink, "-U", "--immediate-mode", "-n", "-Z", "root", "-w", path}, strings.Fields(o.Filter)...)
	p, err := s.procs.start(h.ns, s.logs(), o.Host+"/"+name, "tcpdump", args...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	err = p.await(ctx, func(context.Context) error {
		if text, _ := os.ReadFile(p.log); !strings.Contains(string(text), "listening on") {
			return errors.New("it does not listen yet")
		}
		return nil
	})
	if err == nil {
		fmt.Fprintln(w, name, file)
	}
	return err
}

// endCapture ends a capture and waits until its file is complete.
func (s *supervisor) endCapture(o order) error {
	p := s.procs.get(o.Host + "/" + o.Target)
	if p == nil {
		return fmt.Errorf("no capture %q runs on %s", o.Target, o.Host)
	}
	// Interrupted, it leaves unread what has come: so it is interrupted once it waits for more.
	for deadline := time.Now().Add(stopTime); processState(p.cmd.Process.Pid) == "R" && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	if err := s.procs.signal(p.name, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTime):
		return fmt.Errorf("the capture on %s did not end within %v", o.Host, stopTime)
	}
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
