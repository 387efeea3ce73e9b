package elect

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// newTestLivenessWatch returns the watch of node a in a cluster with the given other nodes, and the
// facts of a step at the start.
func newTestLivenessWatch(others ...string) (*livenessWatch, stepContext) {
	timing := DefaultTiming()
	members := &membership{self: "a", nodesByMAC: map[facts.MAC]string{}}
	var set facts.MemberSet
	for _, n := range others {
		set.Members = append(set.Members, facts.Member{Name: n, RunNonce: 7})
	}
	members.replaceMembers(set, 1)
	f := stepContext{now: testStart, timing: &timing, members: members, runNonce: 1, claimsDigest: 5}
	w := newLivenessWatch()
	w.updateMembers(f)
	return &w, f
}

// newTestBeaconReader is the content of a beacon after its header.
func newTestBeaconReader(seq, digest uint64, flags byte) *messageReader {
	b := binary.AppendUvarint(encodeMessageHeader(NewestMessageFormat, kindBeacon), 7)
	b = append(binary.AppendUvarint(binary.AppendUvarint(b, seq), digest), flags)
	_, r := parseMessageHeader(b)
	return r
}

// sortedUrgentMessageReceivers are the members that the messages of an outbox go to, sorted.
func sortedUrgentMessageReceivers(o *outbox) []string {
	var out []string
	for _, m := range o.urgentMessages {
		out = append(out, m.To)
	}
	slices.Sort(out)
	return out
}

func TestLivenessWatchReportsSilentMember(t *testing.T) {
	w, f := newTestLivenessWatch("b", "c")
	var out outbox
	w.handleBeacon("b", newTestBeaconReader(1, f.claimsDigest, 0), f, &out)
	f.now = testStart.Add(f.timing.MemberSilenceTimeout - time.Millisecond)
	if o := w.detectAndReportSilence(f, &out); len(o.nodesToProbe) != 0 || len(out.urgentMessages) != 0 {
		t.Errorf("a member is reported before the timeout of its silence: %+v", out.urgentMessages)
	}
	f.now = testStart.Add(f.timing.MemberSilenceTimeout)
	if o := w.detectAndReportSilence(f, &out); !slices.Equal(o.nodesToProbe, []string{"b"}) {
		t.Errorf("after a silence this node checks its own connection because of %v, want b", o.nodesToProbe)
	}
	if got := sortedUrgentMessageReceivers(&out); !slices.Equal(got, []string{"c"}) {
		t.Errorf("the silence of b is reported to %v, want the only other member c", got)
	}
	if w.isDeclaredDead("b", 7) {
		t.Error("one witness declares a node dead while it may be cut off itself")
	}
	if seen := w.lastSeenAt("b"); !seen.Equal(testStart) {
		t.Errorf("the silent node was last seen at %v, want the time of its last beacon", seen)
	}
	out.beginStep()
	w.handleBeacon("b", newTestBeaconReader(2, f.claimsDigest, 0), f, &out)
	if got := sortedUrgentMessageReceivers(&out); !slices.Equal(got, []string{"c"}) {
		t.Errorf("the end of the silence is reported to %v, want c", got)
	}
}

func TestLivenessWatchCountsMissedBeacons(t *testing.T) {
	w, f := newTestLivenessWatch("b")
	var out outbox
	expect := func(what string, want uint64) {
		t.Helper()
		if got := w.missedBeacons.total; got != want {
			t.Errorf("%s: %d beacons are missed, want %d", what, got, want)
		}
	}
	w.handleBeacon("b", newTestBeaconReader(10, f.claimsDigest, 0), f, &out)
	expect("the first beacon of a member", 0)
	f.now = f.now.Add(2 * f.timing.BeaconInterval)
	w.handleBeacon("b", newTestBeaconReader(12, f.claimsDigest, 0), f, &out)
	expect("a lost beacon", 1)
	f.now = f.now.Add(4 * f.timing.BeaconInterval)
	w.detectAndReportSilence(f, &out)
	expect("a silence of four intervals", 5)
	f.now = f.now.Add(6 * f.timing.BeaconInterval)
	w.detectAndReportSilence(f, &out)
	expect("a silence of ten intervals", 11)
	w.handleBeacon("b", newTestBeaconReader(22, f.claimsDigest, 0), f, &out)
	expect("the end of the silence", 11)
	w.handleBeacon("b", newTestBeaconReader(21, f.claimsDigest, 0), f, &out)
	expect("a late beacon", 11)
}

