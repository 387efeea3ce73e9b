// Package tcp connects to routers and accepts their connections. It sets what BGP needs of a
// socket: a source address, a device, a TCP MD5 password (RFC 2385) that can change while the
// connection is open, and a TTL that limits the distance (GTSM, RFC 5082). It also finds unnumbered
// routers by router advertisements. It does not know BGP's messages. It runs on Linux only.
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

// Transport implements bgp.Transport with the kernel's sockets.
type Transport struct{}

// dialTimeout bounds one attempt to connect. A reachable router answers within
// milliseconds, and a router that comes back should not wait for TCP's own back-off.
const dialTimeout = 5 * time.Second

// maxPasswordLength is the kernel's limit for a TCP MD5 key, in bytes.
const maxPasswordLength = unix.TCP_MD5SIG_MAXKEYLEN

// Dial connects to a router.
func (Transport) Dial(ctx context.Context, o bgp.DialOptions) (bgp.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: -1, FallbackDelay: -1, Control: func(_, _ string, c syscall.RawConn) error { return setDialSocketOptions(c, o) }}
	if o.LocalAddress.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.LocalAddress, 0))
	}
	c, err := d.DialContext(ctx, "tcp", o.RouterAddress.String())
	if err != nil {
		return nil, explainDialError(err, o)
	}
	return &conn{TCPConn: c.(*net.TCPConn), remoteIP: o.RouterAddress.Addr()}, nil
}

// isInSubnetOfAnyLink reports whether the address belongs to a network of one of this node's links.
func isInSubnetOfAnyLink(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, own := range addrs {
		if p, err := netip.ParsePrefix(own.String()); err == nil && p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

// explainDialError adds what to do to errors that a configuration causes.
func explainDialError(err error, o bgp.DialOptions) error {
	switch {
	case errors.Is(err, syscall.ENODEV) && o.BindDevice != "":
		return fmt.Errorf("connecting to %s: this node has no link or VRF %q: create it (a VRF needs a kernel with VRF support), or correct the BGPPeer: %w", o.RouterAddress, o.BindDevice, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL) && o.LocalAddress.IsValid():
		return fmt.Errorf("connecting from %s: no interface of this node has that address: correct sourceAddress, or remove it: %w", o.LocalAddress, err)
	case isRouterUnreachable(err) && o.TTL == 1 && !isInSubnetOfAnyLink(o.RouterAddress.Addr()):
		return fmt.Errorf("connecting to %s: no interface of this node has a network with that address, and an external router must be on a link of the node unless ebgpMultiHop is true: set it if the router is several hops away: %w", o.RouterAddress, err)
	case isDialTimeout(err):
		what := "is the router up, and does it allow this node?"
		if o.Password != "" {
			what += " Is the password the same on both sides?"
		} else {
			what += " Does it require a password?"
		}
		return fmt.Errorf("connecting to %s: no answer within %s: %s%w", o.RouterAddress, dialTimeout, what, errorWithHiddenCause{err})
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connecting to %s: refused: does BGP run there, with this node as a neighbour?%w", o.RouterAddress, errorWithHiddenCause{err})
	case isRouterUnreachable(err):
		return fmt.Errorf("connecting to %s: no host answers for this address: correct peerAddress, or repair the path to the router: %w", o.RouterAddress, err)
	}
	return fmt.Errorf("connecting to %s: %w", o.RouterAddress, err)
}

// errorWithHiddenCause keeps an error for errors.Is where its text would say nothing new.
type errorWithHiddenCause struct{ cause error }

// Error implements error.
func (errorWithHiddenCause) Error() string { return "" }

// Unwrap returns the error.
func (e errorWithHiddenCause) Unwrap() error { return e.cause }

// isDialTimeout reports whether the router did not answer. The net package has two such errors.
func isDialTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// isRouterUnreachable reports whether no packet came from the router itself.
func isRouterUnreachable(err error) bool {
	return isDialTimeout(err) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// setDialSocketOptions sets the options that the first packet needs.
func setDialSocketOptions(c syscall.RawConn, o bgp.DialOptions) error {
	var err error
	set := func(act string, e error) {
		if e != nil && err == nil {
			err = fmt.Errorf("%s: %w", act, os.NewSyscallError("setsockopt", e))
		}
	}
	controlError := c.Control(func(fd uintptr) {
		s := int(fd)
		if o.BindDevice != "" {
			set(fmt.Sprintf("binding to %q", o.BindDevice), unix.SetsockoptString(s, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, o.BindDevice))
		}
		if o.Password != "" {
			set("setting the password", setMD5Key(s, o.RouterAddress.Addr(), o.Password))
		}
		if e := setSocketTTLAndMinReceivedTTL(s, o.RouterAddress.Addr(), o.TTL, o.MinReceivedTTL); err == nil {
			err = e
		}
		// Routing traffic has priority: class selector 6 (RFC 4594 section 3.2).
		if o.RouterAddress.Addr().Unmap().Is4() {
			set("setting the traffic class", unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_TOS, 0xc0))
		} else {
			set("setting the traffic class", unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0xc0))
		}
	})
	return errors.Join(controlError, err)
}

// setMD5Key sets the key for a router. An empty password removes it.
func setMD5Key(fd int, router netip.Addr, password string) error {
	if len(password) > maxPasswordLength {
		return unix.EMSGSIZE
	}
	sig := &unix.TCPMD5Sig{Keylen: uint16(len(password))}
	if a := router.Unmap(); a.Is4() {
		sig.Addr.Family = unix.AF_INET
		b := a.As4()
		copy(sig.Addr.Data[2:], b[:]) // after the port
	} else {
		sig.Addr.Family = unix.AF_INET6
		b := a.As16()
		copy(sig.Addr.Data[6:], b[:]) // after port and flow label
	}
	copy(sig.Key[:], password)
	return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, sig)
}

// conn is a connection to a router.
type conn struct {
	*net.TCPConn
	remoteIP netip.Addr
}

// SetPassword changes the key of the open connection. Segments with the previous key
// are lost until the router changes its own key; TCP sends them again.
func (c *conn) SetPassword(password string) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	err = raw.Control(func(fd uintptr) { fault = setMD5Key(int(fd), c.remoteIP, password) })
	if fault != nil {
		fault = fmt.Errorf("changing the password of the connection to %s: %w", c.remoteIP, os.NewSyscallError("setsockopt", fault))
	}
	return errors.Join(err, fault)
}
