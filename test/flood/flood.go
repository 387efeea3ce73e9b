// Package flood sends many ARP requests or Neighbor Solicitations per second over a virtual cable
// between two network namespaces, and measures the answers. Gantry's responder answers them, or the
// kernel for addresses of its own.
package flood

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/test/lab/netns"
)

// Options describe the queries.
type Options struct {
	Family           ipfamily.Family
	AddressCount     int // how many addresses are queried, in turn
	QueriesPerSecond int // questions a second
	Duration         time.Duration
}

// Outcome is the result of a flood.
type Outcome struct {
	SentCount, AnsweredCount int
	// Latencies are the times from query to answer, sorted.
	Latencies []time.Duration
	// ProcessorTime is the processor time of both sides together.
	ProcessorTime time.Duration
	// DroppedFrames is the number of frames that the querying side dropped. If there are any, the
	// outcome says nothing about the answering side.
	DroppedFrames uint64
}

// LatencyQuantile returns the q-quantile of the latencies; q is between 0 and 1.
func (o Outcome) LatencyQuantile(q float64) time.Duration {
	if len(o.Latencies) == 0 {
		return 0
	}
	return o.Latencies[min(int(q*float64(len(o.Latencies))), len(o.Latencies)-1)]
}

// Harness is the two namespaces and the cable between them.
type Harness struct {
	options              Options
	node, client         netns.Handle
	nodeLink, clientLink facts.Link
	releaseFuncs         []func()
}

const cableLinkName = "eth0"

// NewHarness creates a Harness. The caller closes it.
func NewHarness(o Options) (*Harness, error) {
	c := &Harness{options: o}
	for _, h := range []*netns.Handle{&c.node, &c.client} {
		ns, release, err := netns.NewUnnamed()
		if err != nil {
			c.Close()
			return nil, err
		}
		*h = ns
		c.releaseFuncs = append(c.releaseFuncs, release)
	}
	err := netns.AddCable(c.node, cableLinkName, c.client, cableLinkName)
	for _, end := range []struct {
		ns   netns.Handle
		link *facts.Link
		own  string
	}{{c.node, &c.nodeLink, "10.20.255.1/16"}, {c.client, &c.clientLink, "10.20.255.2/16"}} {
		if err == nil {
			err = end.ns.RunInside(func() error { return configureLink(end.link, netip.MustParsePrefix(end.own)) })
		}
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connecting the namespaces: %w", err)
	}
	return c, nil
}

// configureLink brings an end of the cable up with an address, and fills in l.
func configureLink(l *facts.Link, address netip.Prefix) error {
	if err := netns.AddAddress(cableLinkName, address); err != nil {
		return err
	}
	if err := netns.SetLinkUp(cableLinkName); err != nil {
		return err
	}
	i, err := net.InterfaceByName(cableLinkName)
	if err == nil {
		*l = facts.Link{Index: i.Index, Name: i.Name, MAC: facts.MAC(i.HardwareAddr)}
	}
	return err
}

// Close removes the namespaces.
func (c *Harness) Close() {
	for _, f := range c.releaseFuncs {
		f()
	}
}

