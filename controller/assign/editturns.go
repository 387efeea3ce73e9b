package assign

import (
	"encoding/json"
	"hash/maphash"
	"log/slog"
	"maps"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/internal/view"
)

// Limits of the repeated edits of Services that are carried out. An edit that changes a decision
// costs the API server a write of the status, a share of a write of the AddressLedger, up to two
// events: much more than the edit itself. New Services of others wait for the same API server.
const (
	// repeatedEditInterval is how soon after an edit the next one of the same Service is a repeated
	// one. Other edits never wait.
	repeatedEditInterval = time.Minute
	// maxRepeatedEditBurst repeated edits are carried out at once, over all Services, and then
	// repeatedEditsPerSecond.
	maxRepeatedEditBurst, repeatedEditsPerSecond = 50, 10
	// waitingEditsLogInterval is how often the log says that edits wait.
	waitingEditsLogInterval = time.Minute
)

// editTurns decides when repeated edits of Services are carried out. Those beyond the limit wait.
// Then namespaces take turns, and a Service has one turn, however often it is edited meanwhile. New
// Services do not count, and neither do Services that change because of the configuration. All its
// methods run on the worker's goroutine.
type editTurns struct {
	log       *slog.Logger
	workQueue *workQueue
	// requestHashSeed is random, so that nobody can make edits that have the same hash.
	requestHashSeed      maphash.Seed
	repeatedEditLimiter  *rate.Limiter
	servicesAwaitingTurn serviceQueue
	timer                wakeTimer
	lastLogTime          time.Time
	// releaseTimeByUID is when Services gave up their addresses, since they are served no more. It
	// has those of the last repeatedEditInterval, and perhaps older ones.
	releaseTimeByUID map[types.UID]time.Time
	lastPruneTime    time.Time
}

func newEditTurns(log *slog.Logger, q *workQueue) editTurns {
	return editTurns{
		log: log, workQueue: q, requestHashSeed: maphash.MakeSeed(),
		repeatedEditLimiter: rate.NewLimiter(repeatedEditsPerSecond, maxRepeatedEditBurst),
		releaseTimeByUID:    map[types.UID]time.Time{},
	}
}

// hashOfUnservedRequest stands for the request of a Service that was not served. The hash of no
// request has this value, but for a chance that does not matter.
const hashOfUnservedRequest = 1

// serviceEdits is what the worker knows of the edits of one Service.
type serviceEdits struct {
	// lastRequestHash is the hash of what the owner of the Service asked for when its status was
	// last written; 0 when it was not written. It has the annotations that were written, too:
	// somebody who edits these causes a write.
	lastRequestHash uint64
	// lastEditTime is when an edit was last carried out.
	lastEditTime time.Time
	// hasTurn says that the next edit does not wait.
	hasTurn bool
}

// mayWriteNow says whether a write may begin now. If not, its Service waits for its turn.
func (t *editTurns) mayWriteNow(w *serviceStatusWriteTask, edits *serviceEdits, now time.Time) bool {
	isEdited := t.isEdited(w, edits)
	if isEdited && !edits.hasTurn && !t.countEditWithinLimit(edits, now) {
		t.servicesAwaitingTurn.addKey(w.service.Key)
		t.logWaitingEdits(w.service.Key.Namespace, now)
		return false
	}
	t.recordWrite(w, edits, isEdited, now)
	w.editsBefore.hasTurn = isEdited // in case that the write has to be repeated
	return true
}

// isEdited says whether the owner of a Service asks for something else than at the last write.
func (t *editTurns) isEdited(w *serviceStatusWriteTask, edits *serviceEdits) bool {
	return edits.lastRequestHash != 0 && edits.lastRequestHash != t.hashRequest(w.serviceBefore)
}

// recordReleasingWrite records that a write begins which removes addresses. It needs no turn,
// because others may wait for these addresses. It counts, so that the Service waits before it gets
// others.
func (t *editTurns) recordReleasingWrite(w *serviceStatusWriteTask, edits *serviceEdits, now time.Time) {
	t.recordWrite(w, edits, t.isEdited(w, edits), now)
}

