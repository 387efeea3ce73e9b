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
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// workerOrder is what the engine tells a worker.
type workerOrder struct {
	peer      intent.Peer
	allRoutes []*intent.Route // of all peers
	leaving   bool
	// stop ends the worker because the speaker stops, or, when gone, because its peer is no longer configured.
	stop, removed bool
}

// worker is the owner of one peer: its session, and the Table of its routes. All fields below orders belong to run.
type worker struct {
	engine    *Engine
	name      string
	log       *slog.Logger
	orders    chan workerOrder // holds the latest
	bfdEvents chan bfd.Event
	incoming  chan Conn // of a router that connects to us
	done      chan struct{}
	counter   messageCounter

	ctx                context.Context
	order              workerOrder // the latest
	status             Status
	table              *Table // what the router should know
	session            *session
	confirmed          <-chan struct{} // of session, nil once it was seen
	nextHop4, nextHop6 netip.Addr      // next hops of the session
	extendedNextHop    bool            // the session's IPv4 routes may have IPv6 next hops

	attemptDone      <-chan attemptResult // of an attempt that is under way
	cancelAttempt    context.CancelFunc
	failures         int
	lastNotification *receivedNotification // the last that the router told, since the last session that it confirmed
	retryTimer       *time.Timer
	shutdown         shutdownPhase
	shutdownTimer    *time.Timer
	restarting       bool // no session was established in this life of the process yet
}

// attemptResult is the outcome of connecting.
type attemptResult struct {
	conn       Conn
	negotiated Negotiated
	err        error
}

// shutdownPhase is how far the routes of a leaving node have gone.
type shutdownPhase uint8

const (
	noShutdown        shutdownPhase = iota
	shutdownAnnounced               // announced with GRACEFUL_SHUTDOWN
	routesWithdrawn                 // withdrawn
)

// Times of a worker.
const (
	// gracefulShutdownDelay is how long routes are announced as going before they go: the router's other paths are installed
	// meanwhile (RFC 8326 section 4.1 asks for the time of convergence).
	gracefulShutdownDelay = 500 * time.Millisecond
	// withdrawDelay is how long a session lives on after its routes are withdrawn: the router has read that by then.
	withdrawDelay = 100 * time.Millisecond
	// firstRetryDelay is the pause after the first failure; it doubles with each.
	firstRetryDelay = 250 * time.Millisecond
	// maxRetryDelay applies where connectTime is not set.
	maxRetryDelay = 10 * time.Second
	// stableInterval is how long a session has to live for its end to count as the first failure.
	stableInterval = 10 * time.Second
)

func newWorker(e *Engine, name string) *worker {
	w := &worker{
		engine: e, name: name, log: e.options.Log.With("peer", name), orders: make(chan workerOrder, 1), bfdEvents: make(chan bfd.Event, 16), incoming: make(chan Conn, 1), done: make(chan struct{}),
		table: NewTable(), status: Status{Peer: name, State: Idle, Since: currentTime()}, restarting: true,
	}
	w.status.counter = &w.counter
	return w
}

// sendOrder hands over an order; only the latest counts, and nothing comes after a stop.
func (w *worker) sendOrder(o workerOrder) {
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
	w.retryTimer, w.shutdownTimer = time.NewTimer(time.Hour), time.NewTimer(time.Hour)
	w.retryTimer.Stop()
	w.shutdownTimer.Stop()
	defer w.cleanUp()
	first := true
	for {
		var ended <-chan struct{}
		if w.session != nil {
			ended = w.session.ended
		}
		select {
		case <-ctx.Done():
			if w.session != nil {
				w.session.terminate(ctx.Err(), nil)
			}
			return
		case o := <-w.orders:
			if o.stop {
				w.stopSession(o)
				return
			}
			w.applyOrder(o, first)
			first = false
		case <-w.retryTimer.C:
			w.connectToRouter()
		case a := <-w.attemptDone:
			w.attemptDone = nil
			w.startSession(a)
		case <-w.confirmed:
			w.confirmed = nil
			w.recordEstablished()
		case <-ended:
			w.endSession()
		case v := <-w.bfdEvents:
			w.handleBFDEvent(v)
		case c := <-w.incoming:
			w.acceptConnection(c)
		case <-w.shutdownTimer.C:
			w.shutdown = routesWithdrawn
			w.updateTable()
		}
		w.reportStatus()
	}
}

// cleanUp ends what is left.
func (w *worker) cleanUp() {
	w.abortAttempt()
	select {
	case c := <-w.incoming:
		c.Close()
	default:
	}
	close(w.done)
}

