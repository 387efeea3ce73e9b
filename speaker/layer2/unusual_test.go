package layer2_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// unusualFrame builds an unusual request for the held address. Its sender is not the
// harness's client.
type unusualFrame struct {
	buildFrame  func(o requestBuilderOfOtherHost) []byte
	wantsAnswer bool
}

// requestBuilderOfOtherHost builds requests from another host on the client's link.
type requestBuilderOfOtherHost struct {
	*engineWithClient
	senderIP netip.Addr // of the sender
}

// The layouts of RFC 826 and RFC 8200, in bytes from the start of the frame.
const (
	arpHardwareTypeOffset, arpProtocolTypeOffset, arpLengthsOffset, arpOperationOffset                                               = 14, 16, 18, 20
	ip6HopLimitOffsetInFrame, ip6SourceOffsetInFrame, ip6DestinationOffsetInFrame, icmp6Offset, icmp6CodeOffset, icmp6ChecksumOffset = 21, 22, 38, 54, 55, 56
)

// ordinaryARPRequest returns an ordinary ARP request.
func (o requestBuilderOfOtherHost) ordinaryARPRequest() []byte {
	b := slices.Concat(ethernetBroadcast[:], o.clientMAC[:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, o.clientMAC[:], o.senderIP.AsSlice(), make([]byte, 6), o.heldIP.AsSlice())
	return append(b, make([]byte, 60-len(b))...)
}

// ordinaryNeighborSolicitation returns an ordinary Neighbor Solicitation to the given destination.
func (o requestBuilderOfOtherHost) ordinaryNeighborSolicitation(mac facts.MAC, from, to netip.Addr, options ...ndp.Option) []byte {
	m, err := ndp.MarshalMessageChecksum(&ndp.NeighborSolicitation{TargetAddress: o.heldIP, Options: options}, from, to)
	if err != nil {
		o.t.Fatal(err)
	}
	b := slices.Concat(mac[:], o.clientMAC[:], []byte{0x86, 0xdd, 0x60, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(m))),
		[]byte{58, 255}, from.AsSlice(), to.AsSlice(), m)
	return b
}

// solicitedNodeGroup returns the group for requests for the held address.
func (o requestBuilderOfOtherHost) solicitedNodeGroup() netip.Addr {
	g, err := ndp.SolicitedNodeMulticast(o.heldIP)
	if err != nil {
		o.t.Fatal(err)
	}
	return g
}

func (o requestBuilderOfOtherHost) sourceMACOption() ndp.Option {
	return &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: o.clientMAC[:]}
}

// ordinaryRequest returns the ordinary request of the family.
func (o requestBuilderOfOtherHost) ordinaryRequest() []byte {
	if o.heldIP.Is4() {
		return o.ordinaryARPRequest()
	}
	return o.ordinaryNeighborSolicitation(layer2.RequestDestinationMAC(o.heldIP), o.senderIP, o.solicitedNodeGroup(), o.sourceMACOption())
}

// requestWithOverwrittenBytes overwrites bytes of the ordinary request.
func requestWithOverwrittenBytes(at int, value ...byte) func(requestBuilderOfOtherHost) []byte {
	return func(o requestBuilderOfOtherHost) []byte {
		b := o.ordinaryRequest()
		copy(b[at:], value)
		return b
	}
}

// requestWithVLANTag puts the request into a VLAN (IEEE 802.1Q). The kernel removes the tag before
// a socket receives the frame.
func requestWithVLANTag(kind, vlan uint16) func(requestBuilderOfOtherHost) []byte {
	return func(o requestBuilderOfOtherHost) []byte {
		b := o.ordinaryRequest()
		tag := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, kind), vlan)
		return slices.Insert(b, 12, tag...)
	}
}

