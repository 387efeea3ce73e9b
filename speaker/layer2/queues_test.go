package layer2

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// queueTestStartTime is when the tests of the queues start, in virtual time.
var queueTestStartTime = time.Unix(1000, 0)

// checkEntryCount fails if a queue returned another number of entries than the sentence promises.
func checkEntryCount[T any](t *testing.T, sentence string, got []T, want int) {
	t.Helper()
	if len(got) != want {
		t.Errorf("%s: got %d, want %d", sentence, len(got), want)
	}
}

// checkNextCallTime fails if the next call is due at another time.
func checkNextCallTime(t *testing.T, sentence string, got, want time.Time) {
	t.Helper()
	if !got.Equal(want) {
		t.Errorf("%s: the next call is due at %v, want %v", sentence, got, want)
	}
}

func newTestProbe(id uint64, kind ProbeKind) Probe {
	address := netip.AddrFrom4([4]byte{192, 0, 2, byte(id)})
	return Probe{ID: id, Address: address, LinkIndexes: []int{1}, FramesPerLink: 2, FrameInterval: 30 * time.Millisecond, Kind: kind}
}

func TestProbeQueueSchedulesFramesAndFinishesProbes(t *testing.T) {
	host := facts.MAC{2, 0, 0, 0, 0, 9}
	q := newProbeQueue()
	p := newTestProbe(1, ProbeKindAcquire)
	if replaced := q.beginProbe(p, queueTestStartTime); replaced != nil {
		t.Error("the first probe replaces another one")
	}
	if !q.updateProbedAddressesIfChanged() || q.updateProbedAddressesIfChanged() {
		t.Error("a new probe changes the probed addresses once")
	}
	due, next := q.TakeDue(queueTestStartTime)
	checkEntryCount(t, "the first attempt is due at once", due, 1)
	checkNextCallTime(t, "after the first attempt", next, queueTestStartTime.Add(p.FrameInterval))
	due, _ = q.TakeDue(queueTestStartTime.Add(p.FrameInterval / 2))
	checkEntryCount(t, "nothing is due between two attempts", due, 0)
	due, next = q.TakeDue(queueTestStartTime.Add(p.FrameInterval))
	checkEntryCount(t, "the second attempt follows one interval later", due, 1)
	due, next = q.TakeDue(next)
	checkEntryCount(t, "the result follows one interval after the last attempt", due, 1)
	checkNextCallTime(t, "after the last probe", next, time.Time{})
	if r := due[0]; !r.isFinished || !r.result().NoFrameSent || len(r.result().AnsweringMACs) > 0 {
		t.Errorf("a probe that no link sent has the result %+v, want NotSent and no answer", r.result())
	}

	q.beginProbe(p, queueTestStartTime)
	q.TakeDue(queueTestStartTime)
	q.recordRival(p.Address, host)
	if !q.recordAnswer(p.Address, host) || q.recordAnswer(p.Address, host) {
		t.Error("the first answer of a host finishes a probe, and a repeated one does not count")
	}
	due, _ = q.TakeDue(queueTestStartTime.Add(time.Millisecond))
	checkEntryCount(t, "an answered probe is finished at once", due, 1)
	if r := due[0].result(); len(r.AnsweringMACs) != 1 || len(r.RivalProberMACs) != 1 {
		t.Errorf("the result lists %v and %v, want the host as answer and as rival", r.AnsweringMACs, r.RivalProberMACs)
	}
	if q.recordAnswer(p.Address, host) {
		t.Error("an answer after the end of the probe finishes something")
	}
	if !q.updateProbedAddressesIfChanged() || len(q.probedAddresses) != 0 {
		t.Errorf("after the end of all probes %v are probed, want none", q.probedAddresses)
	}
}

func TestProbeQueueReplacesProbeWithTheSameID(t *testing.T) {
	q := newProbeQueue()
	p := newTestProbe(1, ProbeKindAcquire)
	q.beginProbe(p, queueTestStartTime)
	if replaced := q.beginProbe(p, queueTestStartTime); replaced == nil || !replaced.isFinished {
		t.Error("a second probe with the same ID does not end the first")
	}
	due, _ := q.TakeDue(queueTestStartTime)
	checkEntryCount(t, "only the second probe is left", due, 1)
}

