package leaderlock

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
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

// The leader may use all of its lease. Another controller asks for it a little earlier, and later
// than the leader's own deadline.
func TestLeaseExpiresEarlyForOtherControllers(t *testing.T) {
	for name, c := range map[string]struct {
		holder        string
		written, seen int
	}{
		"my own":               {holder: "me", written: 10, seen: 10},
		"another's":            {holder: "them", written: 10, seen: 9},
		"one that was let go":  {holder: "", written: 1, seen: 1},
		"one of a short lease": {holder: "them", written: 1, seen: 1},
	} {
		lock := EarlyExpiringLock{Interface: fakeLock{electionRecord: resourcelock.LeaderElectionRecord{HolderIdentity: c.holder, LeaseDurationSeconds: c.written}}}
		r, raw, err := lock.Get(t.Context())
		if err != nil || string(raw) != "raw" || r.LeaseDurationSeconds != c.seen {
			t.Errorf("%s: a lease of %d s is seen as %d s (%q, %v), want %d s", name, c.written, r.LeaseDurationSeconds, raw, err, c.seen)
		}
	}
	if LeaseTimeout-takeoverBeforeLeaseExpiryInterval <= RenewTimeout+RetryInterval {
		t.Errorf("another asks %s after a renewal, and the old leader ends only after %s", LeaseTimeout-takeoverBeforeLeaseExpiryInterval, RenewTimeout+RetryInterval)
	}
}

// Update stores the record.
func (k fakeLock) Update(context.Context, resourcelock.LeaderElectionRecord) error { return nil }

func TestLockKnowsHowLongNoControllerLed(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	record := func(holder string, after time.Duration) resourcelock.LeaderElectionRecord {
		return resourcelock.LeaderElectionRecord{HolderIdentity: holder, RenewTime: metav1.NewTime(start.Add(after))}
	}
	lock := EarlyExpiringLock{Interface: fakeLock{electionRecord: record("them", 0)}}
	for _, after := range []time.Duration{time.Minute, time.Hour} { // a renewal changes nothing
		if after == time.Minute {
			if _, _, err := lock.Get(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := lock.Update(t.Context(), record("me", after)); err != nil {
			t.Fatal(err)
		}
		if got := lock.LeaderAbsence(); !got.Since.Equal(start) || !got.Until.Equal(start.Add(time.Minute)) {
			t.Errorf("no controller led in %+v, want one minute from %v on", got, start)
		}
	}
	first := EarlyExpiringLock{Interface: fakeLock{}}
	if err := first.Update(t.Context(), record("me", 0)); err != nil || !first.LeaderAbsence().Since.IsZero() {
		t.Errorf("the first controller of a cluster follows an absence since %v (%v), want none", first.LeaderAbsence().Since, err)
	}
}

// leaseServer is an API server with one Lease. Each request needs answerDelay, half of it before it
// arrives. While hangs is set, no request is answered.
type leaseServer struct {
	mu          sync.Mutex // guards all that follows
	record      *resourcelock.LeaderElectionRecord
	version     int
	answerDelay time.Duration
	hangs       bool
}

// serveRequest calls do when the request arrives.
func (s *leaseServer) serveRequest(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, leaseRequestTimeout)
	defer cancel()
	s.mu.Lock()
	delay, hangs := s.answerDelay, s.hangs
	s.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	time.Sleep(delay / 2)
	s.mu.Lock()
	err := do()
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(delay / 2):
		return err
	}
}

// setAnswerDelayAndHanging changes how the server answers from now on.
func (s *leaseServer) setAnswerDelayAndHanging(answerDelay time.Duration, hangs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answerDelay, s.hangs = answerDelay, hangs
}

// leaseClient is the lock of one controller on a leaseServer.
type leaseClient struct {
	resourcelock.Interface
	server      *leaseServer
	name        string
	seenVersion int
	killContext context.Context
}

func (c *leaseClient) Identity() string   { return c.name }
func (c *leaseClient) Describe() string   { return c.name }
func (c *leaseClient) RecordEvent(string) {}

func (c *leaseClient) Get(ctx context.Context) (r *resourcelock.LeaderElectionRecord, raw []byte, err error) {
	err = c.server.serveRequest(ctx, func() error {
		copied := *c.server.record
		r, c.seenVersion = &copied, c.server.version
		raw = []byte{byte(c.seenVersion), byte(c.seenVersion >> 8), byte(c.seenVersion >> 16)}
		return nil
	})
	return r, raw, err
}

func (c *leaseClient) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return c.server.serveRequest(ctx, func() error {
		if c.killContext.Err() != nil {
			return c.killContext.Err()
		}
		if c.seenVersion != c.server.version {
			return errors.New("the object has been modified")
		}
		c.server.version++
		c.server.record, c.seenVersion = &r, c.server.version
		return nil
	})
}

// startElector runs the election of one controller until kill or until it loses the leadership. It
// notes in leads when it leads.
func startElector(t *testing.T, s *leaseServer, name string, leads chan<- string) (kill context.CancelFunc) {
	t.Helper()
	ctx, kill := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          &EarlyExpiringLock{Interface: &leaseClient{server: s, name: name, killContext: ctx}},
		LeaseDuration: LeaseTimeout, RenewDeadline: RenewTimeout, RetryPeriod: RetryInterval,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { leads <- name },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		e.Run(ctx)
		if ctx.Err() == nil {
			t.Errorf("%s has lost the leadership", name)
		}
	}()
	return kill
}

// TestSlowAPIServerEndsNoLeadership runs two controllers with slow answers, and with requests that
// get no answer. The first leads until it crashes. Then the second leads soon.
func TestSlowAPIServerEndsNoLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &leaseServer{record: &resourcelock.LeaderElectionRecord{RenewTime: metav1.Now()}}
		leads := make(chan string, 10)
		kill := startElector(t, s, "first", leads)
		if got := <-leads; got != "first" {
			t.Fatalf("%s leads", got)
		}
		defer time.Sleep(time.Minute) // until both have ended
		defer startElector(t, s, "second", leads)()
		s.setAnswerDelayAndHanging(2*time.Second, false)
		time.Sleep(time.Hour)
		for range 1000 {
			s.setAnswerDelayAndHanging(100*time.Millisecond, true)
			time.Sleep(RetryInterval + 100*time.Millisecond) // for one request
			s.setAnswerDelayAndHanging(100*time.Millisecond, false)
			time.Sleep(10*time.Second + 77*time.Millisecond)
		}
		if len(leads) > 0 {
			t.Fatalf("%s leads too", <-leads)
		}
		kill()
		crashed := time.Now()
		if got, took := <-leads, time.Since(crashed); got != "second" || took > 8*time.Second {
			t.Errorf("%s leads %s after the crash", got, took)
		}
	})
}
