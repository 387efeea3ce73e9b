// Package apitest is an in-memory API server for tests of package assign. It has Services and
// the AddressLedger with resourceVersions and conflicts like the real one, watched through caches
// that may be behind. A Server is safe for concurrent use. Each Client is one controller's
// connection to it, and can be made slow, faulty, or paused. It implements only what the worker
// needs, without validation.
package apitest

import (
	"fmt"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Server holds the objects. Its results must not be modified.
type Server struct {
	mu                  sync.Mutex // guards all that follows
	lastResourceVersion int64
	serviceByKey        map[view.ObjectKey]*corev1.Service
	poolByName          map[string]*v1beta1.IPAddressPool
	reservationByName   map[string]*v1alpha1.AddressReservation
	ledgerByName        map[string]*v1alpha1.AddressLedger
	probeByName         map[string]*v1alpha1.AddressProbe
	// serviceChanges are all changes of Services, for the watches. closedAtNextServiceChange is
	// closed at the next change and replaced.
	serviceChanges            []serviceChange
	closedAtNextServiceChange chan struct{}
	// writeRequestCountByKind counts requests that changed something; serviceReadCountByKind counts
	// those that read Services.
	writeRequestCountByKind, serviceReadCountByKind map[string]int
	onServiceChange                                 func(before, after *corev1.Service)
	// serviceWriteRefusal, unless nil, returns the error for a write of a Service's status.
	// refusedWriteCount counts those errors.
	serviceWriteRefusal func(*corev1.Service) error
	refusedWriteCount   int
	// isServiceWriteHanging, unless nil, says whether a write of a Service's status gets no answer.
	isServiceWriteHanging func(*corev1.Service) bool
	// ledgerWriteRefusal is the same for an AddressLedger.
	ledgerWriteRefusal func(*v1alpha1.AddressLedger) error
}

// serviceChange is a change of one Service; after is nil when it was deleted.
type serviceChange struct{ before, after *corev1.Service }

// NewServer returns an empty server. check, unless nil, is called with each change of a Service
// while nothing else can change.
func NewServer(check func(before, after *corev1.Service)) *Server {
	if check == nil {
		check = func(_, _ *corev1.Service) {}
	}
	return &Server{
		serviceByKey: map[view.ObjectKey]*corev1.Service{}, poolByName: map[string]*v1beta1.IPAddressPool{},
		reservationByName: map[string]*v1alpha1.AddressReservation{}, ledgerByName: map[string]*v1alpha1.AddressLedger{},
		probeByName:               map[string]*v1alpha1.AddressProbe{},
		closedAtNextServiceChange: make(chan struct{}), writeRequestCountByKind: map[string]int{}, serviceReadCountByKind: map[string]int{}, onServiceChange: check,
	}
}

func (s *Server) nextResourceVersion() string {
	s.lastResourceVersion++
	return strconv.FormatInt(s.lastResourceVersion, 10)
}

// storeOrDeleteService stores a Service and wakes the watches.
func (s *Server) storeOrDeleteService(k view.ObjectKey, now *corev1.Service) {
	before := s.serviceByKey[k]
	if now == nil {
		delete(s.serviceByKey, k)
	} else {
		now.ResourceVersion = s.nextResourceVersion()
		s.serviceByKey[k] = now
	}
	s.onServiceChange(before, now)
	s.serviceChanges = append(s.serviceChanges, serviceChange{before, now})
	close(s.closedAtNextServiceChange)
	s.closedAtNextServiceChange = make(chan struct{})
}

// CreateService adds a Service, or returns false when one with that name exists.
func (s *Server) CreateService(o *corev1.Service) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := view.ObjectKey{Namespace: o.Namespace, Name: o.Name}
	if s.serviceByKey[k] != nil {
		return false
	}
	o = o.DeepCopy()
	// Without a generation: the API server counts none for Services.
	o.UID = types.UID("uid-" + s.nextResourceVersion())
	o.CreationTimestamp = metav1.Unix(s.lastResourceVersion, 0)
	s.storeOrDeleteService(k, o)
	return true
}

// RefuseServiceWrites refuses writes of a Service's status, as an admission webhook or a quota
// does; nil allows all.
func (s *Server) RefuseServiceWrites(why func(*corev1.Service) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serviceWriteRefusal = why
}

// LetServiceWritesHang leaves the writes of the status of these Services without an answer; nil
// undoes it.
func (s *Server) LetServiceWritesHang(which func(*corev1.Service) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isServiceWriteHanging = which
}

// doesServiceWriteHang says whether a write of the Service's status gets no answer.
func (s *Server) doesServiceWriteHang(o *corev1.Service) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isServiceWriteHanging != nil && s.isServiceWriteHanging(o)
}

