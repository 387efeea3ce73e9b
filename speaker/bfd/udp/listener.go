package udp

import (
	"errors"
	"fmt"
	"net/netip"

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
	*receivingSocket
	vrfIndex      int // of the VRF device, 0 without one
	servedSenders map[*sender]struct{}
}

// socketReceiveBufferBytes is what a socket may hold while the process
// does not run, in bytes. The kernel may allow less.
const socketReceiveBufferBytes = 1 << 20

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
			t.closeReceivingSocket(l.receivingSocket)
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
	if l.receivingSocket, err = t.addReceivingSocket(fd, func(m receivedMessage) bfd.ReceivedDatagram { return t.toReceivedDatagram(m, key) }); err != nil {
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
	if err := setSocketOptions(fd, options); err != nil {
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
		if other.ipv6 != key.ipv6 || other.multihop != key.multihop || l.receivingSocket == nil {
			continue
		}
		if err := setSocketOptions(l.fd, reuse); err != nil {
			return err
		}
		if err := setSocketOptions(fd, reuse); err != nil {
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
	t.closeReceivingSocket(l.receivingSocket)
	delete(t.listenersByKey, key)
}
