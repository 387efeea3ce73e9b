package configurationreader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	ctrlcache "sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// ReadAllObjects reads all objects that make up the configuration of the controller, except for the
// Secrets of BGPPeers.
func ReadAllObjects(ctx context.Context, c client.Reader, scope configuration.ConfigurationScope) (snapshot.ConfigurationObjects, error) {
	o, err := scope.ReadObjects(ctx, c)
	if err != nil {
		return o, err
	}
	var reservations v1alpha1.AddressReservationList
	if err := c.List(ctx, &reservations, client.InNamespace(scope.Namespace)); err != nil {
		return o, fmt.Errorf("reading the reservations: %w", err)
	}
	o.Reservations = reservations.Items
	var errNodes, errNamespaces error
	o.Nodes, errNodes = configuration.ReadNodes(ctx, c)
	o.Namespaces, errNamespaces = configuration.ReadNamespaces(ctx, c)
	return o, errors.Join(errNodes, errNamespaces)
}

// RegisterReader starts the Reader with mgr, and reports the changes in mgr's cache to it.
func (r *Reader) RegisterReader(ctx context.Context, mgr manager.Manager, scope configuration.ConfigurationScope) error {
	handlers := map[client.Object]cache.ResourceEventHandler{
		configuration.NewMetadataObject("Namespace"): r.selectedNamespaceEventHandler(),
		configuration.NewMetadataObject("Node"):      newConfigurationEventHandler(r.NotifyAnnouncementObjectChanged),
		&v1alpha1.AddressReservation{}:               newConfigurationEventHandler(r.NotifyAllocationObjectChanged),
	}
	for _, o := range scope.WatchedKinds() {
		handlers[o] = newConfigurationEventHandler(r.NotifyAnnouncementObjectChanged)
		if _, pool := o.(*v1beta1.IPAddressPool); pool {
			handlers[o] = newConfigurationEventHandler(r.NotifyAllocationObjectChanged)
		}
	}
	for o, handler := range handlers {
		// The API server may be unreachable: mgr waits for the cache when it starts.
		informer, err := mgr.GetCache().GetInformer(ctx, o, ctrlcache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watching %T: %w", o, err)
		}
		if _, err := informer.AddEventHandler(handler); err != nil {
			return fmt.Errorf("watching %T: %w", o, err)
		}
	}
	if err := mgr.Add(r); err != nil {
		return fmt.Errorf("setting up the reading of the configuration: %w", err)
	}
	return nil
}

// newConfigurationEventHandler calls notify for each change that may change the configuration.
func newConfigurationEventHandler(notify func()) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, DeleteFunc: func(any) { notify() },
		UpdateFunc: func(o, n any) {
			before, ok1 := o.(client.Object)
			after, ok2 := n.(client.Object)
			if !ok1 || !ok2 || canUpdateAffectConfiguration(before, after) {
				notify()
			}
		},
	}
}

// selectedNamespaceEventHandler reports a Namespace only if the namespace selector of a pool sees
// the change: other Namespaces come, go and change all day in some clusters.
func (r *Reader) selectedNamespaceEventHandler() cache.ResourceEventHandler {
	notifyIfSelected := func(o any) {
		if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = unknown.Obj
		}
		n, ok := o.(client.Object)
		if !ok || r.canNamespaceAffectConfiguration(func(c *Configuration) bool { return slices.Contains(c.matchNamespaceSelectors(n.GetLabels()), true) }) {
			r.NotifyAllocationObjectChanged()
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: notifyIfSelected, DeleteFunc: notifyIfSelected,
		UpdateFunc: func(o, n any) {
			before, ok1 := o.(client.Object)
			after, ok2 := n.(client.Object)
			if ok1 && ok2 && maps.Equal(before.GetLabels(), after.GetLabels()) {
				return
			}
			if !ok1 || !ok2 || r.canNamespaceAffectConfiguration(func(c *Configuration) bool {
				return !slices.Equal(c.matchNamespaceSelectors(before.GetLabels()), c.matchNamespaceSelectors(after.GetLabels()))
			}) {
				r.NotifyAllocationObjectChanged()
			}
		},
	}
}

// canNamespaceAffectConfiguration reports whether a change of a Namespace counts by the published
// configuration. It does while another change waits to be read, because that one may bring a new
// selector.
func (r *Reader) canNamespaceAffectConfiguration(counts func(*Configuration) bool) bool {
	// The order matters: what is published has all changes that were read before.
	if r.HasUnreadChange() {
		return true
	}
	c := r.publishedConfiguration.Load()
	return c == nil || counts(c)
}

// canUpdateAffectConfiguration reports whether an update of an object may change the configuration.
// The status of an object is not part of it. Of Nodes and Namespaces only the labels count, and of
// a pool one annotation does.
func canUpdateAffectConfiguration(before, after client.Object) bool {
	if before.GetUID() != after.GetUID() || before.GetGeneration() != after.GetGeneration() || !maps.Equal(before.GetLabels(), after.GetLabels()) {
		return true
	}
	_, isPool := after.(*v1beta1.IPAddressPool)
	return isPool && before.GetAnnotations()[names.AnnotationLiftWithheld] != after.GetAnnotations()[names.AnnotationLiftWithheld]
}

func generationsByUID(o *snapshot.ConfigurationObjects) map[types.UID]int64 {
	out := map[types.UID]int64{}
	addGenerations(out, o.Pools)
	addGenerations(out, o.Reservations)
	addGenerations(out, o.L2Advertisements)
	addGenerations(out, o.BGPAdvertisements)
	addGenerations(out, o.BGPPeers)
	addGenerations(out, o.BFDProfiles)
	addGenerations(out, o.Communities)
	return out
}

func addGenerations[T any, P interface {
	*T
	metav1.Object
}](into map[types.UID]int64, objects []T) {
	for i := range objects {
		o := P(&objects[i])
		into[o.GetUID()] = o.GetGeneration()
	}
}
