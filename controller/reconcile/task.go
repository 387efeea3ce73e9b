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
	// maxInFlight bounds the requests side by side. With 32 an API server on two cores is busy; more would only wait in its queues.
	maxInFlight = 32
	// attemptTimeout bounds one request, so that one that hangs does not take a place for ever.
	attemptTimeout = 10 * time.Second
	// The delays before something that failed is tried again: the first, doubled each time up to the last. They are those of
	// controller-runtime's queues at the start, with an end that a person would wait for.
	firstDelay, lastDelay = 50 * time.Millisecond, 30 * time.Second
)

// delay is how long to wait after so many failures in a row.
func delay(failures int) time.Duration {
	return min(firstDelay<<min(max(failures-1, 0), 10), lastDelay)
}

// task is one thing to ask of the API server: run does it, away from the worker, and then tells the worker by its result.
type task interface {
	run(context.Context, API) result
}

// result is what became of a task: apply takes it in, on the worker.
type result func(context.Context, *Services)

// start has a task run as soon as there is a place.
func (r *Services) start(t task) { r.ready = append(r.ready, t) }

// dispatch runs as many tasks as may run side by side.
func (r *Services) dispatch(ctx context.Context) {
	r.sleeping = slices.DeleteFunc(r.sleeping, func(w *write) bool {
		awake := time.Until(w.wake) <= 0
		if awake {
			r.start(w)
		}
		return awake
	})
	for len(r.ready) > 0 && r.inFlight < maxInFlight {
		t := r.ready[0]
		r.ready[0] = nil
		r.ready = r.ready[1:]
		r.perform(ctx, t)
	}
}

// perform runs a task on a goroutine of its own. The results have room for all, so that none waits for the worker.
func (r *Services) perform(ctx context.Context, t task) {
	r.inFlight++
	go func() {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		r.results <- t.run(ctx, r.API)
	}()
}

// outcome is what is known of a write to a Service.
type outcome uint8

const (
	// landed: the Service is as it was to be.
	landed outcome = iota
	// refused: the Service had changed before; nothing was written.
	refused
	// gone: there is no such Service.
	gone
	// rejected: the API server does not want it; nothing was written.
	rejected
	// unknown: it may have been written, or may still be.
	unknown
)

// outcomeOf reads an answer of the API server. What is no clear answer leaves open what happened.
func outcomeOf(err error) outcome {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return landed
	case apierrors.IsConflict(err):
		return refused
	case apierrors.IsNotFound(err):
		return gone
	case errors.As(err, &status) && status.Status().Code >= 400 && status.Status().Code < 500 && !apierrors.IsTimeout(err):
		return rejected
	}
	return unknown
}

// write brings a Service's status in line with a Decision.
type write struct {
	v        view.Service
	before   *corev1.Service
	after    *corev1.Service
	decision allocate.Decision
	pool     string
	// held is what the Ledger said that the Service holds before the Decision.
	held allocate.Assignment
	// epoch is that of the Ledger in which it was decided.
	epoch int
	// doubt says that an earlier attempt may have been written; wake is when the next is due.
	doubt bool
	wake  time.Time
	// refused says that the AddressLedger was refused with its entry when that was last tried.
	refused bool
	// dismissed says that the Service is not ours any more; touched, that the status says nothing new.
	dismissed, touched bool
}

// run implements task. In doubt it asks first, and a refusal is looked into: an attempt that arrived after all, or that was
// repeated on the way, must not be taken for somebody else's write.
func (w *write) run(ctx context.Context, api API) result {
	if w.doubt {
		if now, err := api.Live(ctx, w.v.Key); err != nil || now == nil || now.ResourceVersion != w.before.ResourceVersion {
			return w.found(now, err)
		}
	}
	now, err := api.PatchStatus(ctx, w.before, w.after)
	o := outcomeOf(err)
	switch {
	case o == refused:
		return w.found(api.Live(ctx, w.v.Key))
	case o == rejected && w.doubt:
		o = unknown
	}
	return w.result(o, now, err)
}

// found is the result when the Service has changed since: what it is now counts.
func (w *write) found(now *corev1.Service, err error) result {
	switch {
	case err != nil:
		return w.result(unknown, nil, err)
	case now == nil || now.UID != w.before.UID:
		return w.result(gone, nil, nil)
	case now.ResourceVersion == w.before.ResourceVersion: // refused, but by whom: ask again
		return w.result(unknown, nil, errUnchanged)
	}
	return w.result(refused, now, nil)
}

// errUnchanged says that a write was refused as a conflict with nothing.
var errUnchanged = errors.New("the API server refuses the write as a conflict, though the Service has not changed")

func (w *write) result(o outcome, now *corev1.Service, err error) result {
	return func(ctx context.Context, r *Services) { r.wrote(ctx, w, o, now, err) }
}

// confirm asks the API server itself whether a Service that the cache does not show, or shows as not ours, is really so, before
// its addresses are given to another.
type confirm struct {
	key   view.ObjectKey
	epoch int
}

// run implements task.
func (c *confirm) run(ctx context.Context, api API) result {
	now, err := api.Live(ctx, c.key)
	return func(_ context.Context, r *Services) { r.confirmed(c, now, err) }
}
