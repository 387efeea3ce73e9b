package status

import (
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
)

// TestReportOfFlappingSessionIsDelayed plays sessions that end and return.
func TestReportOfFlappingSessionIsDelayed(t *testing.T) {
	start := time.Unix(1e9, 0)
	var r SessionFlapDamper
	count := 0
	end := func(at time.Duration) {
		if why, wait := r.ObserveSession(ObservedSession{Peer: "tor", EstablishedCount: count}, start.Add(at)); why.IsSet() || wait > 0 {
			t.Errorf("after %s a session that ended is held back for %s: %s", at, wait, why.Text)
		}
	}
	establish := func(at, want time.Duration) {
		t.Helper()
		count++
		since := start.Add(at)
		why, wait := r.ObserveSession(ObservedSession{Peer: "tor", EstablishedCount: count, EstablishedSince: since}, since)
		if wait != want || (want > 0) != (why.Reason == names.ReasonFlapping) {
			t.Errorf("after %s the session is held back for %s (%s), want %s", at, wait, why.Text, want)
		}
		if _, wait := r.ObserveSession(ObservedSession{Peer: "tor", EstablishedCount: count, EstablishedSince: since}, since.Add(want)); wait != 0 {
			t.Errorf("after %s the session is still held back for %s", at+want, wait)
		}
	}
	end(0)
	establish(time.Second, 0) // the first session
	end(time.Minute)
	establish(61*time.Second, 0) // the router was restarted
	for _, want := range []time.Duration{firstFlapHoldBackDelay, 2 * firstFlapHoldBackDelay, maxFlapHoldBackDelay, maxFlapHoldBackDelay} {
		at := time.Duration(60+5*count) * time.Second
		end(at)
		establish(at+time.Second, want)
	}
	end(time.Hour)
	establish(time.Hour, 0) // what was an hour ago does not count
	end(time.Hour)
	if why, wait := r.ObserveSession(ObservedSession{Peer: "tor", EstablishedCount: count + 3, EstablishedSince: start.Add(time.Hour)}, start.Add(time.Hour)); wait != maxFlapHoldBackDelay {
		t.Errorf("after three more sessions that nobody saw it is held back for %s (%s)", wait, why.Text)
	}
	edited := ObservedSession{Peer: "tor", EstablishedCount: count + 4, EstablishedSince: start.Add(time.Hour), ConfiguredAt: start.Add(time.Hour)}
	if why, wait := r.ObserveSession(edited, start.Add(time.Hour)); wait != 0 {
		t.Errorf("after an edit of the BGPPeer the session is held back for %s (%s)", wait, why.Text)
	}
	if r.ForgetOtherPeers(nil); len(r.historyByPeer) > 0 {
		t.Error("a session that does not exist any more is remembered")
	}
}
