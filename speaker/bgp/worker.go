package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// desiredPeerState is the desired state of one worker.
type desiredPeerState struct {
	peer             intent.Peer
	routesOfAllPeers []*intent.Route // of all peers
	nodeLeaving      bool
	// mustStop ends the worker, since the speaker stops or the peer was removed.
	mustStop bool
	// peerRemoved means that the peer is no longer configured.
	peerRemoved bool
}

// worker owns one peer: its session and the Table of its
// routes. Only run uses the fields from ctx on.
type worker struct {
	engine              *Engine
	peerName            string
	log                 *slog.Logger
	latestDesiredState  *latest.Value[desiredPeerState]
	bfdEvents           *latest.Queue[bfd.Event]
	incomingConnections chan Conn // a connection that the router opened
	done                chan struct{}
	counter             messageCounter

	ctx                      context.Context
	currentDesiredState      desiredPeerState // the latest
	status                   PeerSessionStatus
	adjRIBOut                *AdjRIBOut // the routes to announce
	session                  *session
	routerConfirmedSession   <-chan struct{} // of session; nil once it was handled
	ipv4NextHop              netip.Addr      // invalid if the session has none
	ipv6NextHop              netip.Addr      // invalid if the session has none
	allowsIPv6NextHopForIPv4 bool            // IPv4 routes may have IPv6 next hops

	attemptResults      <-chan attemptResult // result of the attempt under way; nil without one
	cancelAttempt       context.CancelFunc
	failedAttemptCount  int
	lastNotification    *receivedNotification // since the last established session; nil without one
	retryTimer          *time.Timer
	shutdownPhase       routeShutdownPhase
	shutdownTimer       *time.Timer
	noSessionSinceStart bool // no session was established since the process started
}

// attemptResult is the result of an attempt to connect.
type attemptResult struct {
	conn       Conn
	negotiated Negotiated
	err        error
}

// routeShutdownPhase is the progress of a leaving node's routes.
type routeShutdownPhase uint8

const (
	routesNotShuttingDown   routeShutdownPhase = iota
	routesMarkedForShutdown                    // announced with GRACEFUL_SHUTDOWN
	routesWithdrawnForShutdown
)

func newWorker(e *Engine, name string) *worker {
	w := &worker{
		engine:              e,
		peerName:            name,
		log:                 e.options.Log.With("peer", name),
		latestDesiredState:  latest.NewValue[desiredPeerState](),
		bfdEvents:           latest.NewQueue[bfd.Event](16),
		incomingConnections: make(chan Conn, 1),
		done:                make(chan struct{}),
		status:              PeerSessionStatus{PeerName: name, State: Idle, StateSince: e.options.Now()},
		adjRIBOut:           NewAdjRIBOut(),
		noSessionSinceStart: true,
	}
	w.status.messageCounter = &w.counter
	return w
}

// sendDesiredState replaces the pending order. Nothing follows a stop.
func (w *worker) sendDesiredState(o desiredPeerState) { w.latestDesiredState.Put(o) }

// run runs the worker until an order stops it or ctx ends.
func (w *worker) run(ctx context.Context) {
	w.ctx = ctx
	w.retryTimer, w.shutdownTimer = time.NewTimer(time.Hour), time.NewTimer(time.Hour)
	w.retryTimer.Stop()
	w.shutdownTimer.Stop()
	defer w.closeConnections()
	first := true
	for {
		var ended <-chan struct{}
		if w.session != nil {
			ended = w.session.ended
		}
		select {
		case <-ctx.Done():
			if w.session != nil {
				w.session.endWithNotification(ctx.Err(), nil)
			}
			return
		case o := <-w.latestDesiredState.C():
			if o.mustStop {
				w.stopSession(o)
				return
			}
			w.applyDesiredState(o, first)
			first = false
		case <-w.retryTimer.C:
			w.connectToRouter()
		case a := <-w.attemptResults:
			w.attemptResults = nil
			w.startSession(a)
		case <-w.routerConfirmedSession:
			w.routerConfirmedSession = nil
			w.recordEstablished()
		case <-ended:
			w.endSession()
		case v := <-w.bfdEvents.C():
			w.handleBFDEvent(v)
		case c := <-w.incomingConnections:
			w.acceptConnection(c)
		case <-w.shutdownTimer.C:
			w.shutdownPhase = routesWithdrawnForShutdown
			w.updateAdjRIBOut()
		}
		w.reportStatus()
	}
}

// closeConnections ends the attempt and closes a waiting connection.
func (w *worker) closeConnections() {
	w.abortAttempt()
	select {
	case c := <-w.incomingConnections:
		c.Close()
	default:
	}
	close(w.done)
}

