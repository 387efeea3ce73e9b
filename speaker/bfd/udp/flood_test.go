package udp_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// floodWithInvalidPackets sends packets to the node that are invalid for its sessions, until ctx
// ends.
func floodWithInvalidPackets(ctx context.Context) error {
	c, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		return err
	}
	defer c.Close()
	p := ipv4.NewPacketConn(c)
	random := rand.New(rand.NewPCG(7, 7))
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(nodeIPv4, 3784))
	for i := 0; ctx.Err() == nil; i++ {
		if err := p.SetTTL(255 - i/100%2); err != nil {
			return err
		}
		if _, err := c.WriteTo(randomInvalidDatagram(random, i), to); err != nil && !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
	}
	return nil
}

// randomInvalidDatagram returns random bytes, a packet with random
// fields, or a packet that is valid but for its state.
func randomInvalidDatagram(random *rand.Rand, i int) []byte {
	switch i % 3 {
	case 0:
		b := make([]byte, random.IntN(200))
		for j := range b {
			b[j] = byte(random.Uint32())
		}
		return b
	case 1:
		return session.Packet{
			State: session.State(random.IntN(4)), DetectMultiplier: uint8(random.IntN(256)), MyDiscriminator: random.Uint32(), YourDiscriminator: random.Uint32(),
		}.AppendEncoded(nil)
	}
	return session.Packet{State: session.Up, DetectMultiplier: 3, MyDiscriminator: random.Uint32()}.AppendEncoded(nil)
}
