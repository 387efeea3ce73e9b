package assign

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
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/pendingwrites"
	"github.com/gantry-lb/gantry/internal/view"
)

// loadLedgerTimeout bounds one reading of all objects.
const loadLedgerTimeout = 2 * time.Minute

// All Services are read at once for the first maxImmediateReloads causes of a reloadCountInterval,
// and not again before it has ended: somebody who deletes or writes the AddressLedger again and
// again must not make the API server list all Services as often. The interval is shorter than
// noProgressReadinessTimeout.
const (
	maxImmediateReloads = 3
	reloadCountInterval = 15 * time.Second
)

// reloadSchedule says when all Services may be read again.
type reloadSchedule struct {
	// reloadCount counts the readings since intervalStart.
	reloadCount             int
	intervalStart, earliest time.Time
	timer                   wakeTimer
}

// addReload counts a reading that is required now.
func (r *reloadSchedule) addReload(now time.Time) {
	end := r.intervalStart.Add(reloadCountInterval)
	switch r.earliest = now; {
	case !now.Before(end):
		r.intervalStart, r.reloadCount = now, 1
	case r.reloadCount < maxImmediateReloads:
		r.reloadCount++
	default:
		r.earliest, r.intervalStart, r.reloadCount = end, end, 1
	}
}

// isReloadDue says whether all Services may be read now. If it is too early, the worker is woken in
// time.
func (r *reloadSchedule) isReloadDue(now time.Time, q *workQueue) bool {
	if !now.Before(r.earliest) {
		return true
	}
	r.timer.wakeWorkerAt(r.earliest, now, q)
	return false
}

// loadLedgerOrRetry loads the Ledger, and tries again later if that fails.
func (r *ServiceWorker) loadLedgerOrRetry(ctx context.Context) {
	r.Log.Info("reading all Services", "cause", r.reloadCause)
	err := r.loadLedger(ctx)
	r.workerState.recordAttempt(r.Now(), phaseLoading, err == nil)
	if err == nil {
		r.Metrics.reloadsByCause.WithLabelValues(r.reloadCause).Inc()
		r.consecutiveLoadFailures = 0
		r.ledgerLoaded.Store(true)
		r.poolOrReservationStatusWriter.needsComparison = true
		return
	}
	r.Metrics.failedReloadsByCause.WithLabelValues(r.reloadCause).Inc()
	r.consecutiveLoadFailures++
	r.Log.Error("reading the addresses in use failed; no address is assigned until it succeeds", "error", err, "again", retryDelay(r.consecutiveLoadFailures))
	r.workQueue.wakeWorkerAfter(retryDelay(r.consecutiveLoadFailures))
}

// loadLedger builds a new Ledger from the AddressLedger and then from the status of all Services,
// both read from the API server itself. The order matters: a pending assignment that was closed
// before the first reading shows in the second. If two Services hold one address without a right to
// share it, the older one keeps it and the other one gets another.
func (r *ServiceWorker) loadLedger(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadLedgerTimeout)
	defer cancel()
	config, err := r.ConfigurationReader.ReadNow(ctx)
	if err != nil {
		return err
	}
	object, err := r.API.ReadOrCreateLedger(ctx, names.PendingAssignmentsLedger)
	if err == nil {
		object, err = r.unrecordedWritesInvalidator.ensureLedgerIsComplete(ctx, object, r.ledgerWriter.ledgerObject)
	}
	if err != nil {
		return err
	}
	memory, err := r.API.ReadOrCreateLedger(ctx, names.WithheldAddressesLedger)
	if err != nil {
		return err
	}
	intents, err := parsePendingEntries(object)
	if err != nil {
		return err
	}
	var claimants []minimalLoadedService
	seen := map[view.ObjectKey]*serviceRecord{}
	versions := map[view.ObjectKey]string{}
	open := pendingwrites.NewSet(intents)
	if before := r.ledgerWriter.pendingWrites; before != nil {
		open.AddPendingOfEarlierSet(before)
	}
	shown := map[view.ObjectKey]struct{}{} // the Services with a pending assignment
	// those of them that this controller does not serve
	unserved := map[view.ObjectKey]*corev1.Service{}
	for _, i := range open.ListOpenPending() {
		shown[i.Service] = struct{}{}
	}
	err = r.API.ForEachLiveService(ctx, func(s *corev1.Service) {
		v := view.FromService(s)
		if _, in := shown[v.Key]; in {
			versions[v.Key] = s.ResourceVersion
		}
		if !r.isServiceOurs(&v) {
			if hasOurStatusOrAnnotations(s) {
				r.workQueue.addAffectedServices(v.Key)
			}
			if _, in := shown[v.Key]; in {
				unserved[v.Key] = s
			}
			return
		}
		seen[v.Key] = &serviceRecord{uid: s.UID, newestResourceVersion: pendingwrites.ParseResourceVersion(s.ResourceVersion), resourceVersionMatchingLedger: pendingwrites.ParseResourceVersion(s.ResourceVersion)}
		if len(v.AssignedAddresses) == 0 {
			seen[v.Key].waitingSince = firstAddressWaitStart(s, r.Now())
		}
		claimants = append(claimants, toMinimalLoadedService(&v))
	})
	if err != nil {
		return err
	}
	left := open.RemoveClosedPending(func(k view.ObjectKey) (string, bool) { v, ok := versions[k]; return v, ok })
	for _, i := range left {
		if s := unserved[i.Service]; s != nil {
			seen[i.Service], claimants = &serviceRecord{uid: s.UID, newestResourceVersion: pendingwrites.ParseResourceVersion(s.ResourceVersion)}, append(claimants, toMinimalServiceWithPendingWrite(s))
		}
		// A list may be older than what another controller saw.
		if rec := seen[i.Service]; rec != nil {
			rec.newestResourceVersion = max(rec.newestResourceVersion, pendingwrites.ParseResourceVersion(i.BaseResourceVersion))
		}
	}
	r.ledger = r.withheldCheckpoint.newLedgerWithWithheldAddresses(memory, r.ledger, r.Now())
	r.configuration, r.ledgerBuildNumber = config, r.ledgerBuildNumber+1
	r.ledger.UseSnapshot(config.Snapshot)
	r.retirementScheduler.updateRetiringPools(config.Snapshot.Pools)
	r.ledgerWriter.pendingWrites, r.ledgerWriter.ledgerObject = open, object
	r.replaceServiceRecords(seen)
	r.recordAllAddressesInLedger(claimants, left)
	r.seenFreedAddressesVersion, r.seenShareableAddressesVersion = r.ledger.FreedAddressesVersion(), r.ledger.ShareableAddressesVersion()
	r.workQueue.markProbesChanged()
	r.Log.Info("the addresses in use have been read", "services", len(claimants), "pools", len(config.Snapshot.Pools), "pending", len(left))
	return nil
}

