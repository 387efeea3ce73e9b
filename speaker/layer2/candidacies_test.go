package layer2_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// setCandidacies makes the node a candidate for the addresses.
func (b *engineWithClient) setCandidacies(addresses ...netip.Addr) {
	var bindings []intent.Binding
	for _, a := range addresses {
		bindings = append(bindings, intent.Binding{Address: a, LinkIndexes: []int{b.link.Index}})
	}
	b.engine.UpdateCandidacies(bindings, nil)
}

// takeNoticeCounts counts the frames to each unicast address since the last call. Each of them has
// to be a notice about the held address.
func (s engineWithClientInMemory) takeNoticeCounts() map[facts.MAC]int {
	s.t.Helper()
	notices := map[facts.MAC]int{}
	for _, f := range s.lan.TakeSentFrames() {
		if f.SenderName == "node1" && f.Frame.EthernetDestination[0]&1 == 0 {
			notices[f.Frame.EthernetDestination]++
			if f.Frame != s.expectedUnicastNotice(s.heldIP) {
				s.t.Errorf("a unicast frame is %+v, want the notice", f.Frame)
			}
		}
	}
	return notices
}

// A host that asked the old holder gets two notices from the new one. A host that asked long ago,
// or for another address, gets none.
func TestRecentAskersReceiveNotices(t *testing.T) {
	late := map[ipfamily.Family]netip.Addr{ipfamily.IPv4: netip.MustParseAddr("192.168.0.98"), ipfamily.IPv6: netip.MustParseAddr("fd00:a8::98")}
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			simulateWithOptions(t, c, func(s engineWithClientInMemory) {
				s.setCandidacies(s.heldIP, s.unheldIP)
				synctest.Wait()
				long, elsewhere := s.newClientRequest(s.heldIP), s.newClientRequest(s.unheldIP)
				long.SenderIP, long.SenderMAC = late[ipfamily.FamilyOf(s.heldIP)], facts.MAC{2, 0, 0, 0, 0, 0x62}
				elsewhere.SenderIP, elsewhere.SenderMAC = late[ipfamily.FamilyOf(s.heldIP)].Next(), facts.MAC{2, 0, 0, 0, 0, 0x63}
				s.sendFrame(long)
				time.Sleep(time.Hour)
				s.sendFrame(s.newClientRequest(s.heldIP))
				s.sendFrame(elsewhere)
				synctest.Wait()
				s.lan.TakeSentFrames()
				s.holdAddressAndAwaitAnnouncement(s.heldIP)
				time.Sleep(10 * time.Second)
				if notices := s.takeNoticeCounts(); len(notices) != 1 || notices[s.clientMAC] != 2 {
					t.Fatalf("notices: %v, want two to the client", notices)
				}
			})
		})
	}
}

// A host that has just asked for a new address waits for an answer. It gets one as soon as the node
// answers for the address, and before the address is announced. A host that asked earlier does not
// wait any more.
func TestWaitingAskersReceiveNoticesBeforeTheAnnouncement(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			simulateWithOptions(t, c, func(s engineWithClientInMemory) {
				s.setCandidacies(s.heldIP)
				synctest.Wait()
				earlier := s.newClientRequest(s.heldIP)
				earlier.SenderIP, earlier.SenderMAC = s.clientIP.Next(), facts.MAC{2, 0, 0, 0, 0, 0x62}
				s.sendFrame(earlier)
				time.Sleep(10 * time.Second)
				s.sendFrame(s.newClientRequest(s.heldIP))
				synctest.Wait()
				s.lan.TakeSentFrames()
				s.bindUnannouncedAddress(s.heldIP)
				synctest.Wait()
				if notices := s.takeNoticeCounts(); len(notices) != 1 || notices[s.clientMAC] != 1 {
					t.Fatalf("notices: %v, want one to the client at once", notices)
				}
				s.holdAddressAndAwaitAnnouncement(s.heldIP)
			})
		})
	}
}

// A host that asked while the node held the address gets a notice when the node holds it again.
func TestAskersOfAnEarlierHoldReceiveNotices(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			simulateWithOptions(t, c, func(s engineWithClientInMemory) {
				s.holdAddressAndAwaitAnnouncement(s.heldIP)
				s.sendFrame(s.newClientRequest(s.heldIP))
				s.awaitClientFrame("the address is held", s.expectedReplyToClient(s.heldIP))
				time.Sleep(2 * time.Minute)
				s.engine.SetBindingsAndSendDeadline(nil, time.Now().Add(time.Hour))
				synctest.Wait()
				s.lan.TakeSentFrames()
				s.holdAddressAndAwaitAnnouncement(s.heldIP)
				time.Sleep(10 * time.Second)
				if notices := s.takeNoticeCounts(); len(notices) != 1 || notices[s.clientMAC] != 2 {
					t.Fatalf("notices: %v, want two to the client", notices)
				}
			})
		})
	}
}

