package lab

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The methods below cause a fault or end one. Lab.Host lists the names of hosts.

// CutCable pulls the host's cable to the LAN. The host loses the carrier.
func (l *Lab) CutCable(ctx context.Context, host string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "cut", LANHost: host})
}

// CutCableKeepingCarrier drops all frames between a host and the LAN. The host keeps the carrier.
func (l *Lab) CutCableKeepingCarrier(ctx context.Context, host string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "cut-silently", LANHost: host})
}

// PlugCable undoes CutCable and CutCableKeepingCarrier.
func (l *Lab) PlugCable(ctx context.Context, host string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "plug", LANHost: host})
}

// Partition separates each group of hosts from all others. The hosts in no group stay connected to
// each other.
func (l *Lab) Partition(ctx context.Context, groups ...[]string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "partition", PartitionGroups: groups})
}

// HealPartition undoes Partition. Cut cables stay cut.
func (l *Lab) HealPartition(ctx context.Context) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "heal"})
}

// KillNode simulates a power failure of a node: all its processes die and its cable loses the
// carrier. The node's kernel loses its firewall rules (also those that block ports), connections
// and neighbors.
func (l *Lab) KillNode(ctx context.Context, node string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "kill", LANHost: node})
}

// ReviveNode starts a killed node again.
func (l *Lab) ReviveNode(ctx context.Context, node string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "revive", LANHost: node})
}

// RestartKubeProxy kills kube-proxy on a node, starts it again, and waits until it answers its
// health check. Its rules stay meanwhile.
func (l *Lab) RestartKubeProxy(ctx context.Context, node string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "restart-proxy", LANHost: node})
}

// SignalProgramOrPod sends a signal to the program or the Pod named by target. A program is, for
// example, kube-proxy on the node, or kube-apiserver, for which the node does not matter. A Pod is
// found on the node by a prefix of its name, and all its containers get the signal.
func (l *Lab) SignalProgramOrPod(ctx context.Context, node, target string, s syscall.Signal) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "signal", LANHost: node, ProgramOrPodPrefix: target, Signal: int(s)})
}

// BlockAPIServer makes the API server unreachable for all clients. UnblockAPIServer undoes it.
func (l *Lab) BlockAPIServer(ctx context.Context) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "stop-api"})
}

// UnblockAPIServer undoes BlockAPIServer.
func (l *Lab) UnblockAPIServer(ctx context.Context) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "start-api"})
}

// DelayAPIRequests delays everything that clients send to the API server; 0 removes the delay.
func (l *Lab) DelayAPIRequests(ctx context.Context, d time.Duration) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "slow-api", APIRequestDelay: d})
}

// UnblockPorts removes all blocks of a host.
func (l *Lab) UnblockPorts(ctx context.Context, host string) error {
	return l.sendControlRequest(ctx, supervisorRequest{Operation: "unblock", LANHost: host})
}

// StartCapture captures the frames on a host's LAN link that match the filter, in tcpdump's syntax,
// and returns the path of the file. The file has every frame from the return of StartCapture until
// the return of stop. A host may have several captures at the same time.
func (l *Lab) StartCapture(ctx context.Context, host, filter string) (path string, stop func() error, err error) {
	answer, err := sendSupervisorRequest(ctx, l.options.Dir, supervisorRequest{Operation: "capture", LANHost: host, CaptureFilter: filter})
	if err != nil {
		return "", nil, err
	}
	name, file, _ := strings.Cut(strings.TrimSpace(answer), " ")
	stop = func() error {
		return l.sendControlRequest(ctx, supervisorRequest{Operation: "capture-end", LANHost: host, ProgramOrPodPrefix: name})
	}
	return filepath.Join(l.options.Dir, "captures", file), stop, nil
}

func (l *Lab) sendControlRequest(ctx context.Context, o supervisorRequest) error {
	_, err := sendSupervisorRequest(ctx, l.options.Dir, o)
	return err
}

// outputTail keeps the end of a process's output for an error message.
type outputTail struct {
	mu              sync.Mutex
	lastOutputBytes []byte
}

// Write appends to the output, of which the last 64 KiB are kept.
func (s *outputTail) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastOutputBytes = append(s.lastOutputBytes, b...)
	s.lastOutputBytes = s.lastOutputBytes[max(0, len(s.lastOutputBytes)-64<<10):]
	return len(b), nil
}

// String returns the output that is kept.
func (s *outputTail) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.lastOutputBytes)
}