// abortAttempt cancels the attempt under way.
func (w *worker) abortAttempt() {
	if w.attemptResults == nil {
		return
	}
	w.cancelAttempt()
	if a := <-w.attemptResults; a.conn != nil {
		a.conn.Close()
	}
	w.attemptResults = nil
}

// applyDesiredState applies an order. The session is reset only if
// the edit changes our OPEN or the connection.
func (w *worker) applyDesiredState(o desiredPeerState, first bool) {
	previous := w.currentDesiredState
	w.currentDesiredState = o
	if o.nodeLeaving != previous.nodeLeaving {
		w.setLeaving(o.nodeLeaving)
	}
	switch {
	case first:
		w.retryTimer.Reset(0)
	case !w.canKeepSession(&previous.peer, &o.peer):
		w.log.Info("the peer's configuration changed; reconnecting")
		w.abortAttempt()
		if w.session != nil {
			w.session.endWithNotification(fmt.Errorf("the peer's configuration changed"), message.NewCeaseNotification(message.CeaseConfigChange, ""))
			w.endSession()
		}
		w.failedAttemptCount, w.lastNotification = 0, nil
		w.retryTimer.Reset(0)
	case previous.peer.Password != o.peer.Password && !o.peer.Blocked.IsSet():
		w.changePassword()
	case previous.peer.Blocked != o.peer.Blocked && w.session == nil:
		w.abortAttempt()
		w.failedAttemptCount = 0
		w.retryTimer.Reset(0)
	}
	w.applyTimerEdits(&previous.peer)
	w.updateAdjRIBOut()
}

// needSameOpenAndConnection reports whether both configurations need the same OPEN and connection.
func needSameOpenAndConnection(a, b *intent.Peer) bool {
	x, y := *a, *b
	for _, p := range []*intent.Peer{&x, &y} {
		p.Password, p.Blocked, p.BFD, p.MaxReconnectDelay, p.KeepaliveTime = "", names.Explanation{}, nil, 0, 0
	}
	return x == y
}

// changePassword sets the new password on the open connection, or restarts the attempt under way.
func (w *worker) changePassword() {
	if w.session == nil {
		w.abortAttempt()
		w.failedAttemptCount = 0
		w.retryTimer.Reset(0)
		return
	}
	if err := w.session.routerConn.SetPassword(w.currentDesiredState.peer.Password); err != nil {
		w.session.endWithNotification(err, message.NewCeaseNotification(message.CeaseReset, "new password"))
		return
	}
	w.log.Info("the password of the session changed; change it on the router before the hold time ends", "hold", w.session.negotiated.HoldTime)
}

// connectToRouter starts an attempt unless a session or an attempt exists or the peer is blocked.
func (w *worker) connectToRouter() {
	p := w.currentDesiredState.peer
	switch {
	case w.session != nil || w.attemptResults != nil:
		return
	case p.Blocked.IsSet():
		w.recordAttemptFailure(errors.New(p.Blocked.Text))
		return
	case p.Passive:
		w.enterState(Active)
		return
	}
	w.enterState(Connect)
	w.startAttempt(func(ctx context.Context) (Conn, error) { return w.engine.options.Transport.Dial(ctx, dialOptions(&p)) })
}

// acceptConnection handles a connection that the router opened. An existing
// session wins unless graceful restart was negotiated: then a new connection
// means that the router has restarted (RFC 4724 section 5).
func (w *worker) acceptConnection(c Conn) {
	p := w.currentDesiredState.peer
	if w.session != nil && w.session.negotiated.GracefulRestart {
		w.session.endWithNotification(errors.New("the router opened a new connection"), nil)
		w.endSession()
	}
	if !p.Passive || p.Blocked.IsSet() || w.session != nil || w.attemptResults != nil {
		_, _ = c.Write(message.NewCeaseNotification(message.CeaseRejected, "").Encode())
		go closeConnectionWithoutReset(c, true)
		return
	}
	w.retryTimer.Stop()
	o := dialOptions(&p)
	w.enterState(Connect)
	w.startAttempt(func(context.Context) (Conn, error) { return c, c.SetTTLAndMinReceivedTTL(o.TTL, o.MinReceivedTTL) })
}

// startAttempt starts an attempt on the connection that connect returns.
func (w *worker) startAttempt(connect func(context.Context) (Conn, error)) {
	p := w.currentDesiredState.peer
	ctx, cancel := context.WithCancel(w.ctx)
	result := make(chan attemptResult, 1)
	w.attemptResults, w.cancelAttempt = result, cancel
	restarted := w.noSessionSinceStart
	go func() {
		defer cancel()
		result <- w.connectAndExchangeOpens(ctx, p, restarted, connect)
	}()
}

