package assign

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// assignmentOracle checks every change on the server, slowly and without the code that it checks.
type assignmentOracle struct {
	mu                     sync.Mutex // guards all that follows
	serviceByKey           map[view.ObjectKey]*corev1.Service
	isAddressChangeAllowed map[view.ObjectKey]bool // the user gave a reason to change the address
	// sharingKeysWithEditedPorts holds the sharing keys of Services whose ports were edited. A
	// controller may learn late which of them may share, so the oracle judges them only at the end.
	sharingKeysWithEditedPorts map[string]bool
	retiredRanges              retiredRanges
	faults                     []string
}

func newAssignmentOracle() *assignmentOracle {
	return &assignmentOracle{serviceByKey: map[view.ObjectKey]*corev1.Service{}, isAddressChangeAllowed: map[view.ObjectKey]bool{}, sharingKeysWithEditedPorts: map[string]bool{}}
}

// recordRetiredRanges records that a pool retires these entries.
func (o *assignmentOracle) recordRetiredRanges(entries []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, text := range entries {
		o.retiredRanges = append(o.retiredRanges, parseTestRange(text))
	}
}

func ingressAddresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	if s != nil {
		for _, in := range s.Status.LoadBalancer.Ingress {
			out = append(out, netip.MustParseAddr(in.IP))
		}
	}
	return out
}

// maySharePerOracle is the right to share, for Services of policy Cluster with one port each.
func maySharePerOracle(a, b *corev1.Service) bool {
	k := a.Annotations[names.AnnotationSharingKey]
	return k != "" && k == b.Annotations[names.AnnotationSharingKey] && a.Spec.Ports[0].Port != b.Spec.Ports[0].Port
}

// userAnnotations returns a Service's annotations without ours.
func userAnnotations(s *corev1.Service) map[string]string {
	out := maps.Clone(s.Annotations)
	delete(out, names.AnnotationAllocatedFromPool)
	delete(out, names.AnnotationAllocatedFromSeveralPools)
	return out
}

// checkServiceChange is called for every change of a Service.
func (o *assignmentOracle) checkServiceChange(before, after *corev1.Service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if after == nil {
		k := view.ObjectKey{Namespace: before.Namespace, Name: before.Name}
		delete(o.serviceByKey, k)
		delete(o.isAddressChangeAllowed, k)
		return
	}
	k := view.ObjectKey{Namespace: after.Namespace, Name: after.Name}
	o.serviceByKey[k] = after
	if before != nil && (!reflect.DeepEqual(before.Spec, after.Spec) || !maps.Equal(userAnnotations(before), userAnnotations(after))) {
		// until it is created again: a controller may notice late
		o.isAddressChangeAllowed[k] = true
		if shared := after.Annotations[names.AnnotationSharingKey]; shared != "" && !reflect.DeepEqual(before.Spec.Ports, after.Spec.Ports) {
			o.sharingKeysWithEditedPorts[shared] = true
		}
		return
	}
	for _, a := range ingressAddresses(after) {
		if slices.Contains(ingressAddresses(before), a) {
			continue
		}
		for other, s := range o.serviceByKey {
			if other != k && slices.Contains(ingressAddresses(s), a) && !maySharePerOracle(s, after) && !o.haveSharingKeyWithEditedPorts(s, after) {
				o.faults = append(o.faults, fmt.Sprintf("%s was given %s, which %s holds", k, a, other))
			}
		}
	}
	for _, a := range ingressAddresses(before) {
		if !o.isAddressChangeAllowed[k] && !o.haveSharingKeyWithEditedPorts(after, after) && !slices.Contains(ingressAddresses(after), a) && !o.retiredRanges.isExchangeOfRetiredAddress(a, before, after) {
			o.faults = append(o.faults, fmt.Sprintf("%s was taken from %s without a reason: %v", a, k, after.Status.Conditions))
		}
	}
}

// haveSharingKeyWithEditedPorts says whether two Services have one sharing key, among whose
// Services ports were edited.
func (o *assignmentOracle) haveSharingKeyWithEditedPorts(a, b *corev1.Service) bool {
	k := a.Annotations[names.AnnotationSharingKey]
	return o.sharingKeysWithEditedPorts[k] && k == b.Annotations[names.AnnotationSharingKey]
}

// TestTwoControllersNeverGiveOneAddressTwice runs two controllers at once with slow and faulty
// connections to the API server, caches that are behind, pauses, crashes with requests in flight,
// and a user who creates, edits and deletes. No two Services may ever hold an address that they may
// not share, no Service may lose an address that it did not give up, and in the end all are served.
func TestTwoControllersNeverGiveOneAddressTwice(t *testing.T) {
	setDefaultRapidCheckCount(t, "400")
	rapid.Check(t, func(rt *rapid.T) {
		h := userHistoryGenerator().Draw(rt, "history")
		o := newAssignmentOracle()
		var leaks []string
		runWithFakeTime(t, func(t *testing.T) {
			w := newTwoControllerHarness(t, o, h.seed)
			for _, s := range h.steps {
				w.runHistoryStep(s)
			}
			w.repairFaultsAndAwaitQuiet()
			leaks = append(w.findFinalFaults(), w.retirePoolAndFindUnmovedServices()...)
			writes := w.server.CountWriteRequestsOfKind("service") + w.server.CountWriteRequestsOfKind("ledger") + w.server.CountWriteRequestsOfKind("pool")
			time.Sleep(5 * time.Minute)
			if n := w.server.CountWriteRequestsOfKind("service") + w.server.CountWriteRequestsOfKind("ledger") + w.server.CountWriteRequestsOfKind("pool") - writes; n > 0 {
				leaks = append(leaks, fmt.Sprintf("%d more writes when nothing happens", n))
			}
			for _, c := range w.controllers {
				c.stopAndWait()
				if n := c.ledgerWriter.pendingWrites.CountPending(); n > 0 {
					leaks = append(leaks, fmt.Sprintf("%d pending assignments stay open when nothing happens", n))
				}
			}
			time.Sleep(time.Minute) // until all sent requests have arrived
		})
		for _, f := range append(o.faults, leaks...) {
			rt.Error(f)
		}
	})
}

// setDefaultRapidCheckCount makes rapid try this many histories instead of its default of 100,
// unless the command line has a number, as `make histories` does.
func setDefaultRapidCheckCount(t *testing.T, count string) {
	t.Helper()
	checks := flag.Lookup("rapid.checks")
	if checks.Value.String() != checks.DefValue {
		return
	}
	if err := checks.Value.Set(count); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := checks.Value.Set(checks.DefValue); err != nil {
			t.Error(err)
		}
	})
}
