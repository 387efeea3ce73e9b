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
	// NodeName is this node's name, of which a router ID is made where nothing else gives one.
	NodeName     string
	UpdateSource UpdateSource
	Transport    Transport
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
	options      Options
	desired      chan Desired // holds the latest
	stopRequests chan chan struct{}
	changed      chan struct{}

	mu           sync.Mutex // guards states and paths
	statusByPeer map[string]Status
	bfdPaths     bfdPaths

	// What follows belongs to Run.
	lastDesired      Desired // as it was told
	searchesByDevice map[string]*routerSearch
	discoveries      chan discovery
	passive          passiveListener
	workersByPeer    map[string]*worker
	goroutines       sync.WaitGroup
	peersByPath      map[bfd.Key][]string // the peers of each path that BFD watches
	bfdSessions      []bfd.Session        // as BFD has them
	faultsByPath     map[bfd.Key]bfd.Fault
}

// New returns an Engine that does nothing before Run.
func New(o Options) *Engine {
	return &Engine{
		options: o, desired: make(chan Desired, 1), stopRequests: make(chan chan struct{}), changed: make(chan struct{}, 1),
		statusByPeer: map[string]Status{}, workersByPeer: map[string]*worker{}, faultsByPath: map[bfd.Key]bfd.Fault{},
		searchesByDevice: map[string]*routerSearch{}, discoveries: make(chan discovery),
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

// Status returns what is seen of each session, sorted by peer.
func (e *Engine) Status() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	watched := e.options.BFD.Status()
	out := make([]Status, 0, len(e.statusByPeer))
	for _, s := range e.statusByPeer {
		s.Messages = s.counter.counts()
		if k, ok := e.bfdPaths.keyByPeer[s.Peer]; ok {
			s.BFDState, s.BFDFault = bfdState(watched, k)
			if f, ok := e.bfdPaths.faultByPeer[s.Peer]; ok {
				s.BFDFault = f
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y Status) int { return cmp.Compare(x.Peer, y.Peer) })
	return out
}

// Stop ends every session as planned and returns when that is done, or ctx ends. A node that is leaving, and a router that
// does not keep routes over a restart, lose their routes in good order: announced as going, withdrawn, and then the session
// ends. Other routers keep them until the next speaker comes.
func (e *Engine) Stop(ctx context.Context) {
	done := make(chan struct{})
	select {
	case e.stopRequests <- done:
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
	defer e.goroutines.Wait()
	defer e.passive.close()
	stopped := false
	look := time.NewTicker(linkCheckInterval)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-e.desired:
			if !stopped {
				e.applyDesired(ctx, d)
			}
		case s := <-e.discoveries:
			if e.recordDiscovery(s); !stopped {
				e.applyDesired(ctx, e.lastDesired)
			}
		case c := <-e.passive.connections():
			e.assignConnection(c)
		case <-e.passive.retryDue():
			if !stopped {
				e.applyDesired(ctx, e.lastDesired)
			}
		case v := <-e.options.BFD.Events():
			e.forwardBFDEvent(v)
		case <-e.options.BFD.Changed():
			e.logBFDFaults()
			e.notifyChanged()
		case <-look.C:
			e.updateBFDSessions(e.bfdPaths.peers)
		case done := <-e.stopRequests:
			stopped = true
			go e.stopWorkers(done, e.workersByPeer)
			e.workersByPeer = map[string]*worker{}
		}
	}
}

// stopWorkers stops all workers together.
func (e *Engine) stopWorkers(done chan struct{}, workers map[string]*worker) {
	var wait sync.WaitGroup
	for _, w := range workers {
		wait.Go(func() {
			w.sendOrder(workerOrder{stop: true})
			<-w.done
		})
	}
	wait.Wait()
	close(done)
}

// applyDesired brings the workers in line with what is desired.
func (e *Engine) applyDesired(ctx context.Context, d Desired) {
	e.lastDesired = d
	d.Peers = e.listenForPassivePeers(ctx, e.resolveUnnumbered(ctx, e.keepKnownAddresses(d.Peers)))
	e.updateBFDSessions(d.Peers)
	named := map[string]bool{}
	for _, p := range d.Peers {
		named[p.Name] = true
	}
	for name, w := range e.workersByPeer {
		if !named[name] {
			w.sendOrder(workerOrder{stop: true, removed: true})
			delete(e.workersByPeer, name)
		}
	}
	for _, p := range d.Peers {
		w, ok := e.workersByPeer[p.Name]
		if !ok {
			w = e.startWorker(ctx, p)
		}
		w.sendOrder(workerOrder{peer: p, allRoutes: d.Routes, leaving: d.Leaving})
	}
}

// startWorker starts the worker of a new peer.
func (e *Engine) startWorker(ctx context.Context, p intent.Peer) *worker {
	w := newWorker(e, p.Name)
	e.workersByPeer[p.Name] = w
	e.goroutines.Go(func() { w.run(ctx) })
	return w
}

// recordStatus takes what a worker sees.
func (e *Engine) recordStatus(s Status) {
	e.mu.Lock()
	e.statusByPeer[s.Peer] = s
	e.mu.Unlock()
	e.notifyChanged()
}

// removeStatus drops the State of a peer that is no more, unless another worker has taken the name over.
func (e *Engine) removeStatus(w *worker) {
	e.mu.Lock()
	if e.statusByPeer[w.name].counter == &w.counter {
		delete(e.statusByPeer, w.name)
	}
	e.mu.Unlock()
	e.notifyChanged()
}

func (e *Engine) notifyChanged() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// currentTime is the clock of the sessions, whose timers are the kernel's and the runtime's in any case.
func currentTime() time.Time { return time.Now() }
