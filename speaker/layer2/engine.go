// Package layer2 answers for addresses on Ethernet segments. The Engine is told which addresses to answer for, on which
// links; it answers ARP requests and Neighbor Solicitations, announces what is new, asks the wire who has an address, and
// reports what others claim. It decides nothing about who should hold an address, and never puts one on an interface.
// Package wire holds the Linux sockets; package segment stands in for it in tests.
package layer2

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// What a Wire and its Ports may answer; any other error means that the port is unusable for now.
var (
	// ErrDenied is the error of a Wire that may not open raw sockets.
	ErrDenied = errors.New("raw sockets are not permitted: give the speaker the capability NET_RAW")
	// ErrLinkGone says that the link went down or away.
	ErrLinkGone = errors.New("the link is down or gone")
	// ErrNotSent says that one frame was not sent, for lack of buffers say; the port goes on.
	ErrNotSent = errors.New("the frame was not sent")
)

// Wire opens ports on links.
type Wire interface {
	OpenPort(l facts.Link, f Family) (Port, error)
}

// Port sends and receives frames of one family on one link.
type Port interface {
	// Receive hands every frame to handle, and sends what handle answers, until the port fails or is closed; it is
	// called once, and returns why it ended. Frames that this node sent are not received.
	Receive(handle func(Frame) (answer Frame, ok bool)) error
	// Write sends a frame. It never waits: it answers ErrNotSent instead. Any time but during another Write.
	Write(f Frame) error
	// JoinGroup lets questions about an IPv6 address in, which go to a group; Leave keeps them out again. For IPv4 there
	// is nothing to join.
	JoinGroup(a netip.Addr) error
	LeaveGroup(a netip.Addr)
	// LostFrames counts frames that came or were answered when there was no room. Any goroutine may call it.
	LostFrames() uint64
	// Close ends Receive, and waits for nobody.
	Close() error
}

// ProbeKind says how the wire is asked.
type ProbeKind uint8

// The kinds of Probes.
const (
	// AcquireProbe asks as one who may want to use the address: the sender's address is 0.0.0.0, so that nobody learns
	// anything wrong from the question (RFC 5227 section 2.1.1).
	AcquireProbe ProbeKind = iota
	// LivenessProbe asks as an ordinary neighbour, by the link's own address; hosts that ignore an Acquire answer this.
	LivenessProbe
)

// Probe asks the wire who answers for an address. Attempts frames are sent on each link, Interval apart, and the result
// is reported Interval after the last, or at the first answer.
type Probe struct {
	ID       uint64
	Address  netip.Addr
	Links    []int
	Attempts int
	Interval time.Duration
	Kind     ProbeKind
}

// Report is what the engine found: facts.ProbeResult, facts.ForeignClaim, PortFailed or PortOpened.
type Report any

// PortFailed says that a link cannot be used for a family. It is reported once for each change of the error.
type PortFailed struct {
	Link   facts.Link
	Family Family
	Err    error
}

// IsPermissionDenied says that the reason is lack of permission.
func (p PortFailed) IsPermissionDenied() bool { return errors.Is(p.Err, ErrDenied) }

// PortOpened says that a link is usable for a family now.
type PortOpened struct {
	Link   facts.Link
	Family Family
}

// Engine is the owner of the ports. Make it with New; its methods may be called from any goroutine and return at once.
type Engine struct {
	wire Wire
	now  func() time.Time

	bindings         chan []intent.Binding // holds the latest value only, as does links
	linkSets         chan facts.LinkSet
	announceRequests chan []netip.Addr
	defendRequests   chan netip.Addr
	probeInbox       *probeInbox
	reports          chan Report
	sendDeadline     sendDeadline
	// candidacyUpdates is what Run has yet to let in.
	candidacyUpdates candidacyUpdates

	dropped atomic.Uint64
	// lostByClosedPorts is what the ports lost that are closed.
	lostByClosedPorts atomic.Uint64
	// responderTable is what the readers of the ports, which answer by themselves, and the metrics see of what follows.
	responderTable atomic.Pointer[responderTable]

	// Run owns all that follows.
	holdings     map[netip.Addr]holding // never edited, only replaced; in the table
	ports        map[portKey]*port
	presentLinks facts.LinkSet
	probeByID    map[uint64]*runningProbe
	// probesByAge has the same, the oldest first, and some that are over.
	probesByAge []*runningProbe
	// probesByAddress are the questions about an address.
	probesByAddress map[netip.Addr][]*runningProbe
	probedAddresses map[netip.Addr]struct{} // its addresses, as the table has them; never edited
	// nextProbeBatchAt is when the next questions may go out.
	nextProbeBatchAt time.Time
	// probedAddressesChanged says that the two differ.
	probedAddressesChanged bool
	schedule               *Schedule
	readerEvents           chan readerEvent
	readers                sync.WaitGroup
	conflictReportedAt     map[conflictKey]time.Time
	// conflictsClearedAt is when those of long ago were last forgotten.
	conflictsClearedAt time.Time
	defendedAt         map[netip.Addr]time.Time
	// askers are who asked for what; telling and repeatedNotices are what they are to be told, in the order of time.
	askers                        *AskerCache
	firstNotices, repeatedNotices []unicastNotice
	nextNoticeBatchAt             time.Time // when the next may be told
	// candidateLinksByAddress are the addresses of IPv6 that this node may come to hold, with the links.
	candidateLinksByAddress map[netip.Addr][]int
	// lastGeneration counts the opened ports.
	lastGeneration uint64
	pingWire       PingWire // nil unless pings are answered
	// workNeeded says that something was scheduled since the last call of work.
	workNeeded bool
}

