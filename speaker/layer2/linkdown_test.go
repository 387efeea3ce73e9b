package layer2_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/links"
)

// When a link comes up again, the held addresses are announced on it.
func TestHeldAddressIsAnnouncedOnReconnectedLink(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			b := newEngineWithClientOnVeth(t, c)
			watcher := links.NewWatcher(nil, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- b.nodeNamespace.RunInside(ctx, watcher.Run) }()
			t.Cleanup(func() {
				cancel()
				<-ended
			})
			want := func(sentence string, n int) {
				t.Helper()
				for {
					select {
					case set := <-watcher.LinkUpdates():
						usable, _ := set.SplitUsableAndDown()
						b.engine.SetLinks(usable)
						if len(usable) == n {
							return
						}
					case <-time.After(30 * time.Second):
						t.Fatalf("%s: not noticed", sentence)
					}
				}
			}
			want("the link is up", 1)
			b.holdAddressAndAwaitAnnouncement(b.heldIP)
			b.changeLinkInNodeNamespace(netlink.LinkSetDown)
			want("the link is down", 0)
			b.changeLinkInNodeNamespace(netlink.LinkSetUp)
			want("the link is up again", 1)
			b.discardHeardFrames()
			b.awaitClientFrame("the link is up again", b.gratuitousReplyFrom(b.link.MAC, b.heldIP))
			b.sendFrame(b.newClientRequest(b.heldIP))
			b.awaitClientFrame("a request for the address", b.expectedReplyToClient(b.heldIP))
		})
	}
}

// A link that goes down and up before the link watcher sees it breaks the port. The
// engine opens the port again.
func TestPortReopensAfterLinkFlap(t *testing.T) {
	b := newEngineWithClientOnVeth(t, ipv4TestAddresses)
	b.holdAddressAndAwaitAnnouncement(b.heldIP)
	b.changeLinkInNodeNamespace(netlink.LinkSetDown)
	if r := awaitReport[layer2.PortFailed](b, "the link is down"); r.IsPermissionDenied() || !errors.Is(r.Err, layer2.ErrLinkDownOrGone) || r.Link.Index != b.link.Index {
		t.Fatalf("the report is %+v, want that the link is gone", r)
	}
	b.changeLinkInNodeNamespace(netlink.LinkSetUp)
	b.discardHeardFrames()
	b.awaitClientFrame("the link is up", b.gratuitousReplyFrom(b.link.MAC, b.heldIP))
}

// changeLinkInNodeNamespace changes the node's end of the veth pair.
func (b *engineWithClient) changeLinkInNodeNamespace(f func(netlink.Link) error) {
	b.t.Helper()
	b.nodeNamespace.MustRunInside(func() error {
		l, err := netlink.LinkByIndex(b.link.Index)
		return errors.Join(err, f(l))
	})
}
