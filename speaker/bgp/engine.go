package bgp

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Options are what an Engine is made of. All fields are required.
type Options struct {
	// Node is this node's name, of which a router ID is made where nothing else gives one.
	Node      string
	Library   Library
	Transport Transport
	// BFD watches the paths to the peers that ask for it. The engine is the only one to Set its sessions.
	BFD BFD
	Log *slog.Logger
}

// Desired is what should be true.
type Desired struct {
	// Peers have distinct names.
	Peers []intent.Peer
	// Routes have distinct prefixes for each peer. They are shared with former values, and must not be changed.
	Routes []*intent.Route
	// Leaving says that the node is about to stop serving: every route is first announced as going (RFC 8326), and then
	// withdrawn.
	Leaving bool
}

// Engine keeps the sessions and routes that it is told to. Make it with New; Set, States and Stop may be called by any
// goroutine.
type Engine struct {
	o       Options
	desired chan Desired // holds the latest
	stop    chan chan struct{}
	changed chan struct{}

	mu     sync.Mutex // guards states and paths
	states map[string]State
	paths  paths

	// What follows belongs to Run.
	last     Desired // as it was told
	routers  map[string]*router
	found    chan sighting
	door     door
	workers  map[string]*worker
	ended    sync.WaitGroup
	watched  map[bfd.Key][]string // the peers of each path that BFD watches
	sessions []bfd.Session        // as BFD has them
	faults   map[bfd.Key]bfd.Fault
}

// New returns an Engine that does nothing before Run.
func New(o Options) *Engine {
	return &Engine{
		o: o, desired: make(chan Desired, 1), stop: make(chan chan struct{}), changed: make(chan struct{}, 1),
		states: map[string]State{}, workers: map[string]*worker{}, faults: map[bfd.Key]bfd.Fault{},
		routers: map[string]*router{}, found: make(chan sighting),
	}
}

// Set says what should be true from now on. It returns at once; only the latest counts. The value must not be changed
// afterwards.
func (e *Engine) Set(d Desired) {
	for {
		select {
		case e.desired <- d:
			return
		default:
		}
		select {
		case <-e.desired:
		default:
		}
	}
}

// Changed is ready to read after the State of a session has changed in more than its Counts.
func (e *Engine) Changed() <-chan struct{} { return e.changed }

// States returns what is seen of each session, sorted by peer.
func (e *Engine) States() []State {
	e.mu.Lock()
	defer e.mu.Unlock()
	watched := e.o.BFD.Status()
	out := make([]State, 0, len(e.states))
	for _, s := range e.states {
		s.Counts = s.tally.read()
		if k, ok := e.paths.keys[s.Peer]; ok {
			s.BFD, s.Fault = see(watched, k)
			if f, ok := e.paths.faults[s.Peer]; ok {
				s.Fault = f
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y State) int { return cmp.Compare(x.Peer, y.Peer) })
	return out
}

// Stop ends every session as planned and returns when that is done, or ctx ends. A node that is leaving, and a router that
// does not keep routes over a restart, lose their routes in good order: announced as going, withdrawn, and then the session
// ends. Other routers keep them until the next speaker comes.
func (e *Engine) Stop(ctx context.Context) {
	done := make(chan struct{})
	select {
	case e.stop <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Run keeps the sessions until ctx ends. Sessions that Stop did not end break off like those of a process that dies, so that
// a router keeps the routes where graceful restart was agreed.
func (e *Engine) Run(ctx context.Context) error {
	defer e.ended.Wait()
	defer e.door.close()
	stopped := false
	look := time.NewTicker(lookTime)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-e.desired:
			if !stopped {
				e.apply(ctx, d)
			}
		case s := <-e.found:
			if e.sight(s); !stopped {
				e.apply(ctx, e.last)
			}
		case c := <-e.door.incoming():
			e.receive(c)
		case <-e.door.retry():
			if !stopped {
				e.apply(ctx, e.last)
			}
		case v := <-e.o.BFD.Events():
			e.heard(v)
		case <-e.o.BFD.Changed():
			e.tell()
			e.poke()
		case <-look.C:
			e.watch(e.paths.peers)
		case done := <-e.stop:
			stopped = true
			go e.end(done, e.workers)
			e.workers = map[string]*worker{}
		}
	}
}

// end stops all workers together.
func (e *Engine) end(done chan struct{}, workers map[string]*worker) {
	var wait sync.WaitGroup
	for _, w := range workers {
		wait.Go(func() {
			w.tell(order{stop: true})
			<-w.done
		})
	}
	wait.Wait()
	close(done)
}

// apply brings the workers in line with what is desired.
func (e *Engine) apply(ctx context.Context, d Desired) {
	e.last = d
	d.Peers = e.open(ctx, e.locate(ctx, e.stay(d.Peers)))
	e.watch(d.Peers)
	named := map[string]bool{}
	for _, p := range d.Peers {
		named[p.Name] = true
	}
	for name, w := range e.workers {
		if !named[name] {
			w.tell(order{stop: true, gone: true})
			delete(e.workers, name)
		}
	}
	for _, p := range d.Peers {
		w, ok := e.workers[p.Name]
		if !ok {
			w = e.hire(ctx, p)
		}
		w.tell(order{peer: p, routes: d.Routes, leaving: d.Leaving})
	}
}

// hire starts the worker of a new peer.
func (e *Engine) hire(ctx context.Context, p intent.Peer) *worker {
	w := newWorker(e, p.Name)
	e.workers[p.Name] = w
	e.ended.Go(func() { w.run(ctx) })
	return w
}

// observe takes what a worker sees.
func (e *Engine) observe(s State) {
	e.mu.Lock()
	e.states[s.Peer] = s
	e.mu.Unlock()
	e.poke()
}

// forget drops the State of a peer that is no more, unless another worker has taken the name over.
func (e *Engine) forget(w *worker) {
	e.mu.Lock()
	if e.states[w.name].tally == &w.tally {
		delete(e.states, w.name)
	}
	e.mu.Unlock()
	e.poke()
}

func (e *Engine) poke() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// now is the clock of the sessions, whose timers are the kernel's and the runtime's in any case.
func now() time.Time { return time.Now() }
