// Package layer2 answers for addresses on Ethernet segments. The Engine gets bindings:
// addresses, each with the links on which to answer for it. It answers ARP requests
// and Neighbor Solicitations, announces new addresses, probes whether another host
// uses an address, and reports the claims of other hosts. It does not decide which
// node holds an address, and it never puts an address on an interface. Package wire
// has the Linux sockets; package layer2test replaces them in tests.
package layer2

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// The errors that a Wire and its Ports return. After any other error the port is unusable for now.
var (
	// ErrRawSocketsDenied means that the process may not open raw sockets.
	ErrRawSocketsDenied = errors.New("raw sockets are not permitted: give the speaker the capability NET_RAW")
	// ErrLinkDownOrGone means that the link is down or deleted.
	ErrLinkDownOrGone = errors.New("the link is down or gone")
	// ErrFrameNotSent means that one frame was not sent, for example because the send buffer is
	// full. The port still works.
	ErrFrameNotSent = errors.New("the frame was not sent")
)

// PortOpener opens ports on links.
type PortOpener interface {
	OpenPort(l facts.Link, f ipfamily.Family) (Port, error)
}

// Port sends and receives frames of one family on one link.
type Port interface {
	// ReceiveFrames calls handle for each frame and sends the answer that handle returns. It calls
	// isBeforeSendDeadline right before it sends, and drops the answers if they came too late; nil
	// allows all. It ends when the port fails or is closed, and returns the reason. It is called
	// once. It does not return frames that this node sent.
	ReceiveFrames(handle func(ARPOrNDPFrame) (answer ARPOrNDPFrame, ok bool), isBeforeSendDeadline func() bool) error
	// WriteFrame sends a frame. It never blocks: it returns ErrFrameNotSent instead. Two calls
	// must not overlap.
	WriteFrame(f ARPOrNDPFrame) error
	// JoinGroupOfAddress joins the multicast group to which requests for an IPv6 address are sent.
	// LeaveGroupOfAddress leaves it. For IPv4 both do nothing.
	JoinGroupOfAddress(a netip.Addr) error
	LeaveGroupOfAddress(a netip.Addr)
	// LostFrameCount counts the frames that were lost because a receive or send buffer was full.
	// Any goroutine may call it.
	LostFrameCount() uint64
	// Close ends Receive. It does not wait for it.
	Close() error
}

// ProbeKind is how a Probe asks.
type ProbeKind uint8

// The kinds of Probes.
const (
	// ProbeKindAcquire asks before an address is taken. The sender address is 0.0.0.0 or ::, so
	// that no host learns a wrong entry from the request (RFC 5227 section 2.1.1).
	ProbeKindAcquire ProbeKind = iota
	// ProbeKindReachability asks like an ordinary neighbour, from the link's own address. Some
	// hosts ignore an ProbeKindAcquire and answer this one.
	ProbeKindReachability
)

// Probe asks the segment which host answers for an address. It sends Attempts frames
// on each link, one each Interval. The result is reported at the first answer, or one
// Interval after the last frame.
type Probe struct {
	ID            uint64
	Address       netip.Addr
	LinkIndexes   []int
	FramesPerLink int
	FrameInterval time.Duration
	Kind          ProbeKind
	// TargetMAC is the only host that is asked; zero asks all hosts.
	TargetMAC facts.MAC
}

// Report is what the engine found: facts.ProbeResult, facts.Conflict, PortFailed or PortOpened.
type Report any

// PortFailed means that a link cannot be used for a family. The same error is reported once.
type PortFailed struct {
	Link   facts.Link
	Family ipfamily.Family
	Err    error
}

// IsPermissionDenied says whether raw sockets are not permitted.
func (p PortFailed) IsPermissionDenied() bool { return errors.Is(p.Err, ErrRawSocketsDenied) }

// PortOpened means that a link can be used for a family again.
type PortOpened struct {
	Link   facts.Link
	Family ipfamily.Family
}

