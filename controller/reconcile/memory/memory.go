// Package memory is an API server for tests of package reconcile, in the memory of the process: Services and the AddressLedger with
// resourceVersions and conflicts as the real one has them, watched through caches that may lag. A Server is safe for
// concurrent use; each Client is one controller's way to it, and can be made slow, faulty, or paused. It knows what the worker
// needs and nothing else, and no rule of validation.
package memory

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

// Server holds the objects. What it hands out must not be changed.
type Server struct {
	mu           sync.Mutex // guards all that follows
	version      int64
	services     map[view.ObjectKey]*corev1.Service
	pools        map[string]*v1beta1.IPAddressPool
	reservations map[string]*v1alpha1.AddressReservation
	ledgers      map[string]*v1alpha1.AddressLedger
	probes       map[string]*v1alpha1.AddressProbe
	// changes are all that happened to Services, for the watches; moved is closed at the next, and made anew.
	changes []change
	moved   chan struct{}
	// writes counts requests that changed something, reads those that asked for Services, by kind.
	writes, reads map[string]int
	check         func(before, after *corev1.Service)
	// refuse, unless nil, says why a write of a Service's status is not wanted; refused counts those.
	refuse  func(*corev1.Service) error
	refused int
	// refuseLedger is the same for an AddressLedger.
	refuseLedger func(*v1alpha1.AddressLedger) error
}

// change is what happened to one Service: after is nil when it was deleted.
type change struct{ before, after *corev1.Service }

// NewServer returns an empty one. check, unless nil, is called with each change of a Service while nothing else can change.
func NewServer(check func(before, after *corev1.Service)) *Server {
	if check == nil {
		check = func(_, _ *corev1.Service) {}
	}
	return &Server{
		services: map[view.ObjectKey]*corev1.Service{}, pools: map[string]*v1beta1.IPAddressPool{},
		reservations: map[string]*v1alpha1.AddressReservation{}, ledgers: map[string]*v1alpha1.AddressLedger{},
		probes: map[string]*v1alpha1.AddressProbe{},
		moved:  make(chan struct{}), writes: map[string]int{}, reads: map[string]int{}, check: check,
	}
}

func (s *Server) next() string {
	s.version++
	return strconv.FormatInt(s.version, 10)
}

// put stores a Service and tells the watches.
func (s *Server) put(k view.ObjectKey, now *corev1.Service) {
	before := s.services[k]
	if now == nil {
		delete(s.services, k)
	} else {
		now.ResourceVersion = s.next()
		s.services[k] = now
	}
	s.check(before, now)
	s.changes = append(s.changes, change{before, now})
	close(s.moved)
	s.moved = make(chan struct{})
}

// Create adds a Service, or returns false when one of that name exists.
func (s *Server) Create(o *corev1.Service) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := view.ObjectKey{Namespace: o.Namespace, Name: o.Name}
	if s.services[k] != nil {
		return false
	}
	o = o.DeepCopy()
	o.UID = types.UID("uid-" + s.next()) // and no generation: the API server counts none for Services
	o.CreationTimestamp = metav1.Unix(s.version, 0)
	s.put(k, o)
	return true
}

// Refuse has writes of a Service's status refused as somebody's admission webhook or quota does; nil allows all.
func (s *Server) Refuse(why func(*corev1.Service) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = why
}

// RefuseLedger has writes of an AddressLedger refused; nil allows all.
func (s *Server) RefuseLedger(why func(*v1alpha1.AddressLedger) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuseLedger = why
}

// Refused returns how many writes were refused so.
func (s *Server) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// Edit changes a Service as a user does, or returns false when there is none.
func (s *Server) Edit(k view.ObjectKey, edit func(*corev1.Service)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.services[k] == nil {
		return false
	}
	o := s.services[k].DeepCopy()
	edit(o)
	if o.Spec.Type != corev1.ServiceTypeLoadBalancer { // as the real one does
		o.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		o.Spec.LoadBalancerClass = nil
	}
	s.put(k, o)
	return true
}

// Delete removes a Service.
func (s *Server) Delete(k view.ObjectKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.services[k] != nil {
		s.put(k, nil)
	}
}

// Service returns a Service, nil when there is none.
func (s *Server) Service(k view.ObjectKey) *corev1.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.services[k]
}

// Services returns all of them, in no order.
func (s *Server) Services() []*corev1.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*corev1.Service, 0, len(s.services))
	for _, o := range s.services {
		out = append(out, o)
	}
	return out
}

// SetPool adds a pool or changes its spec; the workers have to be told.
func (s *Server) SetPool(name string, spec v1beta1.IPAddressPoolSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &v1beta1.IPAddressPool{Spec: spec}
	if old := s.pools[name]; old != nil {
		p = old.DeepCopy()
		p.Spec = spec
	}
	p.Namespace, p.Name, p.ResourceVersion = names.Namespace, name, s.next()
	p.Generation++
	s.pools[name] = p
}

// DeletePool removes a pool; the workers have to be told.
func (s *Server) DeletePool(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pools, name)
}