// Option changes what an Engine does beside answering.
type Option func(*Engine)

// WithRefreshInterval has every held address announced again each d after its burst, for networks whose switches forget too soon. The
// announcements of thousands of addresses are spread and paced. 0 is off.
func WithRefreshInterval(d time.Duration) Option {
	return func(e *Engine) { e.schedule = NewSchedule(d) }
}

// New returns an Engine that answers for nothing.
func New(wire Wire, now func() time.Time, options ...Option) *Engine {
	e := &Engine{
		wire: wire, now: now,
		bindings: make(chan []intent.Binding, 1), linkSets: make(chan facts.LinkSet, 1), announceRequests: make(chan []netip.Addr, 16),
		defendRequests: make(chan netip.Addr, 256),
		probeInbox:     newProbeInbox(), reports: make(chan Report, 16384),
		holdings: map[netip.Addr]holding{}, ports: map[portKey]*port{}, probeByID: map[uint64]*runningProbe{}, probesByAddress: map[netip.Addr][]*runningProbe{},
		schedule: NewSchedule(0), readerEvents: make(chan readerEvent, 1024), conflictReportedAt: map[conflictKey]time.Time{}, defendedAt: map[netip.Addr]time.Time{}, askers: NewAskerCache(),
		sendDeadline: sendDeadline{reference: now()}, candidacyUpdates: newCandidacyUpdates(), candidateLinksByAddress: map[netip.Addr][]int{},
	}
	for _, o := range options {
		o(e)
	}
	e.publishTable()
	return e
}

// putLatest puts v in the place of a value that was not taken yet.
func putLatest[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

// ApplyBindings makes the engine answer for exactly these claims.
func (e *Engine) ApplyBindings(claims []intent.Binding) { putLatest(e.bindings, claims) }

// SetLinks tells which links there are.
func (e *Engine) SetLinks(links facts.LinkSet) { putLatest(e.linkSets, links) }

// RepeatAnnouncements repeats the gratuitous burst of held addresses. A request too many is dropped: a burst is under way then.
func (e *Engine) RepeatAnnouncements(addresses []netip.Addr) {
	select {
	case e.announceRequests <- addresses:
	default:
		e.dropped.Add(1)
	}
}

// DefendAddress says that a host that has no right to it claims a held address: the address is announced once, unless that
// was done lately. A request too many is dropped.
func (e *Engine) DefendAddress(a netip.Addr) {
	select {
	case e.defendRequests <- a:
	default:
		e.dropped.Add(1)
	}
}

// SendProbe asks the wire; the result comes as a report. Many questions at once are paced, in the order in which they come.
func (e *Engine) SendProbe(p Probe) { e.probeInbox.enqueue(p) }

// SetSendDeadline lets the engine answer until t. Before the first call it is silent.
func (e *Engine) SetSendDeadline(t time.Time) { e.sendDeadline.extendTo(t) }

// Reports delivers what the engine finds. When nobody takes them the oldest are dropped.
func (e *Engine) Reports() <-chan Report { return e.reports }

func (e *Engine) sendReport(r Report) {
	for {
		select {
		case e.reports <- r:
			return
		default:
		}
		select {
		case <-e.reports:
			e.dropped.Add(1)
		default:
		}
	}
}

// Run serves until ctx ends; then every port is closed and every reader has ended.
func (e *Engine) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer e.closeAllPorts()
	for {
		// A frame, of which there may be a flood, is looked at without a look at what else is due.
		e.workNeeded = true
		select {
		case <-ctx.Done():
			return nil
		case claims := <-e.bindings:
			e.updateHoldings(claims)
		case links := <-e.linkSets:
			e.applyLinks(links)
		case addresses := <-e.announceRequests:
			for _, a := range addresses {
				e.startBurst(a, e.holdings[a].links)
			}
		case a := <-e.defendRequests:
			e.announceDefence(a)
		case <-e.candidacyUpdates.wake:
			e.applyCandidacies()
		case <-e.probeInbox.wake:
			for _, p := range e.probeInbox.takePending() {
				e.beginProbe(p)
			}
		case r := <-e.readerEvents:
			e.workNeeded = false
			e.handleReaderEvent(r)
			for range len(e.readerEvents) {
				e.handleReaderEvent(<-e.readerEvents)
			}
		case <-timer.C:
		}
		if e.workNeeded {
			timer.Reset(e.runDueWork(e.now()))
		}
	}
}

