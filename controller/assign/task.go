package assign

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// Limits of the requests to the API server.
const (
	// maxTasksInFlight bounds the parallel requests. With 32 an API server on two cores is busy;
	// more would only wait in its queues.
	maxTasksInFlight = 32
	// requestTimeout bounds one request, so that a hanging one does not occupy a place for ever.
	requestTimeout = 10 * time.Second
	// slowAttemptTimeout is when an attempt counts as slow.
	// maxUnfinishedSlowRetries bounds the parallel requests that repeat slow ones: a webhook that
	// never answers for the Services of one namespace must not occupy all places.
	slowAttemptTimeout       = time.Second
	maxUnfinishedSlowRetries = maxTasksInFlight / 4
	// maxSlowWritesInFlight is how many slow writes occupy no place, so that others go on.
	// A namespace with maxSlowWritesPerNamespace slow first attempts begins no others.
	maxSlowWritesInFlight     = 3 * maxTasksInFlight
	maxSlowWritesPerNamespace = maxTasksInFlight - maxUnfinishedSlowRetries
	// The delays before a failed request is repeated: the first, doubled each time up to the last.
	// They begin like those of controller-runtime's queues and end with a time that a person would
	// wait.
	firstRetryDelay, maxRetryDelay = 50 * time.Millisecond, 30 * time.Second
)

// retryDelay is how long to wait after this many failures in a row.
func retryDelay(failures int) time.Duration {
	return min(firstRetryDelay<<min(max(failures-1, 0), 10), maxRetryDelay)
}

// apiRequestTask is one request to the API server. runTask runs on its own goroutine; the worker
// then calls the result.
type apiRequestTask interface {
	runTask(context.Context, WorkerAPI) taskResultHandler
}

// taskResultHandler handles the outcome of a task. It runs on the worker's goroutine.
type taskResultHandler func(context.Context, *ServiceWorker)

// apiTaskQueue runs the requests to the API server, at most maxTasksInFlight at once. The worker
// adds tasks and dispatches them at the end of each turn, and handles what arrives in
// endedTaskHandlerChannel. All its methods run on the worker's goroutine.
type apiTaskQueue struct {
	api WorkerAPI
	// endedTaskHandlerChannel are the results of finished tasks. The channel has room for all tasks
	// in flight.
	endedTaskHandlerChannel chan taskResultHandler
	// tasksAwaitingFreeSlot wait for a free place, writesAwaitingRetryTime for their time.
	tasksAwaitingFreeSlot   namespaceTurns[apiRequestTask]
	writesAwaitingRetryTime []*serviceStatusWriteTask
	tasksInFlightCount      int
	// slowWriteTracker knows the first attempts in flight.
	slowWriteTracker slowWriteTracker
	// unfinishedSlowRetries counts the writes that are in flight or wait for a free place, and
	// whose last attempt was slow.
	unfinishedSlowRetries int
	// lastTaskStartOrEnd is when a task last began or ended.
	lastTaskStartOrEnd time.Time
}

func newAPITaskQueue(api WorkerAPI) *apiTaskQueue {
	return &apiTaskQueue{api: api, endedTaskHandlerChannel: make(chan taskResultHandler, maxTasksInFlight+maxSlowWritesInFlight+2)}
}

// countUnfinishedTasks counts the tasks in flight and those that wait for a free place.
func (q *apiTaskQueue) countUnfinishedTasks() int {
	return q.tasksInFlightCount + q.tasksAwaitingFreeSlot.itemCount
}

// countTasksAwaitingFreeSlot counts the tasks that wait for a free place, and not for their slow
// namespace.
func (q *apiTaskQueue) countTasksAwaitingFreeSlot() int {
	n := q.tasksAwaitingFreeSlot.itemCount
	if q.slowWriteTracker.slowCount == 0 {
		return n
	}
	for t := range q.tasksAwaitingFreeSlot.allItems() {
		if q.mustWaitForNamespace(t) {
			n--
		}
	}
	return n
}

// mustWaitForNamespace says whether a task is the first attempt of a write in a slow namespace.
func (q *apiTaskQueue) mustWaitForNamespace(t apiRequestTask) bool {
	w, is := t.(*serviceStatusWriteTask)
	return is && !w.isSlowRetry && q.slowWriteTracker.isNamespaceSlow(w.service.Key.Namespace)
}

// enqueueTask runs a task as soon as there is a free place and it is the turn of its namespace.
func (q *apiTaskQueue) enqueueTask(t apiRequestTask) {
	q.tasksAwaitingFreeSlot.addItem(namespaceOfTask(t), t)
}

// namespaceOfTask returns the namespace of the Service that a task is about; empty for a task that
// is about none.
func namespaceOfTask(t apiRequestTask) string {
	switch t := t.(type) {
	case *serviceStatusWriteTask:
		return t.service.Key.Namespace
	case *goneOrUnservedCheckTask:
		return t.service.Namespace
	case *sharingCheckTask:
		return t.service.Namespace
	case *rivalCheckTask:
		return t.service.Namespace
	}
	return ""
}