// connectAndExchangeOpens connects and exchanges the OPENs. It runs on its
// own goroutine and uses only the counter of the worker.
func (w *worker) connectAndExchangeOpens(ctx context.Context, p intent.Peer, restarted bool, connect func(context.Context) (Conn, error)) attemptResult {
	c, err := connect(ctx)
	if err != nil {
		if c != nil {
			c.Close()
		}
		return attemptResult{err: err}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	ipv4, _ := c.LocalNextHops()
	local := buildOpen(&p, chooseRouterID(p.RouterID, ipv4, w.engine.options.NodeName), restarted)
	a, err := exchangeOpens(c, &w.counter, local, func(remote message.OpenMessage) (Negotiated, error) { return negotiate(&p, local, remote) })
	if err != nil {
		go closeConnectionWithoutReset(c, true)
		return attemptResult{err: err}
	}
	return attemptResult{conn: c, negotiated: a}
}

// dialOptions returns where and how to connect to a peer.
func dialOptions(p *intent.Peer) DialOptions {
	o := DialOptions{RouterAddress: netip.AddrPortFrom(p.Address, p.Port), LocalAddress: p.SourceAddress, BindDevice: p.Device, Password: p.Password, TTL: 255}
	switch {
	case p.MaxHops > 0:
		o.MinReceivedTTL = 255 - (p.MaxHops - 1)
	case p.IsExternal() && !p.Multihop:
		o.TTL = 1
	}
	return o
}

// startSession starts the session after a successful attempt.
func (w *worker) startSession(a attemptResult) {
	if a.err != nil {
		w.recordAttemptFailure(a.err)
		return
	}
	w.setNextHops(a)
	updates := w.engine.options.UpdateGenerator.OpenConnectionWithUpdates(a.negotiated, w.currentDesiredState.peer.LocalASN, w.adjRIBOut)
	w.session = startSessionRelay(a.conn, updates, a.negotiated, &w.counter, w.engine.options.Now)
	w.routerConfirmedSession = w.session.firstKeepaliveReceived
	w.enterState(OpenSent)
}

// setNextHops sets the next hops of the routes.
func (w *worker) setNextHops(a attemptResult) {
	w.ipv4NextHop, w.ipv6NextHop = a.conn.LocalNextHops()
	w.allowsIPv6NextHopForIPv4 = a.negotiated.ExtendedNextHop
	if local, ok := a.conn.LocalAddr().(*net.TCPAddr); ok && w.currentDesiredState.peer.Unnumbered {
		// The router knows only this link's own address. Other
		// addresses of the node may be unknown there.
		if w.ipv6NextHop = local.AddrPort().Addr(); w.allowsIPv6NextHopForIPv4 {
			w.ipv4NextHop = netip.Addr{}
		}
	}
	w.updateAdjRIBOut()
}

// recordEstablished records that the router has confirmed the session.
func (w *worker) recordEstablished() {
	a := w.session.negotiated
	w.noSessionSinceStart, w.lastNotification = false, nil
	w.status.EstablishedCount++
	w.status.Families, w.status.RouterASN, w.status.HoldTime, w.status.RouterKeepsRoutesOverRestart = a.CommonFamilies, a.RemoteOpen.ASN, a.HoldTime, a.GracefulRestart
	w.enterState(Established)
	w.log.Info("the session is established", "router", w.status.RouterAddress, "asn", a.RemoteOpen.ASN, "families", fmt.Sprint(a.CommonFamilies), "routes", w.adjRIBOut.RouteCount())
}

func (w *worker) enterState(s State) {
	if w.status.State != s {
		w.status.State, w.status.StateSince = s, w.engine.options.Now()
	}
}

// reportStatus reports the Status to the Engine.
func (w *worker) reportStatus() {
	w.status.RouterAddress = netip.AddrPortFrom(w.currentDesiredState.peer.Address, w.currentDesiredState.peer.Port)
	w.status.AnnouncedRouteCount, w.status.NotConnectingReason, w.status.WithheldRouteReason = 0, w.currentDesiredState.peer.Blocked.Reason, names.Explanation{}
	if w.status.State == Established {
		w.status.NotConnectingReason = ""
		w.status.AnnouncedRouteCount = w.adjRIBOut.RouteCount(w.status.Families...)
		w.status.WithheldRouteReason = w.findWithheldReason()
	}
	w.engine.recordStatus(w.status)
}