// RefuseLedgerWrites refuses writes of an AddressLedger; nil allows all.
func (s *Server) RefuseLedgerWrites(why func(*v1alpha1.AddressLedger) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledgerWriteRefusal = why
}

// CountRefusedWrites returns how many writes were refused.
func (s *Server) CountRefusedWrites() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusedWriteCount
}

// EditService changes a Service as a user does, or returns false when there is none.
func (s *Server) EditService(k view.ObjectKey, edit func(*corev1.Service)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serviceByKey[k] == nil {
		return false
	}
	o := s.serviceByKey[k].DeepCopy()
	edit(o)
	if o.Spec.Type != corev1.ServiceTypeLoadBalancer { // as the real one does
		o.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		o.Spec.LoadBalancerClass = nil
	}
	s.storeOrDeleteService(k, o)
	return true
}

// DeleteService removes a Service.
func (s *Server) DeleteService(k view.ObjectKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serviceByKey[k] != nil {
		s.storeOrDeleteService(k, nil)
	}
}

// ServiceByKey returns a Service, nil when there is none.
func (s *Server) ServiceByKey(k view.ObjectKey) *corev1.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serviceByKey[k]
}

// AllServices returns all Services, in no order.
func (s *Server) AllServices() []*corev1.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*corev1.Service, 0, len(s.serviceByKey))
	for _, o := range s.serviceByKey {
		out = append(out, o)
	}
	return out
}

// SetPool adds a pool or changes its spec. The test must notify the workers.
func (s *Server) SetPool(name string, spec v1beta1.IPAddressPoolSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{UID: types.UID("pool-" + name)}, Spec: spec}
	if old := s.poolByName[name]; old != nil {
		p = old.DeepCopy()
		p.Spec = spec
	}
	p.Namespace, p.Name, p.ResourceVersion = names.DefaultNamespace, name, s.nextResourceVersion()
	p.Generation++
	s.poolByName[name] = p
}

// AnnotatePool sets an annotation of a pool.
func (s *Server) AnnotatePool(name, key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.poolByName[name].DeepCopy()
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[key], p.ResourceVersion = value, s.nextResourceVersion()
	s.poolByName[name] = p
}

// SetReservation adds a reservation or changes its spec. The test must notify the workers.
func (s *Server) SetReservation(name string, spec v1alpha1.AddressReservationSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &v1alpha1.AddressReservation{ObjectMeta: metav1.ObjectMeta{UID: types.UID("reservation-" + name)}, Spec: spec}
	if old := s.reservationByName[name]; old != nil {
		r = old.DeepCopy()
		r.Spec = spec
	}
	r.Namespace, r.Name, r.ResourceVersion = names.DefaultNamespace, name, s.nextResourceVersion()
	r.Generation++
	s.reservationByName[name] = r
}

// ReservationByName returns a reservation, nil when there is none.
func (s *Server) ReservationByName(name string) *v1alpha1.AddressReservation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reservationByName[name]
}

// PoolByName returns a pool, nil when there is none.
func (s *Server) PoolByName(name string) *v1beta1.IPAddressPool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.poolByName[name]
}

// DeleteAllLedgers deletes the AddressLedgers.
func (s *Server) DeleteAllLedgers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.ledgerByName)
}

// OverwriteWithheldLedger writes the withheld addresses, as a foreign writer does.
func (s *Server) OverwriteWithheldLedger(all ...v1alpha1.WithheldAddress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.ledgerByName[names.WithheldAddressesLedger].DeepCopy()
	l.Spec.Withheld, l.ResourceVersion = all, s.nextResourceVersion()
	s.ledgerByName[names.WithheldAddressesLedger] = l
}

// LedgerByName returns the AddressLedger with that name, nil when there is none.
func (s *Server) LedgerByName(name string) *v1alpha1.AddressLedger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledgerByName[name]
}

// CountWriteRequestsOfKind returns how many requests changed something: "service", "ledger",
// "withheld", "pool" and "reservation".
func (s *Server) CountWriteRequestsOfKind(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writeRequestCountByKind[kind]
}

// CountServiceReads returns how many requests read Services: "list" for all of them, "service" for
// one.
func (s *Server) CountServiceReads(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serviceReadCountByKind[kind]
}

// recordServiceRead counts a request that reads Services.
func (s *Server) recordServiceRead(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serviceReadCountByKind[kind]++
}

func conflictError(resource, name string) error {
	return apierrors.NewConflict(schema.GroupResource{Resource: resource}, name, fmt.Errorf("the object has been modified"))
}

func notFoundError(resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name)
}