// abortAttempt gives an attempt up.
func (w *worker) abortAttempt() {
	if w.attemptDone == nil {
		return
	}
	w.cancelAttempt()
	if a := <-w.attemptDone; a.conn != nil {
		a.conn.Close()
	}
	w.attemptDone = nil
}

// applyOrder follows an order. Only a change of what is in the OPEN, or of the connection itself, ends the session.
func (w *worker) applyOrder(o workerOrder, first bool) {
	former := w.order
	w.order = o
	if o.leaving != former.leaving {
		w.setLeaving(o.leaving)
	}
	switch {
	case first:
		w.retryTimer.Reset(0) // the first attempt is made at once
	case !w.canKeepSession(&former.peer, &o.peer):
		w.log.Info("the peer's configuration changed; connecting anew")
		w.abortAttempt()
		if w.session != nil {
			w.session.terminate(fmt.Errorf("the peer's configuration changed"), message.NewCease(message.CeaseConfigChange, ""))
			w.endSession()
		}
		w.failures, w.lastNotification = 0, nil
		w.retryTimer.Reset(0)
	case former.peer.Password != o.peer.Password && !o.peer.Blocked.IsSet():
		w.changePassword()
	case former.peer.Blocked != o.peer.Blocked && w.session == nil:
		w.abortAttempt()
		w.failures = 0
		w.retryTimer.Reset(0)
	}
	w.applyTimers(&former.peer)
	w.updateTable()
}

// isSameSession says whether a session goes on under another configuration of its peer.
func isSameSession(a, b *intent.Peer) bool {
	x, y := *a, *b
	for _, p := range []*intent.Peer{&x, &y} {
		p.Password, p.Blocked, p.BFD, p.ConnectTime, p.KeepaliveTime = "", intent.BlockReason{}, nil, 0, 0
	}
	return x == y
}

// changePassword gives a living connection its new password; an attempt under way begins again.
func (w *worker) changePassword() {
	if w.session == nil {
		w.abortAttempt()
		w.failures = 0
		w.retryTimer.Reset(0)
		return
	}
	if err := w.session.conn.SetPassword(w.order.peer.Password); err != nil {
		w.session.terminate(err, message.NewCease(message.CeaseReset, "new password"))
		return
	}
	w.log.Info("the password of the session changed; change it on the router before the hold time ends", "hold", w.session.negotiated.HoldTime)
}

// connectToRouter starts an attempt, unless there is a session, an attempt, or a reason not to.
func (w *worker) connectToRouter() {
	p := w.order.peer
	switch {
	case w.session != nil || w.attemptDone != nil:
		return
	case p.Blocked.IsSet():
		w.recordFailure(errors.New(p.Blocked.Text))
		return
	case p.Passive:
		w.enterState(Active)
		return
	}
	w.enterState(Connect)
	w.startAttempt(func(ctx context.Context) (Conn, error) { return w.engine.options.Transport.Dial(ctx, dialOptions(&p)) })
}

// acceptConnection takes a connection that the router made. The one that lives goes on, unless the router keeps routes over a restart:
// then a new connection says that it has restarted (RFC 4724 section 5).
func (w *worker) acceptConnection(c Conn) {
	p := w.order.peer
	if w.session != nil && w.session.negotiated.GracefulRestart {
		w.session.terminate(errors.New("the router connected anew"), nil)
		w.endSession()
	}
	if !p.Passive || p.Blocked.IsSet() || w.session != nil || w.attemptDone != nil {
		_, _ = c.Write(message.NewCease(message.CeaseRejected, "").Encode())
		go closeConnection(c, true)
		return
	}
	w.retryTimer.Stop()
	t := dialOptions(&p)
	w.enterState(Connect)
	w.startAttempt(func(context.Context) (Conn, error) { return c, c.SetTTL(t.TTL, t.MinTTL) })
}

// startAttempt starts an attempt on the connection that get returns.
func (w *worker) startAttempt(get func(context.Context) (Conn, error)) {
	p := w.order.peer
	ctx, cancel := context.WithCancel(w.ctx)
	out := make(chan attemptResult, 1)
	w.attemptDone, w.cancelAttempt = out, cancel
	restarted := w.restarting
	go func() {
		defer cancel()
		out <- w.attemptSession(ctx, p, restarted, get)
	}()
}

