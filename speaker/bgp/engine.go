package bgp

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Options configure an Engine. All fields are required, but for BFDRequestSniffer.
type Options struct {
	// NodeName is this node's name. The router ID is derived from it where nothing else gives one.
	NodeName string
	// FirstRunSinceBoot is set if no speaker has run since the node booted. Traffic to the node's
	// routes was lost meanwhile.
	FirstRunSinceBoot bool
	// UpdateGenerator encodes the UPDATEs.
	UpdateGenerator UpdateGenerator
	// Transport connects to the routers.
	Transport Transport
	// Now is the clock.
	Now func() time.Time
	// BFDEngine watches the paths to peers with a BFD profile. Only this Engine sets its sessions.
	BFDEngine BFDEngine
	// BFDRequestSniffer finds routers that ask for a BFD session although their peer has no BFD
	// profile; nil to find none.
	BFDRequestSniffer BFDRequestSniffer
	Log               *slog.Logger
}

// DesiredState is the desired state of all sessions.
type DesiredState struct {
	// Peers have distinct names.
	Peers []intent.Peer
	// Routes have distinct prefixes for each peer. Other DesiredState values share them: they are
	// read-only, and a route that changes is a new value.
	Routes []*intent.Route
	// NodeInternalIPs are the node's internal addresses in the Kubernetes API.
	NodeInternalIPs []netip.Addr
	// NodeLeaving is true while the node drains: every route is first announced with
	// the GRACEFUL_SHUTDOWN community (RFC 8326) and then withdrawn.
	NodeLeaving bool
}

// Engine runs the desired sessions. Make it with New. Any goroutine may call its methods.
type Engine struct {
	options             Options
	pendingDesiredState *latest.Value[DesiredState]
	stopRequests        chan chan struct{}
	// workerListRequests are answered with the workers.
	workerListRequests chan chan<- []*peerWorker
	statusChanged      *latest.Wake

	mu              sync.Mutex // guards statusByPeer and bfdSetupOfPeers
	statusByPeer    map[string]PeerSessionStatus
	bfdSetupOfPeers bfdSetupOfPeers

	// Only Run uses the following fields.
	currentDesiredState      DesiredState  // the latest value from Set
	nodeAddresses            []NodeAddress // of the node's links
	addressesChanged         *latest.Wake
	routerSearchByDevice     map[string]*routerSearch
	routerSearchResults      chan routerSearchResult
	passiveListeners         *passiveListeners
	workerByPeer             map[string]*peerWorker
	goroutines               sync.WaitGroup
	peerNamesByBFDSession    map[bfd.SessionKey][]string // names of the peers on each path with BFD
	lastSetBFDSessions       []bfd.SessionConfig         // the sessions last set
	routersOfPeersWithoutBFD []netip.Addr                // to which the BFDRequestSniffer listens
	loggedFaultByBFDSession  map[bfd.SessionKey]names.Explanation
}

// NewEngine returns an Engine. It does nothing before Run.
func NewEngine(o Options) *Engine {
	return &Engine{
		options:                 o,
		pendingDesiredState:     latest.NewValue[DesiredState](),
		stopRequests:            make(chan chan struct{}),
		workerListRequests:      make(chan chan<- []*peerWorker),
		statusChanged:           latest.NewWake(),
		statusByPeer:            map[string]PeerSessionStatus{},
		addressesChanged:        latest.NewWake(),
		routerSearchByDevice:    map[string]*routerSearch{},
		passiveListeners:        newPassiveListeners(),
		routerSearchResults:     make(chan routerSearchResult),
		workerByPeer:            map[string]*peerWorker{},
		loggedFaultByBFDSession: map[bfd.SessionKey]names.Explanation{},
	}
}

// SetDesiredState declares the desired state and returns at once. Only the latest value
// counts. The caller must not change the value afterwards.
func (e *Engine) SetDesiredState(d DesiredState) { e.pendingDesiredState.Put(d) }

// StatusChanged is ready to read after a Status changed in more than its message counts.
func (e *Engine) StatusChanged() <-chan struct{} { return e.statusChanged.C() }