// enqueueWriteAt repeats a write once retryAt is over. The caller wakes the worker by then.
func (q *apiTaskQueue) enqueueWriteAt(w *serviceStatusWriteTask, retryAt time.Time) {
	w.retryAt = retryAt
	q.writesAwaitingRetryTime = append(q.writesAwaitingRetryTime, w)
}

// dropAllButStatusWrites drops the waiting tasks, except for the writes of Services.
func (q *apiTaskQueue) dropAllButStatusWrites() {
	var writes namespaceTurns[apiRequestTask]
	for q.tasksAwaitingFreeSlot.itemCount > 0 {
		if w, is := q.tasksAwaitingFreeSlot.takeItem().(*serviceStatusWriteTask); is {
			writes.addItem(namespaceOfTask(w), w)
		}
	}
	q.tasksAwaitingFreeSlot = writes
}

// mayRetryWrite says whether the time for the next attempt has come. The writes whose last attempt
// was slow have a share of the places, and take turns.
func (q *apiTaskQueue) mayRetryWrite(w *serviceStatusWriteTask, now time.Time) bool {
	return w.retryAt.Sub(now) <= 0 && (!w.lastAttemptWasSlow || q.unfinishedSlowRetries < maxUnfinishedSlowRetries)
}

// recordEndOfAttempt records how long an attempt of a write took.
func (q *apiTaskQueue) recordEndOfAttempt(w *serviceStatusWriteTask, now time.Time) {
	if w.isSlowRetry {
		w.isSlowRetry = false
		q.unfinishedSlowRetries--
	}
	w.lastAttemptWasSlow = now.Sub(w.attemptStart) >= slowAttemptTimeout
	delete(q.slowWriteTracker.firstAttemptsInFlight, w)
}

// dispatchTasks starts as many tasks as may run in parallel.
func (q *apiTaskQueue) dispatchTasks(ctx context.Context, now time.Time) {
	q.writesAwaitingRetryTime = slices.DeleteFunc(q.writesAwaitingRetryTime, func(w *serviceStatusWriteTask) bool {
		awake := q.mayRetryWrite(w, now)
		if awake {
			if w.isSlowRetry = w.lastAttemptWasSlow; w.isSlowRetry {
				q.unfinishedSlowRetries++
			}
			q.enqueueTask(w)
		}
		return awake
	})
	q.slowWriteTracker.updateSlowWrites(now)
	var waiting namespaceTurns[apiRequestTask]
	for q.tasksAwaitingFreeSlot.itemCount > 0 && q.tasksInFlightCount-q.slowWriteTracker.countSlowWrites() < maxTasksInFlight {
		t := q.tasksAwaitingFreeSlot.takeItem()
		if q.mustWaitForNamespace(t) {
			waiting.addItem(namespaceOfTask(t), t)
			continue
		}
		if w, is := t.(*serviceStatusWriteTask); is {
			w.attemptStart = now
			q.slowWriteTracker.addWrite(w)
		}
		q.startTask(ctx, t)
		q.lastTaskStartOrEnd = now
	}
	if waiting.itemCount > 0 {
		for q.tasksAwaitingFreeSlot.itemCount > 0 {
			t := q.tasksAwaitingFreeSlot.takeItem()
			waiting.addItem(namespaceOfTask(t), t)
		}
		q.tasksAwaitingFreeSlot = waiting
	}
}

// startTask runs a task on its own goroutine. The channel of results has room for all tasks, so
// that none waits for the worker.
func (q *apiTaskQueue) startTask(ctx context.Context, t apiRequestTask) {
	q.tasksInFlightCount++
	go func() {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		q.endedTaskHandlerChannel <- t.runTask(ctx, q.api)
	}()
}

// writeOutcome is what is known about a write of a Service.
type writeOutcome uint8

const (
	// outcomeWritten: the Service is as desired.
	outcomeWritten writeOutcome = iota
	// outcomeConflict: the Service has changed before; nothing was written.
	outcomeConflict
	// outcomeServiceGone: there is no such Service.
	outcomeServiceGone
	// outcomeRefused: the API server rejects the content; nothing was written.
	outcomeRefused
	// outcomeMaybeWritten: it may have been written, or may still be.
	outcomeMaybeWritten
)

// outcomeOfError returns the outcome for an error. An unclear answer is outcomeMaybeWritten.
func outcomeOfError(err error) writeOutcome {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return outcomeWritten
	case apierrors.IsConflict(err):
		return outcomeConflict
	case apierrors.IsNotFound(err):
		return outcomeServiceGone
	case errors.As(err, &status) && status.Status().Code >= 400 && status.Status().Code < 500 && !apierrors.IsTimeout(err):
		return outcomeRefused
	}
	return outcomeMaybeWritten
}

