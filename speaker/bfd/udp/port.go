package udp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// port is the sending socket of a session.
type port struct {
	wire          *Wire
	key           bfd.Key
	discriminator uint32
	source        uint16 // its source port, 0 before the first opening
	fd            int    // -1 while it is not open
	link          int    // the index of the device that it is bound to, 0 without one
	echo          *echo  // nil while no echo packets are sent
}

var _ bfd.Port = (*port)(nil)

func (p *port) place() place {
	return place{v6: p.key.Peer.Is6(), multihop: p.key.Multihop, vrf: p.key.VRF}
}

// device is what the socket is bound to: the link is in its VRF anyway.
func (p *port) device() string {
	if p.key.Interface != "" {
		return p.key.Interface
	}
	return p.key.VRF
}

// Check opens what is not open, and what is open on a link that has gone.
func (p *port) Check() error {
	p.checkEcho()
	if d := p.device(); d != "" {
		now, err := index(d)
		if err != nil || now != p.link {
			p.closeSocket()
			clear(p.wire.names)
		}
		if err != nil {
			return err
		}
	}
	if err := p.wire.listen(p.place(), p); err != nil {
		return err
	}
	if p.fd < 0 {
		return p.open()
	}
	return nil
}

// open opens the socket, on the source port that the session had before if that is still free.
func (p *port) open() error {
	const attempts = 64 // ports may be taken by other programs
	var err error
	for range attempts {
		if p.source == 0 {
			p.source = p.wire.source()
			p.wire.sources[p.source] = true
		}
		if err = p.bind(); !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
		p.forgetSource()
	}
	return fmt.Errorf("opening a socket for BFD to %s: no free port from %d to %d: %w", p.key, firstSource, lastSource, err)
}

func (p *port) forgetSource() {
	delete(p.wire.sources, p.source)
	p.source = 0
}

func (p *port) bind() error {
	v6 := p.key.Peer.Is6()
	fd, err := unix.Socket(family(v6), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for BFD to %s: %w", p.key, err)
	}
	link, err := p.prepare(fd, v6)
	if err != nil {
		_ = unix.Close(fd) // nothing was sent
		return fmt.Errorf("opening a socket for BFD to %s: %w", p.key, err)
	}
	p.fd, p.link = fd, link
	return nil
}

// prepare sets the socket up and binds it. It returns the index of its device.
func (p *port) prepare(fd int, v6 bool) (int, error) {
	const maxTTL, networkControl = 255, 0xc0 // CS6, as routing protocols have (RFC 4594 section 3.2)
	options := []option{
		{unix.IPPROTO_IP, unix.IP_TTL, maxTTL, "IP_TTL"},
		{unix.IPPROTO_IP, unix.IP_TOS, networkControl, "IP_TOS"},
	}
	local := netip.IPv4Unspecified()
	if v6 {
		local = netip.IPv6Unspecified()
		options = []option{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
			{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, maxTTL, "IPV6_UNICAST_HOPS"},
			{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, networkControl, "IPV6_TCLASS"},
		}
	}
	if err := apply(fd, options); err != nil {
		return 0, err
	}
	if err := attach(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}); err != nil { // nothing is received here
		return 0, err
	}
	link := 0
	if d := p.device(); d != "" {
		var err error
		if link, err = bindToDevice(fd, d); err != nil {
			return 0, err
		}
	}
	if p.key.Local.IsValid() {
		local = p.key.Local
	}
	if err := unix.Bind(fd, sockaddr(local, p.source, link)); err != nil {
		return 0, fmt.Errorf("binding to %s: %w", netip.AddrPortFrom(local, p.source), err)
	}
	return link, nil
}

// Send sends a control packet. After an error the socket is opened anew for the next one: what it was bound to may be gone.
func (p *port) Send(packet []byte) error {
	if p.fd < 0 {
		if err := p.Check(); err != nil {
			return err
		}
	}
	err := unix.Sendto(p.fd, packet, unix.MSG_DONTWAIT, sockaddr(p.key.Peer, p.place().port(), p.link))
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
		p.closeSocket()
	}
	return fmt.Errorf("sending to %s: %w", p.key, err)
}

func (p *port) closeSocket() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd) // what was sent is sent
		p.fd = -1
	}
}

// Close gives everything back.
func (p *port) Close() {
	p.closeSocket()
	p.closeEcho()
	p.forgetSource()
	p.wire.leave(p.place(), p)
	delete(p.wire.ports, p)
}
