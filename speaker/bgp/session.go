package bgp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp/frame"
)

// session relays between the router and the library from the end of the OPENs to the end of the connection. The first
// fault of any side ends it; it is told once, on ended.
type session struct {
	conn   Conn     // to the router
	lib    net.Conn // to the Library
	agreed Agreed
	tally  *tally
	// up and ended are closed when the router has confirmed the session, and when it is over; why is set before ended.
	up, ended chan struct{}
	why       error

	once  sync.Once
	write sync.Mutex // guards out
	out   *bufio.Writer
	pace  chan time.Duration // holds the latest interval between keepalives
}

// tally counts messages in both directions.
type tally struct {
	mu sync.Mutex // guards Counts
	Counts
}

func (t *tally) sent(k frame.Type) {
	t.mu.Lock()
	t.Sent.count(k)
	t.mu.Unlock()
}

func (t *tally) received(k frame.Type) {
	t.mu.Lock()
	t.Received.count(k)
	t.mu.Unlock()
}

func (t *tally) read() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Counts
}

// Times of a session.
const (
	// writeTime is how long the router may refuse to read before it counts as gone, when no hold time says so.
	writeTime = 90 * time.Second
	// farewellTime bounds the last message.
	farewellTime = time.Second
	// refreshPause is the least time between two refreshes of one family: each sends every route again.
	refreshPause = time.Second
)

// relay starts a session between two connections on which the OPENs were exchanged.
func relay(conn Conn, lib net.Conn, a Agreed, t *tally) *session {
	s := &session{
		conn: conn, lib: lib, agreed: a, tally: t,
		up: make(chan struct{}), ended: make(chan struct{}), out: bufio.NewWriterSize(conn, 1<<16), pace: make(chan time.Duration, 1),
	}
	if k, ok := conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok && a.Hold == 0 {
		_ = k.SetKeepAliveConfig(probes) // without it, a router that was switched off and on again would never be missed
	}
	go s.inward()
	go s.outward()
	go s.pulse()
	return s
}

// probes are TCP's own, for a session without a hold time.
var probes = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}

// pulse sends our keepalives after the first, which is the library's answer to the router's OPEN.
func (s *session) pulse() {
	select {
	case <-s.up:
	case <-s.ended:
		return
	}
	every, timer := s.agreed.Keepalive, time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if every > 0 {
			timer.Reset(every)
			due = timer.C
		}
		select {
		case <-s.ended:
			return
		case every = <-s.pace:
		case <-due:
			if err := s.send(frame.TypeKeepalive, frame.Keepalive(), true); err != nil {
				return
			}
		}
	}
}

// keep changes the interval between our keepalives.
func (s *session) keep(every time.Duration) {
	select {
	case <-s.pace:
	default:
	}
	s.pace <- every
}

// send gives the router a message, at once or with the next; an error ends the session.
func (s *session) send(t frame.Type, m []byte, flush bool) error {
	patience := writeTime
	if s.agreed.Hold > 0 {
		patience = s.agreed.Hold
	}
	s.write.Lock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(patience))
	s.tally.sent(t)
	_, err := s.out.Write(m)
	if err == nil && flush {
		err = s.out.Flush()
	}
	s.write.Unlock()
	if err != nil {
		s.finish(fmt.Errorf("sending %s to the router: %w", t, err), nil)
	}
	return err
}

// finish ends the session, telling the router when there is something to tell.
func (s *session) finish(why error, tell *frame.Fault) {
	s.once.Do(func() {
		s.why = why
		if tell != nil {
			_ = s.conn.SetWriteDeadline(time.Now().Add(farewellTime))         // frees a writer that is stuck
			last := time.AfterFunc(2*farewellTime, func() { s.conn.Close() }) // and one that became stuck just now
			defer last.Stop()
			s.write.Lock()
			_, _ = s.out.Write(tell.Encode())
			if s.out.Flush() == nil {
				s.tally.sent(frame.TypeNotification)
			}
			s.write.Unlock()
		}
		s.lib.Close()
		go hangUp(s.conn, tell != nil)
		close(s.ended)
	})
}

// hangUp closes a connection. After a farewell it waits for the router to close first: closing with unread bytes would reset
// the connection, and the farewell with it.
func hangUp(c Conn, farewell bool) {
	defer c.Close()
	half, ok := c.(interface{ CloseWrite() error })
	if !farewell || !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(farewellTime))
	_, _ = io.Copy(io.Discard, c)
}