// replaceServiceRecords replaces the records of the Services. Writes that wait for the
// AddressLedger are decided again. Writes in flight continue, since their pending assignments are
// among those that were read.
func (r *ServiceWorker) replaceServiceRecords(seen map[view.ObjectKey]*serviceRecord) {
	for _, w := range r.ledgerWriter.writesAwaitingLedgerEntry {
		r.recordByService[w.service.Key].requestInFlight = false
	}
	r.ledgerWriter.writesAwaitingLedgerEntry, r.ledgerWriter.mustOmitEarlierEntries = nil, false
	for k, old := range r.recordByService {
		switch now := seen[k]; {
		case now != nil:
			now.requestInFlight, now.changedDuringRequest, now.consecutiveFailures = old.requestInFlight, old.changedDuringRequest, old.consecutiveFailures
			if old.uid == now.uid {
				now.newestResourceVersion, now.ledgerEntryRefused = max(now.newestResourceVersion, old.newestResourceVersion), old.ledgerEntryRefused
				now.edits = old.edits
				if !old.waitingSince.IsZero() && !now.waitingSince.IsZero() {
					now.waitingSince = old.waitingSince
				}
			}
		case old.requestInFlight:
			seen[k] = old
		default:
			r.waitingServices.removeService(k)
			r.servicesWithRefusedStatus.setIsRefused(k, false)
		}
	}
	r.recordByService = seen
}

// minimalLoadedService is the part of a Service that is needed to build the Ledger: small, because
// all of them are in memory at once.
type minimalLoadedService struct {
	view.ObjectKey
	createdUnix     int64
	statusAddresses []netip.Addr
	recordedPool    string
	// viewForSharingCheck is what decides whether it may share an address; nil when it does not
	// want to.
	viewForSharingCheck *view.Service
}

func toMinimalLoadedService(v *view.Service) minimalLoadedService {
	c := minimalLoadedService{ObjectKey: view.ObjectKey{Namespace: view.InternString(v.Key.Namespace), Name: v.Key.Name}, createdUnix: v.CreatedUnixSeconds, statusAddresses: v.AssignedAddresses, recordedPool: view.InternString(v.RecordedPool)}
	if v.SharingKey != "" {
		c.viewForSharingCheck = &view.Service{SharingKey: v.SharingKey, Ports: v.Ports, HasLocalTrafficPolicy: v.HasLocalTrafficPolicy, PodSelector: v.PodSelector}
	}
	return c
}

// toMinimalServiceWithPendingWrite is a Service of another class whose pending assignment is from a
// time when its class was served. It holds only what that assignment may still bring.
func toMinimalServiceWithPendingWrite(s *corev1.Service) minimalLoadedService {
	v := view.FromService(s)
	c := toMinimalLoadedService(&v)
	c.statusAddresses = nil
	return c
}

