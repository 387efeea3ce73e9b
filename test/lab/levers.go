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
	return l.order(ctx, order{Op: "cut", Host: host})
}

// CutCableSilently has nothing pass between a host and the LAN, while the host's carrier stays.
func (l *Lab) CutCableSilently(ctx context.Context, host string) error {
	return l.order(ctx, order{Op: "cut-silently", Host: host})
}

// PlugCable undoes both cuts.
func (l *Lab) PlugCable(ctx context.Context, host string) error {
	return l.order(ctx, order{Op: "plug", Host: host})
}

// Partition separates each group of hosts from all others; the hosts in no group stay together.
func (l *Lab) Partition(ctx context.Context, groups ...[]string) error {
	return l.order(ctx, order{Op: "partition", Groups: groups})
}

// Heal undoes Partition, and no cut.
func (l *Lab) Heal(ctx context.Context) error { return l.order(ctx, order{Op: "heal"}) }

// Kill is a power failure of a node: its cable is dead, and every process on it. Its kernel forgets rules, BlockPort's
// among them, connections and neighbors.
func (l *Lab) Kill(ctx context.Context, node string) error {
	return l.order(ctx, order{Op: "kill", Host: node})
}

// Revive switches a killed node on again.
func (l *Lab) Revive(ctx context.Context, node string) error {
	return l.order(ctx, order{Op: "revive", Host: node})
}

// Signal sends a signal to a program, such as kube-proxy on a node or kube-apiserver on any, or to the containers of the
// Pod on the node whose name begins with target.
func (l *Lab) Signal(ctx context.Context, node, target string, s syscall.Signal) error {
	return l.order(ctx, order{Op: "signal", Host: node, Target: target, Signal: int(s)})
}

// StopAPI makes the API server vanish for everybody; StartAPI brings it back.
func (l *Lab) StopAPI(ctx context.Context) error { return l.order(ctx, order{Op: "stop-api"}) }

// StartAPI undoes StopAPI.
func (l *Lab) StartAPI(ctx context.Context) error { return l.order(ctx, order{Op: "start-api"}) }

// SlowAPI delays whatever clients send to the API server; 0 lifts it.
func (l *Lab) SlowAPI(ctx context.Context, d time.Duration) error {
	return l.order(ctx, order{Op: "slow-api", Delay: d})
}

// BlockPort drops what a host receives on a port and what it sends to that port; proto is tcp or udp.
func (l *Lab) BlockPort(ctx context.Context, host, proto string, port int) error {
	return l.order(ctx, order{Op: "block", Host: host, Proto: proto, Port: port})
}

// UnblockPorts lifts every block of a host.
func (l *Lab) UnblockPorts(ctx context.Context, host string) error {
	return l.order(ctx, order{Op: "unblock", Host: host})
}

// Capture writes the frames of a host's link to the LAN that match the filter (as tcpdump has it) into a file of its own,
// from before it returns until stop does, and returns the file's path. A host may have several captures at once.
func (l *Lab) Capture(ctx context.Context, host, filter string) (path string, stop func() error, err error) {
	answer, err := command(ctx, l.o.Dir, order{Op: "capture", Host: host, Filter: filter})
	if err != nil {
		return "", nil, err
	}
	name, file, _ := strings.Cut(strings.TrimSpace(answer), " ")
	stop = func() error { return l.order(ctx, order{Op: "capture-end", Host: host, Target: name}) }
	return filepath.Join(l.o.Dir, "captures", file), stop, nil
}

func (l *Lab) order(ctx context.Context, o order) error {
	_, err := command(ctx, l.o.Dir, o)
	return err
}

// syncBuffer keeps what a process wrote, for an error message.
type syncBuffer struct {
	mu sync.Mutex
	b  []byte
}

// Write keeps the last 64 KiB.
func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b = append(s.b, b...)
	s.b = s.b[max(0, len(s.b)-64<<10):]
	return len(b), nil
}

// String returns what is kept.
func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.b)
}