// addressAt returns the i-th address that is queried.
func (c *Harness) addressAt(i int) netip.Addr {
	if c.options.Family == ipfamily.IPv6 {
		return netip.AddrFrom16([16]byte{0xfd, 0, 0xa8, 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{10, 20, byte(i >> 8), byte(i)})
}

// StartResponder starts the speaker's engine, which answers until stop is called. It returns when
// every address has been announced once.
func (c *Harness) StartResponder(ctx context.Context) (stop func(), err error) {
	e := layer2.New(wire.Wire{}, time.Now)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.node.RunInside(func() error { return e.Run(ctx) }) }()
	stop = func() {
		cancel()
		<-ended
	}
	e.SetLinks(facts.LinkSet{c.nodeLink})
	claims := make([]intent.Binding, c.options.AddressCount)
	for i := range claims {
		claims[i] = intent.Binding{Address: c.addressAt(i), LinkIndexes: []int{c.nodeLink.Index}}
	}
	e.ApplyBindings(claims, time.Now().Add(time.Hour))
	for waiting := time.After(30 * time.Second); ; {
		announced := 0
		for _, n := range e.Counters() {
			if n.Gratuitous > 0 {
				announced++
			}
		}
		if announced == len(claims) {
			return stop, nil
		}
		select {
		case err := <-ended:
			ended <- err
			return stop, fmt.Errorf("the engine ended: %w", err)
		case <-waiting:
			return stop, fmt.Errorf("the engine has announced %d of %d addresses", announced, len(claims))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// AssignToKernel assigns the addresses to the kernel of the node, which then answers.
func (c *Harness) AssignToKernel() error {
	return c.node.RunInside(func() error {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if c.options.Family == ipfamily.IPv6 {
			if l, err = netlink.LinkByName(cableLinkName); err != nil {
				return err
			}
		}
		bits := c.addressAt(0).BitLen()
		for i := range c.options.AddressCount {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: c.addressAt(i).AsSlice(), Mask: net.CIDRMask(bits, bits)}}
			if c.options.Family == ipfamily.IPv6 {
				a.Flags = 0x02 // IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("assigning %s to the kernel: %w", c.addressAt(i), err)
			}
		}
		return nil
	})
}

// lateAnswerTimeout is how long SendQueries waits for answers after the last query.
const lateAnswerTimeout = 300 * time.Millisecond

// SendQueries queries all addresses in turn and returns the outcome.
func (c *Harness) SendQueries(ctx context.Context) (Outcome, error) {
	var port layer2.Port
	err := c.client.RunInside(func() (err error) {
		port, err = wire.Wire{}.OpenPort(c.clientLink, c.options.Family)
		return err
	})
	if err != nil {
		return Outcome{}, err
	}
	// time of the open query, in nanoseconds since begun; 0 means none
	asked := make([]atomic.Int64, c.options.AddressCount)
	begun := time.Now()
	var o Outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = port.Receive(func(f layer2.Frame) (layer2.Frame, bool) {
			if i := c.indexOfAddress(f.SenderIP); i < len(asked) && f.Operation == layer2.Reply && f.EthernetDestination == c.clientLink.MAC {
				if at := asked[i].Swap(0); at > 0 {
					o.AnsweredCount++
					o.Latencies = append(o.Latencies, time.Since(begun)-time.Duration(at))
				}
			}
			return layer2.Frame{}, false
		}, nil)
	}()
	before, err := readProcessorTime()
	if err == nil {
		o.SentCount, err = c.sendAtRate(ctx, port, begun, asked)
	}
	after, err2 := readProcessorTime()
	time.Sleep(lateAnswerTimeout)
	o.ProcessorTime, o.DroppedFrames = after-before, port.LostFrameCount()
	port.Close()
	<-done
	slices.Sort(o.Latencies)
	if err == nil {
		err = err2
	}
	return o, err
}

func (c *Harness) indexOfAddress(a netip.Addr) int {
	b := a.AsSlice()
	return int(b[len(b)-2])<<8 | int(b[len(b)-1])
}

// sendAtRate sends queries at a constant rate, those of one millisecond together.
func (c *Harness) sendAtRate(ctx context.Context, port layer2.Port, begun time.Time, asked []atomic.Int64) (int, error) {
	frames := make([]layer2.Frame, c.options.AddressCount)
	for i := range frames {
		a := c.addressAt(i)
		senderIP := netip.MustParseAddr("10.20.255.2")
		if a.Is6() {
			senderIP = netip.MustParseAddr("fd00:a8::ffff:2")
		}
		frames[i] = layer2.Frame{
			EthernetDestination: layer2.RequestDestinationMAC(a), EthernetSource: c.clientLink.MAC, Operation: layer2.Request,
			SenderMAC: c.clientLink.MAC, SenderIP: senderIP, TargetIP: a,
		}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	sent, total := 0, int(float64(c.options.QueriesPerSecond)*c.options.Duration.Seconds())
	for sent < total {
		select {
		case <-ctx.Done():
			return sent, ctx.Err()
		case <-tick.C:
		}
		for due := min(int(time.Since(begun).Seconds()*float64(c.options.QueriesPerSecond)), total); sent < due; sent++ {
			i := sent % len(frames)
			asked[i].Store(int64(time.Since(begun)))
			if err := port.Write(frames[i]); err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// readProcessorTime returns the processor time of this program and of the kernel's work for it. The
// kernel processes packets in the sender's time, or in ksoftirqd threads under high load.
func readProcessorTime() (time.Duration, error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0, fmt.Errorf("reading the processor time: %w", err)
	}
	sum := time.Duration(r.Utime.Nano() + r.Stime.Nano())
	threads, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, path := range threads {
		name, err := os.ReadFile(path)
		// it has ended, or is another thread
		if err != nil || !strings.HasPrefix(string(name), "ksoftirqd/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "schedstat"))
		if err != nil {
			continue // the kernel does not have these statistics
		}
		first, _, _ := strings.Cut(string(text), " ")
		if n, err := strconv.ParseInt(first, 10, 64); err == nil {
			sum += time.Duration(n)
		}
	}
	return sum, nil
}
