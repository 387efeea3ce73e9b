package reconcile

import (
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/internal/view"
)

// UIDByServiceIndex has the UIDs of the Services of type LoadBalancer, which an event about a
// Service needs. A ClusterFeed fills it. Any goroutine may read it.
type UIDByServiceIndex struct {
	mu           sync.Mutex
	uidByService map[view.ObjectKey]types.UID
}

// NewUIDByServiceIndex returns a UIDByServiceIndex without Services.
func NewUIDByServiceIndex() *UIDByServiceIndex {
	return &UIDByServiceIndex{uidByService: map[view.ObjectKey]types.UID{}}
}

// ServiceReference returns the Service for an event, or nil if there is no such Service of type
// LoadBalancer.
func (x *UIDByServiceIndex) ServiceReference(k view.ObjectKey) *corev1.Service {
	x.mu.Lock()
	defer x.mu.Unlock()
	uid, ok := x.uidByService[k]
	if !ok {
		return nil
	}
	s := &corev1.Service{}
	s.Namespace, s.Name, s.UID = k.Namespace, k.Name, uid
	return s
}

func (x *UIDByServiceIndex) setServiceUID(k view.ObjectKey, uid types.UID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.uidByService[k] = uid
}

// removeService removes a Service and reports whether the index had it.
func (x *UIDByServiceIndex) removeService(k view.ObjectKey) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, known := x.uidByService[k]
	delete(x.uidByService, k)
	return known
}

// copyUIDs returns the UIDs of all Services, in a map that the caller may change.
func (x *UIDByServiceIndex) copyUIDs() map[view.ObjectKey]types.UID {
	x.mu.Lock()
	defer x.mu.Unlock()
	return maps.Clone(x.uidByService)
}
