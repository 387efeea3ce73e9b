package udp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// sender is the sending socket of a session.
type sender struct {
	transport     *Transport
	key           bfd.Key
	discriminator uint32
	sourcePort    uint16      // 0 before the socket is first opened
	fd            int         // -1 while it is not open
	deviceIndex   int         // the index of the device that it is bound to, 0 without one
	echo          *echoSocket // nil while no echo packets are sent
}

var _ bfd.Sender = (*sender)(nil)

func (p *sender) listenerKey() listenerKey {
	return listenerKey{ipv6: p.key.Peer.Is6(), multihop: p.key.Multihop, vrf: p.key.VRF}
}

// boundDevice returns the device that the socket is bound to. A link implies its VRF.
func (p *sender) boundDevice() string {
	if p.key.Interface != "" {
		return p.key.Interface
	}
	return p.key.VRF
}

// EnsureOpen opens sockets that are not open, or that are bound to a deleted link.
func (p *sender) EnsureOpen() error {
	p.checkEcho()
	if d := p.boundDevice(); d != "" {
		now, err := linkIndex(d)
		if err != nil || now != p.deviceIndex {
			p.closeSocket()
			clear(p.transport.linkNamesByIndex)
		}
		if err != nil {
			return err
		}
	}
	if err := p.transport.ensureListener(p.listenerKey(), p); err != nil {
		return err
	}
	if p.fd < 0 {
		return p.openSocket()
	}
	return nil
}

// openSocket opens the socket on the session's previous source port if that is still free.
func (p *sender) openSocket() error {
	const attempts = 64 // ports may be taken by other programs
	var err error
	for range attempts {
		if p.sourcePort == 0 {
			p.sourcePort = p.transport.chooseSourcePort()
			p.transport.usedSourcePorts[p.sourcePort] = true
		}
		if err = p.bindSocket(); !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
		p.releaseSourcePort()
	}
	return fmt.Errorf("opening a socket for BFD to %s: no free port from %d to %d: %w", p.key, firstSourcePort, lastSourcePort, err)
}

func (p *sender) releaseSourcePort() {
	delete(p.transport.usedSourcePorts, p.sourcePort)
	p.sourcePort = 0
}

func (p *sender) bindSocket() error {
	v6 := p.key.Peer.Is6()
	fd, err := unix.Socket(addressFamily(v6), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for BFD to %s: %w", p.key, err)
	}
	link, err := p.configureSocket(fd, v6)
	if err != nil {
		_ = unix.Close(fd) // nothing was sent
		return fmt.Errorf("opening a socket for BFD to %s: %w", p.key, err)
	}
	p.fd, p.deviceIndex = fd, link
	return nil
}

// configureSocket sets the options of the socket and binds it. It returns the index of its device.
func (p *sender) configureSocket(fd int, v6 bool) (int, error) {
	const maxTTL, networkControl = 255, 0xc0 // CS6, as routing protocols have (RFC 4594 section 3.2)
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
	if err := setOptions(fd, options); err != nil {
		return 0, err
	}
	if err := attachFilter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil { // nothing is received here
		return 0, err
	}
	link := 0
	if d := p.boundDevice(); d != "" {
		var err error
		if link, err = bindToDevice(fd, d); err != nil {
			return 0, err
		}
	}
	if p.key.Local.IsValid() {
		local = p.key.Local
	}
	if err := unix.Bind(fd, socketAddress(local, p.sourcePort, link)); err != nil {
		return 0, fmt.Errorf("binding to %s: %w", netip.AddrPortFrom(local, p.sourcePort), err)
	}
	return link, nil
}

// SendControl sends a control packet. After an error the socket is opened again
// for the next one, since the device that it was bound to may be gone.
func (p *sender) SendControl(packet []byte) error {
	if p.fd < 0 {
		if err := p.EnsureOpen(); err != nil {
			return err
		}
	}
	err := unix.Sendto(p.fd, packet, unix.MSG_DONTWAIT, socketAddress(p.key.Peer, p.listenerKey().udpPort(), p.deviceIndex))
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
		p.closeSocket()
	}
	return fmt.Errorf("sending to %s: %w", p.key, err)
}

func (p *sender) closeSocket() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd) // what was sent is sent
		p.fd = -1
	}
}

// Close releases everything.
func (p *sender) Close() {
	p.closeSocket()
	p.closeEcho()
	p.releaseSourcePort()
	p.transport.releaseListener(p.listenerKey(), p)
	delete(p.transport.senders, p)
}
