package bgp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// session relays messages between the router and the UpdateGenerator after
// the OPENs. The first error on either side ends it.
type session struct {
	routerConn           Conn     // to the router
	updateGeneratorConn  net.Conn // the UpdateGenerator's messages
	negotiated           NegotiatedParameters
	messageCounter       *messageCounter
	now                  func() time.Time
	firstKeepaliveSignal chan struct{} // closed at the router's first KEEPALIVE
	endedSignal          chan struct{} // closed at the end of the session
	endReason            error         // set before ended is closed

	endOnce            sync.Once
	writeMutex         sync.Mutex // guards writer
	writer             *bufio.Writer
	keepaliveIntervals *latest.Value[time.Duration] // between our keepalives
}

// Sizes of the buffers of a session, in bytes. Most sessions are at rest, so that larger ones cost
// more memory than they save system calls.
const (
	// toRouterBufferBytes is for the messages to the router, once on each side of the relay.
	toRouterBufferBytes = 1 << 12
	// fromRouterBufferBytes is for the messages of the router. Long ones bypass the buffer.
	fromRouterBufferBytes = 1 << 9
)

// messageCounter counts messages in both directions.
type messageCounter struct {
	mu sync.Mutex // guards MessageCounts
	MessageCounts
}

func (c *messageCounter) countSent(k message.MessageType) {
	c.mu.Lock()
	c.Sent.countMessage(k)
	c.mu.Unlock()
}

func (c *messageCounter) countReceived(k message.MessageType) {
	c.mu.Lock()
	c.Received.countMessage(k)
	c.mu.Unlock()
}

func (c *messageCounter) currentCounts() MessageCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.MessageCounts
}

// Timers of a session.
const (
	// writeWithoutHoldTimeTimeout ends a session without a hold time when the router does not read
	// for so long.
	writeWithoutHoldTimeTimeout = 90 * time.Second
	// sendNotificationTimeout bounds the sending of the last NOTIFICATION.
	sendNotificationTimeout = time.Second
	// minRouteRefreshAnswerInterval is the shortest time between two answered ROUTE-REFRESHes of
	// one family, since each answer sends every route again. A request within it is answered at
	// its end.
	minRouteRefreshAnswerInterval = time.Second
)

// startSessionRelay starts a session after the OPENs. updates is the UpdateGenerator's connection.
func startSessionRelay(conn Conn, updates net.Conn, n NegotiatedParameters, counter *messageCounter, now func() time.Time) *session {
	s := &session{
		routerConn: conn, updateGeneratorConn: updates, negotiated: n, messageCounter: counter, now: now,
		firstKeepaliveSignal: make(chan struct{}), endedSignal: make(chan struct{}), writer: bufio.NewWriterSize(conn, toRouterBufferBytes), keepaliveIntervals: latest.NewValue[time.Duration](),
	}
	if k, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok && n.HoldTime == 0 {
		// or a restart of the router would never be noticed
		_ = k.SetKeepAliveConfig(tcpKeepaliveWithoutHoldTime)
	}
	go s.relayToUpdateGenerator()
	go s.relayToRouter()
	go s.sendKeepalives()
	return s
}

// tcpKeepaliveWithoutHoldTime is for sessions without a hold time.
var tcpKeepaliveWithoutHoldTime = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}

// sendKeepalives sends our keepalives after the first one, which the
// UpdateGenerator sends as the answer to the router's OPEN.
func (s *session) sendKeepalives() {
	select {
	case <-s.firstKeepaliveSignal:
	case <-s.endedSignal:
		return
	}
	interval, timer := s.negotiated.KeepaliveInterval, time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if interval > 0 {
			timer.Reset(interval)
			due = timer.C
		}
		select {
		case <-s.endedSignal:
			return
		case interval = <-s.keepaliveIntervals.C():
		case <-due:
			if err := s.writeMessage(message.TypeKeepalive, message.EncodeKeepalive(), true); err != nil {
				return
			}
		}
	}
}

