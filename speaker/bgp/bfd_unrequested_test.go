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

// scriptedBFDRequestSniffer hears the routers of a test.
type scriptedBFDRequestSniffer struct {
	routersAskingForBFD chan []netip.Addr

	mu      sync.Mutex // guards routers
	routers []netip.Addr
}

func (f *scriptedBFDRequestSniffer) SetRoutersToSniff(routers []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routers = routers
}

func (f *scriptedBFDRequestSniffer) sniffedRouters() []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.routers
}

func (f *scriptedBFDRequestSniffer) UpdatesOfRoutersAskingForBFD() <-chan []netip.Addr {
	return f.routersAskingForBFD
}

// TestRouterBFDRequestWithoutProfileIsAFault has two routers: one whose peer has BFD, and one that
// asks for BFD in vain, until its peer has it too.
func TestRouterBFDRequestWithoutProfileIsAFault(t *testing.T) {
	f := &scriptedBFDRequestSniffer{routersAskingForBFD: make(chan []netip.Addr)}
	s := startLoopbackSpeaker(t, newLoopbackTransport(), func(o *bgp.Options) { o.BFDRequestSniffer = f })
	peers := []intent.Peer{scriptedRouterPeer(), scriptedRouterPeer()}
	peers[0].Name, peers[0].Address, peers[0].BFD = "watched", netip.MustParseAddr("192.0.2.1"), fastBFD()
	peers[1].Name, peers[1].Address = "unwatched", netip.MustParseAddr("192.0.2.2")
	expect := func(what string, listensTo []netip.Addr, reason names.Reason) {
		t.Helper()
		awaitNoError(t, what, func() error {
			st := s.peerStatus("unwatched")
			if st.BFDFault.Reason != reason || reason != "" && !strings.Contains(st.BFDFault.Text, "BGPPeer unwatched has no bfdProfile") || !slices.Equal(f.sniffedRouters(), listensTo) {
				return fmt.Errorf("the fault is %+v, and the speaker listens to %v", st.BFDFault, f.sniffedRouters())
			}
			return nil
		})
	}
	s.SetDesiredState(bgp.DesiredState{Peers: peers})
	expect("nothing is heard", []netip.Addr{peers[1].Address}, "")
	f.routersAskingForBFD <- []netip.Addr{peers[1].Address}
	expect("the router asks for BFD", []netip.Addr{peers[1].Address}, names.ReasonBFDNotConfigured)
	if st := s.peerStatus("watched"); st.BFDFault.IsSet() {
		t.Errorf("the peer with BFD has the fault %+v", st.BFDFault)
	}
	f.routersAskingForBFD <- nil
	expect("the router does not ask any more", []netip.Addr{peers[1].Address}, "")
	withBFD := slices.Clone(peers)
	withBFD[1].BFD = fastBFD()
	s.SetDesiredState(bgp.DesiredState{Peers: withBFD})
	expect("both peers have BFD", nil, "")
}

// TestBFDRequiredByRouterIsReported refuses the session without BFD, as a router in strict mode
// does.
func TestBFDRequiredByRouterIsReported(t *testing.T) {
	m := newLoopbackTransport()
	r := m.addRouter(t, "192.0.2.1", nil)
	r.answerOpen = func(message.OpenMessage) ([]byte, bool) {
		return message.NewCeaseNotification(message.CeaseBFDDown, "").Encode(), false
	}
	s := startLoopbackSpeaker(t, m)
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{scriptedRouterPeer()}})
	s.waitForError("tor", "BFD down: it watches the path by BFD: set bfdProfile here too")
}
