package assign

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/view"
)

// probeRecreationInterval is when an unanswered AddressProbe is created again, since it may have
// been deleted.
const probeRecreationInterval = 30 * time.Second

// abandonedProbeAge is when an AddressProbe of kubectl gantry probe counts as left over: the
// command waits for seconds. abandonedProbeCheckInterval is the time between two looks for such
// AddressProbes while there are any of the command.
const (
	abandonedProbeAge           = 10 * time.Minute
	abandonedProbeCheckInterval = 2 * time.Minute
)

// addressProber owns the AddressProbes that this controller has created, and deletes those that
// kubectl gantry probe left over. The worker calls it once per turn, after its decisions, and with
// the result of each write. All its methods run on the worker's goroutine.
type addressProber struct {
	api          WorkerAPI
	log          *slog.Logger
	recordEvent  func(about *corev1.Service, kind, reason, text string)
	workQueue    *workQueue
	apiTaskQueue *apiTaskQueue

	openProbeByAddress map[netip.Addr]*openAddressProbe
	// nextAbandonedCheckAt is when it may next look for AddressProbes that were left over.
	nextAbandonedCheckAt time.Time
}

// openAddressProbe is the probe of one address.
type openAddressProbe struct {
	service view.ObjectKey
	// objectUID is that of the object; a result in an object with another uid is old.
	objectUID types.UID
	// writeInFlight says that a write of the object has not ended.
	writeInFlight bool
	// createdAt is when the object was created. failures counts failed attempts in a row.
	createdAt           time.Time
	consecutiveFailures int
	retryAt             time.Time
}

// probeName is the name of the AddressProbe for an address: one per address, so that an address is
// not probed twice at once.
func probeName(a netip.Addr) string { return strings.ReplaceAll(a.StringExpanded(), ":", "-") }

// createAndDeleteProbes creates an AddressProbe for each proposed address, deletes those that are
// not needed any more, and handles results.
func (p *addressProber) createAndDeleteProbes(ctx context.Context, now time.Time, l *allocate.Ledger, config *configurationreader.Configuration) {
	if answers := p.workQueue.takeProbesChanged(); answers {
		p.readProbeAnswers(ctx, now, l)
	}
	if !l.HasAddressesWithheldForProbe() && len(p.openProbeByAddress) == 0 {
		return
	}
	proposed := map[netip.Addr]allocate.WithheldAddress{}
	for _, w := range l.WithheldAddressesAwaitingProbe() {
		proposed[w.Address] = w
	}
	for a, w := range proposed {
		probe := p.openProbeByAddress[a]
		if probe == nil {
			probe = &openAddressProbe{service: w.ServiceThatMayHoldIt}
			p.openProbeByAddress[a] = probe
		}
		old := probe.objectUID != "" && now.Sub(probe.createdAt) >= probeRecreationInterval
		if probe.writeInFlight || now.Before(probe.retryAt) || probe.objectUID != "" && probe.service == w.ServiceThatMayHoldIt && !old {
			continue
		}
		probe.service, probe.writeInFlight, probe.objectUID = w.ServiceThatMayHoldIt, true, ""
		p.apiTaskQueue.enqueueTask(&probeWriteTask{address: a, objectToCreateOrNil: newAddressProbe(a, w.ServiceThatMayHoldIt, config)})
	}
	for a, probe := range p.openProbeByAddress {
		if _, wanted := proposed[a]; wanted || probe.writeInFlight || now.Before(probe.retryAt) {
			continue
		}
		probe.writeInFlight = true
		p.apiTaskQueue.enqueueTask(&probeWriteTask{address: a})
	}
}

// newAddressProbe returns the AddressProbe for an address.
func newAddressProbe(a netip.Addr, k view.ObjectKey, config *configurationreader.Configuration) *v1alpha1.AddressProbe {
	p := &v1alpha1.AddressProbe{Spec: v1alpha1.AddressProbeSpec{
		Address: a.String(), Service: v1alpha1.ServiceReference{Namespace: k.Namespace, Name: k.Name},
	}}
	p.Name = probeName(a)
	if pool := config.Snapshot.PoolThatCanAssignAll(a); pool != nil {
		p.Spec.Pool = pool.Name
	}
	return p
}

// readProbeAnswers reads the AddressProbes. One that is left over from before a restart is
// deleted.
func (p *addressProber) readProbeAnswers(ctx context.Context, now time.Time, l *allocate.Ledger) {
	all, err := p.api.ReadCachedAddressProbes(ctx)
	if err != nil {
		p.log.Error("reading the AddressProbes failed", "error", err, "again", maxRetryDelay)
		time.AfterFunc(maxRetryDelay, p.workQueue.markProbesChanged)
		return
	}
	p.deleteAbandonedProbes(now, all)
	for i := range all {
		o := &all[i]
		a, err := netip.ParseAddr(o.Spec.Address)
		if err != nil || probeName(a) != o.Name {
			continue // not ours
		}
		probe := p.openProbeByAddress[a]
		switch {
		case probe == nil:
			p.openProbeByAddress[a] = &openAddressProbe{writeInFlight: true}
			p.apiTaskQueue.enqueueTask(&probeWriteTask{address: a})
		case probe.writeInFlight || probe.objectUID != o.UID:
		case o.Status.Outcome == v1alpha1.ProbeOutcomeSilent:
			l.RecordAcquireProbeFoundNoHost(a)
			p.workQueue.addChangedServices(probe.service)
		case o.Status.Outcome == v1alpha1.ProbeOutcomeAnswered:
			if p.quarantineAddress(ctx, l, a, o) {
				p.workQueue.addChangedServices(probe.service)
			}
		}
	}
}

