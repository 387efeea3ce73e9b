package elect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

func TestRecordedDelayHalvesOverTime(t *testing.T) {
	var d decayingMaxDelay
	now := testStart
	for _, c := range []struct {
		passedDelay, observedDelay, want time.Duration
	}{
		{0, 100 * time.Millisecond, 100 * time.Millisecond},
		{time.Second, 40 * time.Millisecond, 100 * time.Millisecond}, // the longer one counts
		{recordedDelayHalvingInterval, 60 * time.Millisecond, 60 * time.Millisecond},
		{time.Second, time.Hour, maxRecordedDelay},
		{2 * recordedDelayHalvingInterval, -time.Second, maxRecordedDelay / 4},
	} {
		now = now.Add(c.passedDelay)
		if d.recordDelay(c.observedDelay, now); d.currentDelay(now) != c.want {
			t.Errorf("%v later, after a delay of %v, %v remain, want %v", c.passedDelay, c.observedDelay, d.currentDelay(now), c.want)
		}
	}
}

func TestLateBeaconsLengthenSilenceTimeout(t *testing.T) {
	w, f := newTestLivenessWatch("b", "c")
	var out outbox
	beaconAfter := func(passedDelay time.Duration, seq uint64) {
		f.now = f.now.Add(passedDelay)
		w.handleBeacon("b", newTestBeaconReader(seq, f.claimsDigest, 0), f, &out)
	}
	beaconAfter(0, 1)
	beaconAfter(f.timing.BeaconInterval, 2)
	beaconAfter(4*f.timing.BeaconInterval, 6) // three were lost
	beaconAfter(2*f.timing.BeaconInterval, 7) // late by one interval
	if got := w.silenceTimeoutOf("b", f); got != f.timing.MemberSilenceTimeout {
		t.Errorf("with lost beacons and short delays the silence timeout is %v, want the usual %v", got, f.timing.MemberSilenceTimeout)
	}
	beaconAfter(5*f.timing.BeaconInterval, 8)
	if got, want := w.silenceTimeoutOf("b", f), 13*f.timing.BeaconInterval; got != want {
		t.Errorf("after a delay of four beacon intervals the silence timeout is %v, want %v", got, want)
	}
	if got := w.silenceTimeoutOf("c", f); got != f.timing.MemberSilenceTimeout {
		t.Errorf("the silence timeout of a member that is in time is %v, want %v", got, f.timing.MemberSilenceTimeout)
	}
	f.now = f.now.Add(10 * f.timing.BeaconInterval)
	if o := w.detectAndReportSilence(f, &out); len(o.nodesToProbe) > 0 {
		t.Errorf("%v is called silent although it was late before", o.nodesToProbe)
	}
	f.now = f.now.Add(3 * f.timing.BeaconInterval)
	if o := w.detectAndReportSilence(f, &out); len(o.nodesToProbe) != 1 {
		t.Errorf("after a silence that is longer than any delay %v is called silent, want b", o.nodesToProbe)
	}
}

// Beacons that arrive together waited in the network. A member that is late itself sends none for
// the time that it missed, also if this node reads its next beacon together with the late one.
func TestBeaconsThatArriveTogetherAreNotLate(t *testing.T) {
	const interval = 50 * time.Millisecond
	type arrival struct {
		passedDelay time.Duration
		count       int // of beacons at this time
	}
	patient := interval + recentDelayToleranceFactor*maxRecordedDelay
	for name, c := range map[string]struct {
		arrivals []arrival
		want     time.Duration
	}{
		"after a cut of two seconds all arrive at once":    {[]arrival{{2 * time.Second, 40}, {interval, 1}}, DefaultTiming().MemberSilenceTimeout},
		"after a cut of 400 ms all arrive one by one":      {[]arrival{{8 * interval, 1}, {time.Millisecond, 1}, {time.Millisecond, 1}, {time.Millisecond, 5}}, DefaultTiming().MemberSilenceTimeout},
		"the member is late by a second":                   {[]arrival{{time.Second + interval, 1}, {interval, 1}}, patient},
		"the member is late, and this node a little, too":  {[]arrival{{time.Second + 2*interval, 2}, {interval, 1}}, patient},
		"the member is late, and all arrive after a cut":   {[]arrival{{time.Second + interval, 1}, {interval, 1}, {2 * time.Second, 40}}, patient},
		"all arrive after a cut, and then the member late": {[]arrival{{2 * time.Second, 40}, {time.Second + interval, 1}}, patient},
	} {
		t.Run(name, func(t *testing.T) {
			w, f := newTestLivenessWatch("b", "c")
			var out outbox
			seq := uint64(0)
			for _, a := range append([]arrival{{0, 1}, {interval, 1}}, c.arrivals...) {
				f.now = f.now.Add(a.passedDelay)
				for range a.count {
					seq++
					w.handleBeacon("b", newTestBeaconReader(seq, f.claimsDigest, 0), f, &out)
				}
			}
			if got := w.silenceTimeoutOf("b", f); got != c.want {
				t.Errorf("the silence timeout is %v, want %v", got, c.want)
			}
		})
	}
}

