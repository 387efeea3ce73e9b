package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab/netns"
)

// testHolderDefendsAddressInDAD assigns the address to the router, whose kernel first checks
// whether another host has it (RFC 4862 section 5.4, with the nonce of RFC 7527).
func testHolderDefendsAddressInDAD(ctx context.Context, t *testing.T, s *cluster.Cluster, six netip.Addr) {
	router := s.NamespaceOfHost("router")
	failOnError(t, router.RunInside(func() error {
		return errors.Join(netns.SetSysctl("net/ipv6/conf/eth0/accept_dad", "1"), netns.SetSysctl("net/ipv6/conf/eth0/dad_transmits", "1"))
	}))
	address := &netlink.Addr{IPNet: &net.IPNet{IP: six.AsSlice(), Mask: net.CIDRMask(64, 128)}}
	change := func(do func(netlink.Link, *netlink.Addr) error) {
		failOnError(t, router.RunInside(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return do(eth0, address)
		}))
	}
	change(netlink.AddrAdd)
	defer change(netlink.AddrDel)
	failOnError(t, cluster.AwaitNoError(ctx, "the failed duplicate address detection of the router", func(context.Context) error {
		return router.RunInside(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			all, err := netlink.AddrList(eth0, netlink.FAMILY_V6)
			for _, a := range all {
				if a.IP.Equal(address.IP) && a.Flags&unix.IFA_F_DADFAILED != 0 {
					return nil
				}
			}
			return errors.Join(err, fmt.Errorf("its addresses are %v", all))
		})
	}))
}

// testStrayAnnouncementIsReported sends an announcement of the address from a node that does not
// hold it. The kernel does so with kube-proxy in ipvs mode without strictARP.
func testStrayAnnouncementIsReported(ctx context.Context, t *testing.T, s *cluster.Cluster, four netip.Addr) {
	holder := awaitHolderOfAddress(ctx, t, s, four).Status.Node
	stray := "node1"
	if stray == holder {
		stray = "node2"
	}
	node := listenForFrames(t, s, stray, ipfamily.IPv4, func(layer2.ARPOrNDPFrame) {})
	all := layer2.AnnouncementDestinationMAC(four)
	announceStray := func() error {
		return node.WriteFrame(layer2.ARPOrNDPFrame{
			EthernetDestination: all, EthernetSource: node.link.MAC, Operation: layer2.Request,
			SenderMAC: node.link.MAC, SenderIP: four, TargetMAC: all, TargetIP: four,
		})
	}
	failOnError(t, cluster.AwaitNoError(ctx, "an event with the name of the node", func(ctx context.Context) error {
		if err := announceStray(); err != nil {
			return err
		}
		var events eventsv1.EventList
		if err := s.API.List(ctx, &events, client.InNamespace("default")); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == names.EventAnnounceFailed && strings.Contains(e.Note, "node "+stray+" ("+node.link.MAC.String()+")") {
				return nil
			}
		}
		return fmt.Errorf("none of %d events has it", len(events.Items))
	}))
	failOnError(t, awaitExplanationOfRepeatedFault(ctx, s, announceStray, []string{"service", "echo"}, kubectlGantryExitNotWell, "but "+stray+" ("+node.link.MAC.String()+") answers for it and does not hold it", "["+string(names.ReasonStrayAnswer)+"]"))
	if now := awaitHolderOfAddress(ctx, t, s, four).Status.Node; now != holder {
		t.Errorf("the holder changed from %s to %s", holder, now)
	}
	startUDPStream(ctx, t, s, netip.AddrPortFrom(four, 7000).String()).StopSending()
}

// testChangedMACOfHolderIsAnnounced changes the Ethernet address of the holder's link, as a bond
// does when it loses a port.
func testChangedMACOfHolderIsAnnounced(ctx context.Context, t *testing.T, s *cluster.Cluster, four netip.Addr) {
	holder := awaitHolderOfAddress(ctx, t, s, four).Status.Node
	mac := facts.MAC{2, 0xaa, 0xbb, 0xcc, 0xdd, 1}
	var announced atomic.Bool
	listenForFrames(t, s, "client", ipfamily.IPv4, func(f layer2.ARPOrNDPFrame) {
		if f.SenderIP == four && f.TargetIP == four && f.SenderMAC == mac {
			announced.Store(true)
		}
	})
	stream := startUDPStream(ctx, t, s, netip.AddrPortFrom(four, 7000).String())
	failOnError(t, s.NamespaceOfHost(holder).RunInside(func() error {
		eth0, err := netlink.LinkByName("eth0")
		// The kernel announces the node's own addresses with the new Ethernet address.
		err = errors.Join(err, netns.SetSysctl("net/ipv4/conf/eth0/arp_notify", "1"), netns.SetSysctl("net/ipv6/conf/eth0/ndisc_notify", "1"))
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(eth0, net.HardwareAddr(mac[:]))
	}))
	failOnError(t, cluster.AwaitNoError(ctx, "an announcement with the new Ethernet address", func(context.Context) error {
		if !announced.Load() {
			return errors.New("the client received none")
		}
		return nil
	}))
	failOnError(t, stream.AwaitMoreAnswers(ctx, 100))
	stream.StopSending()
	if now := awaitHolderOfAddress(ctx, t, s, four).Status.Node; now != holder {
		t.Errorf("the holder changed from %s to %s", holder, now)
	}
}
