package cluster

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// The session of the stand-in with the router of docs/bgp.md. Like MetalLB in its native mode, the
// stand-in has no graceful restart.
const (
	standInASN                 = 64512
	standInRouter              = "192.168.0.1:179"
	standInHoldSeconds         = 90
	standInKeepaliveInterval   = 10 * time.Second
	standInReconnectDelay      = 500 * time.Millisecond
	bgpHeaderBytes             = 19
	bgpHeaderLengthFieldOffset = 16
)

// announceRoutesUntilKilled has a session with the router whenever the router accepts one.
func announceRoutesUntilKilled(prefixes []string) {
	for {
		fmt.Fprintln(os.Stderr, "the BGP session:", announceRoutes(prefixes))
		time.Sleep(standInReconnectDelay)
	}
}

// announceRoutes announces routes to the router until the session ends.
func announceRoutes(prefixes []string) error {
	ipv4, ipv6, err := findOwnAddresses()
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", standInRouter)
	if err != nil {
		return err
	}
	defer c.Close()
	capabilities := []bgp.ParameterCapabilityInterface{bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC), bgp.NewCapMultiProtocol(bgp.RF_IPv6_UC), bgp.NewCapFourOctetASNumber(standInASN)}
	messages := []*bgp.BGPMessage{
		bgp.NewBGPOpenMessage(standInASN, standInHoldSeconds, ipv4.String(), []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(capabilities)}),
		bgp.NewBGPKeepAliveMessage(),
	}
	for _, text := range prefixes {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		attributes := []bgp.PathAttributeInterface{
			bgp.NewPathAttributeOrigin(0),
			bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{standInASN})}),
		}
		if p.Addr().Is4() {
			attributes = append(attributes, bgp.NewPathAttributeNextHop(ipv4.String()))
			messages = append(messages, bgp.NewBGPUpdateMessage(nil, attributes, []*bgp.IPAddrPrefix{bgp.NewIPAddrPrefix(uint8(p.Bits()), p.Addr().String())}))
			continue
		}
		reachable := []bgp.AddrPrefixInterface{bgp.NewIPv6AddrPrefix(uint8(p.Bits()), p.Addr().String())}
		attributes = append(attributes, bgp.NewPathAttributeMpReachNLRI(ipv6.String(), reachable))
		messages = append(messages, bgp.NewBGPUpdateMessage(nil, attributes, nil))
	}
	for i, m := range messages {
		encoded, err := m.Serialize()
		if err != nil {
			return err
		}
		if _, err := c.Write(encoded); err != nil {
			return err
		}
		if i <= 1 { // the router's OPEN and its KEEPALIVE come before the routes
			if err := readBGPMessage(c); err != nil {
				return err
			}
		}
	}
	go sendKeepalives(c)
	for {
		if err := readBGPMessage(c); err != nil {
			return err
		}
	}
}

// sendKeepalives sends a KEEPALIVE now and then until the connection is closed.
func sendKeepalives(c net.Conn) {
	for {
		encoded, err := bgp.NewBGPKeepAliveMessage().Serialize()
		if err != nil {
			return
		}
		time.Sleep(standInKeepaliveInterval)
		if _, err := c.Write(encoded); err != nil {
			return
		}
	}
}

// readBGPMessage reads a message. A NOTIFICATION is an error.
func readBGPMessage(c net.Conn) error {
	header := make([]byte, bgpHeaderBytes)
	if _, err := io.ReadFull(c, header); err != nil {
		return err
	}
	body := make([]byte, max(0, int(binary.BigEndian.Uint16(header[bgpHeaderLengthFieldOffset:]))-bgpHeaderBytes))
	if _, err := io.ReadFull(c, body); err != nil {
		return err
	}
	if header[bgpHeaderBytes-1] == bgp.BGP_MSG_NOTIFICATION {
		return fmt.Errorf("the router sent the NOTIFICATION %v", body)
	}
	return nil
}

// findOwnAddresses returns the addresses of the node in the LAN.
func findOwnAddresses() (ipv4, ipv6 netip.Addr, err error) {
	link, err := net.InterfaceByName(lanLinkName)
	if err != nil {
		return ipv4, ipv6, err
	}
	all, err := link.Addrs()
	if err != nil {
		return ipv4, ipv6, err
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		switch {
		case err != nil:
			return ipv4, ipv6, err
		case p.Addr().Is4():
			ipv4 = p.Addr()
		case p.Addr().IsGlobalUnicast():
			ipv6 = p.Addr()
		}
	}
	return ipv4, ipv6, nil
}
