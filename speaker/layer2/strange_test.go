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

// oddity makes a question for the held address that is not like others. Who asks is not the bed's client.
type oddity struct {
	make     func(o odd) []byte
	answered bool
}

// odd is who asks whom.
type odd struct {
	*bed
	ip netip.Addr // of who asks
}

// The layouts of RFC 826 and RFC 8200, in bytes from the start of the frame.
const (
	inHardware, inProtocol, inLengths, inOperation = 14, 16, 18, 20
	inHops, inFrom, inTo, inICMP, inCode, inSum    = 21, 22, 38, 54, 55, 56
)

// arp is an ordinary question.
func (o odd) arp() []byte {
	b := slices.Concat(everybody[:], o.mac[:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, o.mac[:], o.ip.AsSlice(), make([]byte, 6), o.held.AsSlice())
	return append(b, make([]byte, 60-len(b))...)
}

// solicit is an ordinary question of IPv6 to an Ethernet and an IPv6 address.
func (o odd) solicit(mac facts.MAC, from, to netip.Addr, options ...ndp.Option) []byte {
	m, err := ndp.MarshalMessageChecksum(&ndp.NeighborSolicitation{TargetAddress: o.held, Options: options}, from, to)
	if err != nil {
		o.t.Fatal(err)
	}
	b := slices.Concat(mac[:], o.mac[:], []byte{0x86, 0xdd, 0x60, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(m))),
		[]byte{58, 255}, from.AsSlice(), to.AsSlice(), m)
	return b
}

// group is where a question for the held address goes.
func (o odd) group() netip.Addr {
	g, err := ndp.SolicitedNodeMulticast(o.held)
	if err != nil {
		o.t.Fatal(err)
	}
	return g
}

func (o odd) own() ndp.Option { return &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: o.mac[:]} }

// asked is the ordinary question.
func (o odd) asked() []byte {
	if o.held.Is4() {
		return o.arp()
	}
	return o.solicit(layer2.Asked(o.held), o.ip, o.group(), o.own())
}

// set writes bytes into the ordinary question.
func set(at int, value ...byte) func(odd) []byte {
	return func(o odd) []byte {
		b := o.asked()
		copy(b[at:], value)
		return b
	}
}

// tagged puts the question into a VLAN (IEEE 802.1Q), whose tag the kernel takes off before a socket sees the frame.
func tagged(kind, vlan uint16) func(odd) []byte {
	return func(o odd) []byte {
		b := o.asked()
		tag := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, kind), vlan)
		return slices.Insert(b, 12, tag...)
	}
}

