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

// listenerKey is where a listener receives.
type listenerKey struct {
	ipv6, multihop bool
	vrf            string
}

func (p listenerKey) udpPort() uint16 {
	if p.multihop {
		return multihopPort
	}
	return singleHopPort
}

// listener is the receiving socket of all sessions with its key. It is open while there is one.
type listener struct {
	*receiver
	vrfIndex int // of the VRF device, 0 without one
	senders  map[*sender]struct{}
}

const (
	// maxDatagram is how much of a datagram is read, in bytes: a
	// packet with the largest authentication section is shorter.
	maxDatagram      = 512
	maxControlLength = 128
	// receiveBufferSize is what a socket may hold while the process
	// does not run, in bytes. The kernel may allow less.
	receiveBufferSize = 1 << 20
)

// ensureListener opens the listener of a sender, or adds the sender to it.
func (w *Transport) ensureListener(at listenerKey, user *sender) error {
	l := w.listenersByKey[at]
	if l == nil {
		return w.openListener(at, map[*sender]struct{}{user: {}})
	}
	_, known := l.senders[user]
	l.senders[user] = struct{}{}
	if at.vrf != "" {
		if i, err := linkIndex(at.vrf); err != nil || i != l.vrfIndex { // the device was recreated or deleted
			l.close(w)
			delete(w.listenersByKey, at)
			return w.openListener(at, l.senders)
		}
	}
	if known {
		return nil
	}
	return attachSessionFilter(l.fd, at, l.senders)
}

func (w *Transport) openListener(at listenerKey, users map[*sender]struct{}) error {
	fd, err := unix.Socket(addressFamily(at.ipv6), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for BFD: %w", err)
	}
	l := &listener{senders: users}
	if l.vrfIndex, err = w.configureListener(fd, l, at); err != nil {
		_ = unix.Close(fd) // nothing was received
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w (UDP %d)", bfd.ErrPortInUse, at.udpPort())
		}
		return err
	}
	if l.receiver, err = w.startReceiver(fd, func(w *Transport, fd int) (bfd.Datagram, error) { return readControl(w, fd, at) }); err != nil {
		return err
	}
	w.listenersByKey[at] = l
	return nil
}

// configureListener sets the options of a listener's socket and
// binds it. It returns the index of the VRF device.
func (w *Transport) configureListener(fd int, l *listener, at listenerKey) (int, error) {
	options := []socketOption{
		{unix.IPPROTO_IP, unix.IP_RECVTTL, 1, "IP_RECVTTL"},
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"},
	}
	any := netip.IPv4Unspecified()
	if at.ipv6 {
		any = netip.IPv6Unspecified()
		options = []socketOption{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT"},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
		}
	}
	if err := setOptions(fd, options); err != nil {
		return 0, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBufferSize) // a smaller buffer only loses packets of a flood sooner
	if err := attachSessionFilter(fd, at, l.senders); err != nil {
		return 0, err
	}
	i := 0
	if at.vrf != "" {
		var err error
		if i, err = bindToDevice(fd, at.vrf); err != nil {
			return 0, err
		}
	}
	if err := w.sharePort(fd, at); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, socketAddress(any, at.udpPort(), 0)); err != nil {
		return 0, fmt.Errorf("listening on UDP port %d: %w", at.udpPort(), err)
	}
	return i, nil
}

// sharePort lets listeners of several VRFs use the same port. A single listener stays
// exclusive, since another program that shared the port would take our packets silently.
func (w *Transport) sharePort(fd int, at listenerKey) error {
	reuse := []socketOption{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"}}
	for other, l := range w.listenersByKey {
		if other.ipv6 != at.ipv6 || other.multihop != at.multihop || l.receiver == nil {
			continue
		}
		if err := setOptions(l.fd, reuse); err != nil {
			return err
		}
		if err := setOptions(fd, reuse); err != nil {
			return err
		}
	}
	return nil
}

// releaseListener removes a sender from its listener, and closes the listener without senders.
func (w *Transport) releaseListener(at listenerKey, user *sender) {
	l := w.listenersByKey[at]
	if l == nil {
		return
	}
	if delete(l.senders, user); len(l.senders) > 0 {
		_ = attachSessionFilter(l.fd, at, l.senders) // the old filter accepts more, which the engine drops
		return
	}
	l.close(w)
	delete(w.listenersByKey, at)
}

// receiver is a receiving socket. Its goroutine only waits
// for data. The Transport's goroutine reads.
type receiver struct {
	fd      int
	file    *os.File // owns fd
	readOne func(w *Transport, fd int) (bfd.Datagram, error)
	// stop ends the goroutine, which closes done.
	stop, done chan struct{}
}

// startReceiver waits for datagrams on a non-blocking socket. It takes ownership of the socket.
func (w *Transport) startReceiver(fd int, one func(w *Transport, fd int) (bfd.Datagram, error)) (*receiver, error) {
	r := &receiver{fd: fd, file: os.NewFile(uintptr(fd), "bfd"), readOne: one, stop: make(chan struct{}), done: make(chan struct{})}
	raw, err := r.file.SyscallConn()
	if err != nil {
		_ = r.file.Close() // nothing was received
		return nil, fmt.Errorf("waiting for BFD packets: %w", err)
	}
	w.receivers = append(w.receivers, r)
	go r.awaitDatagrams(raw, w.ready)
	return r, nil
}

// awaitDatagrams notifies the Transport's goroutine of data,
// and waits for more only after that has read.
func (r *receiver) awaitDatagrams(raw syscall.RawConn, ready chan<- struct{}) {
	defer close(r.done)
	something := func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN && err != unix.EINTR
	}
	for raw.Read(something) == nil {
		select {
		case ready <- struct{}{}:
		case <-r.stop:
			return
		}
	}
}

// readDatagram reads one datagram.
func (r *receiver) readDatagram(w *Transport) (bfd.Datagram, error) { return r.readOne(w, r.fd) }

// close closes the socket and ends its goroutine.
func (r *receiver) close(w *Transport) {
	w.receivers = slices.DeleteFunc(w.receivers, func(o *receiver) bool { return o == r })
	close(r.stop)
	_ = r.file.Close() // only unread datagrams are lost
	<-r.done
}

// errMalformed means that a datagram is invalid and can be dropped.
var errMalformed = errors.New("malformed datagram")

// readControl reads a control packet and its addresses.
func readControl(w *Transport, fd int, at listenerKey) (bfd.Datagram, error) {
	n, oob, _, from, err := unix.Recvmsg(fd, w.buffer, w.controlBuffer, unix.MSG_DONTWAIT)
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
	messages, err := unix.ParseSocketControlMessage(w.controlBuffer[:oob])
	if err != nil {
		return d, errMalformed
	}
	for _, m := range messages {
		w.addControlMessage(&d, m)
	}
	return d, nil
}
