// Package reconcile joins the allocator to the API server. One worker, Services, owns the Ledger: it alone decides and
// writes, one Service at a time, so that two Services cannot be given one address. It runs on the leader only, and
// loads every address in use before it gives the first new one.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// Services gives addresses to the Services of one class.
type Services struct {
	Client client.Client
	Events events.EventRecorder
	Log    *slog.Logger
	// Namespace holds the configuration objects.
	Namespace string
	// Class is the load balancer class to serve; empty serves Services without a class.
	Class string

	// wake carries requests from the worker to its own queue; see again.
	wake chan event.GenericEvent
	// loaded is set once the Ledger holds every address in use.
	loaded atomic.Bool
	// countersStale asks for the pools' status to be written; the ticker in setup.go turns it into a request.
	countersStale atomic.Bool

	// The worker owns all that follows.
	ledger *allocate.Ledger
	config configurationState
	// pending are the Services that do not have what they ask for.
	pending map[view.Key]struct{}
}

// The requests that name no Service. A Service's request always has a namespace.
var (
	configRequest = client.ObjectKey{Name: "configuration"}
	statusRequest = client.ObjectKey{Name: "status"}
)

// conflictDelay is how long a Service waits after its cached object proved to be old: about as long as the watch takes.
const conflictDelay = 5 * time.Millisecond

// Reconcile handles one request of the worker's queue.
func (r *Services) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if !r.loaded.Load() {
		if err := r.load(ctx); err != nil {
			return ctrl.Result{}, err
		}
		r.loaded.Store(true)
		r.countersStale.Store(true)
	}
	var err error
	switch req.NamespacedName {
	case configRequest:
		err = r.reconfigure(ctx)
	case statusRequest:
		err = r.writeConfigStatus(ctx)
	default:
		err = r.service(ctx, view.Key{Namespace: req.Namespace, Name: req.Name})
	}
	if apierrors.IsConflict(err) { // our cache was behind; the newer object is on its way, or here already
		return ctrl.Result{RequeueAfter: conflictDelay}, nil
	}
	return ctrl.Result{}, err
}

// load rebuilds the Ledger from the status of all Services. Of two that hold one address without a right to share it,
// the older keeps it; the other is served anew.
func (r *Services) load(ctx context.Context) error {
	config, err := readConfiguration(ctx, r.Client, r.Namespace, r.config.snapshot)
	if err != nil {
		return err
	}
	var list corev1.ServiceList
	if err := r.Client.List(ctx, &list); err != nil {
		return fmt.Errorf("reading the addresses in use: %w", err)
	}
	r.config, r.ledger, r.pending = config, allocate.NewLedger(), map[view.Key]struct{}{}
	views := make([]view.Service, 0, len(list.Items))
	for i := range list.Items {
		if v := view.FromService(&list.Items[i]); r.ours(&v) {
			views = append(views, v)
		}
	}
	slices.SortFunc(views, func(a, b view.Service) int {
		if a.Created != b.Created {
			return int(a.Created - b.Created)
		}
		return a.Key.Compare(b.Key)
	})
	for i := range views {
		r.claim(&views[i])
	}
	r.Log.Info("the addresses in use are read", "services", len(views), "pools", len(config.snapshot.Pools))
	return nil
}

// claim records the addresses in a Service's status, as far as nobody else holds them.
func (r *Services) claim(v *view.Service) {
	free := slices.DeleteFunc(slices.Clone(v.Assigned), func(a netAddr) bool { return !r.ledger.Usable(a, v) })
	if len(free) > 0 {
		r.ledger.Commit(v, free, v.PoolRecorded)
	}
}

// ours says whether the Service is ours to serve.
func (r *Services) ours(v *view.Service) bool { return v.LoadBalancer && v.Class == r.Class }

// reconfigure takes in a change of the configuration and looks at every Service that it may concern.
func (r *Services) reconfigure(ctx context.Context) error {
	config, err := readConfiguration(ctx, r.Client, r.Namespace, r.config.snapshot)
	if err != nil {
		return err
	}
	r.config = config
	for _, p := range config.problems {
		r.Log.Debug("configuration problem", "object", p.Object.Kind+"/"+p.Object.Name, "reason", p.Reason, "text", p.Text)
	}
	r.countersStale.Store(true)
	r.again(ctx, r.ledger.Services()...)
	r.wakePending(ctx)
	return nil
}

