package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/rib"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// desiredPeerState is the desired state of one worker.
type desiredPeerState struct {
	peer        intent.Peer
	nodeLeaving bool
	// nodeAddresses are those of the node's links, nodeInternalIPs those in the Kubernetes API.
	nodeAddresses   []NodeAddress
	nodeInternalIPs []netip.Addr
	// mustStop ends the worker, since the speaker stops or the peer was removed.
	mustStop bool
	// peerRemoved means that the peer is no longer configured.
	peerRemoved bool
}

// peerWorker owns one peer: its session and the AdjRIBOut with its
// routes. Only run uses the fields from ctx on.
type peerWorker struct {
	engine              *Engine
	peerName            string
	log                 *slog.Logger
	pendingDesiredState *latest.Value[desiredPeerState]
	routeInbox          *routeInbox
	ribRequests         chan chan<- rib.PeerRIB
	bfdEvents           *latest.BoundedQueue[bfd.Event]
	incomingConnections chan Conn // a connection that the router opened
	done                chan struct{}
	messageCounter      messageCounter

	ctx                       context.Context
	currentDesiredState       desiredPeerState // the latest
	status                    PeerSessionStatus
	routes                    *peerRoutes
	lastExportRules           *exportRules // by which all routes were decided; nil before
	session                   *session
	awaitedRouterConfirmation <-chan struct{} // of session; nil once it was handled
	nextHops                  sessionNextHops // of session, or the last one
	sessionFamilies           []message.AFI   // of session, or the last one

	// connectAttemptResults has the result of the attempt under way; nil without one.
	connectAttemptResults     <-chan connectAttemptResult
	cancelConnectAttempt      context.CancelFunc
	failedAttemptCount        int
	capabilityFallback        capabilityFallback
	routerOpenRejectionReason names.Reason          // of the last failed attempt; often empty
	lastReceivedNotification  *receivedNotification // since the last session; nil without one
	reconnectTimer            *time.Timer
	drainTimer                *time.Timer // for the next route of terminating endpoints
	bfdRecoveryTimer          *time.Timer // for the BFD session of a new session
	routeShutdown             gracefulRouteShutdown
	noSessionSinceStart       bool // no session was established since the process started
}

// connectAttemptResult is the result of an attempt to connect.
type connectAttemptResult struct {
	conn       Conn
	negotiated NegotiatedParameters
	err        error
}

func newPeerWorker(e *Engine, name string) *peerWorker {
	now := e.options.Now()
	w := &peerWorker{
		engine:              e,
		peerName:            name,
		log:                 e.options.Log.With("peer", name),
		pendingDesiredState: latest.NewValue[desiredPeerState](),
		routeInbox:          newRouteInbox(),
		ribRequests:         make(chan chan<- rib.PeerRIB),
		bfdEvents:           latest.NewBoundedQueue[bfd.Event](4),
		incomingConnections: make(chan Conn, 1),
		done:                make(chan struct{}),
		status:              PeerSessionStatus{PeerName: name, State: Idle, StateSince: now, UpOrDownSince: now},
		routes:              newPeerRoutes(),
		noSessionSinceStart: true,
	}
	w.status.messageCounter = &w.messageCounter
	return w
}

// sendDesiredState replaces the pending order. Nothing follows a stop.
func (w *peerWorker) sendDesiredState(o desiredPeerState) { w.pendingDesiredState.Put(o) }

