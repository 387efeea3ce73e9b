package udp

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// keepSendingControlPackets sends control packets to an address, where nothing listens, until the
// test ends.
func keepSendingControlPackets(t *testing.T, from, to string, p session.Packet) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	sending.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			_, _ = c.Write(p.AppendEncoded(nil)) // the kernel reports that no port is open
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() {
		stop()
		sending.Wait()
		_ = c.Close()
	})
}

// TestSnifferFindsRoutersAskingForBFD has routers that ask for a session, one whose session with
// another daemon is up, and one that is no peer. No port is opened.
func TestSnifferFindsRoutersAskingForBFD(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("packet sockets need root")
	}
	asking := session.Packet{State: session.Down, DetectMultiplier: 3, MyDiscriminator: 7, DesiredMinTxInterval: time.Second, RequiredMinRxInterval: time.Second}
	answered := asking
	answered.YourDiscriminator = 9
	keepSendingControlPackets(t, "127.0.0.2", "127.0.0.1:3784", asking)
	keepSendingControlPackets(t, "127.0.0.3", "127.0.0.1:4784", asking)
	keepSendingControlPackets(t, "127.0.0.4", "127.0.0.1:3784", answered)
	keepSendingControlPackets(t, "127.0.0.5", "127.0.0.1:3784", asking)
	keepSendingControlPackets(t, "127.0.0.6", "127.0.0.1:3785", asking)
	want := []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	routers := append(slices.Clone(want), netip.MustParseAddr("127.0.0.4"), netip.MustParseAddr("127.0.0.6"))
	if c, err := net.ListenPacket("udp", "[::1]:0"); err == nil {
		_ = c.Close()
		keepSendingControlPackets(t, "::1", "[::1]:3784", asking)
		want, routers = append(want, netip.IPv6Loopback()), append(routers, netip.IPv6Loopback())
	}
	o := NewBFDRequestSniffer()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- o.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct{ routers, want []netip.Addr }{{routers, want}, {nil, nil}} {
		o.SetRoutersToSniff(c.routers)
		select {
		case got := <-o.UpdatesOfRoutersAskingForBFD():
			if !slices.Equal(got, c.want) {
				t.Errorf("of %v these are heard: %v, want %v", c.routers, got, c.want)
			}
		case <-time.After(sniffRoundWaitTimeout):
			t.Fatalf("of %v nothing is heard", c.routers)
		}
	}
}

// sniffRoundWaitTimeout bounds the wait for a round.
const sniffRoundWaitTimeout = 30 * time.Second