// runDueWork does what is due and returns how long it may wait until the next call.
func (e *Engine) runDueWork(now time.Time) time.Duration {
	next := now.Add(time.Minute)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	e.workNeeded = false
	earlier(e.reopenPorts(now)) // first, since it begins bursts
	earlier(e.advanceProbes(now))
	due, at := e.schedule.Advance(now)
	for _, g := range due {
		e.sendAnnouncement(g)
	}
	earlier(at)
	earlier(e.sendDueNotices(now))
	if e.workNeeded { // a port failed meanwhile
		return 0
	}
	return max(next.Sub(now), 0)
}

// updateHoldings takes in what to answer for; each address that is new on a link is announced on it.
func (e *Engine) updateHoldings(claims []intent.Binding) {
	before, held := e.holdings, make(map[netip.Addr]holding, len(claims))
	for _, c := range claims {
		h := holding{c.Links, before[c.Address].counters}
		if h.counters == nil {
			h.counters = &atomicCounters{}
		}
		held[c.Address] = h
	}
	e.holdings = held
	e.publishTable()
	for a, h := range before {
		if _, still := held[a]; !still {
			delete(e.defendedAt, a)
		}
		for _, l := range h.links {
			if slices.Contains(held[a].links, l) {
				continue
			}
			e.schedule.Remove(a, l)
			if p := e.ports[portKey{l, FamilyOf(a)}]; p != nil && p.socket != nil {
				p.socket.LeaveGroup(a)
			}
		}
	}
	for a, h := range held {
		var added []int
		for _, l := range h.links {
			if !slices.Contains(before[a].links, l) {
				added = append(added, l)
			}
		}
		e.startAnswering(a, added)
	}
}

// startAnswering begins to answer for an address on links where it was not answered for.
func (e *Engine) startAnswering(a netip.Addr, links []int) {
	for _, l := range links {
		key := portKey{l, FamilyOf(a)}
		if p := e.ports[key]; p != nil {
			e.joinGroup(p, a)
		} else {
			e.ensurePort(key)
		}
	}
	e.startBurst(a, links)
	for _, index := range links {
		if l, ok := e.presentLinks.FindByIndex(index); ok {
			e.scheduleNotices(a, l)
		}
	}
}

func (e *Engine) startBurst(a netip.Addr, links []int) {
	for _, l := range links {
		if e.ports[portKey{l, FamilyOf(a)}] != nil {
			e.schedule.StartBurst(a, l, e.now())
		}
	}
}

// announcementOperations are the forms of an announcement. For IPv4 they are two: a request, which is what RFC 5227 section 3 asks
// for, and a reply, since some hosts update their cache on one of them alone. For IPv6 it is the unsolicited
// Neighbor Advertisement (RFC 4861 section 7.2.6).
func announcementOperations(f Family) []Operation {
	if f == IPv6 {
		return []Operation{Reply}
	}
	return []Operation{Request, Reply}
}

// sendAnnouncement announces an address on a link.
func (e *Engine) sendAnnouncement(g Announcement) {
	key := portKey{g.Link, FamilyOf(g.Address)}
	p := e.ports[key]
	h := e.holdings[g.Address]
	if p == nil || !slices.Contains(h.links, g.Link) || e.isPastSendDeadline() {
		return
	}
	all := AnnouncementMAC(g.Address)
	for _, op := range announcementOperations(key.family) {
		if e.writeFrame(p, Frame{
			Destination: all, Source: p.link.MAC, Operation: op,
			SenderMAC: p.link.MAC, SenderIP: g.Address, TargetMAC: all, TargetIP: g.Address,
		}) {
			h.counters.gratuitous.Add(1)
		}
	}
}

func (e *Engine) isPastSendDeadline() bool { return e.sendDeadline.isPast(e.now()) }

// handleReaderEvent handles what a reader passed on.
func (e *Engine) handleReaderEvent(r readerEvent) {
	p := e.ports[r.port]
	if p == nil || p.generation != r.generation {
		return
	}
	if r.pingResponder != nil {
		if p.pingResponder == r.pingResponder {
			e.closePingResponder(p)
			e.workNeeded = true
		}
		return
	}
	if r.err != nil {
		e.failPort(p, r.err)
		return
	}
	f := r.frame
	if f.Operation == Request && f.SenderIP.IsUnspecified() {
		e.recordRival(f.TargetIP, f.SenderMAC)
		return
	}
	e.recordAnswer(f.SenderIP, f.SenderMAC)
	if slices.Contains(e.holdings[f.SenderIP].links, r.port.link) {
		e.reportConflict(f, r.port.link)
	} else if f.Operation == Request {
		e.askers.RecordRequest(f.TargetIP, r.port.link, facts.Neighbour{Address: f.SenderIP, MAC: f.SenderMAC}, e.now())
	}
}
