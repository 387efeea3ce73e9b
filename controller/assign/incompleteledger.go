package assign

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/view"
)

// An incomplete AddressLedger does not list every write that may still arrive. These writes name a
// resourceVersion that their Service still has. So each Service gets another one before the
// addresses in use are read.

// invalidateUnrecordedWritesTimeout is how long a Service may prevent that, for example because a
// webhook of the cluster fails for it. It is longer than an API server lets any request take (60 s
// by default).
const invalidateUnrecordedWritesTimeout = 75 * time.Second

// unrecordedWritesInvalidator is how far the work for one incomplete AddressLedger is. A large
// cluster needs more than one attempt.
type unrecordedWritesInvalidator struct {
	ServiceWorkerOptions
	isServiceServed func(*view.Service) bool
	// recordOutcome counts a write. It is called from many goroutines.
	recordOutcome func(writeOutcome)
	// ledgerResourceVersion is the resourceVersion of that AddressLedger, begun when it was first
	// read.
	ledgerResourceVersion string
	ledgerFirstReadAt     time.Time
	// invalidatedServices are the Services without an unlisted write.
	invalidatedServices map[view.ObjectKey]struct{}
}

// ensureLedgerIsComplete makes an incomplete AddressLedger complete, and returns it. One whose
// unlisted writes are this controller's own stays as it is.
func (c *unrecordedWritesInvalidator) ensureLedgerIsComplete(ctx context.Context, object, known *v1alpha1.AddressLedger) (*v1alpha1.AddressLedger, error) {
	if !object.Spec.Incomplete || known != nil && known.ResourceVersion == object.ResourceVersion {
		return object, nil
	}
	if c.ledgerResourceVersion != object.ResourceVersion {
		c.ledgerResourceVersion, c.ledgerFirstReadAt, c.invalidatedServices = object.ResourceVersion, c.Now(), map[view.ObjectKey]struct{}{}
	}
	if err := c.invalidateUnrecordedWrites(ctx); err != nil {
		return nil, err
	}
	complete := object.DeepCopy()
	complete.Spec.Writer, complete.Spec.Incomplete = c.LedgerWriterIdentity, false
	written, err := c.API.CompareAndSwapLedger(ctx, complete)
	if isPermanentRefusal(err) { // the next pending assignment is refused too, and reported
		c.Log.Error("writing the AddressLedger failed", "ledger", c.Namespace+"/"+names.PendingAssignmentsLedger, "error", err)
		return object, nil
	}
	if err == nil {
		c.ledgerResourceVersion, c.invalidatedServices = "", nil
	}
	return written, err
}

// invalidateUnrecordedWrites gives each Service that this controller serves another
// resourceVersion. If no Service has a status of a controller, none has ever worked here.
func (c *unrecordedWritesInvalidator) invalidateUnrecordedWrites(ctx context.Context) error {
	var open []*corev1.Service
	isFirstStart := true
	err := c.API.ForEachLiveService(ctx, func(s *corev1.Service) {
		// MetalLB writes the same annotations, but not this condition.
		isFirstStart = isFirstStart && meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned) == nil
		v := view.FromService(s)
		// No more than is needed is copied, because there may be many.
		if _, done := c.invalidatedServices[v.Key]; c.isServiceServed(&v) && !done {
			open = append(open, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion, Generation: s.Generation},
				Status:     *s.Status.DeepCopy(),
			})
		}
	})
	if err != nil || isFirstStart {
		return err
	}
	c.Log.Info("the AddressLedger is new or incomplete; each Service gets another resourceVersion before an address is assigned", "ledger", c.Namespace+"/"+names.PendingAssignmentsLedger, "services", len(open))
	failed, err := c.bumpResourceVersions(ctx, open)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("giving %d Services another resourceVersion, because the AddressLedger is incomplete: %w", len(open), ctx.Err())
	case err == nil:
	case c.Now().Sub(c.ledgerFirstReadAt) < invalidateUnrecordedWritesTimeout:
		return fmt.Errorf("%d Services do not get another resourceVersion, which is needed because the AddressLedger is incomplete: %w", failed, err)
	default:
		c.Log.Error("Services do not get another resourceVersion, although the AddressLedger is incomplete; earlier writes to them have probably ended", "services", failed, "error", err, "duration", invalidateUnrecordedWritesTimeout)
	}
	return nil
}

// bumpResourceVersions writes the Services in parallel, and returns how many of them failed with
// the last error. A Service that has changed has another resourceVersion already.
func (c *unrecordedWritesInvalidator) bumpResourceVersions(ctx context.Context, all []*corev1.Service) (failed int, last error) {
	var mu sync.Mutex // guards the results and the closed Services
	var g errgroup.Group
	g.SetLimit(maxTasksInFlight)
	for _, s := range all {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			_, err := c.API.PatchStatusAndAnnotations(ctx, s, withBumpedCondition(s, names.ReasonNoAddress, c.Now()))
			o := outcomeOfError(err)
			mu.Lock()
			defer mu.Unlock()
			c.recordOutcome(o)
			switch o {
			case outcomeWritten, outcomeConflict, outcomeServiceGone:
				c.invalidatedServices[view.ObjectKey{Namespace: s.Namespace, Name: s.Name}] = struct{}{}
			case outcomeRefused, outcomeMaybeWritten:
				failed, last = failed+1, err
			}
			return nil
		})
	}
	_ = g.Wait()
	return failed, last
}
