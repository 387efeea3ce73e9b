package udp_test

import (
	"encoding/binary"
	"net"
	"reflect"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/bfd/udp"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// transportWithPeerSocket is a Transport and a socket that sends to it.
type transportWithPeerSocket struct {
	transport  *udp.Transport
	peerSocket *net.UDPConn
}

// withTransportAndPeerSocket runs f with a pair, on a thread in the namespace of the Transport. f
// must not call FailNow or Skip.
func withTransportAndPeerSocket(t *testing.T, f func(p transportWithPeerSocket)) {
	t.Helper()
	near, far := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	connectNamespaces(near, far)
	var p transportWithPeerSocket
	far.MustRunInside(func() (err error) {
		p.peerSocket, err = net.DialUDP("udp4", &net.UDPAddr{IP: farNamespaceAddress.AsSlice()}, &net.UDPAddr{IP: nearNamespaceAddress.AsSlice(), Port: 3784})
		if err == nil {
			err = ipv4.NewConn(p.peerSocket).SetTTL(255)
		}
		return err
	})
	defer p.peerSocket.Close()
	near.MustRunInside(func() error {
		var err error
		if p.transport, err = udp.NewTransport(); err != nil {
			return err
		}
		defer p.transport.Close()
		s := p.transport.OpenSender(bfd.SessionKey{PeerAddress: farNamespaceAddress}, ourTestDiscriminator)
		if err := s.ReopenLostSockets(); err != nil {
			return err
		}
		f(p)
		return nil
	})
}

const ourTestDiscriminator = 4711

// waitForDatagram waits for a datagram, for Wake, or for d.
func (p transportWithPeerSocket) waitForDatagram(d time.Duration) {
	now := time.Now()
	p.transport.WaitForDatagramUntil(now, now.Add(d))
}

// packetWithDiscriminator returns a packet with a number as its discriminator.
func packetWithDiscriminator(number uint32) []byte {
	return session.Packet{State: session.Up, DetectMultiplier: 3, MyDiscriminator: number, YourDiscriminator: ourTestDiscriminator}.AppendEncoded(nil)
}

// TestAllDatagramsAreReceivedInOrder sends more datagrams than one system call reads.
func TestAllDatagramsAreReceivedInOrder(t *testing.T) {
	withTransportAndPeerSocket(t, func(p transportWithPeerSocket) {
		const count = 100
		for i := range uint32(count) {
			if _, err := p.peerSocket.Write(packetWithDiscriminator(1 + i)); err != nil {
				t.Error(err)
				return
			}
		}
		p.waitForDatagram(waitTimeout)
		for i := range uint32(count) {
			d, ok := p.transport.Receive()
			// The kernel of a busy machine may deliver it later.
			for begun := time.Now(); !ok && time.Since(begun) < waitTimeout; d, ok = p.transport.Receive() {
				p.waitForDatagram(100 * time.Millisecond)
			}
			if !ok {
				t.Errorf("%d datagrams were received, want %d", i, count)
				return
			}
			if len(d.Payload) != 24 || binary.BigEndian.Uint32(d.Payload[4:]) != 1+i {
				t.Errorf("datagram %d is %x", i, d.Payload)
				return
			}
			want := bfd.ReceivedDatagram{SourceAddress: farNamespaceAddress, DestinationAddress: nearNamespaceAddress, ArrivalInterface: "eth0", TTL: 255}
			if d.Payload = nil; !reflect.DeepEqual(d, want) {
				t.Errorf("datagram %d is %+v, want %+v", i, d, want)
				return
			}
		}
		if d, ok := p.transport.Receive(); ok {
			t.Errorf("%+v was received twice", d)
		}
	})
}

// TestWakeInterruptsTransportWait checks a Wake from another goroutine, and one before the wait.
func TestWakeInterruptsTransportWait(t *testing.T) {
	withTransportAndPeerSocket(t, func(p transportWithPeerSocket) {
		begin := time.Now()
		p.transport.Wake()
		p.waitForDatagram(waitTimeout)
		go p.transport.Wake()
		p.waitForDatagram(waitTimeout)
		if d := time.Since(begin); d >= waitTimeout {
			t.Errorf("two waits last %s", d)
		}
		begin = time.Now()
		if p.waitForDatagram(time.Millisecond); time.Since(begin) < time.Millisecond {
			t.Error("a wait ended without a Wake")
		}
	})
}

// TestReceivingAllocatesNothing checks the path of each packet.
func TestReceivingAllocatesNothing(t *testing.T) {
	withTransportAndPeerSocket(t, func(p transportWithPeerSocket) {
		packet := packetWithDiscriminator(1)
		received := 0
		n := testing.AllocsPerRun(1000, func() {
			if _, err := p.peerSocket.Write(packet); err != nil {
				t.Errorf("sending: %v", err)
			}
			p.waitForDatagram(waitTimeout)
			for {
				if _, ok := p.transport.Receive(); !ok {
					return
				}
				received++
			}
		})
		if n > 0 {
			t.Errorf("%v allocations for each packet", n)
		}
		if received < 1000 {
			t.Errorf("%d packets were received, want all", received)
		}
	})
}
