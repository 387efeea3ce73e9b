package assign

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// WorkerAPI is what the worker needs of the API server. Results of ReadCachedService and
// ReadCachedPoolsAndReservations may be old and must not be modified. Results of
// ReadLiveService and ForEachLiveService were true at the time of the call. Package apitest has one
// in memory.
type WorkerAPI interface {
	// ReadCachedService returns a Service from the cache, nil when the cache has none.
	ReadCachedService(context.Context, view.ObjectKey) (*corev1.Service, error)
	// ReadLiveService returns a Service, nil when there is none.
	ReadLiveService(context.Context, view.ObjectKey) (*corev1.Service, error)
	// ForEachLiveService calls visit for every Service, all as of one moment.
	ForEachLiveService(ctx context.Context, visit func(*corev1.Service)) error
	// ReadCachedPoolsAndReservations returns the pools and the reservations, with their status.
	ReadCachedPoolsAndReservations(context.Context) (snapshot.ConfigurationObjects, error)
	// PatchStatusAndAnnotations writes the difference in status and annotations, and returns the
	// Service as written. The API server refuses it as a conflict when the Service is not at the
	// resourceVersion of before.
	PatchStatusAndAnnotations(ctx context.Context, before, after *corev1.Service) (*corev1.Service, error)
	// UpdatePoolStatus writes the status of a pool.
	UpdatePoolStatus(context.Context, *v1beta1.IPAddressPool) error
	// UpdateReservationStatus writes the status of a reservation.
	UpdateReservationStatus(context.Context, *v1alpha1.AddressReservation) error
	// ReadCachedAddressProbes returns the AddressProbes in the cache.
	ReadCachedAddressProbes(context.Context) ([]v1alpha1.AddressProbe, error)
	// CreateOrReplaceProbe creates an AddressProbe, replaces one of the same name, and returns it.
	CreateOrReplaceProbe(context.Context, *v1alpha1.AddressProbe) (*v1alpha1.AddressProbe, error)
	// DeleteProbe deletes the AddressProbe with that name, if there is one.
	DeleteProbe(ctx context.Context, name string) error
	// ReadOrCreateLedger returns the AddressLedger with that name, and creates an empty one when
	// there is none. An AddressLedger of pending assignments is incomplete at first: the previous
	// one may have been deleted.
	ReadOrCreateLedger(ctx context.Context, name string) (*v1alpha1.AddressLedger, error)
	// CompareAndSwapLedger writes the AddressLedger and returns it as written. The API server
	// refuses it as a conflict when it is not the one that was read, and as not found when it was
	// deleted.
	CompareAndSwapLedger(context.Context, *v1alpha1.AddressLedger) (*v1alpha1.AddressLedger, error)
}

// ClientBackedAPI is the API of a real cluster.
type ClientBackedAPI struct {
	// CachedClient reads from the cache and writes to the API server.
	CachedClient client.Client
	// LiveReader reads from the API server itself.
	LiveReader client.Reader
	// Namespace holds the configuration and the AddressLedger.
	Namespace string
}

var _ WorkerAPI = (*ClientBackedAPI)(nil)

// listPageSize bounds one answer of the API server; a page of Services has about a megabyte.
const listPageSize = 1000

// ReadCachedService implements API.
func (c *ClientBackedAPI) ReadCachedService(ctx context.Context, k view.ObjectKey) (*corev1.Service, error) {
	return readService(ctx, c.CachedClient, k)
}

// ReadLiveService implements API.
func (c *ClientBackedAPI) ReadLiveService(ctx context.Context, k view.ObjectKey) (*corev1.Service, error) {
	return readService(ctx, c.LiveReader, k)
}

func readService(ctx context.Context, r client.Reader, k view.ObjectKey) (*corev1.Service, error) {
	var s corev1.Service
	err := r.Get(ctx, client.ObjectKey{Namespace: k.Namespace, Name: k.Name}, &s)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Service %s: %w", k, err)
	}
	return &s, nil
}

// ForEachLiveService implements API. The API server promises that the pages of a continued list are
// of one moment.
func (c *ClientBackedAPI) ForEachLiveService(ctx context.Context, visit func(*corev1.Service)) error {
	var next string
	for {
		var page corev1.ServiceList
		if err := c.LiveReader.List(ctx, &page, client.Limit(listPageSize), client.Continue(next)); err != nil {
			return fmt.Errorf("reading all Services: %w", err)
		}
		for i := range page.Items {
			visit(&page.Items[i])
		}
		if next = page.Continue; next == "" {
			return nil
		}
	}
}

// ReadCachedPoolsAndReservations implements API.
func (c *ClientBackedAPI) ReadCachedPoolsAndReservations(ctx context.Context) (snapshot.ConfigurationObjects, error) {
	var pools v1beta1.IPAddressPoolList
	if err := c.CachedClient.List(ctx, &pools, client.InNamespace(c.Namespace)); err != nil {
		return snapshot.ConfigurationObjects{}, fmt.Errorf("reading the pools: %w", err)
	}
	var reservations v1alpha1.AddressReservationList
	if err := c.CachedClient.List(ctx, &reservations, client.InNamespace(c.Namespace)); err != nil {
		return snapshot.ConfigurationObjects{}, fmt.Errorf("reading the reservations: %w", err)
	}
	return snapshot.ConfigurationObjects{Namespace: c.Namespace, Pools: pools.Items, Reservations: reservations.Items}, nil
}

