package bgp_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// scriptedRequestFinder hears the routers of a test.
type scriptedRequestFinder struct {
	heard chan []netip.Addr

	mu      sync.Mutex // guards routers
	routers []netip.Addr
}

func (f *scriptedRequestFinder) SetRouters(routers []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routers = routers
}

func (f *scriptedRequestFinder) listensTo() []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.routers
}

func (f *scriptedRequestFinder) HeardRouters() <-chan []netip.Addr { return f.heard }

// TestRouterThatAsksForBFDIsAFault has two routers: one whose peer has BFD, and one that asks for
// BFD in vain, until its peer has it too.
func TestRouterThatAsksForBFDIsAFault(t *testing.T) {
	f := &scriptedRequestFinder{heard: make(chan []netip.Addr)}
	s := startMemorySpeaker(t, newMemoryTransport(), func(o *bgp.Options) { o.BFDRequests = f })
	peers := []intent.Peer{scriptedRouterPeer(), scriptedRouterPeer()}
	peers[0].Name, peers[0].Address, peers[0].BFD = "watched", netip.MustParseAddr("192.0.2.1"), fastBFD()
	peers[1].Name, peers[1].Address = "unwatched", netip.MustParseAddr("192.0.2.2")
	expect := func(what string, listensTo []netip.Addr, reason names.Reason) {
		t.Helper()
		awaitNoError(t, what, func() error {
			st := s.peerStatus("unwatched")
			if st.BFDFault.Reason != reason || reason != "" && !strings.Contains(st.BFDFault.Text, "BGPPeer unwatched has no bfdProfile") || !slices.Equal(f.listensTo(), listensTo) {
				return fmt.Errorf("the fault is %+v, and the speaker listens to %v", st.BFDFault, f.listensTo())
			}
			return nil
		})
	}
	s.SetDesiredState(bgp.Desired{Peers: peers})
	expect("nothing is heard", []netip.Addr{peers[1].Address}, "")
	f.heard <- []netip.Addr{peers[1].Address}
	expect("the router asks for BFD", []netip.Addr{peers[1].Address}, names.ReasonBFDNotConfigured)
	if st := s.peerStatus("watched"); st.BFDFault.IsSet() {
		t.Errorf("the peer with BFD has the fault %+v", st.BFDFault)
	}
	f.heard <- nil
	expect("the router does not ask any more", []netip.Addr{peers[1].Address}, "")
	withBFD := slices.Clone(peers)
	withBFD[1].BFD = fastBFD()
	s.SetDesiredState(bgp.Desired{Peers: withBFD})
	expect("both peers have BFD", nil, "")
}

// TestRouterThatRequiresBFD refuses the session without BFD, as a router in strict mode does.
func TestRouterThatRequiresBFD(t *testing.T) {
	m := newMemoryTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	r.answer = func(message.OpenMessage) ([]byte, bool) {
		return message.NewCeaseNotification(message.CeaseBFDDown, "").Encode(), false
	}
	s := startMemorySpeaker(t, m)
	s.SetDesiredState(bgp.Desired{Peers: []intent.Peer{scriptedRouterPeer()}})
	s.waitForError("tor", "BFD down: it watches the path by BFD: set bfdProfile here too")
}
