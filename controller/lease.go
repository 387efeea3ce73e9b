package main

import (
	"context"
	"fmt"
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
)

// The times of the leader election. A leader that stops releases the lease, and another controller
// asks for it at most 1.1 s later (client-go waits for the retry period and up to 1.2 times as much
// again). After a crash the lease must expire first: another controller leads at most 7.2 s later.
// A pause longer than the lease ends the leadership, as does an API server that accepts no renewal
// for leaseRenewTimeout. The times are not what keeps an address from being assigned twice.
const (
	leaseTimeout       = 6 * time.Second
	leaseRenewTimeout  = 4 * time.Second
	leaseRetryInterval = 500 * time.Millisecond
	// leaseRequestTimeout bounds one request. An API server that needs two seconds for each answer
	// ends no leadership, nor does one request without an answer.
	leaseRequestTimeout = 2500 * time.Millisecond
	// takeoverBeforeLeaseExpiryInterval is how much earlier than the lease says another controller
	// takes over. It sees a renewal up to 1.1 s late, asks up to 1.1 s late again, and counts from
	// what it saw. The takeover stays after leaseRenewTimeout and one leaseRetryInterval, at which
	// the old leader has stopped.
	takeoverBeforeLeaseExpiryInterval = time.Second
)

// newControllerLeaseLock returns the Lease for the leader election, in Gantry's namespace.
func newControllerLeaseLock(config *rest.Config, scheme *runtime.Scheme, host, namespace string) (resourcelock.Interface, error) {
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
	return lockExpiringEarlyForOthers{lock}, err
}

// lockExpiringEarlyForOthers is a lock that expires for other controllers a little before the time
// in its record.
type lockExpiringEarlyForOthers struct{ resourcelock.Interface }

// Get returns the record and its encoded form, with takeoverBeforeLeaseExpiryInterval subtracted
// from the duration if another controller holds the lease.
func (l lockExpiringEarlyForOthers) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err != nil || record.HolderIdentity == l.Identity() {
		return record, raw, err
	}
	record.LeaseDurationSeconds = max(record.LeaseDurationSeconds-int(takeoverBeforeLeaseExpiryInterval/time.Second), 1)
	return record, raw, nil
}
