package reconcile

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/speaker/status"
)

// recentWrites are the ServiceL2Statuses that this node wrote or removed and that its cache does
// not show yet. Without them the next Status would write all of them again, and more often the
// busier the API server is. The zero value has none.
type recentWrites struct {
	mu                 sync.Mutex // informers and Run use it
	writesByObjectName map[string]recentWrite
}

type recentWrite struct {
	serviceL2Status status.ExistingServiceL2Status
	isRemoval       bool
	writtenAt       time.Time
}

// recentWriteTimeout is how long a write counts that the cache does not show. The API server may
// have lost it.
const recentWriteTimeout = 10 * time.Second

// recordWrite records a write before it is sent, so that its event comes later.
func (r *recentWrites) recordWrite(w recentWrite) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writesByObjectName == nil {
		r.writesByObjectName = map[string]recentWrite{}
	}
	r.writesByObjectName[w.serviceL2Status.ExistingObjectName] = w
}

// forgetWrite forgets a write that failed, or an object that is gone.
func (r *recentWrites) forgetWrite(objectName string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.writesByObjectName, objectName)
}

// forgetWriteIfCacheShows forgets a write that the cache shows.
func (r *recentWrites) forgetWriteIfCacheShows(o *v1beta1.ServiceL2Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w, known := r.writesByObjectName[o.Name]; known && !w.isRemoval && equality.Semantic.DeepEqual(w.serviceL2Status.Status, o.Status) {
		delete(r.writesByObjectName, o.Name)
	}
}

// overlayOnCachedStatuses returns what exists when the recent writes are added to what the cache
// shows.
func (r *recentWrites) overlayOnCachedStatuses(have []status.ExistingServiceL2Status, now time.Time) []status.ExistingServiceL2Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, w := range r.writesByObjectName {
		if now.Sub(w.writtenAt) >= recentWriteTimeout {
			delete(r.writesByObjectName, name)
		}
	}
	have = slices.DeleteFunc(have, func(e status.ExistingServiceL2Status) bool {
		_, replaced := r.writesByObjectName[e.ExistingObjectName]
		return replaced
	})
	for _, w := range r.writesByObjectName {
		if !w.isRemoval {
			have = append(have, w.serviceL2Status)
		}
	}
	return have
}