// inward takes the router's messages. Its routes end here: nobody asked for them, and a flood of them costs nothing.
func (s *session) inward() {
	r, buf := bufio.NewReaderSize(s.conn, 1<<16), make([]byte, frame.MaxLen)
	refreshes := map[uint16]time.Time{}
	confirmed := false
	for {
		if s.agreed.Hold > 0 {
			_ = s.conn.SetReadDeadline(time.Now().Add(s.agreed.Hold))
		}
		m, err := frame.Read(r, buf)
		if err != nil {
			s.lost(err)
			return
		}
		t := frame.TypeOf(m)
		s.tally.received(t)
		switch t {
		case frame.TypeOpen:
			s.broke(&frame.Fault{Code: frame.CodeFSM, Text: "it sent a second OPEN"})
			return
		case frame.TypeNotification:
			s.finish(notice{"the router ended the session", frame.DecodeNotification(frame.Body(m)), s.agreed.Self}, nil)
			return
		case frame.TypeUpdate:
			if !confirmed {
				s.broke(&frame.Fault{Code: frame.CodeFSM, Subcode: 2, Text: "it sent an UPDATE before its first KEEPALIVE"})
				return
			}
			continue
		case frame.TypeKeepalive:
			if !confirmed {
				confirmed = true
				close(s.up)
			}
		case frame.TypeRefresh:
			afi := uint16(frame.Body(m)[0])<<8 | uint16(frame.Body(m)[1])
			if time.Since(refreshes[afi]) < refreshPause {
				continue
			}
			refreshes[afi] = time.Now()
		}
		if _, err := s.lib.Write(m); err != nil {
			s.finish(fmt.Errorf("the library closed the session: %w", err), frame.Cease(frame.CeaseReset, ""))
			return
		}
	}
}

// lost tells why nothing more can be read from the router.
func (s *session) lost(err error) {
	var fault *frame.Fault
	switch {
	case errors.As(err, &fault):
		s.broke(fault)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.finish(fmt.Errorf("nothing was heard of the router for %s, the hold time", s.agreed.Hold), &frame.Fault{Code: frame.CodeHold})
	case errors.Is(err, io.EOF):
		s.finish(errors.New("the router closed the connection without a word"), nil)
	case errors.Is(err, io.ErrUnexpectedEOF):
		s.finish(errors.New("the router closed the connection in the middle of a message"), nil)
	default:
		s.finish(fmt.Errorf("the connection broke: %w", err), nil)
	}
}

// broke ends the session for a fault of the router.
func (s *session) broke(f *frame.Fault) {
	s.finish(fmt.Errorf("the router broke the protocol: %w", f), f)
}

// outward takes the library's messages to the router.
func (s *session) outward() {
	r, buf := bufio.NewReaderSize(s.lib, 1<<16), make([]byte, frame.MaxLen)
	for {
		m, err := frame.Read(r, buf)
		if err != nil {
			s.finish(fmt.Errorf("the library ended the session: %w", err), frame.Cease(frame.CeaseReset, ""))
			return
		}
		// Messages that come together go together.
		if s.send(frame.TypeOf(m), m, r.Buffered() == 0) != nil {
			return
		}
	}
}

// openWait is how long the router may take for its OPEN. RFC 4271 section 8.2.2 suggests four minutes; a router that is silent
// after accepting the connection is either overloaded or not one.
const openWait = 20 * time.Second

// handshake exchanges the OPENs and holds the router's against what is configured.
func handshake(c Conn, t *tally, self frame.Open, check func(peer frame.Open) (Agreed, error)) (Agreed, error) {
	_ = c.SetDeadline(time.Now().Add(openWait))
	if _, err := c.Write(self.Encode()); err != nil {
		return Agreed{}, fmt.Errorf("sending our OPEN: %w", err)
	}
	t.sent(frame.TypeOpen)
	m, err := frame.Read(c, make([]byte, frame.MaxLen))
	if err != nil {
		return Agreed{}, refuse(c, t, opening(err))
	}
	t.received(frame.TypeOf(m))
	switch frame.TypeOf(m) {
	case frame.TypeNotification:
		return Agreed{}, notice{"the router refused the session", frame.DecodeNotification(frame.Body(m)), self}
	case frame.TypeOpen:
	default:
		return Agreed{}, refuse(c, t, &frame.Fault{Code: frame.CodeFSM, Subcode: 1, Text: fmt.Sprintf("it began with %s, not with an OPEN", frame.TypeOf(m))})
	}
	peer, err := frame.DecodeOpen(frame.Body(m))
	if err != nil {
		return Agreed{}, refuse(c, t, err)
	}
	a, err := check(peer)
	if err != nil {
		return a, refuse(c, t, err)
	}
	_ = c.SetDeadline(time.Time{})
	return a, nil
}

// opening explains an error while waiting for the OPEN.
func opening(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &frame.Fault{Code: frame.CodeHold, Text: fmt.Sprintf("it sent no OPEN within %s", openWait)}
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET):
		return errors.New("the router closed the connection before its OPEN: is this node configured as a neighbour there?")
	}
	return err
}

// refuse tells the router what was wrong, and returns it for people.
func refuse(c Conn, t *tally, err error) error {
	var f *frame.Fault
	if !errors.As(err, &f) {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(farewellTime))
	if _, e := c.Write(f.Encode()); e == nil {
		t.sent(frame.TypeNotification)
	}
	return fmt.Errorf("the router's OPEN is refused: %w", err)
}