// SessionStatuses returns the Status of each session, sorted by peer.
func (e *Engine) SessionStatuses() []PeerSessionStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	paths := e.options.BFDEngine.SessionStatuses()
	out := make([]PeerSessionStatus, 0, len(e.statusByPeer))
	for _, s := range e.statusByPeer {
		s.MessageTotals = s.messageCounter.currentCounts()
		if k, ok := e.bfdSetupOfPeers.bfdKeyByPeerName[s.PeerName]; ok {
			s.BFDState, s.BFDFault = bfdSessionStateAndFault(paths, k)
			if f, ok := e.bfdSetupOfPeers.bfdFaultByPeerName[s.PeerName]; ok {
				s.BFDFault = f
			}
		} else if slices.Contains(e.bfdSetupOfPeers.routersAskingForBFD, s.RouterAddress.Addr().WithZone("")) {
			s.BFDFault = names.NewExplanation(names.ReasonBFDNotConfigured, "the router sends BFD packets, and BGPPeer %s has no bfdProfile: set one, or turn BFD off for this neighbour there", s.PeerName)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y PeerSessionStatus) int { return cmp.Compare(x.PeerName, y.PeerName) })
	return out
}

// Stop ends every session in order and returns when that is done or ctx ends. If
// the node leaves, or if the router does not keep routes over a restart, the
// routes are first announced with GRACEFUL_SHUTDOWN and then withdrawn. Other
// routers keep the routes until the next speaker connects.
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

// Run runs the sessions until ctx ends. It breaks off sessions that Stop did not end, as the end of
// the process would, so that routers keep the routes where graceful restart was negotiated.
func (e *Engine) Run(ctx context.Context) error {
	defer e.goroutines.Wait()
	defer e.passiveListeners.closeListenersExcept(nil)
	stopped := false
	e.goroutines.Go(func() { e.options.Transport.WatchNodeAddresses(ctx, e.addressesChanged.Signal) })
	addressCheck := time.NewTicker(nodeAddressRereadInterval)
	defer addressCheck.Stop()
	e.readNodeAddresses()
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-e.pendingDesiredState.C():
			if stopped {
				continue
			}
			e.passRouteChanges(&d)
			if differsOnlyInRoutes(&e.currentDesiredState, &d) {
				e.currentDesiredState = d
				continue
			}
			e.applyDesiredState(ctx, d)
		case s := <-e.routerSearchResults:
			if e.recordRouterSearchResult(s); !stopped {
				e.applyDesiredState(ctx, e.currentDesiredState)
			}
		case c := <-e.passiveListeners.acceptedConnections:
			e.passConnectionToPassivePeer(c)
		case <-e.passiveListeners.retryTimer.C:
			if !stopped {
				e.applyDesiredState(ctx, e.currentDesiredState)
			}
		case v := <-e.options.BFDEngine.Events():
			e.forwardBFDEvent(v)
		case <-e.options.BFDEngine.StatusChanged():
			e.logBFDFaultChanges()
			e.statusChanged.Signal()
		case routers := <-e.updatesOfRoutersAskingForBFD():
			e.recordRoutersAskingForBFD(routers)
		case <-e.addressesChanged.C():
			addressCheck.Reset(nodeAddressRereadDelay)
		case <-addressCheck.C:
			addressCheck.Reset(nodeAddressRereadInterval)
			if e.readNodeAddresses() && !stopped {
				e.applyDesiredState(ctx, e.currentDesiredState)
			}
		case reply := <-e.workerListRequests:
			reply <- slices.Collect(maps.Values(e.workerByPeer))
		case done := <-e.stopRequests:
			stopped = true
			go stopWorkers(done, e.workerByPeer, e.currentDesiredState.NodeLeaving)
			e.workerByPeer = map[string]*peerWorker{}
		}
	}
}

// stopWorkers stops all workers in parallel.
func stopWorkers(done chan struct{}, workers map[string]*peerWorker, nodeLeaving bool) {
	var stopping sync.WaitGroup
	for _, w := range workers {
		stopping.Go(func() {
			w.sendDesiredState(desiredPeerState{mustStop: true, nodeLeaving: nodeLeaving})
			<-w.done
		})
	}
	stopping.Wait()
	close(done)
}