// IPv6 requests go to groups. A candidate receives them on present, new and reopened links, and
// only while it is a candidate.
func TestIPv6CandidateHearsRequestsOfAskers(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(s engineWithClientInMemory)
		want bool
	}{
		"no candidacy":                    {func(engineWithClientInMemory) {}, false},
		"a candidacy for the address":     {func(s engineWithClientInMemory) { s.setCandidacies(s.heldIP) }, true},
		"a candidacy for another address": {func(s engineWithClientInMemory) { s.setCandidacies(s.unheldIP) }, false},
		"a link that is added": {func(s engineWithClientInMemory) {
			s.engine.SetLinks(nil)
			synctest.Wait()
			s.setCandidacies(s.heldIP)
			synctest.Wait()
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, true},
		"a port that broke": {func(s engineWithClientInMemory) {
			s.setCandidacies(s.heldIP)
			synctest.Wait()
			s.nodeHost.CloseOpenPortsWithError(layer2.ErrLinkDownOrGone)
			time.Sleep(time.Second)
		}, true},
		"a candidacy that ended": {func(s engineWithClientInMemory) {
			s.setCandidacies(s.heldIP)
			synctest.Wait()
			s.engine.UpdateCandidacies(nil, []netip.Addr{s.heldIP})
		}, false},
		"a candidacy that ended and began again": {func(s engineWithClientInMemory) {
			s.setCandidacies(s.heldIP)
			s.engine.UpdateCandidacies(nil, []netip.Addr{s.heldIP})
			s.setCandidacies(s.heldIP)
		}, true},
		"a candidacy on another link only": {func(s engineWithClientInMemory) {
			s.setCandidacies(s.heldIP)
			synctest.Wait()
			s.engine.UpdateCandidacies([]intent.Binding{{Address: s.heldIP, LinkIndexes: []int{s.link.Index + 1}}}, nil)
		}, false},
		"an address that was held and is given up": {func(s engineWithClientInMemory) {
			s.setCandidacies(s.heldIP)
			synctest.Wait()
			s.holdAddresses(s.heldIP)
			synctest.Wait()
			s.engine.SetBindingsAndSendDeadline(nil, time.Now().Add(time.Hour))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			simulateWithOptions(t, ipv6TestAddresses, func(s engineWithClientInMemory) {
				tt.do(s)
				synctest.Wait()
				s.sendFrame(s.newClientRequest(s.heldIP))
				time.Sleep(10 * time.Second)
				s.lan.TakeSentFrames()
				s.holdAddressAndAwaitAnnouncement(s.heldIP)
				time.Sleep(10 * time.Second)
				if notices := s.takeNoticeCounts(); (notices[s.clientMAC] > 0) != tt.want {
					t.Fatalf("notices: %v, want one to the client: %v", notices, tt.want)
				}
			})
		})
	}
}

// A thousand addresses with an asker each do not flood the askers, and announcements
// do not delay the notices.
func TestNoticesArePaced(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			simulateWithOptions(t, c, func(s engineWithClientInMemory) {
				var all []netip.Addr
				for a := s.heldIP; len(all) < 1000; a = a.Next() {
					all = append(all, a)
				}
				s.setCandidacies(all...)
				synctest.Wait()
				for _, a := range all {
					s.sendFrame(s.newClientRequest(a))
					time.Sleep(2 * time.Millisecond) // the limit of remembered requests per second
				}
				s.lan.TakeSentFrames()
				s.holdAddresses(all...)
				time.Sleep(400 * time.Millisecond)
				synctest.Wait()
				within, notices := map[time.Time]int{}, map[netip.Addr]bool{}
				for _, f := range s.lan.TakeSentFrames() {
					if f.SenderName == "node1" && f.Frame.EthernetDestination == s.clientMAC {
						within[f.SentAt.Truncate(10*time.Millisecond)]++
						notices[f.Frame.SenderIP] = true
					}
				}
				if len(notices) != len(all) {
					t.Errorf("the client gets notices about %d of %d addresses in 0.4 s", len(notices), len(all))
				}
				for at, n := range within {
					if n > 100 { // two batches may be in such an interval
						t.Fatalf("%d frames to one host within 10 ms at %v", n, at)
					}
				}
			})
		})
	}
}