func (s *Server) patchService(before, after *corev1.Service) (*corev1.Service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := view.ObjectKey{Namespace: before.Namespace, Name: before.Name}
	switch now := s.serviceByKey[k]; {
	case now == nil:
		return nil, notFoundError("services", k.String())
	case now.ResourceVersion != before.ResourceVersion:
		return nil, conflictError("services", k.String())
	}
	if s.serviceWriteRefusal != nil {
		if err := s.serviceWriteRefusal(after); err != nil {
			s.refusedWriteCount++
			return nil, err
		}
	}
	s.writeRequestCountByKind["service"]++
	if now := s.serviceByKey[k]; equality.Semantic.DeepEqual(now.Status, after.Status) && equality.Semantic.DeepEqual(now.Annotations, after.Annotations) {
		return now, nil // a write that changes nothing leaves the resourceVersion as it is
	}
	merged := s.serviceByKey[k].DeepCopy()
	merged.Status = *after.Status.DeepCopy()
	for key := range before.Annotations {
		if _, kept := after.Annotations[key]; !kept {
			delete(merged.Annotations, key)
		}
	}
	for key, text := range after.Annotations {
		metav1.SetMetaDataAnnotation(&merged.ObjectMeta, key, text)
	}
	s.storeOrDeleteService(k, merged)
	return merged, nil
}

func (s *Server) compareAndSwapLedger(l *v1alpha1.AddressLedger) (*v1alpha1.AddressLedger, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ledgerByName[l.Name] == nil:
		return nil, notFoundError("addressledgers", l.Name)
	case s.ledgerByName[l.Name].ResourceVersion != l.ResourceVersion:
		return nil, conflictError("addressledgers", l.Name)
	}
	if s.ledgerWriteRefusal != nil {
		if err := s.ledgerWriteRefusal(l); err != nil {
			s.refusedWriteCount++
			return nil, err
		}
	}
	what := "ledger"
	if l.Name == names.WithheldAddressesLedger {
		what = "withheld"
	}
	s.writeRequestCountByKind[what]++
	l = l.DeepCopy()
	l.ResourceVersion = s.nextResourceVersion()
	s.ledgerByName[l.Name] = l
	return l, nil
}

func (s *Server) readOrCreateLedger(name string) *v1alpha1.AddressLedger {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledgerByName[name] == nil {
		s.ledgerByName[name] = &v1alpha1.AddressLedger{
			ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: name, ResourceVersion: s.nextResourceVersion()},
			Spec:       v1alpha1.AddressLedgerSpec{Incomplete: name == names.PendingAssignmentsLedger},
		}
	}
	return s.ledgerByName[name]
}

func (s *Server) updatePool(p *v1beta1.IPAddressPool) error {
	return replaceObjectIfVersionMatches(s, s.poolByName, "pool", "ipaddresspools", p.DeepCopy())
}

func (s *Server) updateReservation(p *v1alpha1.AddressReservation) error {
	return replaceObjectIfVersionMatches(s, s.reservationByName, "reservation", "addressreservations", p.DeepCopy())
}

// replaceObjectIfVersionMatches replaces an object, unless it was deleted or has another
// resourceVersion, and counts the write.
func replaceObjectIfVersionMatches[O metav1.Object](s *Server, all map[string]O, what, resource string, o O) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, exists := all[o.GetName()]
	switch {
	case !exists:
		return notFoundError(resource, o.GetName())
	case now.GetResourceVersion() != o.GetResourceVersion():
		return conflictError(resource, o.GetName())
	}
	s.writeRequestCountByKind[what]++
	o.SetResourceVersion(s.nextResourceVersion())
	all[o.GetName()] = o
	return nil
}

func (s *Server) allocationConfiguration() snapshot.ConfigurationObjects {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := snapshot.ConfigurationObjects{Namespace: names.DefaultNamespace}
	for _, p := range s.poolByName {
		o.Pools = append(o.Pools, *p)
	}
	for _, p := range s.reservationByName {
		o.Reservations = append(o.Reservations, *p)
	}
	return o
}

// servicesAndChangeCount returns the Services and the number of changes so far.
func (s *Server) servicesAndChangeCount() (map[view.ObjectKey]*corev1.Service, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[view.ObjectKey]*corev1.Service, len(s.serviceByKey))
	for k, o := range s.serviceByKey {
		out[k] = o
	}
	return out, len(s.serviceChanges)
}

// serviceChangesSince returns the changes after the first n, and a channel that is closed at the
// next change.
func (s *Server) serviceChangesSince(n int) ([]serviceChange, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serviceChanges[n:], s.closedAtNextServiceChange
}

// DropServiceChangesBeforeFirstClient drops the changes that all Clients have seen, for tests that
// measure memory.
func (s *Server) DropServiceChangesBeforeFirstClient() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serviceChanges = nil
}