// attemptSession connects and exchanges the OPENs. It runs beside the worker and touches nothing of it but the tally.
func (w *worker) attemptSession(ctx context.Context, p intent.Peer, restarted bool, get func(context.Context) (Conn, error)) attemptResult {
	c, err := get(ctx)
	if err != nil {
		if c != nil {
			c.Close()
		}
		return attemptResult{err: err}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	v4, _ := c.NextHops()
	self := buildOpen(&p, chooseRouterID(p.RouterID, v4, w.engine.options.NodeName), restarted)
	a, err := exchangeOpens(c, &w.counter, self, func(peer message.Open) (Negotiated, error) { return negotiate(&p, self, peer) })
	if err != nil {
		go closeConnection(c, true)
		return attemptResult{err: err}
	}
	return attemptResult{conn: c, negotiated: a}
}

// dialOptions says where and how to connect.
func dialOptions(p *intent.Peer) DialOptions {
	t := DialOptions{Remote: netip.AddrPortFrom(p.Address, p.Port), Source: p.SourceAddress, Device: p.Device, Password: p.Password, TTL: 255}
	switch {
	case p.MaxHops > 0:
		t.MinTTL = 255 - (p.MaxHops - 1)
	case p.IsExternal() && !p.Multihop:
		t.TTL = 1
	}
	return t
}

// startSession starts the session that an attempt led to.
func (w *worker) startSession(a attemptResult) {
	if a.err != nil {
		w.recordFailure(a.err)
		return
	}
	w.setNextHops(a)
	lib := w.engine.options.UpdateSource.OpenConnection(a.negotiated, w.order.peer.LocalASN, w.table)
	w.session = startRelay(a.conn, lib, a.negotiated, &w.counter)
	w.confirmed = w.session.confirmed
	w.enterState(OpenSent)
}

// setNextHops gives the routes the session's next hops.
func (w *worker) setNextHops(a attemptResult) {
	w.nextHop4, w.nextHop6 = a.conn.NextHops()
	w.extendedNextHop = a.negotiated.ExtendedNextHop
	if local, ok := a.conn.LocalAddr().(*net.TCPAddr); ok && w.order.peer.Unnumbered {
		// The router knows this link's own address alone; others of this node may mean nothing to it.
		if w.nextHop6 = local.AddrPort().Addr(); w.extendedNextHop {
			w.nextHop4 = netip.Addr{}
		}
	}
	w.updateTable()
}

// recordEstablished tells of a session that the router has confirmed.
func (w *worker) recordEstablished() {
	a := w.session.negotiated
	w.restarting, w.lastNotification = false, nil
	w.status.EstablishedCount++
	w.status.Families, w.status.ASN, w.status.HoldTime, w.status.GracefulRestart = a.Families, a.RemoteOpen.ASN, a.HoldTime, a.GracefulRestart
	w.enterState(Established)
	w.log.Info("the session is established", "router", w.status.Remote, "asn", a.RemoteOpen.ASN, "families", fmt.Sprint(a.Families), "routes", w.table.Len())
}

// endSession takes note of the end of the session and connects again: at once after a session that was stable.
func (w *worker) endSession() {
	if w.status.State == Established && currentTime().Sub(w.status.Since) >= stableInterval {
		w.failures = -1
	}
	err := w.session.endReason
	w.session, w.confirmed = nil, nil
	w.recordFailure(err)
}

// recordFailure takes note of why there is no session, and arranges for the next attempt.
func (w *worker) recordFailure(err error) {
	err = w.addLastNotification(err)
	if text := err.Error(); text != w.status.LastError || w.status.State == Established {
		w.log.Warn("no session", "router", w.status.Remote, "error", text)
		w.status.LastError = text
	}
	w.enterState(Idle)
	w.retryTimer.Reset(retryDelay(w.failures, w.order.peer.ConnectTime))
	w.failures++
}

// retryDelay returns the time before the next attempt after that many failures: doubling, up to the longest, with a quarter of
// jitter, so that the nodes of a rack do not come back as one.
func retryDelay(failures int, longest time.Duration) time.Duration {
	if failures < 0 {
		return 0
	}
	if longest == 0 {
		longest = maxRetryDelay
	}
	d := min(firstRetryDelay<<min(failures, 20), longest)
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}

func (w *worker) enterState(p State) {
	if w.status.State != p {
		w.status.State, w.status.Since = p, currentTime()
	}
}

// reportStatus hands the State to the engine when it has changed.
func (w *worker) reportStatus() {
	w.status.Remote = netip.AddrPortFrom(w.order.peer.Address, w.order.peer.Port)
	w.status.AnnouncedRoutes, w.status.Reason, w.status.Withheld = 0, names.Reason(w.order.peer.Blocked.Reason), Withheld{}
	if w.status.State == Established {
		w.status.Reason = ""
		w.status.AnnouncedRoutes = w.table.Len(w.status.Families...)
		w.status.Withheld = w.findWithheld()
	}
	w.engine.recordStatus(w.status)
}
