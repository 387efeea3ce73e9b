package tcp

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bgp"
)

// ipvsLinkName is the link on which kube-proxy's IPVS mode keeps the addresses of all Services. No
// session uses it.
const ipvsLinkName = "kube-ipvs0"

// ReadNodeAddresses returns the addresses of this node's links.
func (Transport) ReadNodeAddresses() ([]bgp.NodeAddress, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the links: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the addresses: %w", err)
	}
	var out []bgp.NodeAddress
	for _, a := range all {
		l := byIndex[a.LinkIndex]
		ip, ok := netip.AddrFromSlice(a.IP)
		if l == nil || !ok || l.Attrs().Name == ipvsLinkName {
			continue
		}
		bits, _ := a.Mask.Size()
		n := bgp.NodeAddress{
			AddressWithPrefixLength: netip.PrefixFrom(ip.Unmap(), bits), LinkName: l.Attrs().Name,
			IsTentative: a.Flags&unix.IFA_F_TENTATIVE != 0, IsDuplicate: a.Flags&unix.IFA_F_DADFAILED != 0,
			IsDeprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
			// The same bit means "secondary" for IPv4.
			IsTemporary: ip.Unmap().Is6() && a.Flags&unix.IFA_F_TEMPORARY != 0,
		}
		if master := byIndex[l.Attrs().MasterIndex]; master != nil && master.Type() == "vrf" {
			n.VRFName = master.Attrs().Name
		} else if l.Type() == "vrf" {
			n.VRFName = l.Attrs().Name
		}
		out = append(out, n)
	}
	return out, nil
}

// addressSubscriptionRetryInterval is the time between two subscriptions to address changes.
const addressSubscriptionRetryInterval = 5 * time.Second

// WatchNodeAddresses calls changed after an address comes, goes or changes, until ctx ends.
func (Transport) WatchNodeAddresses(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		watchAddressesUntilNetlinkFails(ctx, changed)
		select {
		case <-ctx.Done():
		case <-time.After(addressSubscriptionRetryInterval):
			changed() // some may have been missed
		}
	}
}

func watchAddressesUntilNetlinkFails(ctx context.Context, changed func()) {
	updates, done := make(chan netlink.AddrUpdate), make(chan struct{})
	defer close(done)
	if err := netlink.AddrSubscribe(updates, done); err != nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-updates:
			if !ok {
				return
			}
			changed()
		}
	}
}
