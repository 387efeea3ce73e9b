package reconcile

import (
	"context"
	"reflect"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// configurationState is what Build made of the configuration objects as last read.
type configurationState struct {
	snapshot *snapshot.Snapshot
	problems []snapshot.Problem
	read     time.Time
	// due says that a timer runs for the next reading.
	due bool
}

// configInterval is how long edits of the configuration gather: a manifest with many pools is one change.
const configInterval = 50 * time.Millisecond

// readConfiguration reads the pools and parses them. What an edit broke stays at its last good state.
func (r *Services) readConfiguration(ctx context.Context) (configurationState, error) {
	o, err := r.API.Pools(ctx)
	if err != nil {
		return configurationState{}, err
	}
	o.Previous = r.config.snapshot
	c := configurationState{read: time.Now()}
	c.snapshot, c.problems = snapshot.Build(o)
	return c, nil
}

// reconfigure takes in a change of the configuration and has every Service looked at that it may concern. It returns false while a
// change waits to be read: what is decided meanwhile would go by a configuration that is known to be old, so that nothing is.
func (r *Services) reconfigure(ctx context.Context) bool {
	if !r.inbox.configChanged() {
		return true
	}
	if wait := time.Until(r.config.read.Add(configInterval)); wait > 0 {
		if !r.config.due {
			r.config.due = true
			r.pokeAfter(wait)
		}
		return false
	}
	r.inbox.takeConfig()
	config, err := r.readConfiguration(ctx)
	if err != nil {
		r.Log.Error("reading the pools", "error", err, "again", delay(1))
		r.config.due = false
		time.AfterFunc(delay(1), r.inbox.reconfigured)
		return true
	}
	old := r.config.snapshot
	r.config = config
	for _, p := range config.problems {
		r.Log.Debug("configuration problem", "object", p.Object.Kind+"/"+p.Object.Name, "reason", p.Reason, "text", p.Text)
	}
	r.counters.stale = true
	if reflect.DeepEqual(old.Pools, config.snapshot.Pools) && reflect.DeepEqual(old.Reservations, config.snapshot.Reservations) {
		return true // a namespace, say, that no pool asks for
	}
	r.wakePending = true
	r.inbox.addLater(r.ledger.Services()...)
	return true
}

// valid returns the condition that says whether an object has Problems.
func valid(o snapshot.ObjectReference, generation int64, problems []snapshot.Problem) metav1.Condition {
	cond := metav1.Condition{
		Type: names.ConditionValid, Status: metav1.ConditionTrue, ObservedGeneration: generation,
		Reason: string(names.ReasonValid), Message: "the object is understood as it stands",
	}
	var texts []string
	for _, p := range problems {
		if p.Object != o {
			continue
		}
		if len(texts) == 0 {
			cond.Status, cond.Reason = metav1.ConditionFalse, string(p.Reason)
		}
		texts = append(texts, p.Text)
	}
	if len(texts) > 0 {
		cond.Message = configuration.SummarizeTexts(texts, "; ", "they show when these are gone")
	}
	return cond
}

// countersInterval bounds how often the status of a pool is written.
const countersInterval = 2 * time.Second

// counters are the worker's side of the status of pools.
type counters struct {
	// stale says that the status of some pool may not be what it should.
	stale bool
	// last is when they were looked at; writing counts the writes under way since.
	last    time.Time
	due     bool // a timer runs
	writing int
}

// count has the counters and the conditions of the pools written, where they are not what they should be.
func (r *Services) count(ctx context.Context) {
	c := &r.counters
	c.stale = r.inbox.takeRecount() || c.stale
	if !c.stale || c.writing > 0 {
		return
	}
	if wait := time.Until(c.last.Add(countersInterval)); wait > 0 {
		if !c.due {
			c.due = true
			r.pokeAfter(wait)
		}
		return
	}
	o, err := r.API.Pools(ctx)
	if err != nil {
		r.Log.Error("reading the pools", "error", err, "again", countersInterval)
	}
	c.stale, c.due, c.last = err != nil, false, time.Now()
	for i := range o.Pools {
		r.countPool(&o.Pools[i])
	}
	for i := range o.Reservations {
		r.keep(&o.Reservations[i])
	}
}

func (r *Services) countPool(p *v1beta1.IPAddressPool) {
	parsed := r.config.snapshot.PoolByName(p.Name)
	if parsed == nil { // younger than what we know: it will be told
		return
	}
	u := r.ledger.Usage(parsed, r.config.snapshot)
	after := v1beta1.IPAddressPoolStatus{
		AssignedIPv4: u.AssignedIPv4, AssignedIPv6: u.AssignedIPv6, AvailableIPv4: u.AvailableIPv4, AvailableIPv6: u.AvailableIPv6,
		Gantry: setCondition(p.Status.Gantry, valid(snapshot.ObjectReference{Kind: "IPAddressPool", Namespace: p.Namespace, Name: p.Name}, p.Generation, r.config.problems)),
	}
	if equality.Semantic.DeepEqual(p.Status, after) {
		return
	}
	p = p.DeepCopy()
	p.Status = after
	r.writeStatus(&statusWrite{"a pool", "pool", p.Name, func(ctx context.Context, api API) error { return api.UpdatePool(ctx, p) }})
}

// statusWrite writes the status of one of the configuration's objects.
type statusWrite struct {
	what, key, name string // of the object, for the log: an article and a noun, the key of the name, the name
	update          func(ctx context.Context, api API) error
}

// writeStatus starts it.
func (r *Services) writeStatus(w *statusWrite) {
	r.counters.writing++
	r.start(w)
}

// run implements task. A conflict means that the object has just been edited; what is wrong then is looked at anew.
func (w *statusWrite) run(ctx context.Context, api API) result {
	err := w.update(ctx, api)
	return func(_ context.Context, r *Services) {
		r.counters.writing--
		if err == nil || apierrors.IsNotFound(err) {
			return
		}
		r.counters.stale = true
		if !apierrors.IsConflict(err) {
			r.Log.Error("writing the status of "+w.what, w.key, w.name, "error", err, "reason", names.ReasonWriteFailed, "again", countersInterval)
		}
	}
}

// setCondition returns a status with the condition in it; the time of the last transition changes with the status of
// the condition alone.
func setCondition(s *v1beta1.ObjectStatus, c metav1.Condition) *v1beta1.ObjectStatus {
	out := &v1beta1.ObjectStatus{}
	if s != nil {
		out.Conditions = slices.Clone(s.Conditions)
	}
	meta.SetStatusCondition(&out.Conditions, c)
	return out
}