// serviceStatusWriteTask brings a Service's status in line with a Decision.
type serviceStatusWriteTask struct {
	service       view.Service
	serviceBefore *corev1.Service
	serviceAfter  *corev1.Service
	decision      allocate.Decision
	poolToRecord  string
	// predictUnannouncedCondition returns the condition that is written together with the first
	// addresses, if it is certain. It is nil without one, and after the first attempt.
	predictUnannouncedCondition func(context.Context) (metav1.Condition, bool)
	// assignmentBefore is what the Service held before the Decision.
	assignmentBefore allocate.Assignment
	// ledgerBuildNumber is the epoch of the Ledger for which it was decided.
	ledgerBuildNumber int
	// mayBeWrittenByEarlierAttempt says that an earlier attempt may have been written. retryAt is
	// when the next one is due.
	mayBeWrittenByEarlierAttempt bool
	retryAt                      time.Time
	// editsBefore is what was known of the edits of the Service before the write.
	editsBefore serviceEdits
	// attemptStart is when the last attempt began, lastAttemptWasSlow that it took long.
	// isSlowRetry says that the attempt under way counts among unfinishedSlowRetries.
	attemptStart                    time.Time
	lastAttemptWasSlow, isSlowRetry bool
	// lastAnswerWasInternalError says that the API server answered the last attempt with an
	// internal error.
	lastAnswerWasInternalError bool
	// attemptsWithUnknownResult counts the attempts without a known result.
	attemptsWithUnknownResult int
	// ledgerEntryRefused says that the API server refused the AddressLedger when it last contained
	// the entry of this write.
	ledgerEntryRefused bool
	// batchNumberUntilFirstAnswer is the number of its batch until its first attempt has ended; 0
	// for a write that needs no entry in the AddressLedger.
	batchNumberUntilFirstAnswer int
	// isOfQuietNamespace says that its namespace had few writes when it was staged, and another
	// one had many.
	isOfQuietNamespace bool
	// clearsStatusOfUnservedService says that this controller does not serve the Service any more.
	clearsStatusOfUnservedService, onlyChangesResourceVersion bool
}

// runTask implements apiRequestTask. If an earlier attempt may have been written, it reads the
// Service first. After a conflict it reads it too: an attempt of its own that arrived late or twice
// must not be taken for another writer's.
func (w *serviceStatusWriteTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	if w.mayBeWrittenByEarlierAttempt {
		if now, err := api.ReadLiveService(ctx, w.service.Key); err != nil || now == nil || now.ResourceVersion != w.serviceBefore.ResourceVersion {
			return w.resultHandlerForChangedService(now, err)
		}
	}
	w.addPredictedCondition(ctx)
	now, err := api.PatchStatusAndAnnotations(ctx, w.serviceBefore, w.serviceAfter)
	o := outcomeOfError(err)
	switch {
	case o == outcomeConflict:
		return w.resultHandlerForChangedService(api.ReadLiveService(ctx, w.service.Key))
	case o == outcomeRefused && w.mayBeWrittenByEarlierAttempt:
		o = outcomeMaybeWritten
	}
	return w.newResultHandler(o, now, err)
}

// addPredictedCondition adds the predicted condition to what is written. It may wait for the
// configuration, and so it runs on the goroutine of the task.
func (w *serviceStatusWriteTask) addPredictedCondition(ctx context.Context) {
	if w.predictUnannouncedCondition == nil {
		return
	}
	if c, isCertain := w.predictUnannouncedCondition(ctx); isCertain {
		meta.SetStatusCondition(&w.serviceAfter.Status.Conditions, c)
	}
	w.predictUnannouncedCondition = nil
}

// resultHandlerForChangedService is the result when the Service has changed: its current content
// counts.
func (w *serviceStatusWriteTask) resultHandlerForChangedService(now *corev1.Service, err error) taskResultHandler {
	switch {
	case err != nil:
		return w.newResultHandler(outcomeMaybeWritten, nil, err)
	case now == nil || now.UID != w.serviceBefore.UID:
		return w.newResultHandler(outcomeServiceGone, nil, nil)
	// Refused for no visible reason: read it again.
	case now.ResourceVersion == w.serviceBefore.ResourceVersion:
		return w.newResultHandler(outcomeMaybeWritten, nil, errConflictThoughServiceUnchanged)
	}
	return w.newResultHandler(outcomeConflict, now, nil)
}

// errConflictThoughServiceUnchanged says that a write was refused as a conflict although the
// Service has not changed.
var errConflictThoughServiceUnchanged = errors.New("the API server refuses the write as a conflict, though the Service has not changed")

func (w *serviceStatusWriteTask) newResultHandler(o writeOutcome, now *corev1.Service, err error) taskResultHandler {
	return func(ctx context.Context, r *ServiceWorker) { r.handleServiceWriteResult(ctx, w, o, now, err) }
}

// goneOrUnservedCheckTask asks the API server whether a Service that is missing in the cache, or
// not ours there, really is, before its addresses are released.
type goneOrUnservedCheckTask struct {
	service           view.ObjectKey
	ledgerBuildNumber int
}

// runTask implements apiRequestTask.
func (c *goneOrUnservedCheckTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	now, err := api.ReadLiveService(ctx, c.service)
	return func(_ context.Context, r *ServiceWorker) { r.handleGoneOrUnservedAnswer(c, now, err) }
}