// setKeepaliveInterval changes the interval between our keepalives.
func (s *session) setKeepaliveInterval(interval time.Duration) { s.keepaliveIntervals.Put(interval) }

// writeMessage writes a message to the router, and flushes it if asked. An error ends the session.
func (s *session) writeMessage(t message.MessageType, m []byte, flush bool) error {
	timeout := writeWithoutHoldTimeTimeout
	if s.negotiated.HoldTime > 0 {
		timeout = s.negotiated.HoldTime
	}
	s.writeMutex.Lock()
	_ = s.routerConn.SetWriteDeadline(time.Now().Add(timeout))
	s.messageCounter.countSent(t)
	_, err := s.writer.Write(m)
	if err == nil && flush {
		err = s.writer.Flush()
	}
	s.writeMutex.Unlock()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // RFC 9687; nothing more can be sent
		s.endWithNotification(fmt.Errorf("the router has read nothing for %s (send hold timer expired)", timeout), nil)
	case err != nil:
		s.endWithNotification(fmt.Errorf("sending %s to the router: %w", t, withoutConnectionAddresses(err)), nil)
	}
	return err
}

// endWithNotification ends the session. notification is sent to the router unless it is nil.
func (s *session) endWithNotification(reason error, notification *message.Notification) {
	s.endOnce.Do(func() {
		s.endReason = reason
		if notification != nil {
			// The deadline unblocks a writer, and closing the connection one that blocks later.
			_ = s.routerConn.SetWriteDeadline(time.Now().Add(sendNotificationTimeout))
			closing := time.AfterFunc(2*sendNotificationTimeout, func() { s.routerConn.Close() })
			defer closing.Stop()
			s.writeMutex.Lock()
			_, _ = s.writer.Write(notification.Encode())
			if s.writer.Flush() == nil {
				s.messageCounter.countSent(message.TypeNotification)
			}
			s.writeMutex.Unlock()
		}
		s.updateGeneratorConn.Close()
		go closeConnectionWithoutReset(s.routerConn, notification != nil)
		close(s.endedSignal)
	})
}

// closeConnectionWithoutReset closes a connection. After a NOTIFICATION it waits for the router to
// close its side: closing with unread bytes would reset the connection, and the NOTIFICATION would
// be lost.
func closeConnectionWithoutReset(c Conn, notified bool) {
	defer c.Close()
	half, ok := c.(interface{ CloseWrite() error })
	if !notified || !ok || half.CloseWrite() != nil {
		return
	}
	// A reader of the session may set a later deadline.
	closing := time.AfterFunc(sendNotificationTimeout, func() { c.Close() })
	defer closing.Stop()
	_, _ = io.Copy(io.Discard, c)
}

// relayToUpdateGenerator reads the router's messages. It drops
// UPDATEs, so that a flood of routes costs no memory.
func (s *session) relayToUpdateGenerator() {
	r := message.NewReader(bufio.NewReaderSize(s.routerConn, fromRouterBufferBytes))
	refreshes := routeRefreshAnswerTimes{}
	confirmed := false
	for {
		switch {
		case s.negotiated.HoldTime > 0:
			_ = s.routerConn.SetReadDeadline(time.Now().Add(s.negotiated.HoldTime))
		case !confirmed:
			_ = s.routerConn.SetReadDeadline(time.Now().Add(firstKeepaliveWithoutHoldTimeTimeout))
		default:
			_ = s.routerConn.SetReadDeadline(time.Time{})
		}
		m, err := r.ReadMessage()
		if err != nil {
			s.endForReadError(err)
			return
		}
		t := message.TypeOf(m)
		s.messageCounter.countReceived(t)
		switch t {
		case message.TypeOpen:
			s.endForProtocolError(&message.Notification{Code: message.CodeFSMError, FaultText: "it sent a second OPEN"})
			return
		case message.TypeNotification:
			s.endWithNotification(receivedNotification{"the router ended the session", message.DecodeNotification(message.BodyOf(m)), s.negotiated.LocalOpen}, nil)
			return
		case message.TypeUpdate:
			if !confirmed {
				s.endForProtocolError(&message.Notification{Code: message.CodeFSMError, Subcode: 2, FaultText: "it sent an UPDATE before its first KEEPALIVE"})
				return
			}
			continue
		case message.TypeKeepalive:
			if !confirmed {
				confirmed = true
				close(s.firstKeepaliveSignal)
			}
		case message.TypeRouteRefresh:
			if s.dropOrDeferRouteRefresh(refreshes, m) {
				continue
			}
		}
		if _, err := s.updateGeneratorConn.Write(m); err != nil {
			s.endWithNotification(fmt.Errorf("the UPDATE encoder closed the session: %w", err), message.NewCeaseNotification(message.CeaseReset, ""))
			return
		}
	}
}

