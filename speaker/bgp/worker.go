package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// order is what the engine tells a worker.
type order struct {
	peer    intent.Peer
	routes  []*intent.Route // of all peers
	leaving bool
	// stop ends the worker because the speaker stops, or, when gone, because its peer is no longer configured.
	stop, gone bool
}

// worker is the owner of one peer: its session, and the Table of its routes. All fields below orders belong to run.
type worker struct {
	e      *Engine
	name   string
	log    *slog.Logger
	orders chan order // holds the latest
	paths  chan bfd.Event
	calls  chan Conn // of a router that connects to us
	done   chan struct{}
	tally  tally

	ctx     context.Context
	o       order // the latest
	state   State
	table   *Table // what the router should know
	session *session
	up      <-chan struct{} // of session, nil once it was seen
	v4, v6  netip.Addr      // next hops of the session
	extends bool            // the session's IPv4 routes may have IPv6 next hops

	attempt  <-chan attempt // of an attempt that is under way
	cancel   context.CancelFunc
	failures int
	refused  *notice // the last that the router told, since the last session that it confirmed
	retry    *time.Timer
	phase    leavePhase
	drained  *time.Timer
	restart  bool // no session was established in this life of the process yet
}

// attempt is the outcome of connecting.
type attempt struct {
	conn   Conn
	agreed Agreed
	err    error
}

// leavePhase is how far the routes of a leaving node have gone.
type leavePhase uint8

const (
	staying leavePhase = iota
	going              // announced with GRACEFUL_SHUTDOWN
	gone               // withdrawn
)

// Times of a worker.
const (
	// goingTime is how long routes are announced as going before they go: the router's other paths are installed
	// meanwhile (RFC 8326 section 4.1 asks for the time of convergence).
	goingTime = 500 * time.Millisecond
	// goneTime is how long a session lives on after its routes are withdrawn: the router has read that by then.
	goneTime = 100 * time.Millisecond
	// firstPause is the pause after the first failure; it doubles with each.
	firstPause = 250 * time.Millisecond
	// longestPause applies where connectTime is not set.
	longestPause = 10 * time.Second
	// stable is how long a session has to live for its end to count as the first failure.
	stable = 10 * time.Second
)

func newWorker(e *Engine, name string) *worker {
	w := &worker{
		e: e, name: name, log: e.o.Log.With("peer", name), orders: make(chan order, 1), paths: make(chan bfd.Event, 16), calls: make(chan Conn, 1), done: make(chan struct{}),
		table: NewTable(), state: State{Peer: name, Phase: Idle, Since: now()}, restart: true,
	}
	w.state.tally = &w.tally
	return w
}

// tell hands over an order; only the latest counts, and nothing comes after a stop.
func (w *worker) tell(o order) {
	for {
		select {
		case w.orders <- o:
			return
		case <-w.done:
			return
		default:
		}
		select {
		case <-w.orders:
		default:
		}
	}
}

// run owns the peer until it is told to stop or ctx ends.
func (w *worker) run(ctx context.Context) {
	w.ctx = ctx
	w.retry, w.drained = time.NewTimer(time.Hour), time.NewTimer(time.Hour)
	w.retry.Stop()
	w.drained.Stop()
	defer w.close()
	first := true
	for {
		var ended <-chan struct{}
		if w.session != nil {
			ended = w.session.ended
		}
		select {
		case <-ctx.Done():
			if w.session != nil {
				w.session.finish(ctx.Err(), nil)
			}
			return
		case o := <-w.orders:
			if o.stop {
				w.stop(o)
				return
			}
			w.take(o, first)
			first = false
		case <-w.retry.C:
			w.connect()
		case a := <-w.attempt:
			w.attempt = nil
			w.begin(a)
		case <-w.up:
			w.up = nil
			w.established()
		case <-ended:
			w.over()
		case v := <-w.paths:
			w.onPath(v)
		case c := <-w.calls:
			w.answer(c)
		case <-w.drained.C:
			w.phase = gone
			w.sync()
		}
		w.report()
	}
}

// close ends what is left.
func (w *worker) close() {
	w.abort()
	select {
	case c := <-w.calls:
		c.Close()
	default:
	}
	close(w.done)
}

