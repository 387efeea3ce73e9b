package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bgp"
)

// Listen accepts connections over IPv4 and IPv6.
func (Transport) Listen(ctx context.Context, o bgp.ListenOptions) (bgp.Listener, error) {
	l := &listener{acceptedConnections: make(chan bgp.Conn), closedSignal: make(chan struct{})}
	for _, network := range []string{"tcp4", "tcp6"} {
		config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error { return bindToDevice(c, o.BindDevice) }}
		s, err := config.Listen(ctx, network, fmt.Sprintf(":%d", o.Port))
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			l.Close()
			return nil, explainListenError(err, o.Port)
		}
		t := s.(*net.TCPListener)
		l.sockets = append(l.sockets, t)
		go l.acceptConnections(t)
	}
	return l, nil
}

// bindToDevice binds a socket to a link or VRF; an empty name binds it to none.
func bindToDevice(c syscall.RawConn, device string) error {
	if device == "" {
		return nil
	}
	var fault error
	err := c.Control(func(fd uintptr) {
		fault = os.NewSyscallError("binding to the VRF "+device, unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device))
	})
	return errors.Join(err, fault)
}

func explainListenError(err error, port uint16) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("listening on TCP port %d: the speaker needs the capability NET_BIND_SERVICE for a passive peer: add it to the DaemonSet: %w", port, err)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listening on TCP port %d: another program on this node, perhaps a BGP daemon, uses the port: stop it, or let this side connect: %w", port, err)
	}
	return fmt.Errorf("listening on TCP port %d: %w", port, err)
}

// acceptRetryDelay is the delay after a failed accept.
const acceptRetryDelay = 100 * time.Millisecond

// listener has the sockets of both families.
type listener struct {
	sockets             []*net.TCPListener
	acceptedConnections chan bgp.Conn
	closedSignal        chan struct{}
}

func (l *listener) acceptConnections(s *net.TCPListener) {
	for {
		c, err := s.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // such as without free file descriptors
			case <-l.closedSignal:
				return
			case <-time.After(acceptRetryDelay):
			}
			continue
		}
		remote := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		select {
		case l.acceptedConnections <- &conn{TCPConn: c, remoteIP: remote}:
		case <-l.closedSignal:
			c.Close()
			return
		}
	}
}

// AcceptedConnections delivers the connections.
func (l *listener) AcceptedConnections() <-chan bgp.Conn { return l.acceptedConnections }

// SetRouterPassword sets the key of a router, without which the
// kernel drops its packets. An empty password removes it.
func (l *listener) SetRouterPassword(router netip.Addr, password string) error {
	for _, s := range l.sockets {
		if s.Addr().(*net.TCPAddr).IP.To4() != nil != router.Is4() && len(l.sockets) > 1 {
			continue
		}
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		var fault error
		err = raw.Control(func(fd uintptr) { fault = setMD5Key(int(fd), router, password) })
		if errors.Is(fault, unix.ENOENT) && password == "" {
			fault = nil // there was none
		}
		if err := errors.Join(err, fault); err != nil {
			return fmt.Errorf("setting the password of %s: %w", router, err)
		}
	}
	return nil
}

// Close closes the sockets. Delivered connections stay open.
func (l *listener) Close() {
	select {
	case <-l.closedSignal:
	default:
		close(l.closedSignal)
	}
	for _, s := range l.sockets {
		s.Close()
	}
}

// RemoteIP returns the router's address.
func (c *conn) RemoteIP() netip.Addr { return c.remoteIP }

// LocalIP returns the address of this end.
func (c *conn) LocalIP() netip.Addr { return c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() }

// SetTTLAndMinReceivedTTL sets the TTL of our packets and the lowest accepted TTL of the router's.
func (c *conn) SetTTLAndMinReceivedTTL(ttl, minTTL uint8) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	err = raw.Control(func(fd uintptr) { fault = setSocketTTLAndMinReceivedTTL(int(fd), c.remoteIP, ttl, minTTL) })
	return errors.Join(err, fault)
}

// setSocketTTLAndMinReceivedTTL sets the TTL or hop limit of a socket and the lowest accepted one.
func setSocketTTLAndMinReceivedTTL(fd int, remote netip.Addr, ttl, minTTL uint8) error {
	if remote.Unmap().Is4() {
		return errors.Join(
			os.NewSyscallError("setting the TTL", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, int(ttl))),
			os.NewSyscallError("setting the lowest accepted TTL", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, int(minTTL))))
	}
	return errors.Join(
		os.NewSyscallError("setting the hop limit", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, int(ttl))),
		os.NewSyscallError("setting the lowest accepted hop limit", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, int(minTTL))))
}
