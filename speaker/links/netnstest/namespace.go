// Package netnstest makes network namespaces for tests that need real sockets and links. A
// namespace has no name and no mount. It vanishes with its threads and sockets, also after a crash.
// The namespace of the process does not change. Without the permission to make a namespace, New
// skips the test and says what is missing.
package netnstest

import (
	"context"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Namespace is a network namespace. The test that made it owns it.
type Namespace struct {
	t      testing.TB
	handle netns.NsHandle
}

// NewNamespace makes a namespace whose loopback is up. It vanishes after the test.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	r := &Namespace{t: t, handle: netns.None()}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if r.handle, err = netns.New(); err != nil {
			return
		}
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err == nil {
			err = netlink.LinkSetUp(lo)
		}
	}()
	<-done
	if err != nil {
		t.Skipf("making a network namespace needs root: %v", err)
	}
	t.Cleanup(func() { _ = r.handle.Close() })
	return r
}

// MustRunInside runs f on a thread in the namespace and fails the test on an error. f must
// not call FailNow or Skip.
func (r *Namespace) MustRunInside(f func() error) {
	r.t.Helper()
	if err := r.RunInside(context.Background(), func(context.Context) error { return f() }); err != nil {
		r.t.Fatal(err)
	}
}

// RunInside runs f on a thread in the namespace and returns its error.
func (r *Namespace) RunInside(ctx context.Context, f func(context.Context) error) error {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(r.handle); err != nil {
			ended <- err
			return
		}
		ended <- f(ctx)
	}()
	return <-ended
}

// AddVethPair adds a pair of links: name in this namespace, peerName in the other. Both are up.
func (r *Namespace) AddVethPair(name string, peer *Namespace, peerName string) {
	r.t.Helper()
	r.MustRunInside(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerNamespace: netlink.NsFd(peer.handle)}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return setLinkUp(name)
	})
	peer.MustRunInside(func() error { return setLinkUp(peerName) })
}

func setLinkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// AddAddressToLink adds an address to a link. It is written like "192.168.0.11/24".
func (r *Namespace) AddAddressToLink(name, address string) {
	r.t.Helper()
	r.MustRunInside(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		a.Flags = addressFlagNoDAD
		return netlink.AddrAdd(l, a)
	})
}

// addressFlagNoDAD is IFA_F_NODAD: an IPv6 address is usable at once.
const addressFlagNoDAD = 0x02