var oddities = map[string]map[string]oddity{
	"IPv4": {
		"a question without padding":      {func(o odd) []byte { return o.arp()[:42] }, true},
		"a question to the holder alone":  {func(o odd) []byte { return slices.Concat(o.link.MAC[:], o.arp()[6:]) }, true},
		"a tag with a priority alone":     {tagged(0x8100, 5<<13), true},
		"a VLAN":                          {tagged(0x8100, 5), false},
		"a provider's VLAN":               {tagged(0x88a8, 5), false},
		"no operation":                    {set(inOperation, 0, 0), false},
		"a question of reverse ARP":       {set(inOperation, 0, 3), false},
		"addresses of another length":     {set(inLengths, 8, 4), false},
		"another length of IP":            {set(inLengths, 6, 16), false},
		"another hardware":                {set(inHardware, 0, 32), false},
		"another protocol":                {set(inProtocol, 0x86, 0xdd), false},
		"a frame that is cut short":       {func(o odd) []byte { return o.arp()[:36] }, false},
		"a sender that is everybody":      {set(22, everybody[:]...), false},
		"a question to another host":      {func(o odd) []byte { return slices.Concat(stranger[:], o.arp()[6:]) }, false},
		"a question to a group":           {func(o odd) []byte { return slices.Concat([]byte{1, 0, 0x5e, 0, 0, 1}, o.arp()[6:]) }, false},
		"a question for the sender's own": {func(o odd) []byte { b := o.arp(); copy(b[28:32], o.held.AsSlice()); return b }, false},
	},
	"IPv6": {
		"a question to the group":                                {func(o odd) []byte { return o.asked() }, true},
		"a check of the holder alone, with a link-layer address": {func(o odd) []byte { return o.solicit(o.link.MAC, o.ip, o.held, o.own()) }, true},
		"a check of the holder alone, without":                   {func(o odd) []byte { return o.solicit(o.link.MAC, o.ip, o.held) }, true},
		"a question without a link-layer address":                {func(o odd) []byte { return o.solicit(layer2.Asked(o.held), o.ip, o.group()) }, true},
		"an option that nobody knows": {func(o odd) []byte {
			return o.solicit(layer2.Asked(o.held), o.ip, o.group(), o.own(), &ndp.RawOption{Type: 200, Length: 1, Value: make([]byte, 6)})
		}, true},
		"a tag with a priority alone": {tagged(0x8100, 5<<13), true},
		"a VLAN":                      {tagged(0x8100, 5), false},
		"a hop limit of another link": {set(inHops, 254), false},
		"a wrong checksum":            {set(inSum, 0x55, 0xaa), false},
		"another code":                {set(inCode, 1), false},
		"a question to all nodes": {func(o odd) []byte {
			return o.solicit(layer2.Everybody(o.held), o.ip, netip.MustParseAddr("ff02::1"), o.own())
		}, false},
		"a question to another host": {func(o odd) []byte { return o.solicit(stranger, o.ip, o.held, o.own()) }, false},
		"a sender that is a group": {func(o odd) []byte {
			return o.solicit(layer2.Asked(o.held), netip.MustParseAddr("ff02::1"), o.group(), o.own())
		}, false},
		"a fragment": {func(o odd) []byte {
			b := o.asked()
			b[20] = unix.IPPROTO_FRAGMENT
			binary.BigEndian.PutUint16(b[18:], uint16(len(b)-inICMP+8))
			return slices.Insert(b, inICMP, 58, 0, 0, 0, 0, 0, 0, 1)
		}, false},
	},
}

// TestStrangeQuestions has an asker on a real cable say what a switch, a broken host or an attacker may say. The node's link
// hears everything, as when a bridge or a capture is on it.
func TestStrangeQuestions(t *testing.T) {
	for family, c := range families {
		t.Run(family, func(t *testing.T) {
			b := onVeth(t, c)
			b.node.Do(func() error {
				eth0, err := netlink.LinkByName("eth0")
				return errors.Join(err, netlink.SetPromiscOn(eth0))
			})
			send := rawSender(b)
			b.take(b.held)
			for name, c := range oddities[family] {
				t.Run(name, func(t *testing.T) {
					o := odd{b, b.clientIP.Next()}
					b.drain()
					send(c.make(o))
					b.send(b.request(b.held))
					if got := b.answersBefore(b.answer(b.held)); got != c.answered {
						t.Errorf("it is answered: %v, want %v", got, c.answered)
					}
				})
			}
		})
	}
}

// answersBefore waits for an answer, and says whether another came before: they come in the order of the questions.
func (b *bed) answersBefore(last layer2.Frame) bool {
	b.t.Helper()
	another := false
	timeout := time.After(30 * time.Second)
	for {
		select {
		case f := <-b.heard:
			if f == last {
				return another
			}
			another = another || (f.Operation == layer2.Reply && f.Destination == b.mac && f.SenderIP == b.held)
		case <-timeout:
			b.t.Fatal("an ordinary question is not answered")
		}
	}
}

// rawSender sends from the client's link as is.
func rawSender(b *bed) func(frame []byte) {
	fd := -1
	b.clientRoom.Do(func() error {
		l, err := linkOf("eth0")
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
