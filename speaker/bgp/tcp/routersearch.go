package tcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// Timers of the search for a router.
const (
	// ownRouterAdvertisementInterval is how often the node advertises itself, so that routers do
	// not forget it.
	ownRouterAdvertisementInterval = 10 * time.Second
	// routerSolicitationInterval is how often the node solicits routers while none is known.
	routerSolicitationInterval = time.Second
	// silentRouterTimeout is how long a router may be silent before another router on the link
	// replaces it: three of the advertisement intervals that routers use for unnumbered neighbours.
	silentRouterTimeout = 30 * time.Second
	// failedRouterSearchRetryInterval is the time between two attempts to use the link.
	failedRouterSearchRetryInterval = time.Second
)

var (
	allNodesGroup   = netip.MustParseAddr("ff02::1")
	allRoutersGroup = netip.MustParseAddr("ff02::2")
)

// WatchRouterAndAdvertiseNode reports the link-local address of the router on a link by its router
// advertisements (RFC 4861), and again when another router replaces it. It reports an error while
// the link cannot be used. Until ctx ends it also advertises this node, with a router lifetime of
// 0: the router finds its neighbour, and no host uses the node as a gateway.
func (Transport) WatchRouterAndAdvertiseNode(ctx context.Context, device string, report func(router netip.Addr, err error)) {
	reported := ""
	for ctx.Err() == nil {
		err := searchRouterUntilSocketFails(ctx, device, func(a netip.Addr) {
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
		case <-time.After(failedRouterSearchRetryInterval):
		}
	}
}

// searchRouterUntilSocketFails searches with one socket until it fails or ctx ends.
func searchRouterUntilSocketFails(ctx context.Context, device string, report func(netip.Addr)) error {
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
	f := ndpRouterFinder{ndpConn: c, ownLinkLocalAddress: own, link: link, reportRouter: report}
	return f.exchangeNDPMessages(ctx)
}

// ndpRouterFinder searches on one link.
type ndpRouterFinder struct {
	ndpConn             *ndp.Conn
	ownLinkLocalAddress netip.Addr
	link                *net.Interface
	reportRouter        func(netip.Addr)
	foundRouterAddress  netip.Addr
	routerLastHeardAt   time.Time
}

// exchangeNDPMessages reads messages and sends advertisements and solicitations when they are due.
func (f *ndpRouterFinder) exchangeNDPMessages(ctx context.Context) error {
	var advertised, solicited time.Time
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(advertised) >= ownRouterAdvertisementInterval {
			advertised = now
			if err := f.sendOwnRouterAdvertisement(); err != nil {
				return err
			}
		}
		wake := advertised.Add(ownRouterAdvertisementInterval)
		if now.Sub(f.routerLastHeardAt) > silentRouterTimeout {
			if now.Sub(solicited) >= routerSolicitationInterval {
				solicited = now
				if err := f.sendNDPMessage(&ndp.RouterSolicitation{Options: f.ownMACOptions()}, allRoutersGroup); err != nil {
					return err
				}
			}
			wake = solicited.Add(routerSolicitationInterval)
		}
		_ = f.ndpConn.SetReadDeadline(wake)
		m, cm, from, err := f.ndpConn.ReadFrom()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("looking for a router on %q: %w", f.link.Name, err)
		case cm == nil || cm.HopLimit != ndp.HopLimit || cm.IfIndex != f.link.Index || !from.IsLinkLocalUnicast() || from == f.ownLinkLocalAddress:
			continue // from beyond a router, or our own
		}
		switch m := m.(type) {
		case *ndp.RouterSolicitation:
			if time.Since(advertised) >= time.Second { // more frequent solicitations wait
				advertised = time.Time{}
			}
		case *ndp.RouterAdvertisement:
			if !isAdvertisementOfSpeaker(m) {
				f.recordRouter(from, time.Now())
			}
		}
	}
	return nil
}

// recordRouter records a router. The first router stays until it is silent.
func (f *ndpRouterFinder) recordRouter(from netip.Addr, now time.Time) {
	if from != f.foundRouterAddress && f.foundRouterAddress.IsValid() && now.Sub(f.routerLastHeardAt) < silentRouterTimeout {
		return
	}
	f.routerLastHeardAt = now
	if from != f.foundRouterAddress {
		f.foundRouterAddress = from
		f.reportRouter(from)
	}
}

func (f *ndpRouterFinder) sendOwnRouterAdvertisement() error {
	return f.sendNDPMessage(&ndp.RouterAdvertisement{Options: append(f.ownMACOptions(), speakerMarkerNDPOption())}, allNodesGroup)
}

// speakerMarkerNDPOption marks the advertisements of a speaker, so that the nodes on a link do not
// take each other for the router. Its type is one for experiments (RFC 4727 section 6.2).
func speakerMarkerNDPOption() ndp.Option {
	return &ndp.RawOption{Type: 253, Length: 1, Value: []byte("gantry")}
}

// isAdvertisementOfSpeaker reports whether a speaker sent an advertisement.
func isAdvertisementOfSpeaker(m *ndp.RouterAdvertisement) bool {
	return slices.ContainsFunc(m.Options, func(o ndp.Option) bool {
		raw, ok := o.(*ndp.RawOption)
		return ok && raw.Type == 253 && bytes.Equal(raw.Value, []byte("gantry"))
	})
}

// ownMACOptions returns the option with the link's own Ethernet address.
func (f *ndpRouterFinder) ownMACOptions() []ndp.Option {
	if len(f.link.HardwareAddr) == 0 {
		return nil
	}
	return []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: f.link.HardwareAddr}}
}

func (f *ndpRouterFinder) sendNDPMessage(m ndp.Message, to netip.Addr) error {
	if err := f.ndpConn.WriteTo(m, nil, to); err != nil {
		return fmt.Errorf("sending to the routers on %q: %w", f.link.Name, err)
	}
	return nil
}
