package layer2_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/layer2test"
)

// portOpenerWithBlockingWrites is a Wire whose ports block the engine: once blocked is closed,
// Write returns only after unblocked is closed. The readers answer meanwhile.
type portOpenerWithBlockingWrites struct {
	layer2.PortOpener
	blockWritesSignal, unblockWritesSignal chan struct{}
}

type portWithBlockingWrites struct {
	layer2.Port
	opener *portOpenerWithBlockingWrites
}

func (w *portOpenerWithBlockingWrites) OpenPort(l facts.Link, f ipfamily.Family) (layer2.Port, error) {
	p, err := w.PortOpener.OpenPort(l, f)
	return portWithBlockingWrites{p, w}, err
}

func (p portWithBlockingWrites) WriteFrame(f layer2.ARPOrNDPFrame) error {
	select {
	case <-p.opener.blockWritesSignal:
		<-p.opener.unblockWritesSignal
	default:
	}
	return p.Port.WriteFrame(f)
}

// TestAWithdrawnAddressIsSilentAtOnce: after a pause the speaker gives up an address that another
// node took, and extends the deadline for what it still holds. The engine has not applied that yet.
// Frames from during the pause wait in the port, and none of them may be answered.
func TestAWithdrawnAddressIsSilentAtOnce(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lan := layer2test.NewLAN()
				w := &portOpenerWithBlockingWrites{lan.AddHost("node1"), make(chan struct{}), make(chan struct{})}
				mac := facts.MAC{2, 0, 0, 0, 0, 0x64}
				client, err := lan.AddHost("client").OpenPort(facts.Link{Index: 1, Name: "eth0", MAC: mac}, ipfamily.FamilyOf(c.heldIP))
				if err != nil {
					t.Fatal(err)
				}
				b := &engineWithClient{
					testAddresses: c, t: t, clientPort: client, clientMAC: mac, engine: layer2.NewEngine(w, time.Now),
					link: facts.Link{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, 0x0b}},
				}
				b.startEngine(func(ctx context.Context) error { return b.engine.Run(ctx) })
				unblock := sync.OnceFunc(func() { close(w.unblockWritesSignal) })
				t.Cleanup(unblock) // before the engine is stopped
				b.holdAddresses(b.heldIP, b.unheldIP)
				b.awaitClientFrame("the address is announced", b.gratuitousReplyFrom(b.link.MAC, b.heldIP))
				b.engine.SetSendDeadline(time.Time{})
				close(w.blockWritesSignal)
				b.engine.SetSendDeadline(time.Now().Add(time.Hour))
				b.engine.DefendAddress(b.heldIP)
				synctest.Wait() // the engine is busy now
				b.engine.SetSendDeadline(time.Time{})

				b.holdAddresses(b.unheldIP)
				b.sendFrame(b.newClientRequest(b.heldIP))
				b.requireClientSilence("the address is given up", b.heldIP)
				b.sendFrame(b.newClientRequest(b.unheldIP))
				b.awaitClientFrame("the other address is still held", b.expectedReplyToClient(b.unheldIP))

				unblock()
				synctest.Wait()
				b.requireClientSilence("the engine has applied it", b.heldIP)
			})
		})
	}
}
