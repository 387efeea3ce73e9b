// Package udp is BFD's Transport on Linux: UDP sockets for control packets (RFC 5881, RFC 5883) and
// packet sockets for echo packets. One socket receives for all sessions of a family, a port and a
// VRF. Each session sends from its own socket and source port. Links may disappear and return. The
// package decides nothing and keeps no state but its sockets; package bfdtest replaces it in tests.
// It needs only the capability NET_RAW, to bind sockets to devices and to send echo packets.
package udp

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// The UDP ports that BFD listens on (RFC 5881 section 4, RFC 5883 section 5).
const (
	singleHopPort = 3784
	echoPort      = 3785
	multihopPort  = 4784
)

// The source ports of control packets (RFC 5881 section 4).
const (
	firstSourcePort = 49152
	lastSourcePort  = 65535
)

// Transport opens sockets in the network namespace of the
// calling thread. Only one goroutine may use it, but for Wake.
type Transport struct {
	waiter           *epollWaiter
	receivingSockets []*receivingSocket
	readableSockets  []*receivingSocket // have a datagram, by the last Wait; read in turn
	batch            *datagramBatch
	batchSocket      *receivingSocket // that the batch was read from
	listenersByKey   map[listenerKey]*listener
	echoSocketsByKey map[echoSocketKey]*echoSocket
	openSenders      map[*sender]struct{}
	usedSourcePorts  map[uint16]bool
	linkNamesByIndex map[int]string
}

var _ bfd.Transport = (*Transport)(nil)

// NewTransport returns a Transport without sockets.
func NewTransport() (*Transport, error) {
	w, err := newEpollWaiter()
	if err != nil {
		return nil, err
	}
	return &Transport{
		waiter:           w,
		batch:            newDatagramBatch(),
		listenersByKey:   map[listenerKey]*listener{},
		echoSocketsByKey: map[echoSocketKey]*echoSocket{},
		openSenders:      map[*sender]struct{}{},
		usedSourcePorts:  map[uint16]bool{},
		linkNamesByIndex: map[int]string{},
	}, nil
}

// NewBFDEngine returns an Engine with a Transport.
func NewBFDEngine(now func() time.Time, seed uint64) (*bfd.Engine, error) {
	t, err := NewTransport()
	if err != nil {
		return nil, err
	}
	return bfd.NewEngine(t, now, seed), nil
}

// OpenSender returns the sender of a session.
func (t *Transport) OpenSender(k bfd.SessionKey, discriminator uint32) bfd.Sender {
	s := &sender{transport: t, key: k, discriminator: discriminator, fd: -1}
	t.openSenders[s] = struct{}{}
	return s
}

// WaitForDatagramUntil waits until a socket has a datagram, for Wake, or from now until the
// deadline.
func (t *Transport) WaitForDatagramUntil(now, deadline time.Time) {
	if t.batch.hasNext() {
		deadline = now
	}
	t.waiter.waitForReadyFileUntil(now, deadline)
	t.readableSockets = t.readableSockets[:0]
	for _, r := range t.receivingSockets {
		if t.waiter.isFileReady(r.fd) {
			t.readableSockets = append(t.readableSockets, r)
		}
	}
}

// Wake ends the WaitForDatagramUntil under way, or else the next one. Any goroutine may call it.
func (t *Transport) Wake() { t.waiter.wake() }

// Close closes every socket.
func (t *Transport) Close() {
	for s := range t.openSenders {
		s.Close()
	}
	t.waiter.close()
}

// chooseSourcePort returns a source port that no other session uses.
func (t *Transport) chooseSourcePort() uint16 {
	for {
		p := uint16(firstSourcePort + rand.IntN(lastSourcePort-firstSourcePort+1))
		if !t.usedSourcePorts[p] {
			return p
		}
	}
}

// cachedLinkName returns the name of a link. It caches names, since links are
// seldom renamed; the cache is cleared when a link is missing.
func (t *Transport) cachedLinkName(index int) string {
	if n, known := t.linkNamesByIndex[index]; known {
		return n
	}
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		return ""
	}
	t.linkNamesByIndex[index] = ifi.Name
	return ifi.Name
}

// linkIndex returns the current index of the link with a name.
func linkIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("looking for the link %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); err != nil {
		return 0, fmt.Errorf("looking for the link %q: %w", name, err)
	}
	return int(r.Uint32()), nil
}

// toSockaddr returns an address for system calls. link
// is the index of a link-local address's link.
func toSockaddr(a netip.Addr, port uint16, link int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	s := &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
	if a.IsLinkLocalUnicast() {
		s.ZoneId = uint32(link)
	}
	return s
}

// addressFamily is the address family for system calls.
func addressFamily(v6 bool) int {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// socketOption is a socket option with an integer value.
type socketOption struct {
	protocolLevel, optionNumber, value int
	description                        string
}

// setSocketOptions sets options. Its error names the option.
func setSocketOptions(fd int, options []socketOption) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.protocolLevel, o.optionNumber, o.value); err != nil {
			return fmt.Errorf("setting %s: %w", o.description, err)
		}
	}
	return nil
}

// bindToDevice binds a socket to a link or VRF device and returns the device's index.
func bindToDevice(fd int, device string) (int, error) {
	i, err := linkIndex(device)
	if err != nil {
		return 0, err
	}
	if err := unix.BindToDevice(fd, device); err != nil {
		return 0, fmt.Errorf("binding to the device %q (which needs NET_RAW): %w", device, err)
	}
	return i, nil
}
