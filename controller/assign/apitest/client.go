package apitest

import (
	"context"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// ErrConnectionLost is the error of a lost request or a lost answer.
var ErrConnectionLost = errors.New("connection reset by peer")

// Delivery says what happens to one request. The zero value is a request that arrives and is
// answered at once.
type Delivery struct {
	// RequestDelay and AnswerDelay are how long the request and its answer take. A request that was
	// sent arrives, even when its sender has ended.
	RequestDelay, AnswerDelay time.Duration
	// RequestLost says that the request does not arrive, AnswerLost that it arrives and the answer
	// does not.
	RequestLost, AnswerLost bool
	// DuplicateRequestDelay, unless 0, is how long after its arrival the request arrives once more.
	// The second answer is lost. A request that was refused as forbidden does not arrive again: no
	// client repeats a PATCH that was answered.
	DuplicateRequestDelay time.Duration
}

// Client is one controller's connection to the Server, and its cache. It implements assign.API.
type Client struct {
	server *Server
	// deliveryOfNextRequest is called once for every request that writes, and for every change in
	// the watch.
	deliveryOfNextRequest func(what string) Delivery

	mu               sync.Mutex // guards all that follows
	cachedServices   map[view.ObjectKey]*corev1.Service
	changesSeenCount int           // how many changes the cache has
	resumeSignal     chan struct{} // closed while the Client is not paused
	// doesSentRequestLandAfterKill, unless nil, says whether a request arrives that was sent before
	// the process was killed.
	doesSentRequestLandAfterKill func() bool
}

// CacheListener is notified of changes in the cache.
type CacheListener interface {
	NotifyServiceChanged(view.ObjectKey)
	NotifyServiceDeleted(*corev1.Service)
}

// NewClient returns a Client whose cache has all current Services.
func NewClient(s *Server, weather func(what string) Delivery) *Client {
	if weather == nil {
		weather = func(string) Delivery { return Delivery{} }
	}
	c := &Client{server: s, deliveryOfNextRequest: weather, resumeSignal: make(chan struct{})}
	close(c.resumeSignal)
	c.cachedServices, c.changesSeenCount = s.servicesAndChangeCount()
	return c
}

// RunCacheUpdates updates the cache and notifies the listener until ctx ends.
func (c *Client) RunCacheUpdates(ctx context.Context, l CacheListener) {
	for {
		changes, more := c.server.serviceChangesSince(c.changesSeenCount)
		for _, ch := range changes {
			if c.waitForDelayAndResume(ctx, c.deliveryOfNextRequest("watch").AnswerDelay) != nil {
				return
			}
			c.applyChangeToCache(ch)
			if ch.after == nil {
				l.NotifyServiceDeleted(ch.before)
				continue
			}
			l.NotifyServiceChanged(view.ObjectKey{Namespace: ch.after.Namespace, Name: ch.after.Name})
		}
		if len(changes) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-more:
		}
	}
}

func (c *Client) applyChangeToCache(ch serviceChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changesSeenCount++
	if ch.after == nil {
		delete(c.cachedServices, view.ObjectKey{Namespace: ch.before.Namespace, Name: ch.before.Name})
		return
	}
	c.cachedServices[view.ObjectKey{Namespace: ch.after.Namespace, Name: ch.after.Name}] = ch.after
}

// PauseProcess stops this Client, as if its process were stopped. Requests that were sent still
// arrive. ResumeProcess undoes it.
func (c *Client) PauseProcess() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.resumeSignal:
		c.resumeSignal = make(chan struct{})
	default:
	}
}

// ResumeProcess undoes PauseProcess.
func (c *Client) ResumeProcess() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.resumeSignal:
	default:
		close(c.resumeSignal)
	}
}

// KillProcess stops this Client, as if its process were killed: it sends no more requests, and
// lands says for each sent one whether it arrives.
func (c *Client) KillProcess(lands func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doesSentRequestLandAfterKill = lands
}

// requestArrivalFuncAfterKill returns the argument of KillProcess, nil before the call.
func (c *Client) requestArrivalFuncAfterKill() func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doesSentRequestLandAfterKill
}

// waitForDelayAndResume waits for d, and then for the end of a pause.
func (c *Client) waitForDelayAndResume(ctx context.Context, d time.Duration) error {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	c.mu.Lock()
	resumed := c.resumeSignal
	c.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-resumed:
		return nil
	}
}

