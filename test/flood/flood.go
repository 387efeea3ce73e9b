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
	QueriedAddressFamily ipfamily.Family
	QueriedAddressCount  int // how many addresses are queried, in turn
	QueriesPerSecond     int // questions a second
	Duration             time.Duration
	// MaxOpenQueries is how many queries may be without an answer; 0 means any number. The queries
	// are slower while the limit is reached.
	MaxOpenQueries int
}

// FloodMeasurement is the result of a flood.
type FloodMeasurement struct {
	SentQueryCount, AnsweredQueryCount int
	// Latencies are the times from query to answer, sorted.
	Latencies []time.Duration
	// ProcessorTimeOfBothSides is the processor time of both sides together.
	ProcessorTimeOfBothSides time.Duration
	// FramesDroppedByQuerier is the number of frames that the querying side dropped. If there are
	// any, the outcome says nothing about the answering side.
	FramesDroppedByQuerier uint64
}

// LatencyQuantile returns the q-quantile of the latencies; q is between 0 and 1.
func (o FloodMeasurement) LatencyQuantile(q float64) time.Duration {
	if len(o.Latencies) == 0 {
		return 0
	}
	return o.Latencies[min(int(q*float64(len(o.Latencies))), len(o.Latencies)-1)]
}

// CabledNamespacePair is the two namespaces and the cable between them.
type CabledNamespacePair struct {
	options                               Options
	answeringNamespace, queryingNamespace netns.Path
	answeringLink, queryingLink           facts.Link
	releaseFuncs                          []func()
}

const cableLinkName = "eth0"

// NewCabledNamespacePair creates a CabledNamespacePair. The caller closes it.
func NewCabledNamespacePair(o Options) (*CabledNamespacePair, error) {
	c := &CabledNamespacePair{options: o}
	for _, h := range []*netns.Path{&c.answeringNamespace, &c.queryingNamespace} {
		ns, release, err := netns.NewUnnamed()
		if err != nil {
			c.DeleteNamespaces()
			return nil, err
		}
		*h = ns
		c.releaseFuncs = append(c.releaseFuncs, release)
	}
	err := netns.AddCable(c.answeringNamespace, cableLinkName, c.queryingNamespace, cableLinkName)
	for _, end := range []struct {
		ns   netns.Path
		link *facts.Link
		own  string
	}{{c.answeringNamespace, &c.answeringLink, "10.20.255.1/16"}, {c.queryingNamespace, &c.queryingLink, "10.20.255.2/16"}} {
		if err == nil {
			err = end.ns.RunInside(func() error { return configureCableEnd(end.link, netip.MustParsePrefix(end.own)) })
		}
	}
	if err != nil {
		c.DeleteNamespaces()
		return nil, fmt.Errorf("connecting the namespaces: %w", err)
	}
	return c, nil
}