// abort gives an attempt up.
func (w *worker) abort() {
	if w.attempt == nil {
		return
	}
	w.cancel()
	if a := <-w.attempt; a.conn != nil {
		a.conn.Close()
	}
	w.attempt = nil
}

// take follows an order. Only a change of what is in the OPEN, or of the connection itself, ends the session.
func (w *worker) take(o order, first bool) {
	former := w.o
	w.o = o
	if o.leaving != former.leaving {
		w.leave(o.leaving)
	}
	switch {
	case first:
		w.retry.Reset(0) // the first attempt is made at once
	case !w.outlives(&former.peer, &o.peer):
		w.log.Info("the peer's configuration changed; connecting anew")
		w.abort()
		if w.session != nil {
			w.session.finish(fmt.Errorf("the peer's configuration changed"), frame.Cease(frame.CeaseChange, ""))
			w.over()
		}
		w.failures, w.refused = 0, nil
		w.retry.Reset(0)
	case former.peer.Password != o.peer.Password && !o.peer.Blocked.Any():
		w.rekey()
	case former.peer.Blocked != o.peer.Blocked && w.session == nil:
		w.abort()
		w.failures = 0
		w.retry.Reset(0)
	}
	w.retime(&former.peer)
	w.sync()
}

// sameSession says whether a session goes on under another configuration of its peer.
func sameSession(a, b *intent.Peer) bool {
	x, y := *a, *b
	for _, p := range []*intent.Peer{&x, &y} {
		p.Password, p.Blocked, p.BFD, p.Connect, p.Keepalive = "", intent.Block{}, nil, 0, 0
	}
	return x == y
}

// rekey gives a living connection its new password; an attempt under way begins again.
func (w *worker) rekey() {
	if w.session == nil {
		w.abort()
		w.failures = 0
		w.retry.Reset(0)
		return
	}
	if err := w.session.conn.SetPassword(w.o.peer.Password); err != nil {
		w.session.finish(err, frame.Cease(frame.CeaseReset, "new password"))
		return
	}
	w.log.Info("the password of the session changed; change it on the router before the hold time ends", "hold", w.session.agreed.Hold)
}

// connect starts an attempt, unless there is a session, an attempt, or a reason not to.
func (w *worker) connect() {
	p := w.o.peer
	switch {
	case w.session != nil || w.attempt != nil:
		return
	case p.Blocked.Any():
		w.fail(errors.New(p.Blocked.Text))
		return
	case p.Passive:
		w.enter(Active)
		return
	}
	w.enter(Connect)
	w.begins(func(ctx context.Context) (Conn, error) { return w.e.o.Transport.Dial(ctx, target(&p)) })
}

// answer takes a connection that the router made. The one that lives goes on, unless the router keeps routes over a restart:
// then a new connection says that it has restarted (RFC 4724 section 5).
func (w *worker) answer(c Conn) {
	p := w.o.peer
	if w.session != nil && w.session.agreed.Graceful {
		w.session.finish(errors.New("the router connected anew"), nil)
		w.over()
	}
	if !p.Passive || p.Blocked.Any() || w.session != nil || w.attempt != nil {
		_, _ = c.Write(frame.Cease(frame.CeaseRejected, "").Encode())
		go hangUp(c, true)
		return
	}
	w.retry.Stop()
	t := target(&p)
	w.enter(Connect)
	w.begins(func(context.Context) (Conn, error) { return c, c.SetTTL(t.TTL, t.MinTTL) })
}

// begins starts an attempt on the connection that get returns.
func (w *worker) begins(get func(context.Context) (Conn, error)) {
	p := w.o.peer
	ctx, cancel := context.WithCancel(w.ctx)
	out := make(chan attempt, 1)
	w.attempt, w.cancel = out, cancel
	restarted := w.restart
	go func() {
		defer cancel()
		out <- w.try(ctx, p, restarted, get)
	}()
}

