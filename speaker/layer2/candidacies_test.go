package layer2_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// setCandidacies says that the node may come to hold the addresses.
func (b *harness) setCandidacies(addresses ...netip.Addr) {
	var claims []intent.Binding
	for _, a := range addresses {
		claims = append(claims, intent.Binding{Address: a, Links: []int{b.link.Index}})
	}
	b.engine.SetCandidacies(claims, nil)
}

// takeNoticeCounts counts the frames that were sent to each neighbour alone, of which each has to be news about the held address.
func (s simulation) takeNoticeCounts() map[facts.MAC]int {
	s.t.Helper()
	told := map[facts.MAC]int{}
	for _, f := range s.lan.TakeSentFrames() {
		if f.From == "node1" && f.Frame.Destination[0]&1 == 0 {
			told[f.Frame.Destination]++
			if f.Frame != s.noticeFor(s.held) {
				s.t.Errorf("a neighbour is told %+v", f.Frame)
			}
		}
	}
	return told
}

// Who asked the former holder is told by the new one, twice, and not who asked long ago or for another address.
func TestRecentAskersReceiveNotices(t *testing.T) {
	late := map[layer2.Family]netip.Addr{layer2.IPv4: netip.MustParseAddr("192.168.0.98"), layer2.IPv6: netip.MustParseAddr("fd00:a8::98")}
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			simulateWith(t, c, func(s simulation) {
				s.setCandidacies(s.held, s.other)
				synctest.Wait()
				long, elsewhere := s.requestFor(s.held), s.requestFor(s.other)
				long.SenderIP, long.SenderMAC = late[layer2.FamilyOf(s.held)], facts.MAC{2, 0, 0, 0, 0, 0x62}
				elsewhere.SenderIP, elsewhere.SenderMAC = late[layer2.FamilyOf(s.held)].Next(), facts.MAC{2, 0, 0, 0, 0, 0x63}
				s.sendFrame(long)
				time.Sleep(time.Hour)
				s.sendFrame(s.requestFor(s.held))
				s.sendFrame(elsewhere)
				synctest.Wait()
				s.lan.TakeSentFrames()
				s.holdNewAddress(s.held)
				time.Sleep(10 * time.Second)
				if told := s.takeNoticeCounts(); len(told) != 1 || told[s.clientMAC] != 2 {
					t.Fatalf("told: %v, want the client twice", told)
				}
			})
		})
	}
}

// Who asked while the node held the address is told when the node has it again.
func TestAskersOfAnEarlierHoldReceiveNotices(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			simulateWith(t, c, func(s simulation) {
				s.holdNewAddress(s.held)
				s.sendFrame(s.requestFor(s.held))
				s.wantHeard("the address is held", s.replyFor(s.held))
				time.Sleep(2 * time.Minute)
				s.engine.ApplyBindings(nil)
				synctest.Wait()
				s.lan.TakeSentFrames()
				s.holdNewAddress(s.held)
				time.Sleep(10 * time.Second)
				if told := s.takeNoticeCounts(); len(told) != 1 || told[s.clientMAC] != 2 {
					t.Fatalf("told: %v, want the client twice", told)
				}
			})
		})
	}
}

// Questions of IPv6 go to groups: they are let in on links that are there, that come, that come back, and no longer than told.
func TestCandidacyAdmitsRequestsForIPv6(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(s simulation)
		want bool
	}{
		"nothing is told": {func(simulation) {}, false},
		"the address":     {func(s simulation) { s.setCandidacies(s.held) }, true},
		"another address": {func(s simulation) { s.setCandidacies(s.other) }, false},
		"a link that comes": {func(s simulation) {
			s.engine.SetLinks(nil)
			synctest.Wait()
			s.setCandidacies(s.held)
			synctest.Wait()
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, true},
		"a port that broke": {func(s simulation) {
			s.setCandidacies(s.held)
			synctest.Wait()
			s.nodeHost.FailPorts(layer2.ErrLinkGone)
			time.Sleep(time.Second)
		}, true},
		"an address that is out of the question": {func(s simulation) {
			s.setCandidacies(s.held)
			synctest.Wait()
			s.engine.SetCandidacies(nil, []netip.Addr{s.held})
		}, false},
		"an address that is out of the question and in it again": {func(s simulation) {
			s.setCandidacies(s.held)
			s.engine.SetCandidacies(nil, []netip.Addr{s.held})
			s.setCandidacies(s.held)
		}, true},
		"another link only": {func(s simulation) {
			s.setCandidacies(s.held)
			synctest.Wait()
			s.engine.SetCandidacies([]intent.Binding{{Address: s.held, Links: []int{s.link.Index + 1}}}, nil)
		}, false},
		"an address that was held and is given up": {func(s simulation) {
			s.setCandidacies(s.held)
			synctest.Wait()
			s.holdAddresses(s.held)
			synctest.Wait()
			s.engine.ApplyBindings(nil)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			simulateWith(t, addresses6, func(s simulation) {
				tt.do(s)
				synctest.Wait()
				s.sendFrame(s.requestFor(s.held))
				time.Sleep(10 * time.Second)
				s.lan.TakeSentFrames()
				s.holdNewAddress(s.held)
				time.Sleep(10 * time.Second)
				if told := s.takeNoticeCounts(); (told[s.clientMAC] > 0) != tt.want {
					t.Fatalf("told: %v, want the client's question to be known: %v", told, tt.want)
				}
			})
		})
	}
}

// A thousand addresses with an asker each are no flood to the askers, and are not held up by what everybody is told.
func TestNoticesArePaced(t *testing.T) {
	for family, c := range addressesByFamily {
		t.Run(family, func(t *testing.T) {
			simulateWith(t, c, func(s simulation) {
				var all []netip.Addr
				for a := s.held; len(all) < 1000; a = a.Next() {
					all = append(all, a)
				}
				s.setCandidacies(all...)
				synctest.Wait()
				for _, a := range all {
					s.sendFrame(s.requestFor(a))
					time.Sleep(2 * time.Millisecond) // so many questions are remembered in a second
				}
				s.lan.TakeSentFrames()
				s.holdAddresses(all...)
				time.Sleep(400 * time.Millisecond)
				synctest.Wait()
				within, told := map[time.Time]int{}, map[netip.Addr]bool{}
				for _, f := range s.lan.TakeSentFrames() {
					if f.From == "node1" && f.Frame.Destination == s.clientMAC {
						within[f.At.Truncate(10*time.Millisecond)]++
						told[f.Frame.SenderIP] = true
					}
				}
				if len(told) != len(all) {
					t.Errorf("the client is told of %d of %d addresses in 0.4 s", len(told), len(all))
				}
				for at, n := range within {
					if n > 100 { // two batches may share such a slot
						t.Fatalf("%d frames to one host within 10 ms at %v", n, at)
					}
				}
			})
		})
	}
}
