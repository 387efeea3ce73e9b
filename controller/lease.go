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

// The times of the election. A leader that stops lets go, and the other asks at most 1.1 s later (client-go waits for the retry
// period and up to 1.2 times as much again). After a crash it waits for the lease to run out. A pause that is longer than
// the lease ends the leadership; that no address is given twice does not depend on these times.
const (
	leaseTimeout  = 10 * time.Second
	renewTimeout  = 6 * time.Second
	retryInterval = 500 * time.Millisecond
	// earlyTakeoverInterval is how much earlier than the lease says another controller asks for it. It sees a renewal up to 1.1 s late and asks up to
	// 1.1 s late again, and counts from what it saw; with this the address after a crash comes within the lease's time all the same. It
	// stays well behind the renew deadline, at which the old leader has ended itself.
	earlyTakeoverInterval = 2 * time.Second
)

// newLeaseLock is the Lease by which controllers elect their leader, in the gantry namespace.
func newLeaseLock(config *rest.Config, scheme *runtime.Scheme, host, namespace string) (resourcelock.Interface, error) {
	own := rest.AddUserAgent(rest.CopyConfig(config), "leader-election")
	own.Timeout = renewTimeout / 2 // one request without an answer is not yet the end of a leadership
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
	return earlyExpiringLock{lock}, err
}

// earlyExpiringLock is a lock whose holder is taken for dead a little before the time that its record names.
type earlyExpiringLock struct{ resourcelock.Interface }

// Get returns the record and its encoded form as they are, but with the slack taken off the time of somebody else's.
func (l earlyExpiringLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err != nil || record.HolderIdentity == l.Identity() {
		return record, raw, err
	}
	record.LeaseDurationSeconds = max(record.LeaseDurationSeconds-int(earlyTakeoverInterval/time.Second), 1)
	return record, raw, nil
}
