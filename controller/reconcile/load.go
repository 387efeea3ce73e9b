package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/fence"
	"github.com/gantry-lb/gantry/internal/view"
)

// loadTimeout bounds one reading of everything.
const loadTimeout = 2 * time.Minute

// reload loads, and comes again later when that fails.
func (r *Services) reload(ctx context.Context) {
	r.Log.Info("reading all Services", "cause", r.reloadCause)
	r.Metrics.reloads.WithLabelValues(r.reloadCause).Inc()
	err := r.load(ctx)
	r.state.attempt(loading, err == nil)
	if err == nil {
		r.failures = 0
		r.loaded.Store(true)
		r.counters.stale = true
		return
	}
	r.failures++
	r.Log.Error("reading the addresses in use; no address is given before that", "error", err, "again", delay(r.failures))
	r.pokeAfter(delay(r.failures))
}

// load builds the Ledger anew: from the AddressLedger, and then from the status of all Services, both as the API server itself
// has them. The order matters: what was settled before the one was read shows in the other. Of two Services that hold one
// address without a right to share it, the older keeps it; the other is served anew.
func (r *Services) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	config, err := r.readConfiguration(ctx)
	if err != nil {
		return err
	}
	object, err := r.API.Ledger(ctx, names.AddressLedger)
	if err != nil {
		return err
	}
	memory, err := r.API.Ledger(ctx, names.WithheldLedger)
	if err != nil {
		return err
	}
	intents, err := intentsOf(object)
	if err != nil {
		return err
	}
	var claimants []claimant
	seen := map[view.ObjectKey]*record{}
	versions := map[view.ObjectKey]string{}
	open := fence.New(intents)
	shown := map[view.ObjectKey]struct{}{} // the Services that the object shows
	for _, i := range intents {
		shown[i.Service] = struct{}{}
	}
	err = r.API.EachLive(ctx, func(s *corev1.Service) {
		v := view.FromService(s)
		if _, in := shown[v.Key]; in {
			versions[v.Key] = s.ResourceVersion
		}
		if !r.ours(&v) {
			if marked(s) {
				r.inbox.addLater(v.Key)
			}
			return
		}
		seen[v.Key] = &record{uid: s.UID, version: versionOf(s.ResourceVersion), loaded: versionOf(s.ResourceVersion)}
		if len(v.AssignedAddresses) == 0 {
			seen[v.Key].waiting = s.CreationTimestamp.Time
		}
		claimants = append(claimants, claimantOf(&v))
	})
	if err != nil {
		return err
	}
	left := open.Review(func(k view.ObjectKey) (string, bool) { v, ok := versions[k]; return v, ok })
	for _, i := range left {
		if rec := seen[i.Service]; rec != nil { // a list may be older than what another controller saw
			rec.version = max(rec.version, versionOf(i.Base))
		}
	}
	r.recall(memory)
	r.config, r.epoch = config, r.epoch+1
	r.ledger.Follow(config.snapshot)
	r.journal.fence, r.journal.object = open, object
	r.adopt(seen)
	r.claimAll(claimants, left)
	r.inbox.answered()
	r.Log.Info("the addresses in use are read", "services", len(claimants), "pools", len(config.snapshot.Pools), "intents", len(left))
	return nil
}

// adopt takes over what was read of each Service. What waited for the AddressLedger is decided again; what is under way goes on,
// since its Intent is among those that were read.
func (r *Services) adopt(seen map[view.ObjectKey]*record) {
	for _, w := range r.journal.staged {
		r.records[w.v.Key].busy = false
	}
	r.journal.staged = nil
	for k, old := range r.records {
		switch now := seen[k]; {
		case now != nil:
			now.busy, now.again, now.failures = old.busy, old.again, old.failures
			if old.uid == now.uid {
				now.version, now.entryRefused = max(now.version, old.version), old.entryRefused
				if !old.waiting.IsZero() && !now.waiting.IsZero() {
					now.waiting = old.waiting
				}
			}
		case old.busy:
			seen[k] = old
		default:
			r.pending.remove(k)
		}
	}
	r.records = seen
}

