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
	Open(l facts.Link, f Family) (Port, error)
}

// Port sends and receives frames of one family on one link.
type Port interface {
	// Receive hands every frame to handle, and sends what handle answers, until the port fails or is closed; it is
	// called once, and returns why it ended. Frames that this node sent are not received.
	Receive(handle func(Frame) (answer Frame, ok bool)) error
	// Write sends a frame. It never waits: it answers ErrNotSent instead. Any time but during another Write.
	Write(f Frame) error
	// Join lets questions about an IPv6 address in, which go to a group; Leave keeps them out again. For IPv4 there
	// is nothing to join.
	Join(a netip.Addr) error
	Leave(a netip.Addr)
	// Lost counts frames that came or were answered when there was no room. Any goroutine may call it.
	Lost() uint64
	// Close ends Receive, and waits for nobody.
	Close() error
}

// Kind says how the wire is asked.
type Kind uint8

// The kinds of Probes.
const (
	// Acquire asks as one who may want to use the address: the sender's address is 0.0.0.0, so that nobody learns
	// anything wrong from the question (RFC 5227 section 2.1.1).
	Acquire Kind = iota
	// Ask asks as an ordinary neighbour, by the link's own address; hosts that ignore an Acquire answer this.
	Ask
)

// Probe asks the wire who answers for an address. Attempts frames are sent on each link, Interval apart, and the result
// is reported Interval after the last, or at the first answer.
type Probe struct {
	ID       uint64
	Address  netip.Addr
	Links    []int
	Attempts int
	Interval time.Duration
	Kind     Kind
}

// Report is what the engine found: facts.ProbeResult, facts.ForeignClaim, PortFailed or PortOpened.
type Report any

// PortFailed says that a link cannot be used for a family. It is reported once for each change of the error.
type PortFailed struct {
	Link   facts.Link
	Family Family
	Err    error
}

// Denied says that the reason is lack of permission.
func (p PortFailed) Denied() bool { return errors.Is(p.Err, ErrDenied) }

// PortOpened says that a link is usable for a family now.
type PortOpened struct {
	Link   facts.Link
	Family Family
}

// Engine is the owner of the ports. Make it with New; its methods may be called from any goroutine and return at once.
type Engine struct {
	wire Wire
	now  func() time.Time

	claims   chan []intent.Claim // holds the latest value only, as does links
	links    chan facts.LinkSet
	announce chan []netip.Addr
	defend   chan netip.Addr
	probes   *inquiries
	reports  chan Report
	fence    fence
	// overhearing is what Run has yet to let in.
	overhearing overhearing

	dropped atomic.Uint64
	// lost is what the ports lost that are closed.
	lost atomic.Uint64
	// known is what the readers of the ports, which answer by themselves, and the metrics see of what follows.
	known atomic.Pointer[table]

	// Run owns all that follows.
	held    map[netip.Addr]holding // never edited, only replaced; in the table
	ports   map[portKey]*port
	present facts.LinkSet
	asking  map[uint64]*question
	// askOrder has the same, the oldest first, and some that are over.
	askOrder []*question
	// askedFor are the questions about an address.
	askedFor   map[netip.Addr][]*question
	askedTable map[netip.Addr]struct{} // its addresses, as the table has them; never edited
	// askResume is when the next questions may go out.
	askResume time.Time
	// askedNew says that the two differ.
	askedNew bool
	sched    *Schedule
	frames   chan received
	readers  sync.WaitGroup
	foreign  map[foreignKey]time.Time
	// foreignCleared is when those of long ago were last forgotten.
	foreignCleared time.Time
	defended       map[netip.Addr]time.Time
	// neighbours are who asked for what; telling and tellingAgain are what they are to be told, in the order of time.
	neighbours            *Neighbours
	telling, tellingAgain []news
	tellResume            time.Time // when the next may be told
	// overheard are the addresses of IPv6 that this node may come to hold, with the links.
	overheard map[netip.Addr][]int
	// generation counts the opened ports.
	generation uint64
	pings      PingWire // nil unless pings are answered
	// woken says that something was scheduled since the last call of work.
	woken bool
}