// again puts Services into the worker's queue.
func (r *Services) again(ctx context.Context, keys ...view.Key) {
	for _, k := range keys {
		o := &corev1.Service{}
		o.Namespace, o.Name = k.Namespace, k.Name
		select {
		case r.wake <- event.GenericEvent{Object: o}:
		case <-ctx.Done():
			return
		}
	}
}

// wakePending looks again at the Services that wait for something.
func (r *Services) wakePending(ctx context.Context) {
	keys := make([]view.Key, 0, len(r.pending))
	for k := range r.pending {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, view.Key.Compare)
	r.again(ctx, keys...)
}

// service brings one Service's status in line with what it is to hold.
func (r *Services) service(ctx context.Context, k view.Key) error {
	var s corev1.Service
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: k.Namespace, Name: k.Name}, &s)
	if apierrors.IsNotFound(err) {
		r.release(ctx, k, "the Service is gone")
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading Service %s: %w", k, err)
	}
	v := view.FromService(&s)
	if !r.ours(&v) {
		return r.dismiss(ctx, &s, &v)
	}
	if _, held := r.ledger.Held(k); !held {
		r.claim(&v) // a status that came with the object, from a backup say, is a claim like any other
	}
	d := allocate.Decide(&v, r.ledger, r.config.snapshot)
	return r.carryOut(ctx, &s, &v, d)
}

// carryOut commits a Decision and writes it. The Ledger comes first: between the two nobody else is given the address.
// If the write fails the next attempt finds it held by this Service and writes the same.
func (r *Services) carryOut(ctx context.Context, s *corev1.Service, v *view.Service, d allocate.Decision) error {
	before, _ := r.ledger.Held(v.Key)
	pool := d.Pool
	if p := r.config.snapshot.PoolFor(d.Addresses...); p != nil {
		pool = p.Name
	}
	moved := !slices.Equal(before.Addresses, d.Addresses)
	if moved && len(d.Addresses) > 0 && len(before.Addresses) > 0 {
		// Make before break: the old addresses stay reserved until the new ones are written.
		r.ledger.Commit(v, union(before.Addresses, d.Addresses), pool)
	} else {
		r.ledger.Commit(v, d.Addresses, pool)
	}
	if d.Reason == names.ReasonAssigned {
		delete(r.pending, v.Key)
	} else {
		r.pending[v.Key] = struct{}{}
	}
	changed, err := r.write(ctx, s, d, pool)
	if err != nil {
		return err
	}
	r.ledger.Commit(v, d.Addresses, pool)
	if moved {
		r.countersStale.Store(true)
		if len(before.Addresses) > 0 {
			r.wakePending(ctx)
		}
	}
	if changed {
		r.tell(s, v, d)
	}
	return nil
}

func union(a, b []netAddr) []netAddr {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// release frees what a Service held and lets those that wait try again.
func (r *Services) release(ctx context.Context, k view.Key, why string) {
	delete(r.pending, k)
	if freed := r.ledger.Release(k); len(freed) > 0 {
		r.Log.Info("addresses released", "service", k.String(), "addresses", freed, "why", why)
		r.countersStale.Store(true)
		r.wakePending(ctx)
	}
}

// dismiss takes our status from a Service that is no longer ours to serve. What we never gave is left alone.
func (r *Services) dismiss(ctx context.Context, s *corev1.Service, v *view.Service) error {
	_, held := r.ledger.Held(v.Key)
	_, waiting := r.pending[v.Key]
	if !held && !waiting && !marked(s) {
		return nil
	}
	// A Service that went to another class is that class's to write; only what we wrote is taken back.
	if err := r.clear(ctx, s); err != nil {
		return err
	}
	r.release(ctx, v.Key, "the Service is no LoadBalancer of this class any more")
	return nil
}