var unusualFramesByFamily = map[string]map[string]unusualFrame{
	"IPv4": {
		"a request without padding": {func(o requestBuilderOfOtherHost) []byte { return o.ordinaryARPRequest()[:42] }, true},
		"a unicast request to the holder": {func(o requestBuilderOfOtherHost) []byte {
			return slices.Concat(o.link.MAC[:], o.ordinaryARPRequest()[6:])
		}, true},
		"a VLAN tag with only a priority": {requestWithVLANTag(0x8100, 5<<13), true},
		"a VLAN":                          {requestWithVLANTag(0x8100, 5), false},
		"a provider's VLAN":               {requestWithVLANTag(0x88a8, 5), false},
		"operation 0":                     {requestWithOverwrittenBytes(arpOperationOffset, 0, 0), false},
		"a reverse ARP request":           {requestWithOverwrittenBytes(arpOperationOffset, 0, 3), false},
		"addresses of another length":     {requestWithOverwrittenBytes(arpLengthsOffset, 8, 4), false},
		"another length of IP":            {requestWithOverwrittenBytes(arpLengthsOffset, 6, 16), false},
		"another hardware":                {requestWithOverwrittenBytes(arpHardwareTypeOffset, 0, 32), false},
		"another protocol":                {requestWithOverwrittenBytes(arpProtocolTypeOffset, 0x86, 0xdd), false},
		"a frame that is cut short":       {func(o requestBuilderOfOtherHost) []byte { return o.ordinaryARPRequest()[:36] }, false},
		"a broadcast sender":              {requestWithOverwrittenBytes(22, ethernetBroadcast[:]...), false},
		"a request to another host": {func(o requestBuilderOfOtherHost) []byte {
			return slices.Concat(foreignMAC[:], o.ordinaryARPRequest()[6:])
		}, false},
		"a request to a group": {func(o requestBuilderOfOtherHost) []byte {
			return slices.Concat([]byte{1, 0, 0x5e, 0, 0, 1}, o.ordinaryARPRequest()[6:])
		}, false},
		"a request for the sender's own address": {func(o requestBuilderOfOtherHost) []byte {
			b := o.ordinaryARPRequest()
			copy(b[28:32], o.heldIP.AsSlice())
			return b
		}, false},
	},
	"IPv6": {
		"a request to the group": {func(o requestBuilderOfOtherHost) []byte { return o.ordinaryRequest() }, true},
		"a unicast request to the holder, with a link-layer address": {func(o requestBuilderOfOtherHost) []byte {
			return o.ordinaryNeighborSolicitation(o.link.MAC, o.senderIP, o.heldIP, o.sourceMACOption())
		}, true},
		"a unicast request to the holder, without a link-layer address": {func(o requestBuilderOfOtherHost) []byte {
			return o.ordinaryNeighborSolicitation(o.link.MAC, o.senderIP, o.heldIP)
		}, true},
		"a request without a link-layer address": {func(o requestBuilderOfOtherHost) []byte {
			return o.ordinaryNeighborSolicitation(layer2.RequestDestinationMAC(o.heldIP), o.senderIP, o.solicitedNodeGroup())
		}, true},
		"an unknown option": {func(o requestBuilderOfOtherHost) []byte {
			return o.ordinaryNeighborSolicitation(layer2.RequestDestinationMAC(o.heldIP), o.senderIP, o.solicitedNodeGroup(), o.sourceMACOption(), &ndp.RawOption{Type: 200, Length: 1, Value: make([]byte, 6)})
		}, true},
		"a VLAN tag with only a priority": {requestWithVLANTag(0x8100, 5<<13), true},
		"a VLAN":                          {requestWithVLANTag(0x8100, 5), false},
		"a hop limit of 254":              {requestWithOverwrittenBytes(ip6HopLimitOffsetInFrame, 254), false},
		"a wrong checksum":                {requestWithOverwrittenBytes(icmp6ChecksumOffset, 0x55, 0xaa), false},
		"another code":                    {requestWithOverwrittenBytes(icmp6CodeOffset, 1), false},
		"a request to all nodes": {func(o requestBuilderOfOtherHost) []byte {
			return o.ordinaryNeighborSolicitation(layer2.AnnouncementDestinationMAC(o.heldIP), o.senderIP, netip.MustParseAddr("ff02::1"), o.sourceMACOption())
		}, false},
		"a request to another host": {func(o requestBuilderOfOtherHost) []byte {
			return o.ordinaryNeighborSolicitation(foreignMAC, o.senderIP, o.heldIP, o.sourceMACOption())
		}, false},
		"a sender that is a group": {func(o requestBuilderOfOtherHost) []byte {
			return o.ordinaryNeighborSolicitation(layer2.RequestDestinationMAC(o.heldIP), netip.MustParseAddr("ff02::1"), o.solicitedNodeGroup(), o.sourceMACOption())
		}, false},
		"a fragment": {func(o requestBuilderOfOtherHost) []byte {
			b := o.ordinaryRequest()
			b[20] = unix.IPPROTO_FRAGMENT
			binary.BigEndian.PutUint16(b[18:], uint16(len(b)-icmp6Offset+8))
			return slices.Insert(b, icmp6Offset, 58, 0, 0, 0, 0, 0, 0, 1)
		}, false},
	},
}

// TestUnusualRequestsAreAnsweredOrDropped sends requests over a veth pair that a switch, a broken
// host or an attacker may send. The node's link is promiscuous, as with a bridge or a capture.
func TestUnusualRequestsAreAnsweredOrDropped(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			b := newEngineWithClientOnVeth(t, c)
			b.nodeNamespace.MustRunInside(func() error {
				eth0, err := netlink.LinkByName("eth0")
				return errors.Join(err, netlink.SetPromiscOn(eth0))
			})
			send := openRawSender(b)
			b.holdAddressAndAwaitAnnouncement(b.heldIP)
			for name, c := range unusualFramesByFamily[family] {
				t.Run(name, func(t *testing.T) {
					o := requestBuilderOfOtherHost{b, b.clientIP.Next()}
					b.discardHeardFrames()
					send(c.buildFrame(o))
					b.sendFrame(b.newClientRequest(b.heldIP))
					if got := b.hearsOtherReplyBefore(b.expectedReplyToClient(b.heldIP)); got != c.wantsAnswer {
						t.Errorf("it is answered: %v, want %v", got, c.wantsAnswer)
					}
				})
			}
		})
	}
}

// hearsOtherReplyBefore waits for a reply, and says whether another came before it. Replies come in
// the order of the requests.
func (b *engineWithClient) hearsOtherReplyBefore(last layer2.ARPOrNDPFrame) bool {
	b.t.Helper()
	another := false
	timeout := time.After(30 * time.Second)
	for {
		select {
		case f := <-b.framesHeardByClient:
			if f == last {
				return another
			}
			another = another || (f.Operation == layer2.Reply && f.EthernetDestination == b.clientMAC && f.SenderIP == b.heldIP)
		case <-timeout:
			b.t.Fatal("an ordinary request is not answered")
		}
	}
}

// openRawSender returns a function that sends raw frames on the client's link.
func openRawSender(b *engineWithClient) func(frame []byte) {
	fd := -1
	b.clientNamespace.MustRunInside(func() error {
		l, err := linkByName("eth0")
		if err == nil {
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		}
		return errors.Join(err, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Index}))
	})
	b.t.Cleanup(func() { _ = unix.Close(fd) })
	return func(frame []byte) {
		b.t.Helper()
		if _, err := unix.Write(fd, frame); err != nil {
			b.t.Fatal(err)
		}
	}
}
