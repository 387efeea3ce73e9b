package members

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxStreamBytes bounds what is read of a TCP connection: memberlist holds a state in memory
	// before it can authenticate it. 100,000 claims take less than 4 MB.
	maxStreamBytes = 8 << 20
	// maxOpenStreams and maxOpenStreamsPerSource bound the TCP connections from others at one time.
	maxOpenStreams          = 32
	maxOpenStreamsPerSource = 2
)

// guardedTransport is memberlist's transport with bounds that hold before a message is
// authenticated. It takes packets and connections only from addresses of other speakers, as far as
// these are known, and only a few connections at a time.
type guardedTransport struct {
	*memberlist.NetTransport
	localAddress net.IP
	// allowedSources are the addresses of other speakers; nil or empty allows all.
	allowedSources atomic.Pointer[map[netip.Addr]struct{}]
	// memberSources are the addresses of the other members: their keys are right.
	memberSources        atomic.Pointer[map[netip.Addr]struct{}]
	keyring              *memberlist.Keyring
	undecryptableSources undecryptableSources
	packets              chan *memberlist.Packet
	streams              chan net.Conn
	stopped              chan struct{}
	stopOnce             sync.Once
	forwarders           sync.WaitGroup

	mu                  sync.Mutex // guards openStreamsBySource and openStreamCount
	openStreamsBySource map[netip.Addr]int
	openStreamCount     int
}

// newGuardedTransport opens the sockets.
func newGuardedTransport(address netip.Addr, port int, keyring *memberlist.Keyring, logger *log.Logger) (*guardedTransport, error) {
	t := &guardedTransport{
		localAddress: address.AsSlice(), keyring: keyring, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
		stopped: make(chan struct{}), openStreamsBySource: map[netip.Addr]int{},
	}
	var err error
	t.NetTransport, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{address.String()}, BindPort: port, Logger: logger})
	if err != nil {
		return nil, err
	}
	t.forwarders.Go(t.forwardAllowedPackets)
	t.forwarders.Go(t.forwardAllowedStreams)
	return t, nil
}

// setAllowedSources replaces the addresses of other speakers.
func (t *guardedTransport) setAllowedSources(addresses map[netip.Addr]struct{}) {
	t.allowedSources.Store(&addresses)
}

// setMemberSources replaces the addresses of the other members.
func (t *guardedTransport) setMemberSources(addresses map[netip.Addr]struct{}) {
	t.memberSources.Store(&addresses)
}

// recordIfUndecryptable records whether the sender of a packet uses another key. It records only
// known speakers that are no members; otherwise any host could fill the record.
func (t *guardedTransport) recordIfUndecryptable(source netip.Addr, p *memberlist.Packet) {
	allowed, members := t.allowedSources.Load(), t.memberSources.Load()
	if allowed == nil || len(*allowed) == 0 || members == nil {
		return
	}
	if _, isMember := (*members)[source]; !isMember {
		t.undecryptableSources.recordOrForgetSource(source, isEncryptedWithUnknownKey(p.Buf, t.keyring), p.Timestamp)
	}
}

func (t *guardedTransport) isAllowedSource(source netip.Addr) bool {
	allowed := t.allowedSources.Load()
	if allowed == nil || len(*allowed) == 0 {
		return true
	}
	_, ok := (*allowed)[source]
	return ok
}

// sourceAddress returns the address without port, in the form in which allowedSources has it.
func sourceAddress(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap().WithZone("")
}

// PacketCh delivers the packets of other speakers.
func (t *guardedTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh delivers the connections of other speakers.
func (t *guardedTransport) StreamCh() <-chan net.Conn { return t.streams }

func (t *guardedTransport) forwardAllowedPackets() {
	for {
		select {
		case <-t.stopped:
			return
		case p := <-t.NetTransport.PacketCh():
			source := sourceAddress(p.From)
			if !t.isAllowedSource(source) {
				continue
			}
			t.recordIfUndecryptable(source, p)
			select {
			case t.packets <- p:
			case <-t.stopped:
			}
		}
	}
}

func (t *guardedTransport) forwardAllowedStreams() {
	for {
		select {
		case <-t.stopped:
			return
		case c := <-t.NetTransport.StreamCh():
			guarded := t.admitStream(c)
			if guarded == nil {
				_ = c.Close() // nothing was written
				continue
			}
			select {
			case t.streams <- guarded:
			case <-t.stopped:
				_ = guarded.Close()
			}
		}
	}
}

// admitStream returns a bounded connection, nil if the source may not have it.
func (t *guardedTransport) admitStream(c net.Conn) net.Conn {
	source := sourceAddress(c.RemoteAddr())
	if !t.isAllowedSource(source) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.openStreamCount >= maxOpenStreams || t.openStreamsBySource[source] >= maxOpenStreamsPerSource {
		return nil
	}
	t.openStreamCount++
	t.openStreamsBySource[source]++
	return &boundedStream{Conn: c, bytesLeft: maxStreamBytes, onClose: sync.OnceFunc(func() { t.releaseStreamSlot(source) })}
}

func (t *guardedTransport) releaseStreamSlot(source netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.openStreamCount--
	if t.openStreamsBySource[source]--; t.openStreamsBySource[source] == 0 {
		delete(t.openStreamsBySource, source)
	}
}

// DialTimeout connects from the gossip address, by which the other speaker knows this one.
func (t *guardedTransport) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout, LocalAddr: &net.TCPAddr{IP: t.localAddress}}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connecting to another speaker: %w", err)
	}
	return &boundedStream{Conn: c, bytesLeft: maxStreamBytes, onClose: func() {}}, nil
}

// DialAddressTimeout connects like DialTimeout.
func (t *guardedTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown closes the sockets.
func (t *guardedTransport) Shutdown() error {
	// The readers of the sockets block until their packet is taken, so the copiers end last.
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for {
			select {
			case <-t.NetTransport.PacketCh():
			case c := <-t.NetTransport.StreamCh():
				_ = c.Close()
			case <-t.stopped:
				return
			}
		}
	}()
	err := t.NetTransport.Shutdown()
	t.stopOnce.Do(func() { close(t.stopped) })
	<-drained
	t.forwarders.Wait()
	return err
}

// errStreamTooLong is the error of a connection that sends more than maxStreamBytes.
var errStreamTooLong = errors.New("the other speaker sends more than 8 MB")

// boundedStream is a connection from which at most a given number of bytes can be read.
type boundedStream struct {
	net.Conn
	bytesLeft int
	onClose   func()
}

// Read reads at most bytesLeft bytes.
func (s *boundedStream) Read(b []byte) (int, error) {
	if s.bytesLeft == 0 {
		return 0, errStreamTooLong
	}
	n, err := s.Conn.Read(b[:min(len(b), s.bytesLeft)])
	s.bytesLeft -= n
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("reading from another speaker: %w", err)
	}
	return n, err
}

// Close closes the connection.
func (s *boundedStream) Close() error {
	s.onClose()
	return s.Conn.Close()
}
