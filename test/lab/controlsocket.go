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

// controlRequest is a request to the supervisor. Only the fields that the operation needs are set.
type controlRequest struct {
	Op     string        // see handleRequest
	Host   string        // a host of the LAN
	Target string        // a program, or a prefix of a Pod's name
	Signal int           // for "signal"
	Groups [][]string    // for "partition"
	Proto  string        // "tcp" or "udp", for "block"
	Port   int           // for "block"
	Delay  time.Duration // for "slow-api"
	Filter string        // for "capture"
	Text   string        // for "router-start"
	Names  []string      // for "router-kill"
}

// serveControl handles one request. If that fails, it answers status 500 with the error as the
// text.
func (s *supervisor) serveControl(w http.ResponseWriter, r *http.Request) {
	var o controlRequest
	err := json.NewDecoder(r.Body).Decode(&o)
	if err == nil {
		err = s.handleRequest(r, w, o)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (s *supervisor) handleRequest(r *http.Request, w http.ResponseWriter, o controlRequest) error {
	switch o.Op {
	case "cut":
		return s.cutCable(o.Host)
	case "cut-silently":
		return s.cutCableSilently(o.Host)
	case "plug":
		return s.plugCable(o.Host)
	case "partition":
		return s.partitionHosts(o.Groups)
	case "heal":
		return s.healPartition()
	case "kill":
		return s.killNode(o.Host)
	case "revive":
		return s.reviveNode(r.Context(), o.Host)
	case "signal":
		return s.sendSignal(o.Host, o.Target, syscall.Signal(o.Signal))
	case "stop-api":
		s.relay.stopListening()
	case "start-api":
		return s.relay.startListening()
	case "slow-api":
		s.relay.setDelay(o.Delay)
	case "block":
		return s.blockPort(o.Host, o.Proto, o.Port)
	case "unblock":
		return s.unblockPorts(o.Host)
	case "capture":
		return s.startCapture(r.Context(), w, o)
	case "capture-end":
		return s.endCapture(o)
	case "router-start", "router-stop", "router-kill", "router-restart":
		return s.handleRouterRequest(r.Context(), o)
	case "status":
		s.printStatus(w)
	default:
		return fmt.Errorf("no operation %q", o.Op)
	}
	return nil
}

// sendSignal sends a signal to a program or a Pod of a node.
func (s *supervisor) sendSignal(host, target string, sig syscall.Signal) error {
	if s.programs.sendSignal(host+"/"+target, sig) == nil || s.programs.sendSignal(target, sig) == nil {
		return nil
	}
	if r := s.routers.findByHost(host); r != nil && r.SignalDaemons(sig, target) == nil {
		return nil
	}
	s.mu.Lock()
	r := s.agentByNode[host]
	s.mu.Unlock()
	if r == nil {
		return fmt.Errorf("node %q is not up, and no program %q is running", host, target)
	}
	return r.agent.SignalPod(target, sig)
}

// blockPort drops packets that a host receives on a port and those that it sends to that port.
func (s *supervisor) blockPort(host, proto string, port int) error {
	match := proto + " dport " + strconv.Itoa(port) + " drop\n"
	return s.applyFirewallRules(host, "add table inet lab\n"+
		"add chain inet lab in { type filter hook input priority -300; }\n"+
		"add chain inet lab out { type filter hook output priority -300; }\n"+
		"add rule inet lab in "+match+"add rule inet lab out "+match)
}

// unblockPorts removes all blocks of a host.
func (s *supervisor) unblockPorts(host string) error {
	return s.applyFirewallRules(host, "add table inet lab\ndelete table inet lab\n")
}

func (s *supervisor) applyFirewallRules(name, rules string) error {
	h := s.hostByName[name]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", name)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.namespace.RunInside(cmd.Run); err != nil {
		return fmt.Errorf("setting rules on %s: %w: %s", name, err, out.String())
	}
	return nil
}

// startCapture starts tcpdump on a host's LAN link, with a file of its own. It answers the name of
// the program and the name of the file once tcpdump is listening.
func (s *supervisor) startCapture(ctx context.Context, w io.Writer, o controlRequest) error {
	h := s.hostByName[o.Host]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", o.Host)
	}
	name := fmt.Sprintf("capture%d", s.captureCount.Add(1))
	file := o.Host + "-" + name + ".pcap"
	path := filepath.Join(s.options.Dir, "captures", file)
	args := append([]string{"-i", lanLink, "-U", "--immediate-mode", "-n", "-Z", "root", "-w", path}, strings.Fields(o.Filter)...)
	p, err := s.programs.startProgram(h.namespace, s.logDir(), o.Host+"/"+name, "tcpdump", args...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, processStopTimeout)
	defer cancel()
	err = p.awaitSuccess(ctx, func(context.Context) error {
		if text, _ := os.ReadFile(p.logPath); !strings.Contains(string(text), "listening on") {
			return errors.New("it is not listening yet")
		}
		return nil
	})
	if err == nil {
		fmt.Fprintln(w, name, file)
	}
	return err
}

// endCapture ends a capture and waits until its file is complete.
func (s *supervisor) endCapture(o controlRequest) error {
	p := s.programs.findByName(o.Host + "/" + o.Target)
	if p == nil {
		return fmt.Errorf("no capture %q is running on %s", o.Target, o.Host)
	}
	// An interrupted tcpdump drops the frames that it has not read yet. So interrupt it only after
	// it has read them all, which is when it sleeps.
	for deadline := time.Now().Add(processStopTimeout); processState(p.cmd.Process.Pid) == "R" && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	if err := s.programs.sendSignal(p.name, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-p.endedSignal:
		return nil
	case <-time.After(processStopTimeout):
		return fmt.Errorf("the capture on %s did not end within %v", o.Host, processStopTimeout)
	}
}

func (s *supervisor) printStatus(w http.ResponseWriter) {
	fmt.Fprintf(w, "kube-proxy mode: %s\n", s.options.ProxyMode)
	for i := 1; i <= s.options.Nodes; i++ {
		name := nodeName(i)
		s.mu.Lock()
		r := s.agentByNode[name]
		s.mu.Unlock()
		state := "up"
		if r == nil {
			state = "down"
		}
		fmt.Fprintf(w, "%s %s %v\n", name, state, s.hostByName[name].addresses)
		if r != nil {
			r.agent.PrintPods(w)
		}
	}
}
