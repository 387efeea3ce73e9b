package lab

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The levers make something fail, or right again. Hosts are named as in Host.

// CutCable pulls a host's cable to the LAN: the host loses the carrier.
func (l *Lab) CutCable(ctx context.Context, host string) error {
	return l.request(ctx, controlRequest{Op: "cut", Host: host})
}

// CutCableSilently has nothing pass between a host and the LAN, while the host's carrier stays.
func (l *Lab) CutCableSilently(ctx context.Context, host string) error {
	return l.request(ctx, controlRequest{Op: "cut-silently", Host: host})
}

// PlugCable undoes both cuts.
func (l *Lab) PlugCable(ctx context.Context, host string) error {
	return l.request(ctx, controlRequest{Op: "plug", Host: host})
}

// Partition separates each group of hosts from all others; the hosts in no group stay together.
func (l *Lab) Partition(ctx context.Context, groups ...[]string) error {
	return l.request(ctx, controlRequest{Op: "partition", Groups: groups})
}

// HealPartition undoes Partition, and no cut.
func (l *Lab) HealPartition(ctx context.Context) error {
	return l.request(ctx, controlRequest{Op: "heal"})
}

// KillNode is a power failure of a node: its cable is dead, and every process on it. Its kernel forgets rules, BlockPort's
// among them, connections and neighbors.
func (l *Lab) KillNode(ctx context.Context, node string) error {
	return l.request(ctx, controlRequest{Op: "kill", Host: node})
}

// ReviveNode switches a killed node on again.
func (l *Lab) ReviveNode(ctx context.Context, node string) error {
	return l.request(ctx, controlRequest{Op: "revive", Host: node})
}

// SignalProgram sends a signal to a program, such as kube-proxy on a node or kube-apiserver on any, or to the containers of the
// Pod on the node whose name begins with target.
func (l *Lab) SignalProgram(ctx context.Context, node, target string, s syscall.Signal) error {
	return l.request(ctx, controlRequest{Op: "signal", Host: node, Target: target, Signal: int(s)})
}

// StopAPI makes the API server vanish for everybody; StartAPI brings it back.
func (l *Lab) StopAPI(ctx context.Context) error {
	return l.request(ctx, controlRequest{Op: "stop-api"})
}

// StartAPI undoes StopAPI.
func (l *Lab) StartAPI(ctx context.Context) error {
	return l.request(ctx, controlRequest{Op: "start-api"})
}

// DelayAPI delays whatever clients send to the API server; 0 lifts it.
func (l *Lab) DelayAPI(ctx context.Context, d time.Duration) error {
	return l.request(ctx, controlRequest{Op: "slow-api", Delay: d})
}

// BlockPort drops what a host receives on a port and what it sends to that port; proto is tcp or udp.
func (l *Lab) BlockPort(ctx context.Context, host, proto string, port int) error {
	return l.request(ctx, controlRequest{Op: "block", Host: host, Proto: proto, Port: port})
}

// UnblockPorts lifts every block of a host.
func (l *Lab) UnblockPorts(ctx context.Context, host string) error {
	return l.request(ctx, controlRequest{Op: "unblock", Host: host})
}

// StartCapture writes the frames of a host's link to the LAN that match the filter (as tcpdump has it) into a file of its own,
// from before it returns until stop does, and returns the file's path. A host may have several captures at once.
func (l *Lab) StartCapture(ctx context.Context, host, filter string) (path string, stop func() error, err error) {
	answer, err := sendRequest(ctx, l.options.Dir, controlRequest{Op: "capture", Host: host, Filter: filter})
	if err != nil {
		return "", nil, err
	}
	name, file, _ := strings.Cut(strings.TrimSpace(answer), " ")
	stop = func() error { return l.request(ctx, controlRequest{Op: "capture-end", Host: host, Target: name}) }
	return filepath.Join(l.options.Dir, "captures", file), stop, nil
}

func (l *Lab) request(ctx context.Context, o controlRequest) error {
	_, err := sendRequest(ctx, l.options.Dir, o)
	return err
}

// outputTail keeps what a process wrote, for an error message.
type outputTail struct {
	mu        sync.Mutex
	lastBytes []byte
}

// Write keeps the last 64 KiB.
func (s *outputTail) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastBytes = append(s.lastBytes, b...)
	s.lastBytes = s.lastBytes[max(0, len(s.lastBytes)-64<<10):]
	return len(b), nil
}

// String returns what is kept.
func (s *outputTail) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.lastBytes)
}