func TestProbeQueuePacesAcquireProbes(t *testing.T) {
	q := newProbeQueue()
	for id := range uint64(probeBatchSize + 5) {
		q.beginProbe(newTestProbe(id, ProbeKindAcquire), queueTestStartTime)
	}
	q.beginProbe(newTestProbe(200, ProbeKindReachability), queueTestStartTime)
	due, next := q.TakeDue(queueTestStartTime)
	checkEntryCount(t, "one batch of acquire probes and the reachability probe", due, probeBatchSize+1)
	checkNextCallTime(t, "the next batch", next, queueTestStartTime.Add(announcementBatchInterval))
	due, _ = q.TakeDue(queueTestStartTime.Add(announcementBatchInterval / 2))
	checkEntryCount(t, "no acquire probe before the next batch", due, 0)
	due, _ = q.TakeDue(next)
	checkEntryCount(t, "the rest in the next batch", due, 5)
}

func TestNoticeQueueSendsEachNoticeTwice(t *testing.T) {
	var q noticeQueue
	targets := make([]facts.LinkNeighbour, noticeBatchSize+1)
	q.scheduleNotices(AddressOnLink{netip.MustParseAddr("192.0.2.1"), 1}, targets, queueTestStartTime)
	due, next := q.TakeDue(queueTestStartTime)
	checkEntryCount(t, "the first batch is full", due, noticeBatchSize)
	checkNextCallTime(t, "after a full batch", next, queueTestStartTime.Add(announcementBatchInterval))
	due, _ = q.TakeDue(queueTestStartTime)
	checkEntryCount(t, "nothing is sent between two batches", due, 0)
	due, next = q.TakeDue(next)
	checkEntryCount(t, "the rest follows in the next batch", due, 1)
	checkNextCallTime(t, "the repetition", next, queueTestStartTime.Add(secondUnicastNoticeDelay))
	due, next = q.TakeDue(next)
	checkEntryCount(t, "the notices are repeated, one batch first", due, noticeBatchSize)
	due, next = q.TakeDue(next)
	checkEntryCount(t, "the last repetition", due, 1)
	checkNextCallTime(t, "no notice is left", next, time.Time{})
}

func TestConflictReportsAndDefencesAreRateLimited(t *testing.T) {
	c := newConflictLimiter()
	a := netip.MustParseAddr("192.0.2.1")
	keyOf := func(host int) addressAndForeignMAC {
		return addressAndForeignMAC{a, facts.MAC{2, 0, 0, 0, byte(host >> 8), byte(host)}}
	}
	for _, step := range []struct {
		sentence string
		host     int
		after    time.Duration
		want     conflictReportOutcome
	}{
		{"the first claim of a host is reported", 1, 0, conflictDueForReport},
		{"a repeated claim within the interval is not", 1, conflictReportInterval - 1, conflictRecentlyReported},
		{"the claim of another host is", 2, conflictReportInterval - 1, conflictDueForReport},
		{"a claim after the interval is reported again", 1, conflictReportInterval, conflictDueForReport},
	} {
		if got := c.admitReport(keyOf(step.host), queueTestStartTime.Add(step.after)); got != step.want {
			t.Errorf("%s: got outcome %d, want %d", step.sentence, got, step.want)
		}
	}
	flood := queueTestStartTime.Add(time.Minute)
	for host := range maxRememberedConflicts {
		c.admitReport(keyOf(host), flood)
	}
	if got := c.admitReport(keyOf(maxRememberedConflicts), flood); got != conflictReportDropped {
		t.Errorf("a claim beyond the limit of hosts has outcome %d, want it dropped", got)
	}
	if got := c.admitReport(keyOf(maxRememberedConflicts), flood.Add(conflictReportInterval)); got != conflictDueForReport {
		t.Errorf("a claim after the flood has outcome %d, want it reported", got)
	}

	if !c.admitDefence(a, queueTestStartTime) || c.admitDefence(a, queueTestStartTime.Add(defendInterval-1)) {
		t.Error("an address is defended once in DEFEND_INTERVAL (RFC 5227 section 2.4)")
	}
	if c.forgetAddress(a); !c.admitDefence(a, queueTestStartTime.Add(time.Second)) {
		t.Error("an address that is held again is not defended")
	}
}