// A node that runs late itself has not listened in that time.
func TestOwnStepDelayDoesNotCountAsMemberSilence(t *testing.T) {
	m := NewMachine("a", 1, DefaultTiming(), testStart)
	m.Step(testStart, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 7}}}})
	beacon := func(seq byte) MessageReceived {
		return MessageReceived{From: "b", Payload: []byte{NewestMessageFormat, kindBeacon, 7, seq, 0, 0}}
	}
	now := testStart.Add(10 * time.Millisecond)
	m.Step(now, beacon(1))
	now = m.NextDeadline().Add(180 * time.Millisecond)
	m.Step(now, TimePassed{})
	if h := m.liveness.recordsByMember["b"]; h.isSilent {
		t.Error("a node that was late by 180 ms calls another one silent")
	}
	m.Step(now, beacon(2))
	if got := m.liveness.recordsByMember["b"].beaconDelay.currentDelay(now); got > 0 {
		t.Errorf("the own delay counts as one of the other node, of %v", got)
	}
	if got := LongestRecentStepDelay(m); got != 180*time.Millisecond {
		t.Errorf("the node reports a delay of %v, want 180 ms", got)
	}
	if m.stepContext().extraDelayForOwnLateness() == 0 {
		t.Error("a node that runs late is not more patient")
	}
}

// Another member answers for all addresses that this node holds. One request for its claims is
// enough: its answer has them all.
func TestManyConflictsWithAMemberCostOneSyncRequest(t *testing.T) {
	mac := facts.MAC{2, 0, 0, 0, 0, 9}
	m := NewMachine("a", 1, DefaultTiming(), testStart)
	m.Step(testStart, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 7, LinkMACs: []facts.MAC{mac}}}}})
	m.outbox.beginStep()
	var conflicts []Input
	ip := netip.MustParseAddr("192.0.2.1")
	for range 100 {
		a := m.ensureAddressState(ip)
		a.bid = intent.Bid{Address: ip, OwnLinkIndexes: []int{1}, Candidates: intent.NewCandidates(map[string]int{"a": 0, "b": 0})}
		m.takeAddress(a, 1, reasonUnheld)
		conflicts = append(conflicts, ConflictDetected{facts.Conflict{Address: ip, ForeignMAC: mac, LinkIndex: 1}})
		ip = ip.Next()
	}
	countRequests := func(now time.Time) (count int) {
		for _, e := range m.Step(now, conflicts...) {
			if s, ok := e.(SendMessage); ok && s.Payload[1] == kindSyncRequest {
				count++
			}
		}
		return count
	}
	if got := countRequests(testStart.Add(10 * time.Millisecond)); got != 1 {
		t.Errorf("100 conflicts cost %d sync requests, want 1", got)
	}
	if got := countRequests(testStart.Add(50 * time.Millisecond)); got != 0 {
		t.Errorf("while the request is under way %d others are sent, want none", got)
	}
	for passed := 60 * time.Millisecond; passed < 190*time.Millisecond; passed += 10 * time.Millisecond {
		m.Step(testStart.Add(passed), TimePassed{})
	}
	if got := countRequests(testStart.Add(190 * time.Millisecond)); got != 1 {
		t.Errorf("after a request that was lost %d are sent, want 1", got)
	}
}
