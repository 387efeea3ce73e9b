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
	// routerTimeout is how long a router may be silent before another router on the link replaces
	// it: three of the advertisement intervals that routers use for unnumbered neighbours.
	routerTimeout = 30 * time.Second
	// retryInterval is the time between two attempts to use the link.
	retryInterval = time.Second
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// FindRouter reports the link-local address of the router on a link by its router advertisements
// (RFC 4861), and again when another router replaces it. It reports an error while the link
// cannot be used. Until ctx ends it also advertises this node, with a router lifetime of 0: the
// router finds its neighbour, and no host uses the node as a gateway.
func (Transport) FindRouter(ctx context.Context, device string, report func(router netip.Addr, err error)) {
	told := ""
	for ctx.Err() == nil {
		err := searchLink(ctx, device, func(a netip.Addr) {
			told = ""
			report(a, nil)
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			report(netip.Addr{}, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
}

// searchLink searches with one socket until it fails or ctx ends.
func searchLink(ctx context.Context, device string, report func(netip.Addr)) error {
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
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeRouterAdvertisement)
	f.Accept(ipv6.ICMPTypeRouterSolicitation)
	for _, e := range []error{
		c.SetICMPFilter(&f), c.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true), c.JoinGroup(allNodes), c.JoinGroup(allRouters),
	} {
		if e != nil {
			return fmt.Errorf("looking for a router on %q: %w", device, e)
		}
	}
	s := routerFinder{conn: c, linkLocal: own, link: link, report: report}
	return s.readAndSolicit(ctx)
}

// routerFinder searches on one link.
type routerFinder struct {
	conn      *ndp.Conn
	linkLocal netip.Addr
	link      *net.Interface
	report    func(netip.Addr)
	router    netip.Addr
	lastHeard time.Time // of router
}

// readAndSolicit reads messages and sends advertisements and solicitations when they are due.
func (s *routerFinder) readAndSolicit(ctx context.Context) error {
	var advertised, solicited time.Time
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(advertised) >= advertiseInterval {
			advertised = now
			if err := s.sendAdvertisement(); err != nil {
				return err
			}
		}
		wake := advertised.Add(advertiseInterval)
		if now.Sub(s.lastHeard) > routerTimeout {
			if now.Sub(solicited) >= solicitInterval {
				solicited = now
				if err := s.sendMessage(&ndp.RouterSolicitation{Options: s.sourceOptions()}, allRouters); err != nil {
					return err
				}
			}
			wake = solicited.Add(solicitInterval)
		}
		_ = s.conn.SetReadDeadline(wake)
		m, cm, from, err := s.conn.ReadFrom()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("looking for a router on %q: %w", s.link.Name, err)
		case cm == nil || cm.HopLimit != ndp.HopLimit || cm.IfIndex != s.link.Index || !from.IsLinkLocalUnicast() || from == s.linkLocal:
			continue // from beyond a router, or our own
		}
		switch m.(type) {
		case *ndp.RouterSolicitation:
			if time.Since(advertised) >= time.Second { // more frequent solicitations wait
				advertised = time.Time{}
			}
		case *ndp.RouterAdvertisement:
			s.recordRouter(from, time.Now())
		}
	}
	return nil
}

// recordRouter records a router. The first router stays until it is silent.
func (s *routerFinder) recordRouter(from netip.Addr, now time.Time) {
	if from != s.router && s.router.IsValid() && now.Sub(s.lastHeard) < routerTimeout {
		return
	}
	s.lastHeard = now
	if from != s.router {
		s.router = from
		s.report(from)
	}
}

func (s *routerFinder) sendAdvertisement() error {
	return s.sendMessage(&ndp.RouterAdvertisement{Options: s.sourceOptions()}, allNodes)
}

// sourceOptions returns the option with the link's own Ethernet address.
func (s *routerFinder) sourceOptions() []ndp.Option {
	if len(s.link.HardwareAddr) == 0 {
		return nil
	}
	return []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: s.link.HardwareAddr}}
}

func (s *routerFinder) sendMessage(m ndp.Message, to netip.Addr) error {
	if err := s.conn.WriteTo(m, nil, to); err != nil {
		return fmt.Errorf("sending to the routers on %q: %w", s.link.Name, err)
	}
	return nil
}