// Engine owns the ports. New makes one. Any goroutine may call its methods, which return at once.
type Engine struct {
	portOpener PortOpener
	now        func() time.Time

	pendingBindings            *latest.Value[[]intent.Binding]
	pendingLinkSet             *latest.Value[facts.LinkSet]
	repeatAnnouncementRequests *latest.BoundedQueue[[]netip.Addr]
	defendRequests             *latest.BoundedQueue[netip.Addr]
	waitingProbes              *waitingProbeQueue
	reports                    *latest.BoundedQueue[Report]
	sendDeadline               sendDeadline
	// boundAddresses has the addresses of the last call of SetBindingsAndSendDeadline. It is never
	// edited, only replaced.
	boundAddresses atomic.Pointer[map[netip.Addr]struct{}]
	// candidacyUpdates has the candidacies that Run has not applied yet.
	candidacyUpdates candidacyUpdates

	droppedReportAndFrameCount atomic.Uint64
	// framesLostByClosedPorts counts the frames that ports lost before they were closed.
	framesLostByClosedPorts atomic.Uint64
	// responderTable is the part of the state below that the readers of the ports and
	// the metrics use.
	responderTable atomic.Pointer[responderTable]

	// Run owns all fields below.
	// part of the responderTable: never edited, only replaced
	heldAddressByIP      map[netip.Addr]heldAddress
	ports                map[portKey]*linkPort
	currentLinks         facts.LinkSet
	runningProbes        *probeQueue
	announcementSchedule *AnnouncementSchedule
	readerEvents         chan readerEvent
	readerGoroutines     sync.WaitGroup
	conflictLimiter      *conflictLimiter
	// askers knows which hosts asked for which address; notices are sent to such hosts.
	askers         *AskerCache
	unicastNotices noticeQueue
	// candidateLinksByIPv6Address has the IPv6 addresses that this node may come to hold,
	// with their links.
	candidateLinksByIPv6Address map[netip.Addr][]int
	// lastPortGeneration is the number of ports opened so far.
	lastPortGeneration  uint64
	pingResponderOpener PingResponderOpener // nil unless pings are answered
	// hasNewWork means that something was scheduled since the last call of runDueWork.
	hasNewWork bool
}

// Option sets an optional behaviour of an Engine.
type Option func(*Engine)

// WithAnnouncementRefreshInterval announces each held address again each d after its burst, for
// networks whose switches forget addresses too soon. The announcements of many addresses are spread
// over time and paced. 0 turns it off.
func WithAnnouncementRefreshInterval(d time.Duration) Option {
	return func(e *Engine) { e.announcementSchedule = NewAnnouncementSchedule(d) }
}

// NewEngine returns an Engine without bindings.
func NewEngine(wire PortOpener, now func() time.Time, options ...Option) *Engine {
	e := &Engine{
		portOpener: wire, now: now,
		pendingBindings:             latest.NewValue[[]intent.Binding](),
		pendingLinkSet:              latest.NewValue[facts.LinkSet](),
		repeatAnnouncementRequests:  latest.NewBoundedQueue[[]netip.Addr](16),
		defendRequests:              latest.NewBoundedQueue[netip.Addr](256),
		waitingProbes:               newWaitingProbeQueue(),
		reports:                     latest.NewBoundedQueue[Report](16384),
		sendDeadline:                sendDeadline{referenceTime: now()},
		candidacyUpdates:            newCandidacyUpdates(),
		heldAddressByIP:             map[netip.Addr]heldAddress{},
		ports:                       map[portKey]*linkPort{},
		runningProbes:               newProbeQueue(),
		announcementSchedule:        NewAnnouncementSchedule(0),
		readerEvents:                make(chan readerEvent, 1024),
		conflictLimiter:             newConflictLimiter(),
		askers:                      NewAskerCache(),
		candidateLinksByIPv6Address: map[netip.Addr][]int{},
	}
	for _, o := range options {
		o(e)
	}
	e.boundAddresses.Store(&map[netip.Addr]struct{}{})
	e.publishResponderTable()
	return e
}

// SetBindingsAndSendDeadline replaces the addresses and links on which the engine answers, and
// allows it to send until the deadline. Run applies new bindings later. But from the return of this
// call on, the engine sends nothing for an address without a binding. This matters after a pause:
// the deadline is extended while frames from during the pause still wait to be answered.
func (e *Engine) SetBindingsAndSendDeadline(bindings []intent.Binding, sendDeadline time.Time) {
	bound := make(map[netip.Addr]struct{}, len(bindings))
	for _, b := range bindings {
		bound[b.Address] = struct{}{}
	}
	e.boundAddresses.Store(&bound) // before the deadline: maySendFor reads them in reverse order
	e.sendDeadline.setDeadline(sendDeadline)
	e.pendingBindings.Put(bindings)
}

// SetLinks replaces the set of usable links.
func (e *Engine) SetLinks(links facts.LinkSet) { e.pendingLinkSet.Put(links) }