// try connects and exchanges the OPENs. It runs beside the worker and touches nothing of it but the tally.
func (w *worker) try(ctx context.Context, p intent.Peer, restarted bool, get func(context.Context) (Conn, error)) attempt {
	c, err := get(ctx)
	if err != nil {
		if c != nil {
			c.Close()
		}
		return attempt{err: err}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	v4, _ := c.NextHops()
	self := open(&p, routerID(p.RouterID, v4, w.e.o.Node), restarted)
	a, err := handshake(c, &w.tally, self, func(peer frame.Open) (Agreed, error) { return agree(&p, self, peer) })
	if err != nil {
		go hangUp(c, true)
		return attempt{err: err}
	}
	return attempt{conn: c, agreed: a}
}

// target says where and how to connect.
func target(p *intent.Peer) Target {
	t := Target{Remote: netip.AddrPortFrom(p.Address, p.Port), Source: p.Source, Device: p.Device, Password: p.Password, TTL: 255}
	switch {
	case p.Hops > 0:
		t.MinTTL = 255 - (p.Hops - 1)
	case p.External() && !p.Multihop:
		t.TTL = 1
	}
	return t
}

// begin starts the session that an attempt led to.
func (w *worker) begin(a attempt) {
	if a.err != nil {
		w.fail(a.err)
		return
	}
	w.prepare(a)
	lib := w.e.o.Library.Open(a.agreed, w.o.peer.LocalASN, w.table)
	w.session = relay(a.conn, lib, a.agreed, &w.tally)
	w.up = w.session.up
	w.enter(OpenSent)
}

// prepare gives the routes the session's next hops.
func (w *worker) prepare(a attempt) {
	w.v4, w.v6 = a.conn.NextHops()
	w.extends = a.agreed.ExtendedNextHop
	if local, ok := a.conn.LocalAddr().(*net.TCPAddr); ok && w.o.peer.Unnumbered {
		// The router knows this link's own address alone; others of this node may mean nothing to it.
		if w.v6 = local.AddrPort().Addr(); w.extends {
			w.v4 = netip.Addr{}
		}
	}
	w.sync()
}

// established tells of a session that the router has confirmed.
func (w *worker) established() {
	a := w.session.agreed
	w.restart, w.refused = false, nil
	w.state.Ups++
	w.state.Families, w.state.ASN, w.state.Hold, w.state.Graceful = a.Families, a.Peer.ASN, a.Hold, a.Graceful
	w.enter(Established)
	w.log.Info("the session is established", "router", w.state.Remote, "asn", a.Peer.ASN, "families", fmt.Sprint(a.Families), "routes", w.table.Len())
}

// over takes note of the end of the session and connects again: at once after a session that was stable.
func (w *worker) over() {
	if w.state.Phase == Established && now().Sub(w.state.Since) >= stable {
		w.failures = -1
	}
	err := w.session.why
	w.session, w.up = nil, nil
	w.fail(err)
}

// fail takes note of why there is no session, and arranges for the next attempt.
func (w *worker) fail(err error) {
	err = w.recall(err)
	if text := err.Error(); text != w.state.LastError || w.state.Phase == Established {
		w.log.Warn("no session", "router", w.state.Remote, "error", text)
		w.state.LastError = text
	}
	w.enter(Idle)
	w.retry.Reset(pause(w.failures, w.o.peer.Connect))
	w.failures++
}

// pause returns the time before the next attempt after that many failures: doubling, up to the longest, with a quarter of
// jitter, so that the nodes of a rack do not come back as one.
func pause(failures int, longest time.Duration) time.Duration {
	if failures < 0 {
		return 0
	}
	if longest == 0 {
		longest = longestPause
	}
	d := min(firstPause<<min(failures, 20), longest)
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

func (w *worker) enter(p Phase) {
	if w.state.Phase != p {
		w.state.Phase, w.state.Since = p, now()
	}
}

// report hands the State to the engine when it has changed.
func (w *worker) report() {
	w.state.Remote = netip.AddrPortFrom(w.o.peer.Address, w.o.peer.Port)
	w.state.Announced, w.state.Reason, w.state.Withheld = 0, names.Reason(w.o.peer.Blocked.Reason), Withheld{}
	if w.state.Phase == Established {
		w.state.Reason = ""
		w.state.Announced = w.table.Len(w.state.Families...)
		w.state.Withheld = w.withheld()
	}
	w.e.observe(w.state)
}
