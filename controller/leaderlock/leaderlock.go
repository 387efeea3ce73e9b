// Package leaderlock has the Lease with which the controllers elect a leader. It also knows how
// long no controller led.
package leaderlock

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign"
)

// The times of the leader election. A leader that stops releases the lease, and another controller
// asks for it at most 1.1 s later (client-go waits for the retry period and up to 1.2 times as much
// again). After a crash the lease must expire first: another controller leads at most 7.2 s later.
// A pause longer than the lease ends the leadership, as does an API server that accepts no renewal
// for RenewTimeout. The times are not what keeps an address from being assigned twice.
const (
	LeaseTimeout  = 6 * time.Second
	RenewTimeout  = 4 * time.Second
	RetryInterval = 500 * time.Millisecond
	// leaseRequestTimeout bounds one request. An API server that needs two seconds for each answer
	// ends no leadership, nor does one request without an answer.
	leaseRequestTimeout = 2500 * time.Millisecond
	// takeoverBeforeLeaseExpiryInterval is how long before the end of the lease another controller
	// takes over. Without it, a takeover would be late: the other controller sees a renewal up to
	// 1.1 s late, counts from then, and asks again up to 1.1 s late. Even so, no takeover comes
	// before the old leader has stopped, after RenewTimeout and one RetryInterval.
	takeoverBeforeLeaseExpiryInterval = time.Second
)

// NewLeaseLock returns the Lease for the leader election, in Gantry's namespace.
func NewLeaseLock(config *rest.Config, scheme *runtime.Scheme, host, namespace string) (*EarlyExpiringLock, error) {
	own := rest.AddUserAgent(rest.CopyConfig(config), "leader-election")
	own.Timeout = leaseRequestTimeout
	leases, err := coordinationv1.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("setting up the election: %w", err)
	}
	core, err := typedcorev1.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("setting up the election: %w", err)
	}
	identity := host + "_" + string(uuid.NewUUID())
	events := record.NewBroadcaster()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: core.Events(namespace)})
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, namespace, names.LeaderLease, core, leases, resourcelock.ResourceLockConfig{
		Identity: identity, EventRecorder: events.NewRecorder(scheme, corev1.EventSource{Component: identity}),
	})
	return &EarlyExpiringLock{Interface: lock}, err
}

// EarlyExpiringLock is a lock that expires for other controllers a little before the time in its
// record. It remembers how long no controller led.
type EarlyExpiringLock struct {
	resourcelock.Interface

	mu                  sync.Mutex // guards all that follows
	lastRenewalByOthers time.Time
	isHeld              bool
	leaderAbsence       assign.LeaderAbsence
}

// Get returns the record and its encoded form, with takeoverBeforeLeaseExpiryInterval subtracted
// from the duration if another controller holds the lease.
func (l *EarlyExpiringLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err != nil || record.HolderIdentity == l.Identity() {
		return record, raw, err
	}
	l.mu.Lock()
	l.lastRenewalByOthers, l.isHeld = record.RenewTime.Time, false
	l.mu.Unlock()
	record.LeaseDurationSeconds = max(record.LeaseDurationSeconds-int(takeoverBeforeLeaseExpiryInterval/time.Second), 1)
	return record, raw, nil
}

// Update writes the record. The first one that names this controller ends the absence of a leader.
func (l *EarlyExpiringLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if err := l.Interface.Update(ctx, record); err != nil || record.HolderIdentity != l.Identity() {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.isHeld && !l.lastRenewalByOthers.IsZero() {
		l.leaderAbsence = assign.LeaderAbsence{Since: l.lastRenewalByOthers, Until: record.RenewTime.Time}
	}
	l.isHeld = true
	return nil
}

// LeaderAbsence returns how long no controller led before this one.
func (l *EarlyExpiringLock) LeaderAbsence() assign.LeaderAbsence {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaderAbsence
}
