package reconcile

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// askAgain is when an AddressProbe that nobody answered is made anew: somebody may have deleted it.
const askAgain = 30 * time.Second

// probes are the worker's side of the AddressProbes: what it asks the speakers.
type probes map[netip.Addr]*probe

// probe is an address that is asked for.
type probe struct {
	service view.ObjectKey
	// uid is that of the object; what another of its name says is old.
	uid types.UID
	// busy says that a write of the object is under way.
	busy bool
	// asked is when the object was made; failures counts attempts that failed, in a row.
	asked    time.Time
	failures int
	retry    time.Time
}

// probeName is the name of the AddressProbe for an address: each has one, so that two are never asked for at once.
func probeName(a netip.Addr) string { return strings.ReplaceAll(a.StringExpanded(), ":", "-") }

// probe has the speakers asked for what is proposed, and takes in what they said.
func (r *Services) probe(ctx context.Context) {
	if answers := r.inbox.takeAnswers(); answers {
		r.takeAnswers(ctx)
	}
	if !r.ledger.Probing() && len(r.probes) == 0 {
		return
	}
	proposed := map[netip.Addr]allocate.Withheld{}
	for _, w := range r.ledger.Proposed() {
		proposed[w.Address] = w
	}
	now := time.Now()
	for a, w := range proposed {
		p := r.probes[a]
		if p == nil {
			p = &probe{service: w.Service}
			r.probes[a] = p
		}
		old := p.uid != "" && now.Sub(p.asked) >= askAgain
		if p.busy || now.Before(p.retry) || p.uid != "" && p.service == w.Service && !old {
			continue
		}
		p.service, p.busy, p.uid = w.Service, true, ""
		r.start(&probeWrite{address: a, object: r.question(a, w.Service)})
	}
	for a, p := range r.probes {
		if _, wanted := proposed[a]; wanted || p.busy || now.Before(p.retry) {
			continue
		}
		p.busy = true
		r.start(&probeWrite{address: a})
	}
}

// question is the AddressProbe for an address.
func (r *Services) question(a netip.Addr, k view.ObjectKey) *v1alpha1.AddressProbe {
	p := &v1alpha1.AddressProbe{Spec: v1alpha1.AddressProbeSpec{
		Address: a.String(), Service: v1alpha1.ServiceReference{Namespace: k.Namespace, Name: k.Name},
	}}
	p.Name = probeName(a)
	if pool := r.config.snapshot.PoolContaining(a); pool != nil {
		p.Spec.Pool = pool.Name
	}
	return p
}

// takeAnswers reads the AddressProbes. One that nobody here asked is of another life, and goes.
func (r *Services) takeAnswers(ctx context.Context) {
	all, err := r.API.Probes(ctx)
	if err != nil {
		r.Log.Error("reading what the speakers found", "error", err, "again", lastDelay)
		time.AfterFunc(lastDelay, r.inbox.answered)
		return
	}
	for i := range all {
		o := &all[i]
		a, err := netip.ParseAddr(o.Spec.Address)
		if err != nil || probeName(a) != o.Name {
			continue // not ours
		}
		p := r.probes[a]
		switch {
		case p == nil:
			r.probes[a] = &probe{busy: true}
			r.start(&probeWrite{address: a})
		case p.busy || p.uid != o.UID:
		case o.Status.Outcome == v1alpha1.OutcomeSilent:
			r.ledger.Silent(a)
			r.inbox.add(p.service)
		case o.Status.Outcome == v1alpha1.OutcomeAnswered:
			if r.quarantine(ctx, a, o) {
				r.inbox.add(p.service)
			}
		}
	}
}

// quarantine withholds an address that somebody uses, and says whether it was proposed.
func (r *Services) quarantine(ctx context.Context, a netip.Addr, o *v1alpha1.AddressProbe) bool {
	if !slices.ContainsFunc(r.ledger.Proposed(), func(w allocate.Withheld) bool { return w.Address == a }) {
		return false
	}
	r.ledger.Answered(a, o.Status.By)
	r.Log.Warn("somebody on the segment uses an address of a pool; it is in quarantine", "address", a, "pool", o.Spec.Pool, "by", o.Status.By,
		"node", o.Status.Node, "reason", names.ReasonQuarantined)
	about := view.ObjectKey{Namespace: o.Spec.Service.Namespace, Name: o.Spec.Service.Name}
	if s, err := r.API.Cached(ctx, about); err == nil && s != nil {
		r.Tell(s, corev1.EventTypeWarning, names.EventAllocationFailed, string(names.ReasonQuarantined)+": "+o.Status.By+" answered for "+
			a.String()+" on the segment of node "+o.Status.Node+"; another address is tried")
	}
	return true
}

// probeWrite makes an AddressProbe, or deletes it where there is no object.
type probeWrite struct {
	address netip.Addr
	object  *v1alpha1.AddressProbe
}

// run implements task.
func (w *probeWrite) run(ctx context.Context, api API) result {
	var now *v1alpha1.AddressProbe
	var err error
	if w.object == nil {
		err = api.DeleteProbe(ctx, probeName(w.address))
	} else {
		now, err = api.CreateProbe(ctx, w.object)
	}
	return func(_ context.Context, r *Services) { r.probed(w, now, err) }
}

// probed takes in what became of a write.
func (r *Services) probed(w *probeWrite, now *v1alpha1.AddressProbe, err error) {
	p := r.probes[w.address]
	p.busy = false
	switch {
	case err != nil:
		p.failures++
		wait := delay(p.failures)
		p.retry = time.Now().Add(wait)
		r.pokeAfter(wait)
		r.Log.Error("asking the speakers for an address", "address", w.address, "error", err, "reason", names.ReasonWriteFailed, "again", wait)
	case w.object == nil:
		delete(r.probes, w.address)
		r.inbox.poke() // it may have been proposed again meanwhile
	default:
		p.uid, p.asked, p.failures, p.retry = now.UID, time.Now(), 0, time.Time{}
		r.inbox.answered() // the answer may be there before ours
		r.pokeAfter(askAgain)
	}
}