// RepeatAnnouncements starts the burst of announcements of held addresses again. When 16 requests
// wait already, a further one is dropped, because bursts are under way then.
func (e *Engine) RepeatAnnouncements(addresses []netip.Addr) {
	e.repeatAnnouncementRequests.PutIfRoom(addresses)
}

// DefendAddress handles the claim of another host to a held address. The engine counts the claim
// and announces the address once, unless it did so less than defendInterval ago. When 256 requests
// wait already, a further one is dropped.
func (e *Engine) DefendAddress(a netip.Addr) { e.defendRequests.PutIfRoom(a) }

// SendProbe probes an address. The result comes as a report. Many probes are paced, in
// the order of the calls.
func (e *Engine) SendProbe(p Probe) { e.waitingProbes.enqueue(p) }

// SetSendDeadline allows the engine to send answers until t. Before the first call it sends none.
func (e *Engine) SetSendDeadline(t time.Time) { e.sendDeadline.setDeadline(t) }

// Reports delivers what the engine finds. When the channel is full, the oldest reports are dropped.
func (e *Engine) Reports() <-chan Report { return e.reports.C() }

// Run works until ctx ends. Then it closes every port and waits for every reader.
func (e *Engine) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer e.closeAllPorts()
	for {
		// After a frame, of which there may be a flood, due work is done only if the
		// frame needs it.
		e.hasNewWork = true
		select {
		case <-ctx.Done():
			return nil
		case bindings := <-e.pendingBindings.C():
			// The caller sets the links first, but select may take the bindings first. The
			// notices for a new address go only to the gateways that are known now. So apply the
			// links first.
			e.applyPendingLinks()
			e.applyNewBindings(bindings)
		case links := <-e.pendingLinkSet.C():
			e.applyLinks(links)
		case addresses := <-e.repeatAnnouncementRequests.C():
			for _, a := range addresses {
				e.startAnnouncementBurst(a, e.heldAddressByIP[a].linkIndexes)
			}
		case a := <-e.defendRequests.C():
			e.countAndDefendConflict(a)
		case <-e.candidacyUpdates.pendingSignal.C():
			e.applyCandidacies()
		case <-e.waitingProbes.pendingSignal.C():
			for _, p := range e.waitingProbes.takePendingProbes() {
				e.beginProbe(p)
			}
		case r := <-e.readerEvents:
			e.hasNewWork = false
			e.handleReaderEvent(r)
			for range len(e.readerEvents) {
				e.handleReaderEvent(<-e.readerEvents)
			}
		case <-timer.C:
		}
		if e.hasNewWork {
			timer.Reset(e.runDueWork(e.now()))
		}
	}
}

// runDueWork does what is due, and returns the delay until it has to be called again.
func (e *Engine) runDueWork(now time.Time) time.Duration {
	next := now.Add(time.Minute)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	e.hasNewWork = false
	earlier(e.reopenPorts(now)) // first, because it starts bursts
	earlier(e.advanceProbes(now))
	due, at := e.announcementSchedule.TakeDueAnnouncements(now)
	for _, g := range due {
		e.sendAnnouncement(g)
	}
	earlier(at)
	earlier(e.sendDueNotices(now))
	if e.hasNewWork { // a port failed meanwhile
		return 0
	}
	return max(next.Sub(now), 0)
}

// applyNewBindings applies new bindings. It announces each address on each link that is new for it.
func (e *Engine) applyNewBindings(bindings []intent.Binding) {
	before, held := e.heldAddressByIP, make(map[netip.Addr]heldAddress, len(bindings))
	for _, b := range bindings {
		h := heldAddress{b.LinkIndexes, before[b.Address].counters, b.IsUnannounced}
		if h.counters == nil {
			h.counters = &atomicAddressCounters{}
		}
		held[b.Address] = h
	}
	e.heldAddressByIP = held
	e.publishResponderTable()
	for a, h := range before {
		if _, still := held[a]; !still {
			e.conflictLimiter.forgetAddress(a)
		}
		for _, l := range h.linkIndexes {
			if slices.Contains(held[a].linkIndexes, l) {
				continue
			}
			e.announcementSchedule.RemoveAddressOnLink(a, l)
			if p := e.ports[portKey{l, ipfamily.FamilyOf(a)}]; p != nil && p.openedPort != nil {
				p.openedPort.LeaveGroupOfAddress(a)
			}
		}
	}
	for a, h := range held {
		var added []int
		for _, l := range h.linkIndexes {
			if !slices.Contains(before[a].linkIndexes, l) || before[a].isUnannounced && !h.isUnannounced {
				added = append(added, l)
			}
		}
		e.startAnsweringOnLinks(a, added)
	}
}