// deliverRequest delivers a request and its answer.
func (c *Client) deliverRequest(ctx context.Context, what string, do func() error) error {
	if err := c.waitForDelayAndResume(ctx, 0); err != nil {
		return err
	}
	if c.requestArrivalFuncAfterKill() != nil {
		return ErrConnectionLost
	}
	w := c.deliveryOfNextRequest(what)
	answer := make(chan error, 1)
	go func() { // the caller may stop waiting
		if w.RequestDelay > 0 {
			<-time.After(w.RequestDelay)
		}
		if lands := c.requestArrivalFuncAfterKill(); w.RequestLost || lands != nil && !lands() {
			answer <- ErrConnectionLost
			return
		}
		err := do()
		if w.AnswerLost {
			err = ErrConnectionLost
		}
		answer <- err
		if w.DuplicateRequestDelay > 0 && !apierrors.IsForbidden(err) {
			<-time.After(w.DuplicateRequestDelay)
			_ = do()
		}
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-answer:
		if e := c.waitForDelayAndResume(ctx, w.AnswerDelay); e != nil {
			return e
		}
		return err
	}
}

// ReadCachedService implements assign.API.
func (c *Client) ReadCachedService(_ context.Context, k view.ObjectKey) (*corev1.Service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cachedServices[k], nil
}

// ReadLiveService implements assign.API.
func (c *Client) ReadLiveService(ctx context.Context, k view.ObjectKey) (*corev1.Service, error) {
	now := make(chan *corev1.Service, 2)
	c.server.recordServiceRead("service")
	if err := c.deliverRequest(ctx, "read", func() error { now <- c.server.ServiceByKey(k); return nil }); err != nil {
		return nil, err
	}
	return <-now, nil
}

// ForEachLiveService implements assign.API.
func (c *Client) ForEachLiveService(ctx context.Context, visit func(*corev1.Service)) error {
	all := make(chan []*corev1.Service, 2)
	c.server.recordServiceRead("list")
	if err := c.deliverRequest(ctx, "list", func() error { all <- c.server.AllServices(); return nil }); err != nil {
		return err
	}
	for _, s := range <-all {
		visit(s)
	}
	return nil
}

// ReadCachedPoolsAndReservations implements assign.API.
func (c *Client) ReadCachedPoolsAndReservations(context.Context) (snapshot.ConfigurationObjects, error) {
	return c.server.allocationConfiguration(), nil
}

// PatchStatusAndAnnotations implements assign.API.
func (c *Client) PatchStatusAndAnnotations(ctx context.Context, before, after *corev1.Service) (*corev1.Service, error) {
	if c.server.doesServiceWriteHang(before) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	now := make(chan *corev1.Service, 2)
	err := c.deliverRequest(ctx, "service", func() error {
		s, err := c.server.patchService(before, after)
		now <- s
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-now, nil
}

// UpdatePoolStatus implements assign.API.
func (c *Client) UpdatePoolStatus(ctx context.Context, p *v1beta1.IPAddressPool) error {
	return c.deliverRequest(ctx, "pool", func() error { return c.server.updatePool(p) })
}

// UpdateReservationStatus implements assign.API.
func (c *Client) UpdateReservationStatus(ctx context.Context, o *v1alpha1.AddressReservation) error {
	return c.deliverRequest(ctx, "reservation", func() error { return c.server.updateReservation(o) })
}

// ReadCachedAddressProbes implements assign.API.
func (c *Client) ReadCachedAddressProbes(context.Context) ([]v1alpha1.AddressProbe, error) {
	return c.server.AllProbes(), nil
}

// CreateOrReplaceProbe implements assign.API.
func (c *Client) CreateOrReplaceProbe(ctx context.Context, p *v1alpha1.AddressProbe) (*v1alpha1.AddressProbe, error) {
	now := make(chan *v1alpha1.AddressProbe, 2)
	if err := c.deliverRequest(ctx, "probe", func() error { now <- c.server.createOrReplaceProbe(p); return nil }); err != nil {
		return nil, err
	}
	return <-now, nil
}

// DeleteProbe implements assign.API.
func (c *Client) DeleteProbe(ctx context.Context, name string) error {
	return c.deliverRequest(ctx, "probe", func() error { c.server.deleteProbe(name); return nil })
}

// ReadOrCreateLedger implements assign.API.
func (c *Client) ReadOrCreateLedger(ctx context.Context, name string) (*v1alpha1.AddressLedger, error) {
	now := make(chan *v1alpha1.AddressLedger, 2)
	if err := c.deliverRequest(ctx, "read", func() error { now <- c.server.readOrCreateLedger(name); return nil }); err != nil {
		return nil, err
	}
	return <-now, nil
}

// CompareAndSwapLedger implements assign.API.
func (c *Client) CompareAndSwapLedger(ctx context.Context, l *v1alpha1.AddressLedger) (*v1alpha1.AddressLedger, error) {
	now := make(chan *v1alpha1.AddressLedger, 2)
	err := c.deliverRequest(ctx, "ledger", func() error {
		l, err := c.server.compareAndSwapLedger(l)
		now <- l
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-now, nil
}