// toService returns a view with the addresses that the Service holds.
func (c *minimalLoadedService) toService() view.Service {
	var v view.Service
	if c.viewForSharingCheck != nil {
		v = *c.viewForSharingCheck
	}
	v.Key, v.CreatedUnixSeconds, v.AssignedAddresses, v.RecordedPool = c.ObjectKey, c.createdUnix, c.statusAddresses, c.recordedPool
	return v
}

// recordAllAddressesInLedger records what the Services hold, by their status and by pending
// assignments that may still arrive. Services without an address are decided first.
func (r *ServiceWorker) recordAllAddressesInLedger(all []minimalLoadedService, left []pendingwrites.PendingStatusWrite) {
	suspect := func(k view.ObjectKey) int {
		if _, is := r.servicesWithContestedAddresses[k]; is {
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(a, b minimalLoadedService) int {
		return cmp.Or(cmp.Compare(suspect(a.ObjectKey), suspect(b.ObjectKey)), cmp.Compare(a.createdUnix, b.createdUnix), a.ObjectKey.Compare(b.ObjectKey))
	})
	intents := map[view.ObjectKey][]netip.Addr{}
	for _, i := range left {
		intents[i.Service] = i.Addresses
	}
	for i := range all {
		c := &all[i]
		if len(c.statusAddresses) == 0 || len(intents[c.ObjectKey]) > 0 {
			r.workQueue.addChangedServices(c.ObjectKey)
		} else {
			r.workQueue.addAffectedServices(c.ObjectKey)
		}
		v := c.toService()
		commitHoldableAddresses(r.ledger, &v, c.statusAddresses)
	}
	for i := range all {
		if c := &all[i]; len(intents[c.ObjectKey]) > 0 {
			v := c.toService()
			commitHoldableAddresses(r.ledger, &v, allocate.UnionAddresses(c.statusAddresses, intents[c.ObjectKey]))
		}
	}
	clear(r.servicesWithContestedAddresses)
}

// commitHoldableAddresses records that a Service holds these addresses, without those that it
// cannot hold because of other holders. No third Service gets the rest, as long as the status of
// the Service shows it or a pending assignment may still bring it.
func commitHoldableAddresses(l *allocate.Ledger, v *view.Service, addresses []netip.Addr) {
	holdable := filterHoldableAddresses(l, v, addresses)
	if len(holdable) > 0 {
		l.CommitAssignment(v, holdable, v.RecordedPool)
	}
	withholdLostAddresses(l, v, addresses, holdable)
}

// withholdLostAddresses withholds what the status of a Service shows, or will perhaps show, beyond
// what it can hold.
func withholdLostAddresses(l *allocate.Ledger, v *view.Service, addresses, holdable []netip.Addr) {
	lost := slices.DeleteFunc(allocate.UnionAddresses(v.AssignedAddresses, addresses), func(a netip.Addr) bool { return slices.Contains(holdable, a) })
	l.WithholdAddressesUntilStatusWritten(v.Key, lost)
}

// filterHoldableAddresses returns the addresses without those that another Service holds and does
// not share with this one.
func filterHoldableAddresses(l *allocate.Ledger, v *view.Service, addresses []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return !l.CanShareWithHolders(a, v) })
}

// parsePendingEntries reads the AddressLedger. If it cannot be read, no address is assigned: to
// ignore it could assign an address twice.
func parsePendingEntries(l *v1alpha1.AddressLedger) ([]pendingwrites.PendingStatusWrite, error) {
	var out []pendingwrites.PendingStatusWrite
	for _, p := range l.Spec.Pending {
		i := pendingwrites.PendingStatusWrite{Service: view.ObjectKey{Namespace: p.Namespace, Name: p.Name}, BaseResourceVersion: p.Base}
		for _, text := range p.Addresses {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("reading AddressLedger %s/%s: Service %s: %w; only controllers may write it: delete it, and the controller creates it again",
					l.Namespace, l.Name, i.Service, err)
			}
			i.Addresses = append(i.Addresses, a)
		}
		out = append(out, i)
	}
	return out, nil
}

// encodePendingEntries is the reverse of parsePendingEntries.
func encodePendingEntries(intents []pendingwrites.PendingStatusWrite) []v1alpha1.PendingAssignment {
	var out []v1alpha1.PendingAssignment
	for _, i := range intents {
		p := v1alpha1.PendingAssignment{Namespace: i.Service.Namespace, Name: i.Service.Name, Base: i.BaseResourceVersion}
		for _, a := range i.Addresses {
			p.Addresses = append(p.Addresses, a.String())
		}
		out = append(out, p)
	}
	return out
}

// isServiceOurs says whether this controller serves the Service.
func (r *ServiceWorker) isServiceOurs(v *view.Service) bool {
	return v.IsLoadBalancer && v.LoadBalancerClass == r.LoadBalancerClass
}

// ledgerLogName is the name of the AddressLedger in messages.
func (r *ServiceWorker) ledgerLogName() string {
	return r.Namespace + "/" + names.PendingAssignmentsLedger
}
