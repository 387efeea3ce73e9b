package udp_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// The sessions of BenchmarkCPUTimeOfHundredSessions, and how long each side of the comparison is
// measured.
const (
	benchmarkSessionCount      = 100
	benchmarkEchoCount         = 10
	benchmarkMeasuringInterval = 5 * time.Second
	// maxCPURatioToBareLoop is how much processor time the engines may take, as a multiple of a
	// bare loop.
	maxCPURatioToBareLoop = 2
)

// BenchmarkCPUTimeOfHundredSessions compares the processor time of two engines with 100 sessions of
// 3 x 50 ms with that of a bare loop that sends and receives as many packets. Ten sessions use echo
// packets as well, for which the engine looks up the neighbour again and again.
func BenchmarkCPUTimeOfHundredSessions(b *testing.B) {
	for _, neighbours := range []int{0, 5000} {
		b.Run(fmt.Sprintf("neighbours=%d", neighbours), func(b *testing.B) {
			h := newBenchmarkHosts(b, neighbours)
			for b.Loop() {
				engines, packets := h.measureCPUTimeOfEngines(b)
				bare, barePackets := h.measureCPUTimeOfBareLoop(b, packets)
				perPacket := engines.Seconds() / float64(packets)
				ratio := perPacket / (bare.Seconds() / float64(barePackets))
				b.ReportMetric(ratio, "times-bare")
				b.ReportMetric(1e6*perPacket, "us/packet")
				b.ReportMetric(float64(packets)/benchmarkMeasuringInterval.Seconds(), "packets/s")
				b.ReportMetric(0, "ns/op")
				if ratio > maxCPURatioToBareLoop {
					b.Errorf("the engines took %s of processor time for %d packets, the bare loop %s for %d: %.2f times as much for each, more than %d", engines, packets, bare, barePackets, ratio, maxCPURatioToBareLoop)
				}
			}
		})
	}
}

// benchmarkHosts is a node and a router with many addresses.
type benchmarkHosts struct{ node, routerHost netns.Path }

func newBenchmarkHosts(b *testing.B, neighbours int) *benchmarkHosts {
	b.Helper()
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		b.Skip(m)
	}
	network, err := router.NewRoutedLAN(router.RoutedLANOptions{Nodes: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(network.DeleteNamespaces)
	h := &benchmarkHosts{network.NamespaceOfHost("node1"), network.NamespaceOfHost("router")}
	err = h.routerHost.RunInside(func() error {
		for i := range benchmarkSessionCount {
			if err := netns.AddAddress("eth0", netip.PrefixFrom(benchmarkRouterAddress(i), 24)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, host := range []netns.Path{h.node, h.routerHost} {
		if err == nil {
			err = host.RunInside(func() error { return addPermanentNeighbours(neighbours) })
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return h
}

// benchmarkRouterAddress returns the router's address of a session.
func benchmarkRouterAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, 0, byte(101 + i)})
}

// addPermanentNeighbours fills the neighbour table of eth0.
func addPermanentNeighbours(n int) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for i := range n {
		err := netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			IP: net.IPv4(10, 200, byte(i>>8), byte(i)), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)},
		})
		if err != nil {
			return fmt.Errorf("adding a neighbour: %w", err)
		}
	}
	return nil
}