// claimant is a Service as far as it has to be known when the Ledger is built: small, because all are there at once.
type claimant struct {
	view.ObjectKey
	created  int64
	assigned []netip.Addr
	pool     string
	// shares is what its right to share hangs on; nil when it shares with nobody.
	shares *view.Service
}

func claimantOf(v *view.Service) claimant {
	c := claimant{ObjectKey: view.ObjectKey{Namespace: view.Intern(v.Key.Namespace), Name: v.Key.Name}, created: v.CreatedUnix, assigned: v.AssignedAddresses, pool: view.Intern(v.RecordedPool)}
	if v.SharingKey != "" {
		c.shares = &view.Service{SharingKey: v.SharingKey, Ports: v.Ports, LocalTrafficPolicy: v.LocalTrafficPolicy, PodSelector: v.PodSelector}
	}
	return c
}

// service is the claimant as a Service that claims what it has.
func (c *claimant) service() view.Service {
	var v view.Service
	if c.shares != nil {
		v = *c.shares
	}
	v.Key, v.CreatedUnix, v.AssignedAddresses, v.RecordedPool = c.ObjectKey, c.created, c.assigned, c.pool
	return v
}

// claimAll records what the Services hold: by their status, and then by Intents that may still arrive. Those that have no address
// yet are looked at first, and those with such an Intent, which a write of ours ends.
func (r *Services) claimAll(all []claimant, left []fence.Intent) {
	suspect := func(k view.ObjectKey) int {
		if _, is := r.suspects[k]; is {
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b claimant) int {
		return cmp.Or(cmp.Compare(suspect(a.ObjectKey), suspect(b.ObjectKey)), cmp.Compare(a.created, b.created), a.ObjectKey.Compare(b.ObjectKey))
	})
	intents := map[view.ObjectKey][]netip.Addr{}
	for _, i := range left {
		intents[i.Service] = i.Addresses
	}
	for i := range all {
		c := &all[i]
		if len(c.assigned) == 0 || len(intents[c.ObjectKey]) > 0 {
			r.inbox.add(c.ObjectKey)
		} else {
			r.inbox.addLater(c.ObjectKey)
		}
		v := c.service()
		r.claim(&v, c.assigned)
	}
	for i := range all {
		if c := &all[i]; len(intents[c.ObjectKey]) > 0 {
			v := c.service()
			r.claim(&v, union(c.assigned, intents[c.ObjectKey]))
		}
	}
	clear(r.suspects)
}

// claim records that a Service holds these addresses, as far as nobody else holds them.
func (r *Services) claim(v *view.Service, addresses []netip.Addr) {
	free := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return !r.ledger.Usable(a, v) })
	if len(free) > 0 {
		r.ledger.Commit(v, free, v.RecordedPool)
	}
}

// intentsOf reads the AddressLedger. One that cannot be read stops everything: to ignore it could give an address twice.
func intentsOf(l *v1alpha1.AddressLedger) ([]fence.Intent, error) {
	var out []fence.Intent
	for _, p := range l.Spec.Pending {
		i := fence.Intent{Service: view.ObjectKey{Namespace: p.Namespace, Name: p.Name}, Base: p.Base}
		for _, text := range p.Addresses {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("reading AddressLedger %s/%s: Service %s: %w; it is the controllers' alone to write: delete it, and it is made again",
					l.Namespace, l.Name, i.Service, err)
			}
			i.Addresses = append(i.Addresses, a)
		}
		out = append(out, i)
	}
	return out, nil
}

// pendingOf is the reverse of intentsOf.
func pendingOf(intents []fence.Intent) []v1alpha1.PendingAssignment {
	var out []v1alpha1.PendingAssignment
	for _, i := range intents {
		p := v1alpha1.PendingAssignment{Namespace: i.Service.Namespace, Name: i.Service.Name, Base: i.Base}
		for _, a := range i.Addresses {
			p.Addresses = append(p.Addresses, a.String())
		}
		out = append(out, p)
	}
	return out
}

// ours says whether the Service is ours to serve.
func (r *Services) ours(v *view.Service) bool { return v.IsLoadBalancer && v.Class == r.Class }

// ledgerName is how the AddressLedger is called in messages.
func (r *Services) ledgerName() string { return r.Namespace + "/" + names.AddressLedger }