// recordWrite records that a write begins.
func (t *editTurns) recordWrite(w *serviceStatusWriteTask, edits *serviceEdits, isEdited bool, now time.Time) {
	w.editsBefore = *edits
	if isEdited {
		edits.lastEditTime = now
	}
	edits.lastRequestHash, edits.hasTurn = t.hashRequest(w.serviceAfter), false
}

// recordRelease records that a Service gave up its addresses, since it is served no more. If it is
// served again soon, that is a repeated edit.
func (t *editTurns) recordRelease(service types.UID, now time.Time) {
	if now.Sub(t.lastPruneTime) >= repeatedEditInterval {
		maps.DeleteFunc(t.releaseTimeByUID, func(_ types.UID, at time.Time) bool { return now.Sub(at) >= repeatedEditInterval })
		t.lastPruneTime = now
	}
	t.releaseTimeByUID[service] = now
}

// editsOfNewRecord returns what is known of a Service that was not served until now.
func (t *editTurns) editsOfNewRecord(service types.UID) serviceEdits {
	if at, wasServed := t.releaseTimeByUID[service]; wasServed {
		return serviceEdits{lastRequestHash: hashOfUnservedRequest, lastEditTime: at}
	}
	return serviceEdits{}
}

// recordEditWithoutEffect records what the owner of a Service asks for that has it already.
func (t *editTurns) recordEditWithoutEffect(w *serviceStatusWriteTask, edits *serviceEdits) {
	edits.hasTurn = false
	if edits.lastRequestHash != 0 {
		edits.lastRequestHash = t.hashRequest(w.serviceBefore)
	}
}

// countEditWithinLimit counts an edit unless that exceeds the limit.
func (t *editTurns) countEditWithinLimit(edits *serviceEdits, now time.Time) bool {
	if now.Sub(edits.lastEditTime) >= repeatedEditInterval {
		return true
	}
	return t.servicesAwaitingTurn.keys.itemCount == 0 && t.repeatedEditLimiter.AllowN(now, 1)
}

// queueServicesWithTurn queues the Services whose turn has come, and sets a timer for the next
// turn. Call it after all decisions, which may let a Service wait.
func (t *editTurns) queueServicesWithTurn(now time.Time, recordByService map[view.ObjectKey]*serviceRecord) {
	for t.servicesAwaitingTurn.keys.itemCount > 0 {
		if missing := 1 - t.repeatedEditLimiter.TokensAt(now); missing > 0 {
			t.timer.wakeWorkerAt(now.Add(time.Duration(missing/repeatedEditsPerSecond*float64(time.Second))+time.Millisecond), now, t.workQueue)
			return
		}
		for _, k := range t.servicesAwaitingTurn.takeKeys(1) {
			if rec := recordByService[k]; rec != nil && t.repeatedEditLimiter.AllowN(now, 1) {
				rec.edits.hasTurn = true
				t.workQueue.addChangedServices(k)
			}
		}
	}
}

// logWaitingEdits logs that edits wait.
func (t *editTurns) logWaitingEdits(namespace string, now time.Time) {
	if now.Sub(t.lastLogTime) < waitingEditsLogInterval {
		return
	}
	t.lastLogTime = now
	t.log.Warn("Services are edited faster than their edits are carried out; each waits for its turn", "namespace", namespace, "waiting", t.servicesAwaitingTurn.keys.itemCount)
}

// hashRequest returns a hash of what the owner of a Service can edit.
func (t *editTurns) hashRequest(s *corev1.Service) uint64 {
	text, err := json.Marshal(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Labels: s.Labels, Annotations: s.Annotations}, Spec: s.Spec})
	if err != nil { // it came as JSON
		return 0
	}
	return maphash.Bytes(t.requestHashSeed, text)
}