// deleteAbandonedProbes deletes the AddressProbes that kubectl gantry probe left over, as it does
// when it is killed. It looks again after some time while the command has any AddressProbe: a
// failed deletion is repeated then.
func (p *addressProber) deleteAbandonedProbes(now time.Time, all []v1alpha1.AddressProbe) {
	if now.Before(p.nextAbandonedCheckAt) {
		return
	}
	abandoned, hasOfOperators := findAbandonedProbes(now, all)
	for _, name := range abandoned {
		p.apiTaskQueue.enqueueTask(&abandonedProbeDeletionTask{name: name})
	}
	if hasOfOperators {
		p.nextAbandonedCheckAt = now.Add(abandonedProbeCheckInterval)
		time.AfterFunc(abandonedProbeCheckInterval, p.workQueue.markProbesChanged)
	}
}

// findAbandonedProbes returns the names of the AddressProbes that kubectl gantry probe left over,
// and whether it has any AddressProbe.
func findAbandonedProbes(now time.Time, all []v1alpha1.AddressProbe) (abandoned []string, hasOfOperators bool) {
	for i := range all {
		if !strings.HasPrefix(all[i].Name, names.OperatorProbeNamePrefix) {
			continue
		}
		hasOfOperators = true
		if now.Sub(all[i].CreationTimestamp.Time) >= abandonedProbeAge {
			abandoned = append(abandoned, all[i].Name)
		}
	}
	return abandoned, hasOfOperators
}

// abandonedProbeDeletionTask deletes an AddressProbe that kubectl gantry probe left over.
type abandonedProbeDeletionTask struct{ name string }

// runTask implements apiRequestTask.
func (w *abandonedProbeDeletionTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	err := api.DeleteProbe(ctx, w.name)
	return func(_ context.Context, r *ServiceWorker) {
		if err != nil {
			r.Log.Warn("deleting an AddressProbe that kubectl gantry probe left over failed", "error", err, "again", abandonedProbeCheckInterval)
		}
	}
}

// quarantineAddress withholds an address that a host uses, and says whether the address was
// proposed.
func (p *addressProber) quarantineAddress(ctx context.Context, l *allocate.Ledger, a netip.Addr, o *v1alpha1.AddressProbe) bool {
	if !slices.ContainsFunc(l.WithheldAddressesAwaitingProbe(), func(w allocate.WithheldAddress) bool { return w.Address == a }) {
		return false
	}
	l.QuarantineAddressAfterProbeAnswer(a, o.Status.By)
	p.log.Warn("a host on the segment uses an address of a pool; the address goes into quarantine", "address", a, "pool", o.Spec.Pool, "mac", o.Status.By,
		"node", o.Status.Node, "reason", names.ReasonQuarantined)
	about := view.ObjectKey{Namespace: o.Spec.Service.Namespace, Name: o.Spec.Service.Name}
	if s, err := p.api.ReadCachedService(ctx, about); err == nil && s != nil {
		p.recordEvent(s, corev1.EventTypeWarning, names.EventAllocationFailed, string(names.ReasonQuarantined)+": host "+o.Status.By+" answered for "+
			a.String()+" on the segment of node "+o.Status.Node+"; another address is tried")
	}
	return true
}

// probeWriteTask creates an AddressProbe, or deletes it if objectToCreateOrNil is nil.
type probeWriteTask struct {
	address             netip.Addr
	objectToCreateOrNil *v1alpha1.AddressProbe
}

// runTask implements apiRequestTask.
func (w *probeWriteTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	var now *v1alpha1.AddressProbe
	var err error
	if w.objectToCreateOrNil == nil {
		err = api.DeleteProbe(ctx, probeName(w.address))
	} else {
		now, err = api.CreateOrReplaceProbe(ctx, w.objectToCreateOrNil)
	}
	return func(_ context.Context, r *ServiceWorker) {
		r.addressProber.handleProbeWriteResult(w, now, r.Now(), err)
	}
}

// handleProbeWriteResult handles the result of a write.
func (p *addressProber) handleProbeWriteResult(w *probeWriteTask, object *v1alpha1.AddressProbe, now time.Time, err error) {
	probe := p.openProbeByAddress[w.address]
	probe.writeInFlight = false
	switch {
	case err != nil:
		probe.consecutiveFailures++
		wait := retryDelay(probe.consecutiveFailures)
		probe.retryAt = now.Add(wait)
		p.workQueue.wakeWorkerAfter(wait)
		p.log.Error("writing an AddressProbe failed", "address", w.address, "error", err, "reason", names.ReasonWriteFailed, "again", wait)
	case w.objectToCreateOrNil == nil:
		delete(p.openProbeByAddress, w.address)
		p.workQueue.wakeWorker() // the address may have been proposed again meanwhile
	default:
		probe.objectUID, probe.createdAt, probe.consecutiveFailures, probe.retryAt = object.UID, now, 0, time.Time{}
		p.workQueue.markProbesChanged() // the result may have arrived before this answer
		p.workQueue.wakeWorkerAfter(probeRecreationInterval)
	}
}
