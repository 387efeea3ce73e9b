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

// mayHold says that the node may come to hold the addresses.
func (b *bed) mayHold(addresses ...netip.Addr) {
	var claims []intent.Claim
	for _, a := range addresses {
		claims = append(claims, intent.Claim{Address: a, Links: []int{b.link.Index}})
	}
	b.engine.Overhear(claims, nil)
}

// told counts the frames that were sent to each neighbour alone, of which each has to be news about the held address.
func (s simulated) told() map[facts.MAC]int {
	s.t.Helper()
	told := map[facts.MAC]int{}
	for _, f := range s.lan.Frames() {
		if f.From == "node1" && f.Frame.Destination[0]&1 == 0 {
			told[f.Frame.Destination]++
			if f.Frame != s.news(s.held) {
				s.t.Errorf("a neighbour is told %+v", f.Frame)
			}
		}
	}
	return told
}

// Who asked the former holder is told by the new one, twice, and not who asked long ago or for another address.
func TestWhoAskedIsToldDirectly(t *testing.T) {
	late := map[layer2.Family]netip.Addr{layer2.IPv4: netip.MustParseAddr("192.168.0.98"), layer2.IPv6: netip.MustParseAddr("fd00:a8::98")}
	for family, c := range families {
		t.Run(family, func(t *testing.T) {
			simulateCast(t, c, func(s simulated) {
				s.mayHold(s.held, s.other)
				synctest.Wait()
				long, elsewhere := s.request(s.held), s.request(s.other)
				long.SenderIP, long.SenderMAC = late[layer2.FamilyOf(s.held)], facts.MAC{2, 0, 0, 0, 0, 0x62}
				elsewhere.SenderIP, elsewhere.SenderMAC = late[layer2.FamilyOf(s.held)].Next(), facts.MAC{2, 0, 0, 0, 0, 0x63}
				s.send(long)
				time.Sleep(time.Hour)
				s.send(s.request(s.held))
				s.send(elsewhere)
				synctest.Wait()
				s.lan.Frames()
				s.take(s.held)
				time.Sleep(10 * time.Second)
				if told := s.told(); len(told) != 1 || told[s.mac] != 2 {
					t.Fatalf("told: %v, want the client twice", told)
				}
			})
		})
	}
}

// Who asked while the node held the address is told when the node has it again.
func TestWhoAskedBeforeIsToldAgain(t *testing.T) {
	for family, c := range families {
		t.Run(family, func(t *testing.T) {
			simulateCast(t, c, func(s simulated) {
				s.take(s.held)
				s.send(s.request(s.held))
				s.wantHeard("the address is held", s.answer(s.held))
				time.Sleep(2 * time.Minute)
				s.engine.Apply(nil)
				synctest.Wait()
				s.lan.Frames()
				s.take(s.held)
				time.Sleep(10 * time.Second)
				if told := s.told(); len(told) != 1 || told[s.mac] != 2 {
					t.Fatalf("told: %v, want the client twice", told)
				}
			})
		})
	}
}

// Questions of IPv6 go to groups: they are let in on links that are there, that come, that come back, and no longer than told.
func TestWhatIsOverheard(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(s simulated)
		want bool
	}{
		"nothing is told": {func(simulated) {}, false},
		"the address":     {func(s simulated) { s.mayHold(s.held) }, true},
		"another address": {func(s simulated) { s.mayHold(s.other) }, false},
		"a link that comes": {func(s simulated) {
			s.engine.SetLinks(nil)
			synctest.Wait()
			s.mayHold(s.held)
			synctest.Wait()
			s.engine.SetLinks(facts.LinkSet{s.link})
		}, true},
		"a port that broke": {func(s simulated) {
			s.mayHold(s.held)
			synctest.Wait()
			s.node.Break(layer2.ErrLinkGone)
			time.Sleep(time.Second)
		}, true},
		"an address that is out of the question": {func(s simulated) {
			s.mayHold(s.held)
			synctest.Wait()
			s.engine.Overhear(nil, []netip.Addr{s.held})
		}, false},
		"an address that is out of the question and in it again": {func(s simulated) {
			s.mayHold(s.held)
			s.engine.Overhear(nil, []netip.Addr{s.held})
			s.mayHold(s.held)
		}, true},
		"another link only": {func(s simulated) {
			s.mayHold(s.held)
			synctest.Wait()
			s.engine.Overhear([]intent.Claim{{Address: s.held, Links: []int{s.link.Index + 1}}}, nil)
		}, false},
		"an address that was held and is given up": {func(s simulated) {
			s.mayHold(s.held)
			synctest.Wait()
			s.hold(s.held)
			synctest.Wait()
			s.engine.Apply(nil)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			simulateCast(t, cast6, func(s simulated) {
				tt.do(s)
				synctest.Wait()
				s.send(s.request(s.held))
				time.Sleep(10 * time.Second)
				s.lan.Frames()
				s.take(s.held)
				time.Sleep(10 * time.Second)
				if told := s.told(); (told[s.mac] > 0) != tt.want {
					t.Fatalf("told: %v, want the client's question to be known: %v", told, tt.want)
				}
			})
		})
	}
}

// A thousand addresses with an asker each are no flood to the askers, and are not held up by what everybody is told.
func TestNeighboursAreToldAtAPace(t *testing.T) {
	for family, c := range families {
		t.Run(family, func(t *testing.T) {
			simulateCast(t, c, func(s simulated) {
				var all []netip.Addr
				for a := s.held; len(all) < 1000; a = a.Next() {
					all = append(all, a)
				}
				s.mayHold(all...)
				synctest.Wait()
				for _, a := range all {
					s.send(s.request(a))
					time.Sleep(2 * time.Millisecond) // so many questions are remembered in a second
				}
				s.lan.Frames()
				s.hold(all...)
				time.Sleep(400 * time.Millisecond)
				synctest.Wait()
				within, told := map[time.Time]int{}, map[netip.Addr]bool{}
				for _, f := range s.lan.Frames() {
					if f.From == "node1" && f.Frame.Destination == s.mac {
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