// run runs the worker until an order stops it or ctx ends.
func (w *peerWorker) run(ctx context.Context) {
	w.ctx = ctx
	for _, timer := range []**time.Timer{&w.reconnectTimer, &w.routeShutdown.timer, &w.drainTimer, &w.bfdRecoveryTimer} {
		*timer = time.NewTimer(time.Hour)
		(*timer).Stop()
	}
	defer w.closeConnectionsAndSignalDone()
	first := true
	for {
		var ended <-chan struct{}
		if w.session != nil {
			ended = w.session.endedSignal
		}
		select {
		case <-ctx.Done():
			if w.session != nil {
				w.session.endWithNotification(ctx.Err(), nil)
			}
			return
		case o := <-w.pendingDesiredState.C():
			if o.mustStop {
				w.endSessionBeforeWorkerStops(o)
				return
			}
			w.applyDesiredState(o, first)
			first = false
		case <-w.reconnectTimer.C:
			w.connectToRouter()
		case a := <-w.connectAttemptResults:
			w.connectAttemptResults = nil
			w.handleConnectAttemptResult(a)
		case <-w.awaitedRouterConfirmation:
			w.awaitedRouterConfirmation = nil
			w.recordEstablished()
		case <-ended:
			w.recordSessionEndAndScheduleRetry()
		case v := <-w.bfdEvents.C():
			w.handleBFDEvent(v)
		case c := <-w.incomingConnections:
			w.handleIncomingConnection(c)
		case <-w.routeShutdown.timer.C:
			w.withdrawRoutesForShutdown()
		case <-w.bfdRecoveryTimer.C:
			w.endSessionAfterBFDRecoveryTimeout()
		case <-w.drainTimer.C:
			w.withdrawDrainedAndSetTimer()
		case <-w.routeInbox.ready.C():
			w.applyRouteChangesToAdjRIBOut()
		case reply := <-w.ribRequests:
			reply <- w.describeRIB()
			continue
		}
		w.reportStatus()
	}
}

// closeConnectionsAndSignalDone ends the attempt and closes a waiting connection.
func (w *peerWorker) closeConnectionsAndSignalDone() {
	w.abortConnectAttempt()
	select {
	case c := <-w.incomingConnections:
		c.Close()
	default:
	}
	close(w.done)
}

// abortConnectAttempt cancels the attempt under way.
func (w *peerWorker) abortConnectAttempt() {
	if w.connectAttemptResults == nil {
		return
	}
	w.cancelConnectAttempt()
	if a := <-w.connectAttemptResults; a.conn != nil {
		a.conn.Close()
	}
	w.connectAttemptResults = nil
}

// applyDesiredState applies an order. The session is reset only if
// the edit changes our OPEN or the connection.
func (w *peerWorker) applyDesiredState(o desiredPeerState, first bool) {
	previous := w.currentDesiredState
	w.currentDesiredState = o
	switch {
	case first && o.nodeLeaving:
		w.routeShutdown.phase = routesWithdrawnForShutdown // the router has no routes of it yet
	case o.nodeLeaving != previous.nodeLeaving:
		w.startOrCancelRouteShutdown(o.nodeLeaving)
	}
	switch {
	case first:
		w.status.SessionConfigChangedAt = w.engine.options.Now()
		w.reconnectTimer.Reset(0)
	case !w.canKeepSession(&previous.peer, &o.peer):
		w.log.Info("the peer's configuration changed; reconnecting")
		w.abortConnectAttempt()
		if w.session != nil {
			cease := message.NewCeaseNotification(message.CeaseConfigChange, "")
			if editLeavesOldRouter(&previous.peer, &o.peer) {
				cease = w.wrapInHardResetIfNeeded(cease)
			}
			w.session.endWithNotification(fmt.Errorf("the peer's configuration changed"), cease)
			w.recordSessionEndAndScheduleRetry()
		}
		w.failedAttemptCount, w.lastReceivedNotification, w.capabilityFallback = 0, nil, capabilityFallback{}
		w.status.SessionConfigChangedAt = w.engine.options.Now()
		w.reconnectTimer.Reset(0)
	case previous.peer.Password != o.peer.Password && !o.peer.BlockedExplanation.IsSet():
		w.changePassword()
	case previous.peer.BlockedExplanation != o.peer.BlockedExplanation && w.session == nil:
		w.abortConnectAttempt()
		w.failedAttemptCount = 0
		w.reconnectTimer.Reset(0)
	}
	w.applyTimerEdits(&previous.peer)
	w.resetWithdrawalTimer()
	if w.session != nil {
		w.updateNextHops(w.session.routerConn, w.session.negotiated)
	}
	w.updateAdjRIBOut()
}

// needSameOpenAndConnection reports whether both configurations need the same OPEN and connection.
func needSameOpenAndConnection(a, b *intent.Peer) bool {
	x, y := *a, *b
	for _, p := range []*intent.Peer{&x, &y} {
		p.Password, p.BlockedExplanation, p.BFD, p.MaxReconnectDelay, p.KeepaliveTime = "", names.Explanation{}, nil, 0, 0
		p.NextHopIPv4, p.NextHopIPv6 = netip.Prefix{}, netip.Prefix{}
		p.DrainDelay, p.HasDrainDelay, p.BFDStrict = 0, false, false
		if !p.GracefulRestart {
			p.RestartTime = 0 // the OPEN does not have it
		}
	}
	return x == y
}

