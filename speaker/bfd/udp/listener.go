package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// place is where a listener receives.
type place struct {
	v6, multihop bool
	vrf          string
}

func (p place) port() uint16 {
	if p.multihop {
		return multihopPort
	}
	return singleHopPort
}

// listener is a receiving socket of all sessions of its place. It is open as long as one of them is.
type listener struct {
	*receiver
	index int // of the VRF device, 0 without one
	users map[*port]struct{}
}

const (
	// maxDatagram is how much of a datagram is read, in bytes: a packet with the largest authentication section is shorter.
	maxDatagram = 512
	maxControl  = 128
	// receiveBuffer is what a socket may hold while the speaker does not run, in bytes; the kernel may allow less.
	receiveBuffer = 1 << 20
)

// listen makes sure that the place is listened at, on behalf of a port.
func (w *Wire) listen(at place, user *port) error {
	l := w.listeners[at]
	if l == nil {
		return w.openListener(at, map[*port]struct{}{user: {}})
	}
	_, known := l.users[user]
	l.users[user] = struct{}{}
	if at.vrf != "" {
		if i, err := index(at.vrf); err != nil || i != l.index { // the device is another one, or none
			l.close(w)
			delete(w.listeners, at)
			return w.openListener(at, l.users)
		}
	}
	if known {
		return nil
	}
	return filter(l.fd, at, l.users)
}

func (w *Wire) openListener(at place, users map[*port]struct{}) error {
	fd, err := unix.Socket(family(at.v6), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for BFD: %w", err)
	}
	l := &listener{users: users}
	if l.index, err = w.prepare(fd, l, at); err != nil {
		_ = unix.Close(fd) // nothing was received
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w (UDP %d)", bfd.ErrPortInUse, at.port())
		}
		return err
	}
	if l.receiver, err = w.receive(fd, func(w *Wire, fd int) (bfd.Datagram, error) { return readUDP(w, fd, at) }); err != nil {
		return err
	}
	w.listeners[at] = l
	return nil
}

// prepare sets a listener's socket up and binds it. It returns the index of the VRF device.
func (w *Wire) prepare(fd int, l *listener, at place) (int, error) {
	options := []option{
		{unix.IPPROTO_IP, unix.IP_RECVTTL, 1, "IP_RECVTTL"},
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"},
	}
	any := netip.IPv4Unspecified()
	if at.v6 {
		any = netip.IPv6Unspecified()
		options = []option{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT"},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
		}
	}
	if err := apply(fd, options); err != nil {
		return 0, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer) // less only loses packets of a flood sooner
	if err := filter(fd, at, l.users); err != nil {
		return 0, err
	}
	i := 0
	if at.vrf != "" {
		var err error
		if i, err = bindToDevice(fd, at.vrf); err != nil {
			return 0, err
		}
	}
	if err := w.share(fd, at); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, sockaddr(any, at.port(), 0)); err != nil {
		return 0, fmt.Errorf("listening on UDP port %d: %w", at.port(), err)
	}
	return i, nil
}

// share lets listeners of several VRFs have the same port. Where there is only one it stays exclusive, since another
// program that shared the port would take our packets in silence.
func (w *Wire) share(fd int, at place) error {
	reuse := []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"}}
	for other, l := range w.listeners {
		if other.v6 != at.v6 || other.multihop != at.multihop || l.receiver == nil {
			continue
		}
		if err := apply(l.fd, reuse); err != nil {
			return err
		}
		if err := apply(fd, reuse); err != nil {
			return err
		}
	}
	return nil
}

// leave ends a port's use of the place.
func (w *Wire) leave(at place, user *port) {
	l := w.listeners[at]
	if l == nil {
		return
	}
	if delete(l.users, user); len(l.users) > 0 {
		_ = filter(l.fd, at, l.users) // the former one lets more in, which the engine drops
		return
	}
	l.close(w)
	delete(w.listeners, at)
}

// receiver is a socket that is read. Its goroutine only waits for something to be there; the Wire's reads it.
type receiver struct {
	fd   int
	file *os.File // owns fd
	one  func(w *Wire, fd int) (bfd.Datagram, error)
	// closing ends the goroutine, which closes done.
	closing, done chan struct{}
}

// receive begins to wait for datagrams on a non-blocking socket, which it owns from now on.
func (w *Wire) receive(fd int, one func(w *Wire, fd int) (bfd.Datagram, error)) (*receiver, error) {
	r := &receiver{fd: fd, file: os.NewFile(uintptr(fd), "bfd"), one: one, closing: make(chan struct{}), done: make(chan struct{})}
	raw, err := r.file.SyscallConn()
	if err != nil {
		_ = r.file.Close() // nothing was received
		return nil, fmt.Errorf("waiting for BFD packets: %w", err)
	}
	w.receivers = append(w.receivers, r)
	go r.wait(raw, w.ready)
	return r, nil
}

// wait tells the Wire's goroutine when there is something, and again only after that looked.
func (r *receiver) wait(raw syscall.RawConn, ready chan<- struct{}) {
	defer close(r.done)
	something := func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN && err != unix.EINTR
	}
	for raw.Read(something) == nil {
		select {
		case ready <- struct{}{}:
		case <-r.closing:
			return
		}
	}
}

// read reads one datagram.
func (r *receiver) read(w *Wire) (bfd.Datagram, error) { return r.one(w, r.fd) }

// close ends the socket and its goroutine.
func (r *receiver) close(w *Wire) {
	w.receivers = slices.DeleteFunc(w.receivers, func(o *receiver) bool { return o == r })
	close(r.closing)
	_ = r.file.Close() // nothing is lost that anybody waits for
	<-r.done
}

// errMalformed says that what came is nothing that anybody wants.
var errMalformed = errors.New("malformed datagram")

// readUDP reads a control packet with where it came from.
func readUDP(w *Wire, fd int, at place) (bfd.Datagram, error) {
	n, oob, _, from, err := unix.Recvmsg(fd, w.buffer, w.control, unix.MSG_DONTWAIT)
	if err != nil {
		return bfd.Datagram{}, err
	}
	d := bfd.Datagram{VRF: at.vrf, Multihop: at.multihop, Payload: w.buffer[:n]}
	switch s := from.(type) {
	case *unix.SockaddrInet4:
		d.From = netip.AddrFrom4(s.Addr)
	case *unix.SockaddrInet6:
		d.From = netip.AddrFrom16(s.Addr)
	default:
		return d, errMalformed
	}
	messages, err := unix.ParseSocketControlMessage(w.control[:oob])
	if err != nil {
		return d, errMalformed
	}
	for _, m := range messages {
		w.annotate(&d, m)
	}
	return d, nil
}
