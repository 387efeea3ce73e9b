// Package netns makes network namespaces and joins them by virtual cables. A namespace is a file under Dir in the mount
// namespace of the process; everything here works on those files, so that a process outside can use them too, through
// /proc/PID/root. Threads that cannot be brought back are thrown away, never reused.
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

// Dir is where namespaces are bound.
const Dir = "/run/netns"

// Handle is a network namespace, by the path of its file.
type Handle string

// New makes a namespace with its loopback up.
func New(name string) (Handle, error) {
	h := Handle(filepath.Join(Dir, name))
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return "", fmt.Errorf("making namespace %q: %w", name, err)
	}
	f, err := os.OpenFile(string(h), os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", fmt.Errorf("making namespace %q: %w", name, err)
	}
	f.Close()
	err = runOnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount(threadNamespace(), string(h), "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return SetUp("lo")
	})
	if err != nil {
		_ = unix.Unmount(string(h), unix.MNT_DETACH) // if it came that far
		_ = os.Remove(string(h))
		return "", fmt.Errorf("making namespace %q: %w", name, err)
	}
	return h, nil
}

// NewUnnamed makes a namespace with its loopback up that has no file: it lasts until release is called and nothing else is in
// it, or until the process ends. The Handle is good in this process and in those that may read this one's /proc entry.
func NewUnnamed() (h Handle, release func(), err error) {
	fd := -1
	err = runOnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := SetUp("lo"); err != nil {
			return err
		}
		fd, err = unix.Open(threadNamespace(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return "", nil, fmt.Errorf("making a namespace: %w", err)
	}
	return Handle(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)), func() { unix.Close(fd) }, nil
}

func threadNamespace() string { return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()) }

// The main goroutine keeps the main thread, which cannot be thrown away: were it lent to Do, the process as a whole would
// from then on seem to be in that namespace, in /proc/PID/ns for one.
func init() { runtime.LockOSThread() }

// runOnThread runs f on a thread of its own, which ends with it.
func runOnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread dies with the goroutine
		done <- f()
	}()
	return <-done
}

// Do runs f inside the namespace. Goroutines that f starts are outside.
func (h Handle) Do(f func() error) error {
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

// Delete removes the namespace; it ends when the last process in it does.
func (h Handle) Delete() error {
	if err := unix.Unmount(string(h), unix.MNT_DETACH); err != nil {
		return fmt.Errorf("removing namespace %s: %w", h, err)
	}
	return os.Remove(string(h))
}

// Dial opens a connection from inside the namespace.
func (h Handle) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		// The resolver and Happy Eyeballs would use other threads: addresses are numbers here.
		d := net.Dialer{FallbackDelay: -1}
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens for connections inside the namespace.
func (h Handle) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket listens for datagrams inside the namespace.
func (h Handle) ListenPacket(network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// AddCable joins two namespaces by a virtual cable, one end in each, both down.
func AddCable(a Handle, aName string, b Handle, bName string) error {
	err := a.Do(func() error {
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
		return fmt.Errorf("laying a cable from %s in %s to %s in %s: %w", aName, a, bName, b, err)
	}
	return nil
}

// The functions below act on the namespace of the calling thread: call them within Do.

// SetUp brings a link up.
func SetUp(link string) error { return changeLink(link, netlink.LinkSetUp) }

// SetDown takes a link down; the other end of its cable loses the carrier.
func SetDown(link string) error { return changeLink(link, netlink.LinkSetDown) }

func changeLink(link string, f func(netlink.Link) error) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("looking for link %q: %w", link, err)
	}
	if err := f(l); err != nil {
		return fmt.Errorf("setting link %q: %w", link, err)
	}
	return nil
}

// FlushNeighbors empties the tables of neighbors, of entries that the kernel learnt.
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
			return fmt.Errorf("forgetting neighbor %s: %w", n.IP, err)
		}
	}
	return nil
}

// AddBridge makes a bridge and brings it up.
func AddBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("making bridge %q: %w", name, err)
	}
	return SetUp(name)
}

// SetBridge makes the link a port of the bridge; an empty bridge takes it out.
func SetBridge(link, bridge string) error {
	return changeLink(link, func(l netlink.Link) error {
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

// AddAddress gives the link an address; IPv6 addresses are usable at once.
func AddAddress(link string, p netip.Prefix) error {
	return changeLink(link, func(l netlink.Link) error {
		a := &netlink.Addr{IPNet: toIPNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(l, a)
	})
}

// AddRoute routes the prefix through the link, via the next hop if that is valid.
func AddRoute(link string, p netip.Prefix, via netip.Addr) error {
	return changeLink(link, func(l netlink.Link) error {
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