// Option changes what an Engine does beside answering.
type Option func(*Engine)

// Refresh has every held address announced again each d after its burst, for networks whose switches forget too soon. The
// announcements of thousands of addresses are spread and paced. 0 is off.
func Refresh(d time.Duration) Option { return func(e *Engine) { e.sched = NewSchedule(d) } }

// New returns an Engine that answers for nothing.
func New(wire Wire, now func() time.Time, options ...Option) *Engine {
	e := &Engine{
		wire: wire, now: now,
		claims: make(chan []intent.Claim, 1), links: make(chan facts.LinkSet, 1), announce: make(chan []netip.Addr, 16),
		defend: make(chan netip.Addr, 256),
		probes: newInquiries(), reports: make(chan Report, 16384),
		held: map[netip.Addr]holding{}, ports: map[portKey]*port{}, asking: map[uint64]*question{}, askedFor: map[netip.Addr][]*question{},
		sched: NewSchedule(0), frames: make(chan received, 1024), foreign: map[foreignKey]time.Time{}, defended: map[netip.Addr]time.Time{}, neighbours: NewNeighbours(),
		fence: fence{base: now()}, overhearing: newOverhearing(), overheard: map[netip.Addr][]int{},
	}
	for _, o := range options {
		o(e)
	}
	e.publish()
	return e
}

