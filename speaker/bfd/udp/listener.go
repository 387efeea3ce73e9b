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
	ipv6     bool
	multihop bool
	vrf      string // empty for the default VRF
}

func (k listenerKey) udpPort() uint16 {
	if k.multihop {
		return multihopPort
	}
	return singleHopPort
}

// listener is the receiving socket of all sessions with its key. It is open while there is one.
type listener struct {
	*receiver
	vrfIndex      int // of the VRF device, 0 without one
	servedSenders map[*sender]struct{}
}

const (
	// maxReadDatagramBytes is how much of a datagram is read, in bytes: a
	// packet with the largest authentication section is shorter.
	maxReadDatagramBytes = 512
	// ancillaryBufferBytes is the room for the ancillary data of a datagram, in bytes.
	ancillaryBufferBytes = 128
	// socketReceiveBufferBytes is what a socket may hold while the process
	// does not run, in bytes. The kernel may allow less.
	socketReceiveBufferBytes = 1 << 20
)

// addSenderToListener opens the listener of a sender, or adds the sender to it.
func (t *Transport) addSenderToListener(key listenerKey, s *sender) error {
	l := t.listenersByKey[key]
	if l == nil {
		return t.openListener(key, map[*sender]struct{}{s: {}})
	}
	_, known := l.servedSenders[s]
	l.servedSenders[s] = struct{}{}
	if key.vrf != "" {
		// The device may have been recreated or deleted.
		if i, err := linkIndex(key.vrf); err != nil || i != l.vrfIndex {
			l.close(t)
			delete(t.listenersByKey, key)
			return t.openListener(key, l.servedSenders)
		}
	}
	if known {
		return nil
	}
	return attachSessionFilter(l.fd, key, l.servedSenders)
}

func (t *Transport) openListener(key listenerKey, senders map[*sender]struct{}) error {
	fd, err := unix.Socket(addressFamily(key.ipv6), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for BFD: %w", err)
	}
	l := &listener{servedSenders: senders}
	if l.vrfIndex, err = t.configureListener(fd, l, key); err != nil {
		_ = unix.Close(fd) // nothing was received
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w (UDP %d)", bfd.ErrPortInUse, key.udpPort())
		}
		return err
	}
	if l.receiver, err = t.startReceiver(fd, func(t *Transport, fd int) (bfd.ReceivedDatagram, error) { return readControlPacket(t, fd, key) }); err != nil {
		return err
	}
	t.listenersByKey[key] = l
	return nil
}

// configureListener sets the options of a listener's socket and
// binds it. It returns the index of the VRF device.
func (t *Transport) configureListener(fd int, l *listener, key listenerKey) (int, error) {
	options := []socketOption{
		{unix.IPPROTO_IP, unix.IP_RECVTTL, 1, "IP_RECVTTL"},
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"},
	}
	local := netip.IPv4Unspecified()
	if key.ipv6 {
		local = netip.IPv6Unspecified()
		options = []socketOption{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT"},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
		}
	}
	if err := setOptions(fd, options); err != nil {
		return 0, err
	}
	// Without it the smaller buffer only loses packets of a flood sooner.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketReceiveBufferBytes)
	if err := attachSessionFilter(fd, key, l.servedSenders); err != nil {
		return 0, err
	}
	vrfIndex := 0
	if key.vrf != "" {
		var err error
		if vrfIndex, err = bindToDevice(fd, key.vrf); err != nil {
			return 0, err
		}
	}
	if err := t.allowPortSharing(fd, key); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, toSockaddr(local, key.udpPort(), 0)); err != nil {
		return 0, fmt.Errorf("listening on UDP port %d: %w", key.udpPort(), err)
	}
	return vrfIndex, nil
}