func TestLivenessWatchDeclaresDeadAndAliveAgain(t *testing.T) {
	w, f := newTestLivenessWatch("b", "c", "d")
	report := func(from string, said byte) livenessActions {
		_, r := parseMessageHeader(encodeSuspicionMessage("d", 7, said))
		return w.handleWitnessReport(from, r, f)
	}
	if o := report("b", suspicionFromUncheckedWitness); len(o.nodesWithChangedLiveness) != 0 || !w.isAlive("d", f.members) {
		t.Error("the report of one witness that may be cut off declares a node dead")
	}
	if o := report("c", suspicionFromUncheckedWitness); !slices.Equal(o.nodesWithChangedLiveness, []string{"d"}) || w.isAlive("d", f.members) {
		t.Errorf("two witnesses declare %v dead, want d", o.nodesWithChangedLiveness)
	}
	if o := report("b", suspicionRetracted); len(o.nodesWithChangedLiveness) != 0 || w.isAlive("d", f.members) {
		t.Error("a dead node is alive again while a witness still hears nothing from it")
	}
	if o := report("c", suspicionRetracted); !slices.Equal(o.nodesWithChangedLiveness, []string{"d"}) || !w.isAlive("d", f.members) {
		t.Errorf("after both witnesses retracted, %v is alive again, want d", o.nodesWithChangedLiveness)
	}
	if !w.lastSeenAt("d").IsZero() {
		t.Error("a node that is alive still has the time of its last sign of life before the silence")
	}
}

func TestLivenessWatchAdoptsNodeWithDeadWatchers(t *testing.T) {
	w, f := newTestLivenessWatch("b", "c", "d")
	var node string // this node is not among its watchers
	var watchers []string
	for _, n := range f.members.otherMembers {
		if by := f.members.ringNeighbours(n, watchersPerMember); !slices.Contains(by, "a") {
			node, watchers = n, by
		}
	}
	for _, n := range watchers {
		if o := w.findAdoptedNodesDueForSync(f); len(o.membersToSync) != 0 {
			t.Errorf("this node asks %v, though a watcher of it is alive", o.membersToSync)
		}
		for _, witness := range f.members.otherMembers {
			w.recordAndJudgeWitnessReport(n, witness, 7, true, f)
		}
	}
	if o := w.findAdoptedNodesDueForSync(f); !slices.Equal(o.membersToSync, []string{node}) {
		t.Errorf("this node asks %v in place of the dead watchers, want %s", o.membersToSync, node)
	}
	if o := w.findAdoptedNodesDueForSync(f); len(o.membersToSync) != 0 {
		t.Errorf("this node asks %v again before the next beacon is due", o.membersToSync)
	}
	w.declareAlive(watchers[0], f)
	f.now = f.now.Add(f.timing.BeaconInterval)
	if o := w.findAdoptedNodesDueForSync(f); len(o.membersToSync) != 0 {
		t.Errorf("this node asks %v, though a watcher of it is alive again", o.membersToSync)
	}
}

func TestLivenessWatchSyncsIfDigestStaysDifferent(t *testing.T) {
	w, f := newTestLivenessWatch("b")
	var out outbox
	beacon := func(seq, digest uint64) []string {
		return w.handleBeacon("b", newTestBeaconReader(seq, digest, flagAckRequested), f, &out).membersToSync
	}
	if got := beacon(1, 9); len(got) != 0 {
		t.Errorf("the first beacon with another digest makes this node ask %v: the claims may be on the way", got)
	}
	if got := sortedUrgentMessageReceivers(&out); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the beacon is acknowledged to %v, want b", got)
	}
	f.now = f.now.Add(2 * f.timing.BeaconInterval)
	if got := beacon(1, 9); len(got) != 0 {
		t.Errorf("a repeated beacon makes this node ask %v", got)
	}
	if got := beacon(2, 9); !slices.Equal(got, []string{"b"}) {
		t.Errorf("while the digest stays different this node asks %v, want b", got)
	}
	if got := beacon(3, f.claimsDigest); len(got) != 0 {
		t.Errorf("with the same digest this node asks %v", got)
	}
}

func TestLivenessWatchSendsBeaconsAndReadsAcks(t *testing.T) {
	w, f := newTestLivenessWatch("b")
	var out outbox
	w.sendDueBeacon(f, &out)
	w.sendDueBeacon(f, &out)
	if got := sortedUrgentMessageReceivers(&out); !slices.Equal(got, []string{"b"}) {
		t.Errorf("in one interval beacons go to %v, want b once", got)
	}
	if next := w.nextDeadline(f); !next.Equal(testStart.Add(f.timing.BeaconInterval)) {
		t.Errorf("the next deadline is %v, want the next beacon", next)
	}
	acknowledge := func(nonce, digest uint64, confirmedAt time.Time) (time.Time, livenessActions) {
		b := binary.AppendUvarint(encodeMessageHeader(NewestMessageFormat, kindBeaconAck), nonce)
		_, r := parseMessageHeader(binary.AppendUvarint(binary.AppendUvarint(b, w.lastOwnBeaconSeq), digest))
		return w.handleBeaconAck("b", r, f, confirmedAt)
	}
	if sent, _ := acknowledge(1, f.claimsDigest, time.Time{}); !sent.Equal(testStart) {
		t.Errorf("the acknowledged beacon was sent at %v, want the start", sent)
	}
	if sent, _ := acknowledge(2, f.claimsDigest, time.Time{}); !sent.IsZero() {
		t.Error("an acknowledgement for an earlier process of this node counts")
	}
	if sent, o := acknowledge(1, 9, testStart.Add(-time.Hour)); !sent.IsZero() || !slices.Equal(o.membersToSync, []string{"b"}) {
		t.Errorf("after a long time without contact this node asks %v for other claims, want b", o.membersToSync)
	}
}