// PatchStatusAndAnnotations implements API. It uses the status subresource, which accepts
// annotations too.
func (c *ClientBackedAPI) PatchStatusAndAnnotations(ctx context.Context, before, after *corev1.Service) (*corev1.Service, error) {
	patch, err := statusMergePatch(before, after)
	if err != nil {
		return nil, fmt.Errorf("encoding the status of Service %s/%s: %w", before.Namespace, before.Name, err)
	}
	written := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: before.Namespace, Name: before.Name}}
	if err := c.CachedClient.Status().Patch(ctx, written, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return nil, fmt.Errorf("writing the status of Service %s/%s: %w", before.Namespace, before.Name, err)
	}
	return written, nil
}

// statusMergePatch returns the merge patch (RFC 7386) that changes the status and annotations of
// one Service into those of the other. It does not touch what the cache does not store of a
// Service: each annotation is patched on its own, because removing the last known one would remove
// all others as well.
func statusMergePatch(before, after *corev1.Service) ([]byte, error) {
	b, a := &corev1.Service{Status: before.Status}, &corev1.Service{Status: after.Status}
	status, err := client.MergeFrom(b).Data(a)
	if err != nil {
		return nil, err
	}
	patch := map[string]any{}
	if err := json.Unmarshal(status, &patch); err != nil {
		return nil, err
	}
	metadata := map[string]any{"resourceVersion": before.ResourceVersion}
	annotations := map[string]any{}
	for k, v := range after.Annotations {
		if old, same := before.Annotations[k]; !same || old != v {
			annotations[k] = v
		}
	}
	for k := range before.Annotations {
		if _, still := after.Annotations[k]; !still {
			annotations[k] = nil
		}
	}
	if len(annotations) > 0 {
		metadata["annotations"] = annotations
	}
	patch["metadata"] = metadata
	return json.Marshal(patch)
}

// UpdatePoolStatus implements API. It writes the whole status, because the counters are required
// fields and a merge patch would omit those that are zero on both sides.
func (c *ClientBackedAPI) UpdatePoolStatus(ctx context.Context, p *v1beta1.IPAddressPool) error {
	if err := c.CachedClient.Status().Update(ctx, p); err != nil {
		return fmt.Errorf("writing the status of pool %q: %w", p.Name, err)
	}
	return nil
}

// UpdateReservationStatus implements API.
func (c *ClientBackedAPI) UpdateReservationStatus(ctx context.Context, o *v1alpha1.AddressReservation) error {
	if err := c.CachedClient.Status().Update(ctx, o); err != nil {
		return fmt.Errorf("writing the status of AddressReservation %q: %w", o.Name, err)
	}
	return nil
}

// ReadCachedAddressProbes implements API.
func (c *ClientBackedAPI) ReadCachedAddressProbes(ctx context.Context) ([]v1alpha1.AddressProbe, error) {
	var list v1alpha1.AddressProbeList
	if err := c.CachedClient.List(ctx, &list, client.InNamespace(c.Namespace)); err != nil {
		return nil, fmt.Errorf("reading the AddressProbes: %w", err)
	}
	return list.Items, nil
}

// CreateOrReplaceProbe implements API.
func (c *ClientBackedAPI) CreateOrReplaceProbe(ctx context.Context, p *v1alpha1.AddressProbe) (*v1alpha1.AddressProbe, error) {
	p = p.DeepCopy()
	p.Namespace = c.Namespace
	err := c.CachedClient.Create(ctx, p)
	if apierrors.IsAlreadyExists(err) { // left over from before a restart: its result is old
		if err = c.DeleteProbe(ctx, p.Name); err == nil {
			err = c.CachedClient.Create(ctx, p)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("creating AddressProbe %q for %s: %w", p.Name, p.Spec.Address, err)
	}
	return p, nil
}

// DeleteProbe implements API.
func (c *ClientBackedAPI) DeleteProbe(ctx context.Context, name string) error {
	p := &v1alpha1.AddressProbe{}
	p.Namespace, p.Name = c.Namespace, name
	if err := c.CachedClient.Delete(ctx, p); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting AddressProbe %q: %w", name, err)
	}
	return nil
}

// ReadOrCreateLedger implements API.
func (c *ClientBackedAPI) ReadOrCreateLedger(ctx context.Context, name string) (*v1alpha1.AddressLedger, error) {
	l := &v1alpha1.AddressLedger{}
	key := client.ObjectKey{Namespace: c.Namespace, Name: name}
	err := c.LiveReader.Get(ctx, key, l)
	if apierrors.IsNotFound(err) {
		l.Namespace, l.Name, l.Spec.Incomplete = key.Namespace, key.Name, name == names.PendingAssignmentsLedger
		// Another controller was faster.
		if err = c.CachedClient.Create(ctx, l); apierrors.IsAlreadyExists(err) {
			err = c.LiveReader.Get(ctx, key, l)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the AddressLedger %s: %w", key, err)
	}
	return l, nil
}

// CompareAndSwapLedger implements API.
func (c *ClientBackedAPI) CompareAndSwapLedger(ctx context.Context, l *v1alpha1.AddressLedger) (*v1alpha1.AddressLedger, error) {
	written := l.DeepCopy()
	// Managed fields say which client owns which field. With each write, the API server compares
	// the whole object with them, which takes time. Only controllers write the AddressLedger, so it
	// needs none. A single empty entry removes them.
	if len(written.ManagedFields) > 0 {
		written.ManagedFields = []metav1.ManagedFieldsEntry{{}}
	}
	if err := c.CachedClient.Update(ctx, written); err != nil {
		return nil, fmt.Errorf("writing the AddressLedger: %w", err)
	}
	return written, nil
}
