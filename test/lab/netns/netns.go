// Package netns creates network namespaces and connects them by virtual cables. A namespace is a
// file in Dir, in the mount namespace of the process. All functions use that file, so another
// process can use them too, by a path below /proc/PID/root. A thread that entered a namespace is
// never used for anything else: it ends with its goroutine.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NamespaceDir is the directory of the namespaces' files.
const NamespaceDir = "/run/netns"

// Path is the path of a network namespace's file.
type Path string

// NewNamed creates a namespace whose loopback interface is up.
func NewNamed(name string) (Path, error) {
	h := Path(filepath.Join(NamespaceDir, name))
	if err := os.MkdirAll(NamespaceDir, 0o755); err != nil {
		return "", fmt.Errorf("creating namespace %q: %w", name, err)
	}
	f, err := os.OpenFile(string(h), os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", fmt.Errorf("creating namespace %q: %w", name, err)
	}
	f.Close()
	err = runOnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount(namespacePathOfThread(), string(h), "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return SetLinkUp("lo")
	})
	if err != nil {
		_ = unix.Unmount(string(h), unix.MNT_DETACH) // if it was mounted
		_ = os.Remove(string(h))
		return "", fmt.Errorf("creating namespace %q: %w", name, err)
	}
	return h, nil
}

// NewUnnamed creates a namespace without a file, whose loopback interface is up. It exists until
// release is called and no process is in it, or until this process ends. The Handle works in this
// process and in those that may read its entry in /proc.
func NewUnnamed() (h Path, release func(), err error) {
	fd := -1
	err = runOnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := SetLinkUp("lo"); err != nil {
			return err
		}
		fd, err = unix.Open(namespacePathOfThread(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return "", nil, fmt.Errorf("creating a namespace: %w", err)
	}
	return Path(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)), func() { unix.Close(fd) }, nil
}

func namespacePathOfThread() string { return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()) }

// The main goroutine keeps the main thread, which cannot end with a goroutine. If Do used it, the
// whole process would seem to be in that namespace, for example in /proc/PID/ns.
func init() { runtime.LockOSThread() }

// runOnThread runs f on a new thread, which ends with f.
func runOnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// RunInside runs f inside the namespace. Goroutines that f starts run outside of it.
func (h Path) RunInside(f func() error) error {
	return runOnThread(func() error {
		fd, err := unix.Open(string(h), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("entering namespace %s: %w", h, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering namespace %s: %w", h, err)
		}
		return f()
	})
}

// DeleteNamespaceFile removes the namespace's file. The namespace ends with the last process in it.
func (h Path) DeleteNamespaceFile() error {
	if err := unix.Unmount(string(h), unix.MNT_DETACH); err != nil {
		return fmt.Errorf("removing namespace %s: %w", h, err)
	}
	return os.Remove(string(h))
}

// Dial opens a connection from inside the namespace.
func (h Path) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := h.RunInside(func() (err error) {
		// The resolver and Happy Eyeballs would use other threads, so addresses have to be numeric.
		d := net.Dialer{FallbackDelay: -1}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens for connections inside the namespace.
func (h Path) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.RunInside(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket listens for datagrams inside the namespace.
func (h Path) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.RunInside(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// udpReceiveBufferBytes is room for the small datagrams of several seconds, at 1,000 per second.
// The kernel's default holds fewer than 300.
const udpReceiveBufferBytes = 8 << 20

// EnlargeReceiveBuffer gives a UDP socket a large receive buffer. So it loses no datagram while its
// process waits for a processor. Only root may exceed the limit of the machine.
func EnlargeReceiveBuffer(c any) {
	socket, ok := c.(*net.UDPConn)
	if !ok {
		return
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpReceiveBufferBytes)
	})
	if failed != nil || err != nil {
		_ = socket.SetReadBuffer(udpReceiveBufferBytes) // as much as an ordinary user may have
	}
}

// AddCable connects two namespaces by a virtual cable with one end in each. Both ends are down.
func AddCable(a Path, aName string, b Path, bName string) error {
	err := a.RunInside(func() error {
		fd, err := os.Open(string(b))
		if err != nil {
			return err
		}
		defer fd.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(int(fd.Fd()))})
	})
	if err != nil {
		return fmt.Errorf("connecting %s in %s to %s in %s: %w", aName, a, bName, b, err)
	}
	return nil
}

// The functions below act on the namespace of the calling thread: call them inside RunInside.

// SetLinkUp brings a link up.
func SetLinkUp(link string) error { return applyToLinkByName(link, netlink.LinkSetUp) }

// SetLinkDown takes a link down. The other end of its cable loses the carrier.
func SetLinkDown(link string) error { return applyToLinkByName(link, netlink.LinkSetDown) }

func applyToLinkByName(link string, f func(netlink.Link) error) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("finding link %q: %w", link, err)
	}
	if err := f(l); err != nil {
		return fmt.Errorf("setting link %q: %w", link, err)
	}
	return nil
}

// FlushNeighbors deletes the neighbors that the kernel has learnt.
func FlushNeighbors() error {
	list, err := netlink.NeighList(0, 0)
	if err != nil {
		return fmt.Errorf("reading the neighbors: %w", err)
	}
	for _, n := range list {
		if n.State&(unix.NUD_NOARP|unix.NUD_PERMANENT) != 0 {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("deleting neighbor %s: %w", n.IP, err)
		}
	}
	return nil
}

// AddBridge creates a bridge and brings it up.
func AddBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("creating bridge %q: %w", name, err)
	}
	return SetLinkUp(name)
}

// AttachLinkToBridge makes the link a port of the bridge. An empty name removes it from its bridge.
func AttachLinkToBridge(link, bridge string) error {
	return applyToLinkByName(link, func(l netlink.Link) error {
		if bridge == "" {
			return netlink.LinkSetNoMaster(l)
		}
		b, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, b)
	})
}

// AddAddress adds an address to the link. An IPv6 address is usable immediately, without Duplicate
// Address Detection.
func AddAddress(link string, p netip.Prefix) error {
	return applyToLinkByName(link, func(l netlink.Link) error {
		a := &netlink.Addr{IPNet: toIPNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(l, a)
	})
}

// AddRoute adds a route for the prefix through the link, via the next hop if that is valid.
func AddRoute(link string, p netip.Prefix, via netip.Addr) error {
	return applyToLinkByName(link, func(l netlink.Link) error {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(p)}
		if via.IsValid() {
			r.Gw = via.AsSlice()
		} else {
			r.Scope = netlink.SCOPE_LINK
		}
		return netlink.RouteReplace(r)
	})
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// SetSysctl sets a key such as net/ipv4/ip_forward.
func SetSysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting sysctl %s to %s: %w", key, value, err)
	}
	return nil
}
