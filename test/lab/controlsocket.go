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

// supervisorRequest is a request to the supervisor. Only the fields that the operation needs are
// set.
type supervisorRequest struct {
	Operation          string        // see handleRequest
	LANHost            string        // a host of the LAN
	ProgramOrPodPrefix string        // a program, or a prefix of a Pod's name
	Signal             int           // for "signal"
	PartitionGroups    [][]string    // for "partition"
	BlockedProtocol    string        // "tcp" or "udp", for "block"
	BlockedPort        int           // for "block"
	APIRequestDelay    time.Duration // for "slow-api"
	CaptureFilter      string        // for "capture"
	RouterConfigText   string        // for "router-start"
	RouterDaemonNames  []string      // for "router-kill"
}

// serveSupervisorRequest handles one request. If that fails, it answers status 500 with the error
// as the text.
func (s *supervisor) serveSupervisorRequest(w http.ResponseWriter, r *http.Request) {
	var o supervisorRequest
	err := json.NewDecoder(r.Body).Decode(&o)
	if err == nil {
		err = s.handleRequest(r, w, o)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (s *supervisor) handleRequest(r *http.Request, w http.ResponseWriter, o supervisorRequest) error {
	switch o.Operation {
	case "cut":
		return s.cutCable(o.LANHost)
	case "cut-silently":
		return s.cutCableKeepingCarrier(o.LANHost)
	case "plug":
		return s.plugCable(o.LANHost)
	case "partition":
		return s.partitionHosts(o.PartitionGroups)
	case "heal":
		return s.healPartition()
	case "kill":
		return s.killNode(o.LANHost)
	case "revive":
		return s.reviveNode(r.Context(), o.LANHost)
	case "signal":
		return s.signalProgramDaemonOrPod(o.LANHost, o.ProgramOrPodPrefix, syscall.Signal(o.Signal))
	case "restart-proxy":
		return s.restartKubeProxy(r.Context(), o.LANHost)
	case "stop-api":
		s.relay.stopListening()
	case "start-api":
		return s.relay.startListening()
	case "slow-api":
		s.relay.setDelay(o.APIRequestDelay)
	case "block":
		return s.blockPort(o.LANHost, o.BlockedProtocol, o.BlockedPort)
	case "unblock":
		return s.unblockPorts(o.LANHost)
	case "capture":
		return s.startCapture(r.Context(), w, o)
	case "capture-end":
		return s.endCapture(o)
	case "router-start", "router-stop", "router-kill", "router-restart":
		return s.handleRouterRequest(r.Context(), o)
	case "status":
		s.printStatus(w)
	default:
		return fmt.Errorf("no operation %q", o.Operation)
	}
	return nil
}

// signalProgramDaemonOrPod sends a signal to a program or a Pod of a node.
func (s *supervisor) signalProgramDaemonOrPod(host, target string, sig syscall.Signal) error {
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
	return s.applyFirewallRulesOnHost(host, "add table inet lab\n"+
		"add chain inet lab in { type filter hook input priority -300; }\n"+
		"add chain inet lab out { type filter hook output priority -300; }\n"+
		"add rule inet lab in "+match+"add rule inet lab out "+match)
}

// unblockPorts removes all blocks of a host.
func (s *supervisor) unblockPorts(host string) error {
	return s.applyFirewallRulesOnHost(host, "add table inet lab\ndelete table inet lab\n")
}

func (s *supervisor) applyFirewallRulesOnHost(name, rules string) error {
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
func (s *supervisor) startCapture(ctx context.Context, w io.Writer, o supervisorRequest) error {
	h := s.hostByName[o.LANHost]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", o.LANHost)
	}
	name := fmt.Sprintf("capture%d", s.startedCaptureCount.Add(1))
	file := o.LANHost + "-" + name + ".pcap"
	path := filepath.Join(s.options.Dir, "captures", file)
	args := append([]string{"-i", lanLink, "-U", "--immediate-mode", "-n", "-Z", "root", "-w", path}, strings.Fields(o.CaptureFilter)...)
	p, err := s.programs.startProgram(h.namespace, s.logDir(), o.LANHost+"/"+name, "tcpdump", args...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, processStopTimeout)
	defer cancel()
	err = p.retryUntilNoErrorOrProcessEnds(ctx, func(context.Context) error {
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
func (s *supervisor) endCapture(o supervisorRequest) error {
	p := s.programs.findByName(o.LANHost + "/" + o.ProgramOrPodPrefix)
	if p == nil {
		return fmt.Errorf("no capture %q is running on %s", o.ProgramOrPodPrefix, o.LANHost)
	}
	// An interrupted tcpdump drops the frames that it has not read yet. So interrupt it only after
	// it has read them all, which is when it sleeps.
	for deadline := time.Now().Add(processStopTimeout); readProcessState(p.cmd.Process.Pid) == "R" && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	if err := s.programs.sendSignal(p.name, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-p.endedSignal:
		return nil
	case <-time.After(processStopTimeout):
		return fmt.Errorf("the capture on %s did not end within %v", o.LANHost, processStopTimeout)
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