// editLeavesOldRouter reports whether an edit leaves the router for good: no session with it
// follows, so that it must not keep the routes.
func editLeavesOldRouter(previous, next *intent.Peer) bool {
	return previous.Address != next.Address || previous.Port != next.Port || previous.Device != next.Device || next.BlockedExplanation.IsSet()
}

// changePassword sets the new password on the open connection, or restarts the attempt under way.
func (w *peerWorker) changePassword() {
	if w.session == nil {
		w.abortConnectAttempt()
		w.failedAttemptCount = 0
		w.reconnectTimer.Reset(0)
		return
	}
	if err := w.session.routerConn.SetPassword(w.currentDesiredState.peer.Password); err != nil {
		w.session.endWithNotification(err, message.NewCeaseNotification(message.CeaseReset, "new password"))
		return
	}
	w.log.Info("the password of the session changed; change it on the router before the hold time ends", "holdTime", w.session.negotiated.HoldTime)
}

// connectToRouter starts an attempt unless a session or an attempt exists or the peer is blocked.
func (w *peerWorker) connectToRouter() {
	p := w.currentDesiredState.peer
	switch {
	case w.session != nil || w.connectAttemptResults != nil:
		return
	case p.BlockedExplanation.IsSet():
		w.recordFailureAndScheduleRetry(errors.New(p.BlockedExplanation.Text))
		return
	case p.Passive:
		w.enterState(Active)
		return
	}
	w.enterState(Connect)
	w.startConnectAttempt(func(ctx context.Context) (Conn, error) { return w.engine.options.Transport.Dial(ctx, dialOptions(&p)) })
}

// startConnectAttempt starts an attempt on the connection that connect returns.
func (w *peerWorker) startConnectAttempt(connect func(context.Context) (Conn, error)) {
	p := w.currentDesiredState.peer
	ctx, cancel := context.WithCancel(w.ctx)
	result := make(chan connectAttemptResult, 1)
	w.connectAttemptResults, w.cancelConnectAttempt = result, cancel
	settings := openMessageInputs{
		peer: &p, routerID: chooseRouterID(p.RouterID, w.currentDesiredState.nodeInternalIPs, w.engine.options.NodeName),
		speakerHasRestarted: w.noSessionSinceStart, forwardingLost: w.noSessionSinceStart && w.engine.options.FirstRunSinceBoot,
		omittedCapabilities: w.capabilityFallback.omittedAt(w.engine.options.Now()),
	}
	go func() {
		defer cancel()
		result <- w.connectAndExchangeOpens(ctx, settings, connect)
	}()
}