// configureCableEnd brings an end of the cable up with an address, and fills in l.
func configureCableEnd(l *facts.Link, address netip.Prefix) error {
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

// DeleteNamespaces removes the namespaces.
func (c *CabledNamespacePair) DeleteNamespaces() {
	for _, f := range c.releaseFuncs {
		f()
	}
}

// queriedAddressAtIndex returns the i-th address that is queried.
func (c *CabledNamespacePair) queriedAddressAtIndex(i int) netip.Addr {
	if c.options.QueriedAddressFamily == ipfamily.IPv6 {
		return netip.AddrFrom16([16]byte{0xfd, 0, 0xa8, 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{10, 20, byte(i >> 8), byte(i)})
}

// StartLayer2EngineForAddresses starts the speaker's engine, which answers until stop is called. It
// returns when every address has been announced once.
func (c *CabledNamespacePair) StartLayer2EngineForAddresses(ctx context.Context) (stop func(), err error) {
	e := layer2.NewEngine(wire.PacketSocketOpener{}, time.Now)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.answeringNamespace.RunInside(func() error { return e.Run(ctx) }) }()
	stop = func() {
		cancel()
		<-ended
	}
	e.SetLinks(facts.LinkSet{c.answeringLink})
	claims := make([]intent.Binding, c.options.QueriedAddressCount)
	for i := range claims {
		claims[i] = intent.Binding{Address: c.queriedAddressAtIndex(i), LinkIndexes: []int{c.answeringLink.Index}}
	}
	e.SetBindingsAndSendDeadline(claims, time.Now().Add(time.Hour))
	for waiting := time.After(30 * time.Second); ; {
		announced := 0
		for _, n := range e.CountersByAddress() {
			if n.AnnouncementsSent > 0 {
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

// AssignAddressesToAnsweringKernel assigns the addresses to the kernel of the node, which then
// answers.
func (c *CabledNamespacePair) AssignAddressesToAnsweringKernel() error {
	return c.answeringNamespace.RunInside(func() error {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if c.options.QueriedAddressFamily == ipfamily.IPv6 {
			if l, err = netlink.LinkByName(cableLinkName); err != nil {
				return err
			}
		}
		bits := c.queriedAddressAtIndex(0).BitLen()
		for i := range c.options.QueriedAddressCount {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: c.queriedAddressAtIndex(i).AsSlice(), Mask: net.CIDRMask(bits, bits)}}
			if c.options.QueriedAddressFamily == ipfamily.IPv6 {
				a.Flags = 0x02 // IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("assigning %s to the kernel: %w", c.queriedAddressAtIndex(i), err)
			}
		}
		return nil
	})
}

// waitForLateAnswersTimeout is how long SendQueriesAndMeasureAnswers waits for answers after the
// last query, if not all have come.
const waitForLateAnswersTimeout = 3 * time.Second

// SendQueriesAndMeasureAnswers queries all addresses in turn and returns the outcome.
func (c *CabledNamespacePair) SendQueriesAndMeasureAnswers(ctx context.Context) (FloodMeasurement, error) {
	var port layer2.Port
	err := c.queryingNamespace.RunInside(func() (err error) {
		port, err = wire.PacketSocketOpener{}.OpenPort(c.queryingLink, c.options.QueriedAddressFamily)
		return err
	})
	if err != nil {
		return FloodMeasurement{}, err
	}
	// time of the open query, in nanoseconds since begun; 0 means none
	asked := make([]atomic.Int64, c.options.QueriedAddressCount)
	begun := time.Now()
	var o FloodMeasurement
	var answered atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = port.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
			if i := c.indexOfQueriedAddress(f.SenderIP); i < len(asked) && f.Operation == layer2.Reply && f.EthernetDestination == c.queryingLink.MAC {
				if at := asked[i].Swap(0); at > 0 {
					o.Latencies = append(o.Latencies, time.Since(begun)-time.Duration(at))
					answered.Add(1)
				}
			}
			return layer2.ARPOrNDPFrame{}, false
		}, nil)
	}()
	before, err := readOwnAndKernelProcessorTime()
	if err == nil {
		o.SentQueryCount, err = c.sendQueriesAtRate(ctx, port, begun, asked, &answered)
	}
	after, err2 := readOwnAndKernelProcessorTime()
	for waiting := time.Now(); int(answered.Load()) < o.SentQueryCount && time.Since(waiting) < waitForLateAnswersTimeout; {
		time.Sleep(time.Millisecond)
	}
	o.ProcessorTimeOfBothSides, o.FramesDroppedByQuerier = after-before, port.LostFrameCount()
	port.Close()
	<-done
	o.AnsweredQueryCount = int(answered.Load())
	slices.Sort(o.Latencies)
	if err == nil {
		err = err2
	}
	return o, err
}

func (c *CabledNamespacePair) indexOfQueriedAddress(a netip.Addr) int {
	b := a.AsSlice()
	return int(b[len(b)-2])<<8 | int(b[len(b)-1])
}

// sendQueriesAtRate sends queries at a constant rate, those of one millisecond together.
func (c *CabledNamespacePair) sendQueriesAtRate(ctx context.Context, port layer2.Port, begun time.Time, asked []atomic.Int64, answered *atomic.Int64) (int, error) {
	isLimitReached := func(sent int) bool {
		return c.options.MaxOpenQueries > 0 && sent-int(answered.Load()) >= c.options.MaxOpenQueries
	}
	frames := make([]layer2.ARPOrNDPFrame, c.options.QueriedAddressCount)
	for i := range frames {
		a := c.queriedAddressAtIndex(i)
		senderIP := netip.MustParseAddr("10.20.255.2")
		if a.Is6() {
			senderIP = netip.MustParseAddr("fd00:a8::ffff:2")
		}
		frames[i] = layer2.ARPOrNDPFrame{
			EthernetDestination: layer2.RequestDestinationMAC(a), EthernetSource: c.queryingLink.MAC, Operation: layer2.Request,
			SenderMAC: c.queryingLink.MAC, SenderIP: senderIP, TargetIP: a,
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
		for due := min(int(time.Since(begun).Seconds()*float64(c.options.QueriesPerSecond)), total); sent < due && !isLimitReached(sent); sent++ {
			i := sent % len(frames)
			asked[i].Store(int64(time.Since(begun)))
			if err := port.WriteFrame(frames[i]); err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// readOwnAndKernelProcessorTime returns the processor time of this program and of the kernel's work
// for it. The kernel processes packets in the sender's time, or in ksoftirqd threads under high
// load.
func readOwnAndKernelProcessorTime() (time.Duration, error) {
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
