package reconcile

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// Limits of what is asked of the API server at a time.
const (
	// maxTasksInFlight bounds the requests side by side. With 32 an API server on two cores is busy; more would only wait in its queues.
	maxTasksInFlight = 32
	// attemptTimeout bounds one request, so that one that hangs does not take a place for ever.
	attemptTimeout = 10 * time.Second
	// The delays before something that failed is tried again: the first, doubled each time up to the last. They are those of
	// controller-runtime's queues at the start, with an end that a person would wait for.
	firstRetryDelay, maxRetryDelay = 50 * time.Millisecond, 30 * time.Second
)

// retryDelay is how long to wait after so many failures in a row.
func retryDelay(failures int) time.Duration {
	return min(firstRetryDelay<<min(max(failures-1, 0), 10), maxRetryDelay)
}

// task is one thing to ask of the API server: run does it, away from the worker, and then tells the worker by its result.
type task interface {
	runTask(context.Context, API) taskResult
}

// taskResult is what became of a task: apply takes it in, on the worker.
type taskResult func(context.Context, *ServiceWorker)

// enqueueTask has a task run as soon as there is a place.
func (r *ServiceWorker) enqueueTask(t task) { r.readyTasks = append(r.readyTasks, t) }

// dispatchTasks runs as many tasks as may run side by side.
func (r *ServiceWorker) dispatchTasks(ctx context.Context) {
	r.sleepingWrites = slices.DeleteFunc(r.sleepingWrites, func(w *serviceWrite) bool {
		awake := time.Until(w.retryAt) <= 0
		if awake {
			r.enqueueTask(w)
		}
		return awake
	})
	for len(r.readyTasks) > 0 && r.tasksInFlight < maxTasksInFlight {
		t := r.readyTasks[0]
		r.readyTasks[0] = nil
		r.readyTasks = r.readyTasks[1:]
		r.startTask(ctx, t)
	}
}

// startTask runs a task on a goroutine of its own. The results have room for all, so that none waits for the worker.
func (r *ServiceWorker) startTask(ctx context.Context, t task) {
	r.tasksInFlight++
	go func() {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		r.results <- t.runTask(ctx, r.API)
	}()
}

// writeOutcome is what is known of a write to a Service.
type writeOutcome uint8

const (
	// outcomeWritten: the Service is as it was to be.
	outcomeWritten writeOutcome = iota
	// outcomeConflict: the Service had changed before; nothing was written.
	outcomeConflict
	// outcomeGone: there is no such Service.
	outcomeGone
	// outcomeRejected: the API server does not want it; nothing was written.
	outcomeRejected
	// outcomeUnknown: it may have been written, or may still be.
	outcomeUnknown
)

// outcomeOfError reads an answer of the API server. What is no clear answer leaves open what happened.
func outcomeOfError(err error) writeOutcome {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return outcomeWritten
	case apierrors.IsConflict(err):
		return outcomeConflict
	case apierrors.IsNotFound(err):
		return outcomeGone
	case errors.As(err, &status) && status.Status().Code >= 400 && status.Status().Code < 500 && !apierrors.IsTimeout(err):
		return outcomeRejected
	}
	return outcomeUnknown
}

// serviceWrite brings a Service's status in line with a Decision.
type serviceWrite struct {
	service  view.Service
	before   *corev1.Service
	after    *corev1.Service
	decision allocate.Decision
	pool     string
	// heldBefore is what the Ledger said that the Service holds before the Decision.
	heldBefore allocate.Assignment
	// ledgerEpoch is that of the Ledger in which it was decided.
	ledgerEpoch int
	// maybeWritten says that an earlier attempt may have been written; wake is when the next is due.
	maybeWritten bool
	retryAt      time.Time
	// entryRefused says that the AddressLedger was refused with its entry when that was last tried.
	entryRefused bool
	// clearsStatus says that the Service is not ours any more; touched, that the status says nothing new.
	clearsStatus, touchesStatus bool
}

// runTask implements task. In doubt it asks first, and a refusal is looked into: an attempt that arrived after all, or that was
// repeated on the way, must not be taken for somebody else's write.
func (w *serviceWrite) runTask(ctx context.Context, api API) taskResult {
	if w.maybeWritten {
		if now, err := api.LiveService(ctx, w.service.Key); err != nil || now == nil || now.ResourceVersion != w.before.ResourceVersion {
			return w.changedResult(now, err)
		}
	}
	now, err := api.PatchServiceStatus(ctx, w.before, w.after)
	o := outcomeOfError(err)
	switch {
	case o == outcomeConflict:
		return w.changedResult(api.LiveService(ctx, w.service.Key))
	case o == outcomeRejected && w.maybeWritten:
		o = outcomeUnknown
	}
	return w.newResult(o, now, err)
}

// changedResult is the result when the Service has changed since: what it is now counts.
func (w *serviceWrite) changedResult(now *corev1.Service, err error) taskResult {
	switch {
	case err != nil:
		return w.newResult(outcomeUnknown, nil, err)
	case now == nil || now.UID != w.before.UID:
		return w.newResult(outcomeGone, nil, nil)
	case now.ResourceVersion == w.before.ResourceVersion: // refused, but by whom: ask again
		return w.newResult(outcomeUnknown, nil, errUnchanged)
	}
	return w.newResult(outcomeConflict, now, nil)
}

// errUnchanged says that a write was refused as a conflict with nothing.
var errUnchanged = errors.New("the API server refuses the write as a conflict, though the Service has not changed")

func (w *serviceWrite) newResult(o writeOutcome, now *corev1.Service, err error) taskResult {
	return func(ctx context.Context, r *ServiceWorker) { r.finishWrite(ctx, w, o, now, err) }
}

// confirmTask asks the API server itself whether a Service that the cache does not show, or shows as not ours, is really so, before
// its addresses are given to another.
type confirmTask struct {
	key         view.ObjectKey
	ledgerEpoch int
}

// runTask implements task.
func (c *confirmTask) runTask(ctx context.Context, api API) taskResult {
	now, err := api.LiveService(ctx, c.key)
	return func(_ context.Context, r *ServiceWorker) { r.finishConfirm(c, now, err) }
}
