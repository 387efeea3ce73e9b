package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// sender is the sending socket of a session.
type sender struct {
	transport        *Transport
	key              bfd.SessionKey
	discriminator    uint32
	sourcePort       uint16       // 0 before the socket is first opened
	fd               int          // -1 while it is not open
	boundDeviceIndex int          // of the device that the socket is bound to, 0 without one
	peerAddress      *rawSockaddr // of the neighbour; set while the socket is open
	echoSender       *echoSender  // nil while no echo packets are sent
}

var _ bfd.Sender = (*sender)(nil)

func (s *sender) listenerKey() listenerKey {
	return listenerKey{ipv6: s.key.PeerAddress.Is6(), multihop: s.key.Multihop, vrf: s.key.VRF}
}

// boundDeviceName returns the device that the socket is bound to. A link implies its VRF.
func (s *sender) boundDeviceName() string {
	if s.key.Interface != "" {
		return s.key.Interface
	}
	return s.key.VRF
}

// ReopenLostSockets opens sockets that are not open, or that are bound to a deleted link.
func (s *sender) ReopenLostSockets() error {
	s.closeEchoIfPathChanged()
	if d := s.boundDeviceName(); d != "" {
		index, err := linkIndex(d)
		if err != nil || index != s.boundDeviceIndex {
			s.closeControlSocket()
			clear(s.transport.linkNamesByIndex)
		}
		if err != nil {
			return err
		}
	}
	if err := s.transport.addSenderToListener(s.listenerKey(), s); err != nil {
		return err
	}
	if s.fd < 0 {
		return s.openControlSocket()
	}
	return nil
}

// openControlSocket opens the socket on the session's previous source port if that is still free.
func (s *sender) openControlSocket() error {
	const attempts = 64 // other programs may use ports of the range
	var err error
	for range attempts {
		if s.sourcePort == 0 {
			s.sourcePort = s.transport.chooseSourcePort()
			s.transport.usedSourcePorts[s.sourcePort] = true
		}
		if err = s.createAndBindControlSocket(); !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
		s.releaseSourcePort()
	}
	return fmt.Errorf("opening a socket for BFD to %s: no free port from %d to %d: %w", s.key, firstSourcePort, lastSourcePort, err)
}

func (s *sender) releaseSourcePort() {
	delete(s.transport.usedSourcePorts, s.sourcePort)
	s.sourcePort = 0
}

func (s *sender) createAndBindControlSocket() error {
	v6 := s.key.PeerAddress.Is6()
	fd, err := unix.Socket(addressFamily(v6), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for BFD to %s: %w", s.key, err)
	}
	link, err := s.setControlSocketOptionsAndBind(fd, v6)
	if err != nil {
		_ = unix.Close(fd) // nothing was sent
		return fmt.Errorf("opening a socket for BFD to %s: %w", s.key, err)
	}
	s.fd, s.boundDeviceIndex = fd, link
	s.peerAddress = newRawSockaddr(s.key.PeerAddress, s.listenerKey().udpPort(), link)
	return nil
}

// setControlSocketOptionsAndBind sets the options of the socket and binds it. It returns the index
// of its device.
func (s *sender) setControlSocketOptionsAndBind(fd int, v6 bool) (int, error) {
	const maxTTL = 255
	const networkControl = 0xc0 // class selector 6, for routing protocols (RFC 4594 section 3.2)
	options := []socketOption{
		{unix.IPPROTO_IP, unix.IP_TTL, maxTTL, "IP_TTL"},
		{unix.IPPROTO_IP, unix.IP_TOS, networkControl, "IP_TOS"},
	}
	local := netip.IPv4Unspecified()
	if v6 {
		local = netip.IPv6Unspecified()
		options = []socketOption{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
			{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, maxTTL, "IPV6_UNICAST_HOPS"},
			{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, networkControl, "IPV6_TCLASS"},
		}
	}
	if err := setSocketOptions(fd, options); err != nil {
		return 0, err
	}
	// The socket receives nothing.
	if err := attachFilter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil {
		return 0, err
	}
	link := 0
	if d := s.boundDeviceName(); d != "" {
		var err error
		if link, err = bindToDevice(fd, d); err != nil {
			return 0, err
		}
	}
	if s.key.LocalAddress.IsValid() {
		local = s.key.LocalAddress
	}
	if err := unix.Bind(fd, toSockaddr(local, s.sourcePort, link)); err != nil {
		return 0, fmt.Errorf("binding to %s: %w", netip.AddrPortFrom(local, s.sourcePort), err)
	}
	return link, nil
}

// SendControl sends a control packet. After an error the socket is opened again
// for the next one, since the device that it was bound to may be gone.
func (s *sender) SendControl(packet []byte) error {
	if s.fd < 0 {
		if err := s.ReopenLostSockets(); err != nil {
			return err
		}
	}
	err := sendNonBlocking(s.fd, packet, unsafe.Pointer(&s.peerAddress.bytes), s.peerAddress.length)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
		s.closeControlSocket()
	}
	return fmt.Errorf("sending to %s: %w", s.key, err)
}

func (s *sender) closeControlSocket() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

// Close releases everything.
func (s *sender) Close() {
	s.closeControlSocket()
	s.closeEchoSender()
	s.releaseSourcePort()
	s.transport.removeSenderFromListener(s.listenerKey(), s)
	delete(s.transport.openSenders, s)
}
