package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// Timers of the search for a router.
const (
	// advertiseInterval is how often the node advertises itself, so that routers do not forget it.
	advertiseInterval = 10 * time.Second
	// solicitInterval is how often the node solicits routers while none is known.
	solicitInterval = time.Second
	// silentRouterTimeout is how long a router may be silent before another router on the link
	// replaces it: three of the advertisement intervals that routers use for unnumbered neighbours.
	silentRouterTimeout = 30 * time.Second
	// linkRetryInterval is the time between two attempts to use the link.
	linkRetryInterval = time.Second
)

var (
	allNodesGroup   = netip.MustParseAddr("ff02::1")
	allRoutersGroup = netip.MustParseAddr("ff02::2")
)

// FindRouterOnLink reports the link-local address of the router on a link by its router
// advertisements (RFC 4861), and again when another router replaces it. It reports an error while
// the link cannot be used. Until ctx ends it also advertises this node, with a router lifetime of
// 0: the router finds its neighbour, and no host uses the node as a gateway.
func (Transport) FindRouterOnLink(ctx context.Context, device string, report func(router netip.Addr, err error)) {
	reported := ""
	for ctx.Err() == nil {
		err := searchRouterOnLink(ctx, device, func(a netip.Addr) {
			reported = ""
			report(a, nil)
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != reported {
			reported = err.Error()
			report(netip.Addr{}, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(linkRetryInterval):
		}
	}
}

// searchRouterOnLink searches with one socket until it fails or ctx ends.
func searchRouterOnLink(ctx context.Context, device string, report func(netip.Addr)) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return fmt.Errorf("this node has no link %q: correct interface: %w", device, err)
	}
	c, own, err := ndp.Listen(link, ndp.LinkLocal)
	if err != nil {
		return fmt.Errorf("looking for a router on %q: does the link have an IPv6 link-local address? %w", device, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	for _, e := range []error{
		c.SetICMPFilter(&filter), c.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true), c.JoinGroup(allNodesGroup), c.JoinGroup(allRoutersGroup),
	} {
		if e != nil {
			return fmt.Errorf("looking for a router on %q: %w", device, e)
		}
	}
	f := routerFinder{conn: c, linkLocalAddress: own, link: link, reportRouter: report}
	return f.exchangeNDPMessages(ctx)
}

// routerFinder searches on one link.
type routerFinder struct {
	conn              *ndp.Conn
	linkLocalAddress  netip.Addr
	link              *net.Interface
	reportRouter      func(netip.Addr)
	currentRouter     netip.Addr
	routerLastHeardAt time.Time // of router
}

// exchangeNDPMessages reads messages and sends advertisements and solicitations when they are due.
func (f *routerFinder) exchangeNDPMessages(ctx context.Context) error {
	var advertised, solicited time.Time
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(advertised) >= advertiseInterval {
			advertised = now
			if err := f.sendAdvertisement(); err != nil {
				return err
			}
		}
		wake := advertised.Add(advertiseInterval)
		if now.Sub(f.routerLastHeardAt) > silentRouterTimeout {
			if now.Sub(solicited) >= solicitInterval {
				solicited = now
				if err := f.sendNDPMessage(&ndp.RouterSolicitation{Options: f.sourceMACOptions()}, allRoutersGroup); err != nil {
					return err
				}
			}
			wake = solicited.Add(solicitInterval)
		}
		_ = f.conn.SetReadDeadline(wake)
		m, cm, from, err := f.conn.ReadFrom()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("looking for a router on %q: %w", f.link.Name, err)
		case cm == nil || cm.HopLimit != ndp.HopLimit || cm.IfIndex != f.link.Index || !from.IsLinkLocalUnicast() || from == f.linkLocalAddress:
			continue // from beyond a router, or our own
		}
		switch m.(type) {
		case *ndp.RouterSolicitation:
			if time.Since(advertised) >= time.Second { // more frequent solicitations wait
				advertised = time.Time{}
			}
		case *ndp.RouterAdvertisement:
			f.recordRouter(from, time.Now())
		}
	}
	return nil
}

// recordRouter records a router. The first router stays until it is silent.
func (f *routerFinder) recordRouter(from netip.Addr, now time.Time) {
	if from != f.currentRouter && f.currentRouter.IsValid() && now.Sub(f.routerLastHeardAt) < silentRouterTimeout {
		return
	}
	f.routerLastHeardAt = now
	if from != f.currentRouter {
		f.currentRouter = from
		f.reportRouter(from)
	}
}

func (f *routerFinder) sendAdvertisement() error {
	return f.sendNDPMessage(&ndp.RouterAdvertisement{Options: f.sourceMACOptions()}, allNodesGroup)
}

// sourceMACOptions returns the option with the link's own Ethernet address.
func (f *routerFinder) sourceMACOptions() []ndp.Option {
	if len(f.link.HardwareAddr) == 0 {
		return nil
	}
	return []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: f.link.HardwareAddr}}
}

func (f *routerFinder) sendNDPMessage(m ndp.Message, to netip.Addr) error {
	if err := f.conn.WriteTo(m, nil, to); err != nil {
		return fmt.Errorf("sending to the routers on %q: %w", f.link.Name, err)
	}
	return nil
}