// firstKeepaliveWithoutHoldTimeTimeout bounds the wait for the router's first KEEPALIVE on a
// session without a hold time.
const firstKeepaliveWithoutHoldTimeTimeout = receiveOpenTimeout

// routeRefreshAnswerTimes has the time of the latest answer to a ROUTE-REFRESH by family. It may be
// in the future.
type routeRefreshAnswerTimes map[message.AFI]time.Time

// dropOrDeferRouteRefresh reports whether a ROUTE-REFRESH is not passed on now: it asks for nothing
// of ours, or an earlier one was answered just before. In the latter case all requests until the
// end of the interval get one answer then (RFC 2918 section 4).
func (s *session) dropOrDeferRouteRefresh(schedule routeRefreshAnswerTimes, m []byte) bool {
	family, ok := message.DecodeRouteRefresh(message.BodyOf(m))
	if !ok || !slices.Contains(s.negotiated.CommonFamilies, family) {
		return true
	}
	now := s.now()
	last, answered := schedule[family]
	switch due := last.Add(minRouteRefreshAnswerInterval); {
	case !answered || !now.Before(due):
		schedule[family] = now
		return false
	case now.Before(last): // one is scheduled already
	default:
		schedule[family] = due
		request := bytes.Clone(m)
		// An error means that the session has ended.
		time.AfterFunc(due.Sub(now), func() { _, _ = s.updateGeneratorConn.Write(request) })
	}
	return true
}

// endForReadError ends the session with an explanation of the read error.
func (s *session) endForReadError(err error) {
	var notification *message.Notification
	switch {
	case errors.As(err, &notification):
		s.endForProtocolError(notification)
	case errors.Is(err, os.ErrDeadlineExceeded) && s.negotiated.HoldTime == 0:
		s.endWithNotification(fmt.Errorf("no KEEPALIVE from the router within %s of its OPEN", firstKeepaliveWithoutHoldTimeTimeout), &message.Notification{Code: message.CodeHoldTimerExpired})
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.endWithNotification(sessionFault{names.ReasonHoldTimeExpired, fmt.Errorf("no message from the router for %s, the hold time", s.negotiated.HoldTime)}, &message.Notification{Code: message.CodeHoldTimerExpired})
	case errors.Is(err, io.EOF):
		s.endWithNotification(sessionFault{names.ReasonConnectionLost, errors.New("the router closed the connection without a NOTIFICATION")}, nil)
	case errors.Is(err, io.ErrUnexpectedEOF):
		s.endWithNotification(sessionFault{names.ReasonConnectionLost, errors.New("the router closed the connection in the middle of a message")}, nil)
	default:
		s.endWithNotification(fmt.Errorf("the connection failed: %w", withoutConnectionAddresses(err)), nil)
	}
}

// endForProtocolError ends the session because the router violated the protocol.
func (s *session) endForProtocolError(notification *message.Notification) {
	s.endWithNotification(fmt.Errorf("the router violated the protocol: %w", notification), notification)
}