// SetReservation adds a reservation or changes its spec; the workers have to be told.
func (s *Server) SetReservation(name string, spec v1alpha1.AddressReservationSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &v1alpha1.AddressReservation{Spec: spec}
	if old := s.reservations[name]; old != nil {
		p = old.DeepCopy()
		p.Spec = spec
	}
	p.Namespace, p.Name, p.ResourceVersion = names.Namespace, name, s.next()
	p.Generation++
	s.reservations[name] = p
}

// Reservation returns a reservation, nil when there is none.
func (s *Server) Reservation(name string) *v1alpha1.AddressReservation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reservations[name]
}

// Pool returns a pool, nil when there is none.
func (s *Server) Pool(name string) *v1beta1.IPAddressPool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pools[name]
}

// LoseLedger deletes the AddressLedgers.
func (s *Server) LoseLedger() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.ledgers)
}

// SetWithheld writes what is withheld as a stranger does.
func (s *Server) SetWithheld(all ...v1alpha1.WithheldAddress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.ledgers[names.WithheldLedger].DeepCopy()
	l.Spec.Withheld, l.ResourceVersion = all, s.next()
	s.ledgers[names.WithheldLedger] = l
}

// Ledger returns the AddressLedger of that name, nil when there is none.
func (s *Server) Ledger(name string) *v1alpha1.AddressLedger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledgers[name]
}

// Writes returns how many requests changed something: "service", "ledger", "withheld", "pool" and "reservation".
func (s *Server) Writes(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes[kind]
}

// Reads returns how many requests asked for Services: "list" for all of them, "service" for one.
func (s *Server) Reads(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[kind]
}

// countRead counts a request that asks for Services.
func (s *Server) countRead(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads[kind]++
}

func conflict(resource, name string) error {
	return apierrors.NewConflict(schema.GroupResource{Resource: resource}, name, fmt.Errorf("the object has been modified"))
}

func missing(resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name)
}

func (s *Server) patch(before, after *corev1.Service) (*corev1.Service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := view.ObjectKey{Namespace: before.Namespace, Name: before.Name}
	switch now := s.services[k]; {
	case now == nil:
		return nil, missing("services", k.String())
	case now.ResourceVersion != before.ResourceVersion:
		return nil, conflict("services", k.String())
	}
	if s.refuse != nil {
		if err := s.refuse(after); err != nil {
			s.refused++
			return nil, err
		}
	}
	s.writes["service"]++
	if now := s.services[k]; equality.Semantic.DeepEqual(now.Status, after.Status) && equality.Semantic.DeepEqual(now.Annotations, after.Annotations) {
		return now, nil // a write that changes nothing leaves the resourceVersion as it is
	}
	after = after.DeepCopy()
	s.put(k, after)
	return after, nil
}

func (s *Server) swap(l *v1alpha1.AddressLedger) (*v1alpha1.AddressLedger, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ledgers[l.Name] == nil:
		return nil, missing("addressledgers", l.Name)
	case s.ledgers[l.Name].ResourceVersion != l.ResourceVersion:
		return nil, conflict("addressledgers", l.Name)
	}
	if s.refuseLedger != nil {
		if err := s.refuseLedger(l); err != nil {
			s.refused++
			return nil, err
		}
	}
	what := "ledger"
	if l.Name == names.WithheldLedger {
		what = "withheld"
	}
	s.writes[what]++
	l = l.DeepCopy()
	l.ResourceVersion = s.next()
	s.ledgers[l.Name] = l
	return l, nil
}

func (s *Server) readLedger(name string) *v1alpha1.AddressLedger {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledgers[name] == nil {
		s.ledgers[name] = &v1alpha1.AddressLedger{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: name, ResourceVersion: s.next()}}
	}
	return s.ledgers[name]
}

func (s *Server) updatePool(p *v1beta1.IPAddressPool) error {
	return update(s, s.pools, "pool", "ipaddresspools", p.DeepCopy())
}

func (s *Server) updateReservation(p *v1alpha1.AddressReservation) error {
	return update(s, s.reservations, "reservation", "addressreservations", p.DeepCopy())
}

// update replaces an object among all of its kind, unless it is gone or another than it was; writes counts it.
func update[O metav1.Object](s *Server, all map[string]O, what, resource string, o O) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, exists := all[o.GetName()]
	switch {
	case !exists:
		return missing(resource, o.GetName())
	case now.GetResourceVersion() != o.GetResourceVersion():
		return conflict(resource, o.GetName())
	}
	s.writes[what]++
	o.SetResourceVersion(s.next())
	all[o.GetName()] = o
	return nil
}

func (s *Server) allPools() snapshot.Objects {
	s.mu.Lock()
	defer s.mu.Unlock()
	var o snapshot.Objects
	for _, p := range s.pools {
		o.Pools = append(o.Pools, *p)
	}
	for _, p := range s.reservations {
		o.Reservations = append(o.Reservations, *p)
	}
	return o
}

// all returns the Services and how many changes led to them.
func (s *Server) all() (map[view.ObjectKey]*corev1.Service, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[view.ObjectKey]*corev1.Service, len(s.services))
	for k, o := range s.services {
		out[k] = o
	}
	return out, len(s.changes)
}

// since returns what changed after the first n changes, and a channel that is closed when more has.
func (s *Server) since(n int) ([]change, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes[n:], s.moved
}

// Forget lets go of the changes that all Clients have seen by now; it is for tests that measure memory before there are any.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes = nil
}
