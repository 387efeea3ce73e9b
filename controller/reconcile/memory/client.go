package memory

import (
	"context"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// ErrLost is the error of a request or an answer that was lost on the way.
var ErrLost = errors.New("connection reset by peer")

// Weather is what happens to one request on its way. The zero value is a request that arrives and is answered at once.
type Weather struct {
	// Out and Back are how long the request and its answer take. A request that is out arrives, even when its sender has gone.
	Out, Back time.Duration
	// Lost says that the request does not arrive; Unanswered, that it does, but the answer does not come back.
	Lost, Unanswered bool
	// Again, unless 0, is how long after it has arrived the request arrives once more; nobody hears the second answer.
	Again time.Duration
}

// Client is one controller's way to the Server, and its cache. It implements reconcile.API.
type Client struct {
	server *Server
	// weather is asked once for every request that writes, and for every look at the watch.
	weather func(what string) Weather

	mu      sync.Mutex // guards all that follows
	cache   map[view.ObjectKey]*corev1.Service
	seen    int           // how many changes the cache has taken in
	resumed chan struct{} // closed while the Client is not paused
	// lands, unless nil, says whether a request arrives that was out when the process was killed.
	lands func() bool
}

// Listener is who is told of what the cache sees.
type Listener interface {
	Changed(view.ObjectKey)
	Deleted(*corev1.Service)
}

// NewClient returns a Client whose cache is filled with what there is now.
func NewClient(s *Server, weather func(what string) Weather) *Client {
	if weather == nil {
		weather = func(string) Weather { return Weather{} }
	}
	c := &Client{server: s, weather: weather, resumed: make(chan struct{})}
	close(c.resumed)
	c.cache, c.seen = s.all()
	return c
}

// Watch feeds the cache and tells the listener, until ctx ends.
func (c *Client) Watch(ctx context.Context, l Listener) {
	for {
		changes, more := c.server.since(c.seen)
		for _, ch := range changes {
			if c.wait(ctx, c.weather("watch").Back) != nil {
				return
			}
			c.take(ch)
			if ch.after == nil {
				l.Deleted(ch.before)
				continue
			}
			l.Changed(view.ObjectKey{Namespace: ch.after.Namespace, Name: ch.after.Name})
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

func (c *Client) take(ch change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	if ch.after == nil {
		delete(c.cache, view.ObjectKey{Namespace: ch.before.Namespace, Name: ch.before.Name})
		return
	}
	c.cache[view.ObjectKey{Namespace: ch.after.Namespace, Name: ch.after.Name}] = ch.after
}

// Pause stops everything that goes through this Client, as if its process were stopped; what is out already arrives. Resume undoes
// it.
func (c *Client) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.resumed:
		c.resumed = make(chan struct{})
	default:
	}
}

// Resume undoes Pause.
func (c *Client) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.resumed:
	default:
		close(c.resumed)
	}
}

// Kill ends everything that goes through this Client, as if its process were killed: no request goes out any more, and of
// those that are out lands says one by one whether they arrive.
func (c *Client) Kill(lands func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lands = lands
}

// killed returns what Kill was called with, nil before.
func (c *Client) killed() func() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lands
}

// wait lets d pass, and then the end of a pause.
func (c *Client) wait(ctx context.Context, d time.Duration) error {
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
	resumed := c.resumed
	c.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-resumed:
		return nil
	}
}

// send carries a request out and its answer back.
func (c *Client) send(ctx context.Context, what string, do func() error) error {
	if err := c.wait(ctx, 0); err != nil {
		return err
	}
	if c.killed() != nil {
		return ErrLost
	}
	w := c.weather(what)
	answer := make(chan error, 1)
	go func() { // whoever waits for it may go
		if w.Out > 0 {
			<-time.After(w.Out)
		}
		if lands := c.killed(); w.Lost || lands != nil && !lands() {
			answer <- ErrLost
			return
		}
		err := do()
		if w.Unanswered {
			err = ErrLost
		}
		answer <- err
		if w.Again > 0 {
			<-time.After(w.Again)
			_ = do()
		}
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-answer:
		if e := c.wait(ctx, w.Back); e != nil {
			return e
		}
		return err
	}
}

// Cached implements reconcile.API.
func (c *Client) Cached(_ context.Context, k view.ObjectKey) (*corev1.Service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cache[k], nil
}

// Live implements reconcile.API.
func (c *Client) Live(ctx context.Context, k view.ObjectKey) (*corev1.Service, error) {
	now := make(chan *corev1.Service, 2)
	c.server.countRead("service")
	if err := c.send(ctx, "read", func() error { now <- c.server.Service(k); return nil }); err != nil {
		return nil, err
	}
	return <-now, nil
}

// EachLive implements reconcile.API.
func (c *Client) EachLive(ctx context.Context, visit func(*corev1.Service)) error {
	all := make(chan []*corev1.Service, 2)
	c.server.countRead("list")
	if err := c.send(ctx, "list", func() error { all <- c.server.Services(); return nil }); err != nil {
		return err
	}
	for _, s := range <-all {
		visit(s)
	}
	return nil
}

// Pools implements reconcile.API.
func (c *Client) Pools(context.Context) (snapshot.Objects, error) {
	return c.server.allPools(), nil
}

// PatchStatus implements reconcile.API.
func (c *Client) PatchStatus(ctx context.Context, before, after *corev1.Service) (*corev1.Service, error) {
	now := make(chan *corev1.Service, 2)
	err := c.send(ctx, "service", func() error {
		s, err := c.server.patch(before, after)
		now <- s
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-now, nil
}

// UpdatePool implements reconcile.API.
func (c *Client) UpdatePool(ctx context.Context, p *v1beta1.IPAddressPool) error {
	return c.send(ctx, "pool", func() error { return c.server.updatePool(p) })
}

// UpdateReservation implements reconcile.API.
func (c *Client) UpdateReservation(ctx context.Context, o *v1alpha1.AddressReservation) error {
	return c.send(ctx, "reservation", func() error { return c.server.updateReservation(o) })
}

// Probes implements reconcile.API.
func (c *Client) Probes(context.Context) ([]v1alpha1.AddressProbe, error) {
	return c.server.AllProbes(), nil
}

// CreateProbe implements reconcile.API.
func (c *Client) CreateProbe(ctx context.Context, p *v1alpha1.AddressProbe) (*v1alpha1.AddressProbe, error) {
	now := make(chan *v1alpha1.AddressProbe, 2)
	if err := c.send(ctx, "probe", func() error { now <- c.server.createProbe(p); return nil }); err != nil {
		return nil, err
	}
	return <-now, nil
}

// DeleteProbe implements reconcile.API.
func (c *Client) DeleteProbe(ctx context.Context, name string) error {
	return c.send(ctx, "probe", func() error { c.server.deleteProbe(name); return nil })
}

// Ledger implements reconcile.API.
func (c *Client) Ledger(ctx context.Context, name string) (*v1alpha1.AddressLedger, error) {
	now := make(chan *v1alpha1.AddressLedger, 2)
	if err := c.send(ctx, "read", func() error { now <- c.server.readLedger(name); return nil }); err != nil {
		return nil, err
	}
	return <-now, nil
}

// SwapLedger implements reconcile.API.
func (c *Client) SwapLedger(ctx context.Context, l *v1alpha1.AddressLedger) (*v1alpha1.AddressLedger, error) {
	now := make(chan *v1alpha1.AddressLedger, 2)
	err := c.send(ctx, "ledger", func() error {
		l, err := c.server.swap(l)
		now <- l
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-now, nil
}
