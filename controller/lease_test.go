package main

import (
	"context"
	"testing"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// fakeLock is a lock with one record.
type fakeLock struct {
	resourcelock.Interface
	electionRecord resourcelock.LeaderElectionRecord
}

func (k fakeLock) Identity() string { return "me" }

func (k fakeLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r := k.electionRecord
	return &r, []byte("raw"), nil
}

// The leader may use all of its lease. Another controller asks for it early enough that a Service
// gets its address within the lease's time, and later than the leader's own deadline.
func TestLeaseExpiresEarlyForOtherControllers(t *testing.T) {
	for name, c := range map[string]struct {
		holder        string
		written, seen int
	}{
		"my own":               {holder: "me", written: 10, seen: 10},
		"another's":            {holder: "them", written: 10, seen: 8},
		"one that was let go":  {holder: "", written: 1, seen: 1},
		"one of a short lease": {holder: "them", written: 2, seen: 1},
	} {
		lock := earlyExpiringLock{fakeLock{electionRecord: resourcelock.LeaderElectionRecord{HolderIdentity: c.holder, LeaseDurationSeconds: c.written}}}
		r, raw, err := lock.Get(t.Context())
		if err != nil || string(raw) != "raw" || r.LeaseDurationSeconds != c.seen {
			t.Errorf("%s: a lease of %d s is seen as %d s (%q, %v), want %d s", name, c.written, r.LeaseDurationSeconds, raw, err, c.seen)
		}
	}
	if leaseTimeout-earlyLeaseTakeoverInterval <= leaseRenewTimeout {
		t.Errorf("another asks %s after a renewal, and the old leader ends only after %s", leaseTimeout-earlyLeaseTakeoverInterval, leaseRenewTimeout)
	}
}