// allowPortSharing lets listeners of several VRFs use the same port. A single listener stays
// exclusive, since another program that shared the port would take our packets silently.
func (t *Transport) allowPortSharing(fd int, key listenerKey) error {
	reuse := []socketOption{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"}}
	for other, l := range t.listenersByKey {
		if other.ipv6 != key.ipv6 || other.multihop != key.multihop || l.receiver == nil {
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

// removeSenderFromListener removes a sender from its listener, and closes the listener without
// senders.
func (t *Transport) removeSenderFromListener(key listenerKey, s *sender) {
	l := t.listenersByKey[key]
	if l == nil {
		return
	}
	if delete(l.servedSenders, s); len(l.servedSenders) > 0 {
		// If it fails, the old filter accepts more, which the engine drops.
		_ = attachSessionFilter(l.fd, key, l.servedSenders)
		return
	}
	l.close(t)
	delete(t.listenersByKey, key)
}

// receiver is a receiving socket. Its goroutine only waits
// for data. The Transport's goroutine reads.
type receiver struct {
	fd             int
	file           *os.File // owns fd
	readFunc       func(t *Transport, fd int) (bfd.ReceivedDatagram, error)
	stopRequested  chan struct{} // ends the goroutine
	goroutineEnded chan struct{} // closed by the goroutine at its end
}

// startReceiver waits for datagrams on a non-blocking socket. It takes ownership of the socket.
func (t *Transport) startReceiver(fd int, readOne func(t *Transport, fd int) (bfd.ReceivedDatagram, error)) (*receiver, error) {
	r := &receiver{fd: fd, file: os.NewFile(uintptr(fd), "bfd"), readFunc: readOne, stopRequested: make(chan struct{}), goroutineEnded: make(chan struct{})}
	raw, err := r.file.SyscallConn()
	if err != nil {
		_ = r.file.Close() // nothing was received
		return nil, fmt.Errorf("waiting for BFD packets: %w", err)
	}
	t.receivers = append(t.receivers, r)
	go r.signalArrivedDatagrams(raw, t.datagramsReady)
	return r, nil
}

// signalArrivedDatagrams notifies the Transport's goroutine of data,
// and waits for more only after that has read.
func (r *receiver) signalArrivedDatagrams(raw syscall.RawConn, ready chan<- struct{}) {
	defer close(r.goroutineEnded)
	hasData := func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN && err != unix.EINTR
	}
	for raw.Read(hasData) == nil {
		select {
		case ready <- struct{}{}:
		case <-r.stopRequested:
			return
		}
	}
}

// readDatagram reads one datagram.
func (r *receiver) readDatagram(t *Transport) (bfd.ReceivedDatagram, error) {
	return r.readFunc(t, r.fd)
}

// close closes the socket and ends its goroutine.
func (r *receiver) close(t *Transport) {
	t.receivers = slices.DeleteFunc(t.receivers, func(o *receiver) bool { return o == r })
	close(r.stopRequested)
	_ = r.file.Close() // only unread datagrams are lost
	<-r.goroutineEnded
}

// errMalformedDatagram means that a datagram is invalid and can be dropped.
var errMalformedDatagram = errors.New("malformed datagram")

// readControlPacket reads a control packet and its addresses.
func readControlPacket(t *Transport, fd int, key listenerKey) (bfd.ReceivedDatagram, error) {
	n, oob, _, from, err := unix.Recvmsg(fd, t.readBuffer, t.ancillaryBuffer, unix.MSG_DONTWAIT)
	if err != nil {
		return bfd.ReceivedDatagram{}, err
	}
	d := bfd.ReceivedDatagram{VRF: key.vrf, ArrivedOnMultihopPort: key.multihop, Payload: t.readBuffer[:n]}
	switch s := from.(type) {
	case *unix.SockaddrInet4:
		d.SourceAddress = netip.AddrFrom4(s.Addr)
	case *unix.SockaddrInet6:
		d.SourceAddress = netip.AddrFrom16(s.Addr)
	default:
		return d, errMalformedDatagram
	}
	messages, err := unix.ParseSocketControlMessage(t.ancillaryBuffer[:oob])
	if err != nil {
		return d, errMalformedDatagram
	}
	for _, m := range messages {
		t.fillDatagramFromAncillaryData(&d, m)
	}
	return d, nil
}