// measureCPUTimeOfEngines runs the sessions between two engines, and returns the processor time and
// the number of packets that both sent.
func (h *benchmarkHosts) measureCPUTimeOfEngines(b *testing.B) (cpu time.Duration, packets uint64) {
	b.Helper()
	var nodeSessions, farSessions []bfd.SessionConfig
	for i := range benchmarkSessionCount {
		p := fastProfile()
		p.EchoMode = i < benchmarkEchoCount
		nodeSessions = append(nodeSessions, bfd.SessionConfig{SessionKey: bfd.SessionKey{PeerAddress: benchmarkRouterAddress(i)}, Profile: p})
		farSessions = append(farSessions, bfd.SessionConfig{SessionKey: bfd.SessionKey{PeerAddress: nodeIPv4, LocalAddress: benchmarkRouterAddress(i)}, Profile: p})
	}
	ctx, stop := context.WithCancel(b.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	start := func(host netns.Path, seed uint64, sessions []bfd.SessionConfig) *bfd.Engine {
		e := bfd.NewEngine(&netnsTransport{Transport: newTransport(b), host: host}, time.Now, seed)
		e.SetSessions(sessions)
		running.Go(func() {
			if err := e.Run(ctx); err != nil {
				b.Errorf("the engine ended: %v", err)
			}
		})
		return e
	}
	engines := []*bfd.Engine{start(h.node, 1, nodeSessions), start(h.routerHost, 2, farSessions)}
	awaitUpSessionsWithoutPolls(b, engines)
	before := countSentPackets(engines)
	cpu = measureProcessorTime(b, func() { time.Sleep(benchmarkMeasuringInterval) })
	packets = countSentPackets(engines) - before
	for _, s := range engines[0].SessionStatuses() {
		if s.State != session.Up || s.DownEvents > 0 {
			b.Errorf("the session with %s is %s and went down %d times", s.PeerAddress, s.State, s.DownEvents)
		}
	}
	return cpu, packets
}

// netnsTransport opens the sockets of a Transport on a host. The engine runs in an ordinary
// goroutine as in the speaker, not on a thread of its own in the namespace of the host.
type netnsTransport struct {
	bfd.Transport
	host                netns.Path
	hasReceivedDatagram bool // so that the names of the links are known
}

func (h *netnsTransport) Receive() (d bfd.ReceivedDatagram, ok bool) {
	if h.hasReceivedDatagram {
		return h.Transport.Receive()
	}
	_ = h.host.RunInside(func() error {
		d, ok = h.Transport.Receive()
		return nil
	})
	h.hasReceivedDatagram = ok
	return d, ok
}

func (h *netnsTransport) OpenSender(k bfd.SessionKey, discriminator uint32) bfd.Sender {
	return &netnsSender{Sender: h.Transport.OpenSender(k, discriminator), host: h.host}
}

// netnsSender opens its sockets on a host.
type netnsSender struct {
	bfd.Sender
	host             netns.Path
	isOpen, echoOpen bool
}

// ReopenLostSockets looks at the host again if echo packets are sent, as their path may change.
func (s *netnsSender) ReopenLostSockets() error {
	if s.isOpen && !s.echoOpen {
		return s.Sender.ReopenLostSockets()
	}
	err := s.host.RunInside(s.Sender.ReopenLostSockets)
	s.isOpen = err == nil
	return err
}

func (s *netnsSender) SendEcho(payload []byte) error {
	if s.echoOpen && s.Sender.SendEcho(payload) == nil {
		return nil
	}
	err := s.host.RunInside(func() error { return s.Sender.SendEcho(payload) })
	s.echoOpen = err == nil
	return err
}

// awaitUpSessionsWithoutPolls waits until all sessions are Up, and no Poll Sequence is under way.
func awaitUpSessionsWithoutPolls(b *testing.B, engines []*bfd.Engine) {
	b.Helper()
	deadline := time.After(waitTimeout)
	for {
		steady := 0
		var other bfd.SessionStatus
		for _, e := range engines {
			for _, s := range e.SessionStatuses() {
				if s.State == session.Up && !s.IsPolling && (!s.EchoMode || s.EchoReturned > 0) {
					steady++
				} else {
					other = s
				}
			}
		}
		if steady == len(engines)*benchmarkSessionCount {
			return
		}
		select {
		case <-deadline:
			b.Fatalf("%d sessions are Up; one is %+v", steady, other)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func countSentPackets(engines []*bfd.Engine) (n uint64) {
	for _, e := range engines {
		for _, s := range e.SessionStatuses() {
			n += s.ControlSent + s.EchoSent
		}
	}
	return n
}

// measureProcessorTime returns the processor time that the process takes for f.
func measureProcessorTime(b *testing.B, f func()) time.Duration {
	b.Helper()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	f()
	return used() - before
}

// measureCPUTimeOfBareLoop sends packets at the rate at which the engines sent them, half of them
// from each side, and returns the processor time and the number of packets. It does less than BFD
// has to do: it has one socket and one timer on each side, no filter, and no packets that return.
func (h *benchmarkHosts) measureCPUTimeOfBareLoop(b *testing.B, wanted uint64) (cpu time.Duration, packets uint64) {
	b.Helper()
	const port = 3799
	open := func(host netns.Path, address netip.Addr) *net.UDPConn {
		c, err := host.ListenPacket("udp4", net.JoinHostPort(address.String(), strconv.Itoa(port)))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		return c.(*net.UDPConn)
	}
	node, far := open(h.node, nodeIPv4), open(h.routerHost, routerIPv4)
	var received atomic.Uint64
	for _, c := range []*net.UDPConn{node, far} {
		go func() {
			buffer := make([]byte, 512)
			for {
				if _, _, err := c.ReadFromUDPAddrPort(buffer); err != nil {
					return
				}
				received.Add(1)
			}
		}()
	}
	cpu = measureProcessorTime(b, func() {
		var sending sync.WaitGroup
		sending.Go(func() { sendPacketsEvenly(b, node, netip.AddrPortFrom(routerIPv4, port), wanted/2) })
		sending.Go(func() { sendPacketsEvenly(b, far, netip.AddrPortFrom(nodeIPv4, port), wanted/2) })
		sending.Wait()
	})
	node.Close()
	far.Close()
	if got := received.Load(); got < wanted*9/10 {
		b.Errorf("the bare loop received %d of %d packets", got, wanted)
	}
	return cpu, wanted / 2 * 2
}

// sendPacketsEvenly sends packets of the length of a BFD packet, spread evenly over the window.
func sendPacketsEvenly(b *testing.B, c *net.UDPConn, to netip.AddrPort, count uint64) {
	packet, interval := make([]byte, 24), benchmarkMeasuringInterval/time.Duration(count)
	next := time.Now()
	for range count {
		if _, err := c.WriteToUDPAddrPort(packet, to); err != nil {
			b.Errorf("the bare loop: %v", err)
			return
		}
		next = next.Add(interval)
		time.Sleep(time.Until(next))
	}
}