// connectAndExchangeOpens connects and exchanges the OPENs. It runs on its
// own goroutine and uses only the counter of the worker.
func (w *peerWorker) connectAndExchangeOpens(ctx context.Context, settings openMessageInputs, connect func(context.Context) (Conn, error)) connectAttemptResult {
	c, err := connect(ctx)
	if err != nil {
		if c != nil {
			c.Close()
		}
		return connectAttemptResult{err: err}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	settings.overIPv6 = c.LocalIP().Is6()
	local := buildOpen(&settings)
	a, err := exchangeOpens(c, &w.messageCounter, local, func(remote message.OpenMessage) (NegotiatedParameters, error) {
		return negotiateOpens(settings.peer, local, remote)
	})
	if err != nil {
		go closeConnectionWithoutReset(c, true)
		return connectAttemptResult{err: adviseOnTTLSecurity(settings.peer, err)}
	}
	return connectAttemptResult{conn: c, negotiated: a}
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

// handleConnectAttemptResult starts the session after a successful attempt.
func (w *peerWorker) handleConnectAttemptResult(a connectAttemptResult) {
	switch {
	case a.err != nil && w.session != nil: // a second connection, which the router did not use
		w.log.Debug("a second connection of the router failed", "error", a.err)
		return
	case a.err != nil:
		w.recordFailureAndScheduleRetry(a.err)
		return
	case w.session != nil:
		w.session.endWithNotification(errRouterReconnected, nil)
		w.recordSessionEndAndScheduleRetry()
		w.reconnectTimer.Stop()
	}
	w.updateNextHops(a.conn, a.negotiated)
	w.sessionFamilies = a.negotiated.CommonFamilies
	if w.routeShutdown.phase == routesWithShutdownCommunity {
		// The routes of a leaving node do not come back for the rest of the time.
		w.routeShutdown.timer.Stop()
		w.routeShutdown.phase = routesWithdrawnForShutdown
	}
	w.updateAdjRIBOut()
	updates := w.engine.options.UpdateGenerator.StartUpdateStream(a.negotiated, w.currentDesiredState.peer.LocalASN, w.routes.adjRIBOut)
	w.session = startSessionRelay(a.conn, updates, a.negotiated, &w.messageCounter, w.engine.options.Now)
	w.awaitedRouterConfirmation = w.session.firstKeepaliveSignal
	w.enterState(OpenConfirm)
}

// updateNextHops chooses the next hops of a session's routes.
func (w *peerWorker) updateNextHops(c Conn, n NegotiatedParameters) {
	p := w.currentDesiredState.peer
	now := chooseNextHops(&nextHopInputs{
		peer: &p, routerAddress: p.Address, localAddress: c.LocalIP(), allowsIPv6NextHopForIPv4: n.ExtendedNextHop,
		nodeAddresses: w.currentDesiredState.nodeAddresses, nodeInternalIPs: w.currentDesiredState.nodeInternalIPs,
	})
	if now != w.nextHops {
		w.log.Info("the next hops of the session's routes", "nextHops", now.listAddresses(), "formerNextHops", w.nextHops.listAddresses())
	}
	w.nextHops = now
}

// recordEstablished records that the router has confirmed the session.
func (w *peerWorker) recordEstablished() {
	a := w.session.negotiated
	w.noSessionSinceStart, w.lastReceivedNotification = false, nil
	w.status.EstablishedCount++
	w.status.NegotiatedFamilies, w.status.RouterASN, w.status.HoldTime, w.status.RouterKeepsRoutesOverRestart = a.CommonFamilies, a.RemoteOpen.ASN, a.HoldTime, a.GracefulRestart
	w.enterState(Established)
	w.log.Info("the session is established", "router", w.status.RouterAddress, "asn", a.RemoteOpen.ASN, "families", namesOfFamilies(a.CommonFamilies), "routes", w.routes.adjRIBOut.RouteCount())
}

// namesOfFamilies returns the names of the families, as the log shows them.
func namesOfFamilies(all []message.AFI) []string {
	var out []string
	for _, f := range all {
		out = append(out, f.String())
	}
	return out
}

func (w *peerWorker) enterState(s State) {
	if w.status.State == s {
		return
	}
	now := w.engine.options.Now()
	if s == Established || w.status.State == Established {
		w.status.UpOrDownSince = now
	}
	w.status.State, w.status.StateSince = s, now
}

// reportStatus reports the Status to the Engine.
func (w *peerWorker) reportStatus() {
	w.status.RouterAddress = netip.AddrPortFrom(w.currentDesiredState.peer.Address, w.currentDesiredState.peer.Port)
	w.status.AnnouncedRouteCount, w.status.AnnounceableFamilies = 0, nil
	w.status.DrainingPrefixes, w.status.DrainedPrefixes = nil, nil
	w.status.NotConnectingReason, w.status.WithheldRouteReason = w.currentDesiredState.peer.BlockedExplanation.Reason, names.Explanation{}
	w.status.WantedRouteCount = w.routes.wantedRouteCount()
	if w.status.NotConnectingReason == "" {
		w.status.NotConnectingReason = w.routerOpenRejectionReason
	}
	if w.status.State == Established {
		w.status.NotConnectingReason = ""
		w.status.AnnouncedRouteCount = w.routes.adjRIBOut.RouteCount()
		w.status.WithheldRouteReason = w.routes.explainFirstWithheldRoute()
		w.status.AnnounceableFamilies = w.announceableFamilies()
		w.status.DrainingPrefixes, w.status.DrainedPrefixes = w.routes.drainingAndDrainedPrefixes()
	}
	w.engine.recordStatus(w.status)
}