// latest puts v in the place of a value that was not taken yet.
func latest[T any](c chan T, v T) {
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

// Apply makes the engine answer for exactly these claims.
func (e *Engine) Apply(claims []intent.Claim) { latest(e.claims, claims) }

// SetLinks tells which links there are.
func (e *Engine) SetLinks(links facts.LinkSet) { latest(e.links, links) }

// Announce repeats the gratuitous burst of held addresses. A request too many is dropped: a burst is under way then.
func (e *Engine) Announce(addresses []netip.Addr) {
	select {
	case e.announce <- addresses:
	default:
		e.dropped.Add(1)
	}
}

// Defend says that a host that has no right to it claims a held address: the address is announced once, unless that
// was done lately. A request too many is dropped.
func (e *Engine) Defend(a netip.Addr) {
	select {
	case e.defend <- a:
	default:
		e.dropped.Add(1)
	}
}

// Probe asks the wire; the result comes as a report. Many questions at once are paced, in the order in which they come.
func (e *Engine) Probe(p Probe) { e.probes.add(p) }

// Renew lets the engine answer until t. Before the first call it is silent.
func (e *Engine) Renew(t time.Time) { e.fence.renew(t) }

// Reports delivers what the engine finds. When nobody takes them the oldest are dropped.
func (e *Engine) Reports() <-chan Report { return e.reports }

func (e *Engine) report(r Report) {
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
	defer e.closeAll()
	for {
		// A frame, of which there may be a flood, is looked at without a look at what else is due.
		e.woken = true
		select {
		case <-ctx.Done():
			return nil
		case claims := <-e.claims:
			e.hold(claims)
		case links := <-e.links:
			e.setLinks(links)
		case addresses := <-e.announce:
			for _, a := range addresses {
				e.burst(a, e.held[a].links)
			}
		case a := <-e.defend:
			e.contest(a)
		case <-e.overhearing.wake:
			e.overhear()
		case <-e.probes.wake:
			for _, p := range e.probes.take() {
				e.ask(p)
			}
		case r := <-e.frames:
			e.woken = false
			e.receive(r)
			for range len(e.frames) {
				e.receive(<-e.frames)
			}
		case <-timer.C:
		}
		if e.woken {
			timer.Reset(e.work(e.now()))
		}
	}
}

// work does what is due and returns how long it may wait until the next call.
func (e *Engine) work(now time.Time) time.Duration {
	next := now.Add(time.Minute)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	e.woken = false
	earlier(e.reopen(now)) // first, since it begins bursts
	earlier(e.askAgain(now))
	due, at := e.sched.Advance(now)
	for _, g := range due {
		e.sendGratuitous(g)
	}
	earlier(at)
	earlier(e.tell(now))
	if e.woken { // a port failed meanwhile
		return 0
	}
	return max(next.Sub(now), 0)
}

// hold takes in what to answer for; each address that is new on a link is announced on it.
func (e *Engine) hold(claims []intent.Claim) {
	before, held := e.held, make(map[netip.Addr]holding, len(claims))
	for _, c := range claims {
		h := holding{c.Links, before[c.Address].tally}
		if h.tally == nil {
			h.tally = &tally{}
		}
		held[c.Address] = h
	}
	e.held = held
	e.publish()
	for a, h := range before {
		if _, still := held[a]; !still {
			delete(e.defended, a)
		}
		for _, l := range h.links {
			if slices.Contains(held[a].links, l) {
				continue
			}
			e.sched.Remove(a, l)
			if p := e.ports[portKey{l, FamilyOf(a)}]; p != nil && p.io != nil {
				p.io.Leave(a)
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
		e.take(a, added)
	}
}

// take begins to answer for an address on links where it was not answered for.
func (e *Engine) take(a netip.Addr, links []int) {
	for _, l := range links {
		key := portKey{l, FamilyOf(a)}
		if p := e.ports[key]; p != nil {
			e.join(p, a)
		} else {
			e.need(key)
		}
	}
	e.burst(a, links)
	for _, index := range links {
		if l, ok := e.present.ByIndex(index); ok {
			e.tellNeighbours(a, l)
		}
	}
}

func (e *Engine) burst(a netip.Addr, links []int) {
	for _, l := range links {
		if e.ports[portKey{l, FamilyOf(a)}] != nil {
			e.sched.Start(a, l, e.now())
		}
	}
}

// announcements are the forms of an announcement. For IPv4 they are two: a request, which is what RFC 5227 section 3 asks
// for, and a reply, since some hosts update their cache on one of them alone. For IPv6 it is the unsolicited
// Neighbor Advertisement (RFC 4861 section 7.2.6).
func announcements(f Family) []Operation {
	if f == IPv6 {
		return []Operation{Reply}
	}
	return []Operation{Request, Reply}
}

// sendGratuitous announces an address on a link.
func (e *Engine) sendGratuitous(g Gratuitous) {
	key := portKey{g.Link, FamilyOf(g.Address)}
	p := e.ports[key]
	h := e.held[g.Address]
	if p == nil || !slices.Contains(h.links, g.Link) || e.fenced() {
		return
	}
	all := Everybody(g.Address)
	for _, op := range announcements(key.family) {
		if e.write(p, Frame{
			Destination: all, Source: p.link.MAC, Operation: op,
			SenderMAC: p.link.MAC, SenderIP: g.Address, TargetMAC: all, TargetIP: g.Address,
		}) {
			h.tally.gratuitous.Add(1)
		}
	}
}

func (e *Engine) fenced() bool { return e.fence.closed(e.now()) }

// receive handles what a reader passed on.
func (e *Engine) receive(r received) {
	p := e.ports[r.port]
	if p == nil || p.generation != r.generation {
		return
	}
	if r.pings != nil {
		if p.pings == r.pings {
			e.closePings(p)
			e.woken = true
		}
		return
	}
	if r.err != nil {
		e.fail(p, r.err)
		return
	}
	f := r.frame
	if f.Operation == Request && f.SenderIP.IsUnspecified() {
		e.rival(f.TargetIP, f.SenderMAC)
		return
	}
	e.hear(f.SenderIP, f.SenderMAC)
	if slices.Contains(e.held[f.SenderIP].links, r.port.link) {
		e.contradicted(f, r.port.link)
	} else if f.Operation == Request {
		e.neighbours.Asked(f.TargetIP, r.port.link, facts.Neighbour{Address: f.SenderIP, MAC: f.SenderMAC}, e.now())
	}
}