// relayToRouter writes the UpdateGenerator's messages to the router.
func (s *session) relayToRouter() {
	buffered := bufio.NewReaderSize(s.updateGeneratorConn, toRouterBufferBytes)
	r := message.NewReader(buffered)
	for {
		m, err := r.ReadMessage()
		if err != nil {
			s.endWithNotification(fmt.Errorf("the UPDATE encoder ended the session: %w", err), message.NewCeaseNotification(message.CeaseReset, ""))
			return
		}
		// Messages that arrive together are sent together.
		if s.writeMessage(message.TypeOf(m), m, buffered.Buffered() == 0) != nil {
			return
		}
	}
}

// receiveOpenTimeout bounds the wait for the router's OPEN. RFC 4271 section 8.2.2 suggests four
// minutes, but a router that stays silent after accepting the connection is overloaded or does not
// run BGP.
const receiveOpenTimeout = 20 * time.Second

// exchangeOpens sends our OPEN, reads the router's and checks it.
func exchangeOpens(c Conn, counter *messageCounter, local message.OpenMessage, check func(remote message.OpenMessage) (NegotiatedParameters, error)) (NegotiatedParameters, error) {
	_ = c.SetDeadline(time.Now().Add(receiveOpenTimeout))
	if _, err := c.Write(local.Encode()); err != nil {
		return NegotiatedParameters{}, fmt.Errorf("sending our OPEN: %w", withoutConnectionAddresses(err))
	}
	counter.countSent(message.TypeOpen)
	m, err := message.ReadMessage(c, make([]byte, message.MaxMessageLength))
	if err != nil {
		return NegotiatedParameters{}, rejectRouterOpen(c, counter, explainMissingRouterOpen(err))
	}
	counter.countReceived(message.TypeOf(m))
	switch message.TypeOf(m) {
	case message.TypeNotification:
		return NegotiatedParameters{}, receivedNotification{"the router refused the session", message.DecodeNotification(message.BodyOf(m)), local}
	case message.TypeOpen:
	default:
		return NegotiatedParameters{}, rejectRouterOpen(c, counter, &message.Notification{Code: message.CodeFSMError, Subcode: 1, FaultText: fmt.Sprintf("its first message is %s, not OPEN", message.TypeOf(m))})
	}
	remote, err := message.DecodeOpen(message.BodyOf(m))
	if err != nil {
		return NegotiatedParameters{}, rejectRouterOpen(c, counter, err)
	}
	negotiated, err := check(remote)
	if err != nil {
		return negotiated, rejectRouterOpen(c, counter, err)
	}
	_ = c.SetDeadline(time.Time{})
	return negotiated, nil
}

// explainMissingRouterOpen explains an error while waiting for the router's OPEN.
func explainMissingRouterOpen(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &message.Notification{Code: message.CodeHoldTimerExpired, FaultText: fmt.Sprintf("it sent no OPEN within %s", receiveOpenTimeout)}
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET):
		return sessionFault{names.ReasonRefusedByRouter, errors.New("the router closed the connection before its OPEN: is this node configured as a neighbour there?")}
	}
	return withoutConnectionAddresses(err)
}

// adviseOnTTLSecurity adds to the silence of a router that TTL security may be the cause: the
// kernel drops what the router sends with a lower TTL, but for the start of the connection.
func adviseOnTTLSecurity(p *intent.Peer, err error) error {
	var n *message.Notification
	if p.MaxHops == 0 || !errors.As(err, &n) || n.Code != message.CodeHoldTimerExpired {
		return err
	}
	return fmt.Errorf("%w: does the router use TTL security too (ttlSecurityHops)?", err)
}

// rejectRouterOpen sends the router a NOTIFICATION, if err is one, and returns the error for the
// status.
func rejectRouterOpen(c Conn, counter *messageCounter, err error) error {
	var notification *message.Notification
	if !errors.As(err, &notification) {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(sendNotificationTimeout))
	if _, e := c.Write(notification.Encode()); e == nil {
		counter.countSent(message.TypeNotification)
	}
	return fmt.Errorf("the router's OPEN is rejected: %w", err)
}