// startAnsweringOnLinks begins to answer for an address on more links.
func (e *Engine) startAnsweringOnLinks(a netip.Addr, links []int) {
	for _, l := range links {
		key := portKey{l, ipfamily.FamilyOf(a)}
		if p := e.ports[key]; p != nil {
			e.joinSolicitedNodeGroup(p, a)
		} else {
			e.openPortIfNeeded(key)
		}
	}
	for _, index := range links {
		if l, ok := e.currentLinks.FindByIndex(index); ok {
			e.announceOnLink(a, l)
		}
	}
}

// announceOnLink announces an address on a link, and sends notices to the hosts that asked for it.
// Of an address that is not announced yet, only those hosts get a notice that still wait for an
// answer.
func (e *Engine) announceOnLink(a netip.Addr, l facts.Link) {
	if e.heldAddressByIP[a].isUnannounced {
		e.scheduleNoticesToWaitingAskers(a, l)
		return
	}
	e.startAnnouncementBurst(a, []int{l.Index})
	e.scheduleNotices(a, l)
}

func (e *Engine) startAnnouncementBurst(a netip.Addr, links []int) {
	if e.heldAddressByIP[a].isUnannounced {
		return
	}
	for _, l := range links {
		if e.ports[portKey{l, ipfamily.FamilyOf(a)}] != nil {
			e.announcementSchedule.StartBurst(a, l, e.now())
		}
	}
}

// announcementOperations returns the frames that make up an announcement. IPv4 needs two: the
// request of RFC 5227 section 3, and a reply, because some hosts update their cache only on one of
// them. IPv6 has the unsolicited Neighbor Advertisement (RFC 4861 section 7.2.6).
func announcementOperations(f ipfamily.Family) []Operation {
	if f == ipfamily.IPv6 {
		return []Operation{Reply}
	}
	return []Operation{Request, Reply}
}

// sendAnnouncement announces an address on a link.
func (e *Engine) sendAnnouncement(g AddressOnLink) {
	key := portKey{g.LinkIndex, ipfamily.FamilyOf(g.Address)}
	p := e.ports[key]
	h := e.heldAddressByIP[g.Address]
	if p == nil || !slices.Contains(h.linkIndexes, g.LinkIndex) {
		return
	}
	all := AnnouncementDestinationMAC(g.Address)
	for _, op := range announcementOperations(key.family) {
		if e.maySendFor(g.Address) && e.writeFrame(p, ARPOrNDPFrame{
			EthernetDestination: all, EthernetSource: p.link.MAC, Operation: op,
			SenderMAC: p.link.MAC, SenderIP: g.Address, TargetMAC: all, TargetIP: g.Address,
		}) {
			h.counters.announcementsSent.Add(1)
		}
	}
}

// isBeforeSendDeadline says whether the deadline is not past. Any goroutine may call it.
func (e *Engine) isBeforeSendDeadline() bool { return !e.sendDeadline.isPast(e.now()) }

// maySendFor says whether frames for the address may be sent now. Any goroutine may call it.
func (e *Engine) maySendFor(a netip.Addr) bool {
	if !e.isBeforeSendDeadline() {
		return false
	}
	_, bound := (*e.boundAddresses.Load())[a]
	return bound
}

// handleReaderEvent handles what the reader of a port found.
func (e *Engine) handleReaderEvent(r readerEvent) {
	p := e.ports[r.linkAndFamily]
	if p == nil || p.socketGeneration != r.socketGeneration {
		return
	}
	if r.pingResponder != nil {
		if p.pingResponder == r.pingResponder {
			e.closePingResponder(p)
			e.hasNewWork = true
		}
		return
	}
	if r.err != nil {
		e.closeFailedPort(p, r.err)
		return
	}
	f := r.frame
	if f.Operation == Request && f.SenderIP.IsUnspecified() {
		e.runningProbes.recordRival(f.TargetIP, f.SenderMAC)
		return
	}
	if e.runningProbes.recordAnswer(f.SenderIP, f.SenderMAC) {
		e.hasNewWork = true
	}
	if slices.Contains(e.heldAddressByIP[f.SenderIP].linkIndexes, r.linkAndFamily.linkIndex) {
		e.reportConflict(f, r.linkAndFamily.linkIndex)
	} else if f.Operation == Request {
		e.askers.RecordRequest(f.TargetIP, r.linkAndFamily.linkIndex, facts.LinkNeighbour{Address: f.SenderIP, MAC: f.SenderMAC}, e.now())
	}
}
