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

// A cable that is cut and mended is noticed by the links, and the held addresses are announced anew.
func TestAMendedCableIsAnnouncedOn(t *testing.T) {
	for family, c := range families {
		t.Run(family, func(t *testing.T) {
			b := onVeth(t, c)
			watcher := links.New(nil, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- b.node.Run(ctx, watcher.Run) }()
			t.Cleanup(func() {
				cancel()
				<-ended
			})
			want := func(sentence string, n int) {
				t.Helper()
				for {
					select {
					case set := <-watcher.Sets():
						b.engine.SetLinks(set)
						if len(set) == n {
							return
						}
					case <-time.After(30 * time.Second):
						t.Fatalf("%s: not noticed", sentence)
					}
				}
			}
			want("the cable is whole", 1)
			b.take(b.held)
			b.set(netlink.LinkSetDown)
			want("the cable is cut", 0)
			b.set(netlink.LinkSetUp)
			want("the cable is mended", 1)
			b.drain()
			b.wantHeard("the cable is mended", b.says(b.link.MAC, b.held))
			b.send(b.request(b.held))
			b.wantHeard("the address is asked for", b.answer(b.held))
		})
	}
}

// A link that goes down and up so fast that nobody else noticed costs the port, which comes back by itself.
func TestAPortOutlivesItsLink(t *testing.T) {
	b := onVeth(t, cast4)
	b.take(b.held)
	b.set(netlink.LinkSetDown)
	if r := report[layer2.PortFailed](b, "the link is down"); r.Denied() || !errors.Is(r.Err, layer2.ErrLinkGone) || r.Link.Index != b.link.Index {
		t.Fatalf("the report is %+v, want that the link is gone", r)
	}
	b.set(netlink.LinkSetUp)
	b.drain()
	b.wantHeard("the link is up", b.says(b.link.MAC, b.held))
}

// set changes the node's end of the cable.
func (b *bed) set(f func(netlink.Link) error) {
	b.t.Helper()
	b.node.Do(func() error {
		l, err := netlink.LinkByIndex(b.link.Index)
		return errors.Join(err, f(l))
	})
}
