package wire

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

// Times of the search for a router.
const (
	// advertiseEvery is how often the node advertises itself: routers forget a neighbour that was silent for long.
	advertiseEvery = 10 * time.Second
	// solicitEvery is how often routers are asked for as long as none was heard.
	solicitEvery = time.Second
	// staleAfter is how long a router may be silent before another one on the link takes its place: three of the intervals that
	// routers use for unnumbered neighbours.
	staleAfter = 30 * time.Second
	// again is the pause after the link could not be used.
	again = time.Second
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// Find tells the link-local address of the router on a link by its router advertisements (RFC 4861), again when another takes its
// place, and why there is none when the link cannot be used. Until ctx ends it advertises this node too, with a router lifetime
// of 0: it is no way to anywhere, but a neighbour that can be found.
func (Wire) Find(ctx context.Context, device string, tell func(router netip.Addr, err error)) {
	told := ""
	for ctx.Err() == nil {
		err := search(ctx, device, func(a netip.Addr) {
			told = ""
			tell(a, nil)
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			tell(netip.Addr{}, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// search serves one socket until it fails or ctx ends.
func search(ctx context.Context, device string, tell func(netip.Addr)) error {
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
	s := finder{c: c, own: own, link: link, tell: tell}
	return s.serve(ctx)
}

// finder is one search.
type finder struct {
	c       *ndp.Conn
	own     netip.Addr
	link    *net.Interface
	tell    func(netip.Addr)
	current netip.Addr
	heard   time.Time // of current
}

// serve reads, and sends what is due whenever nothing comes.
func (s *finder) serve(ctx context.Context) error {
	var advertised, solicited time.Time
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(advertised) >= advertiseEvery {
			advertised = now
			if err := s.advertise(); err != nil {
				return err
			}
		}
		wake := advertised.Add(advertiseEvery)
		if now.Sub(s.heard) > staleAfter {
			if now.Sub(solicited) >= solicitEvery {
				solicited = now
				if err := s.send(&ndp.RouterSolicitation{Options: s.source()}, allRouters); err != nil {
					return err
				}
			}
			wake = solicited.Add(solicitEvery)
		}
		_ = s.c.SetReadDeadline(wake)
		m, cm, from, err := s.c.ReadFrom()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("looking for a router on %q: %w", s.link.Name, err)
		case cm == nil || cm.HopLimit != ndp.HopLimit || cm.IfIndex != s.link.Index || !from.IsLinkLocalUnicast() || from == s.own:
			continue // from beyond a router, or our own
		}
		switch m.(type) {
		case *ndp.RouterSolicitation:
			if time.Since(advertised) >= time.Second { // who asks more often waits
				advertised = time.Time{}
			}
		case *ndp.RouterAdvertisement:
			s.hear(from, time.Now())
		}
	}
	return nil
}

// hear takes note of a router. The first that was heard stays until it is silent.
func (s *finder) hear(from netip.Addr, now time.Time) {
	if from != s.current && s.current.IsValid() && now.Sub(s.heard) < staleAfter {
		return
	}
	s.heard = now
	if from != s.current {
		s.current = from
		s.tell(from)
	}
}

func (s *finder) advertise() error {
	return s.send(&ndp.RouterAdvertisement{Options: s.source()}, allNodes)
}

// source is the option with the link's own Ethernet address.
func (s *finder) source() []ndp.Option {
	if len(s.link.HardwareAddr) == 0 {
		return nil
	}
	return []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: s.link.HardwareAddr}}
}

func (s *finder) send(m ndp.Message, to netip.Addr) error {
	if err := s.c.WriteTo(m, nil, to); err != nil {
		return fmt.Errorf("sending to the routers on %q: %w", s.link.Name, err)
	}
	return nil
}
