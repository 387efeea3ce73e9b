// Package udp is the Linux side of BFD: UDP sockets for control packets (RFC 5881, RFC 5883) and packet sockets for echo
// packets. One socket receives for all sessions of a family, a port and a VRF; each session has one to send, from a source
// port of its own. Links may go away and come back. It keeps no state but its sockets and decides nothing; package cable
// is its in-memory stand-in. The speaker needs NET_RAW for binding to devices and for echo packets, and nothing else.
package udp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

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
	firstSource = 49152
	lastSource  = 65535
)

// Wire opens sockets in the network namespace of the thread that calls it. One goroutine uses it.
type Wire struct {
	ready     chan struct{}
	receivers []*receiver // asked in turn
	turn      int
	listeners map[place]*listener
	ports     map[*port]struct{}
	sources   map[uint16]bool // the source ports in use
	names     map[int]string  // of links, by index
	buffer    []byte
	control   []byte
}

var _ bfd.Wire = (*Wire)(nil)

// New returns a Wire without sockets.
func New() *Wire {
	return &Wire{
		ready:     make(chan struct{}),
		listeners: map[place]*listener{}, ports: map[*port]struct{}{}, sources: map[uint16]bool{}, names: map[int]string{},
		buffer: make([]byte, maxDatagram), control: make([]byte, maxControl),
	}
}

// Open returns the port of a session.
func (w *Wire) Open(k bfd.Key, discriminator uint32) bfd.Port {
	p := &port{wire: w, key: k, discriminator: discriminator, fd: -1}
	w.ports[p] = struct{}{}
	return p
}

// Ready delivers a value when a socket has something.
func (w *Wire) Ready() <-chan struct{} { return w.ready }

// Receive takes the next datagram; the sockets take turns.
func (w *Wire) Receive() (bfd.Datagram, bool) {
	for range len(w.receivers) {
		r := w.receivers[w.turn%len(w.receivers)]
		w.turn++
		for {
			d, err := r.read(w)
			if err == nil {
				return d, true
			}
			if !errors.Is(err, errMalformed) && !errors.Is(err, unix.EINTR) {
				break // nothing there
			}
		}
	}
	return bfd.Datagram{}, false
}

// Close closes every socket.
func (w *Wire) Close() {
	for p := range w.ports {
		p.Close()
	}
}

// source chooses a source port that no other session has.
func (w *Wire) source() uint16 {
	for {
		p := uint16(firstSource + rand.IntN(lastSource-firstSource+1))
		if !w.sources[p] {
			return p
		}
	}
}

// name returns the name of a link. Links are renamed seldom; names are forgotten when a link was found missing.
func (w *Wire) name(index int) string {
	if n, known := w.names[index]; known {
		return n
	}
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		return ""
	}
	w.names[index] = ifi.Name
	return ifi.Name
}

// index returns the index of the link with that name now.
func index(name string) (int, error) {
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

// sockaddr is the address for system calls; link is the index of the link of a link-local one.
func sockaddr(a netip.Addr, port uint16, link int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	s := &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
	if a.IsLinkLocalUnicast() {
		s.ZoneId = uint32(link)
	}
	return s
}

// family is the address family for system calls.
func family(v6 bool) int {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// option is a socket option with a number.
type option struct {
	level, name, value int
	what               string
}

// apply sets options, and says which failed.
func apply(fd int, options []option) error {
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("setting %s: %w", o.what, err)
		}
	}
	return nil
}

// bindToDevice binds a socket to a link or VRF device and returns its index.
func bindToDevice(fd int, device string) (int, error) {
	i, err := index(device)
	if err != nil {
		return 0, err
	}
	if err := unix.BindToDevice(fd, device); err != nil {
		return 0, fmt.Errorf("binding to the device %q (which needs NET_RAW): %w", device, err)
	}
	return i, nil
}