// passRouteChanges passes the changes of the routes to the workers. The worker of a peer that is
// removed keeps its routes: it withdraws them in order.
func (e *Engine) passRouteChanges(d *DesiredState) {
	changes := diffRoutesByPeer(e.currentDesiredState.Routes, d.Routes)
	if changes == nil {
		return
	}
	for i := range d.Peers {
		if w, ok := e.workerByPeer[d.Peers[i].Name]; ok {
			w.routeInbox.replaceRoutesAndAddChanges(d.Routes, changes[d.Peers[i].Name])
		}
	}
}

// differsOnlyInRoutes reports whether two values have the same peers and the same node.
func differsOnlyInRoutes(a, b *DesiredState) bool {
	return slices.Equal(a.Peers, b.Peers) && a.NodeLeaving == b.NodeLeaving && slices.Equal(a.NodeInternalIPs, b.NodeInternalIPs)
}

// applyDesiredState starts, updates and stops workers to match the desired state.
func (e *Engine) applyDesiredState(ctx context.Context, d DesiredState) {
	e.currentDesiredState = d
	d.Peers = e.listenForPassivePeers(ctx, e.resolveUnnumberedPeers(ctx, e.keepRouterOfEstablishedPeers(d.Peers)))
	e.updateBFDSessions(d.Peers)
	configured := map[string]bool{}
	for _, p := range d.Peers {
		configured[p.Name] = true
	}
	for name, w := range e.workerByPeer {
		if !configured[name] {
			w.sendDesiredState(desiredPeerState{mustStop: true, peerRemoved: true, nodeLeaving: d.NodeLeaving})
			delete(e.workerByPeer, name)
		}
	}
	for _, p := range d.Peers {
		w, ok := e.workerByPeer[p.Name]
		if !ok {
			w = e.startWorker(ctx, p)
			w.routeInbox.replaceRoutesAndAddChanges(d.Routes, nil)
		}
		w.sendDesiredState(desiredPeerState{peer: p, nodeLeaving: d.NodeLeaving, nodeAddresses: e.nodeAddresses, nodeInternalIPs: d.NodeInternalIPs})
	}
}

// The times between two readings of the node's addresses.
const (
	// nodeAddressRereadInterval applies while no change is reported. A report may be lost.
	nodeAddressRereadInterval = 30 * time.Second
	// nodeAddressRereadDelay applies after a change, since several often follow each other.
	nodeAddressRereadDelay = 200 * time.Millisecond
)

// readNodeAddresses reads the addresses of the node's links and reports whether they differ from
// the last ones. It keeps the last ones if they cannot be read.
func (e *Engine) readNodeAddresses() (changed bool) {
	addresses, err := e.options.Transport.ReadNodeAddresses()
	if err != nil {
		e.options.Log.Warn("reading the addresses of this node", "error", err)
		return false
	}
	if slices.Equal(addresses, e.nodeAddresses) {
		return false
	}
	e.nodeAddresses = addresses
	return true
}

// startWorker starts the worker of a new peer.
func (e *Engine) startWorker(ctx context.Context, p intent.Peer) *peerWorker {
	w := newPeerWorker(e, p.Name)
	e.workerByPeer[p.Name] = w
	e.goroutines.Go(func() { w.run(ctx) })
	return w
}

// recordStatus stores the Status that a worker reports.
func (e *Engine) recordStatus(s PeerSessionStatus) {
	e.mu.Lock()
	e.statusByPeer[s.PeerName] = s
	e.mu.Unlock()
	e.statusChanged.Signal()
}

// removeStatus drops the Status of a removed peer unless a new worker has taken the name.
func (e *Engine) removeStatus(w *peerWorker) {
	e.mu.Lock()
	if e.statusByPeer[w.peerName].messageCounter == &w.messageCounter {
		delete(e.statusByPeer, w.peerName)
	}
	e.mu.Unlock()
	e.statusChanged.Signal()
}
