package bgp

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	bfdsession "github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// BFDEngine watches the paths to routers. *bfd.Engine implements it.
type BFDEngine interface {
	SetSessions(sessions []bfd.SessionConfig)
	Events() <-chan bfd.Event
	Status() []bfd.Status
	StatusChanged() <-chan struct{}
}

// BFDRequestFinder finds routers that ask for a BFD session. *udp.Overhearer implements it.
type BFDRequestFinder interface {
	SetRouters(routers []netip.Addr)
	HeardRouters() <-chan []netip.Addr
}

// bfdRequestsOfPeers is what the last update of the peers asked of BFD. The maps are keyed by the
// names of the peers.
type bfdRequestsOfPeers struct {
	peersOfLastUpdate  []intent.Peer
	bfdKeyByPeerName   map[string]bfd.SessionKey
	bfdFaultByPeerName map[string]names.Explanation
	// routersAskingForBFD are routers of peers without BFD that send BFD packets.
	routersAskingForBFD []netip.Addr
}

// updateBFDSessions sets one BFD session for each path with a BFD profile. Two peers
// with one address share a session, since it describes only the path.
func (e *Engine) updateBFDSessions(peers []intent.Peer) {
	e.peerNamesByBFDPath = map[bfd.SessionKey][]string{}
	keys, faults := map[string]bfd.SessionKey{}, map[string]names.Explanation{}
	first := map[bfd.SessionKey]bfd.SessionConfig{}
	var sessions []bfd.SessionConfig
	for i := range peers {
		p := &peers[i]
		if p.BFD == nil || !p.Address.IsValid() {
			continue
		}
		s := e.newBFDSession(p)
		if f, shared := first[s.SessionKey]; !shared {
			first[s.SessionKey], sessions = s, append(sessions, s)
		} else if f != s {
			faults[p.Name] = names.Explain(names.ReasonConflictingBFD, "BFD watches the path to %s with the settings of the BGPPeer %q, and this one has others: use the same bfdProfile in both, or set another sourceAddress in one", s.Peer, e.peerNamesByBFDPath[s.SessionKey][0])
		}
		e.peerNamesByBFDPath[s.SessionKey] = append(e.peerNamesByBFDPath[s.SessionKey], p.Name)
		keys[p.Name] = s.SessionKey
	}
	e.mu.Lock()
	changed := !maps.Equal(e.bfdRequestsOfPeers.bfdKeyByPeerName, keys) || !maps.Equal(e.bfdRequestsOfPeers.bfdFaultByPeerName, faults)
	e.bfdRequestsOfPeers.peersOfLastUpdate, e.bfdRequestsOfPeers.bfdKeyByPeerName, e.bfdRequestsOfPeers.bfdFaultByPeerName = peers, keys, faults
	e.mu.Unlock()
	e.listenToRoutersWithoutBFD(peers)
	if changed {
		e.statusChanged.Signal()
	}
	if !slices.Equal(sessions, e.lastSetBFDSessions) {
		e.lastSetBFDSessions = sessions
		e.options.BFD.SetSessions(sessions)
	}
}

// listenToRoutersWithoutBFD finds out whether the routers of peers without BFD profile ask for BFD.
func (e *Engine) listenToRoutersWithoutBFD(peers []intent.Peer) {
	if e.options.BFDRequests == nil {
		return
	}
	var routers []netip.Addr
	for i := range peers {
		if p := &peers[i]; p.BFD == nil && p.Address.IsValid() {
			routers = append(routers, p.Address.WithZone(""))
		}
	}
	slices.SortFunc(routers, netip.Addr.Compare)
	if routers = slices.Compact(routers); !slices.Equal(routers, e.routersWithoutBFD) {
		e.routersWithoutBFD = routers
		e.options.BFDRequests.SetRouters(routers)
	}
}

// heardRouters delivers the routers that ask for BFD; never without a BFDRequestFinder.
func (e *Engine) heardRouters() <-chan []netip.Addr {
	if e.options.BFDRequests == nil {
		return nil
	}
	return e.options.BFDRequests.HeardRouters()
}

// recordRoutersAskingForBFD takes the routers that ask for BFD.
func (e *Engine) recordRoutersAskingForBFD(routers []netip.Addr) {
	e.mu.Lock()
	e.bfdRequestsOfPeers.routersAskingForBFD = routers
	e.mu.Unlock()
	e.statusChanged.Signal()
}

// newBFDSession returns the BFD session of a peer. A peer that may be several hops
// away gets a single-hop session if it is on a link of this node.
func (e *Engine) newBFDSession(p *intent.Peer) bfd.SessionConfig {
	s := bfd.SessionConfig{
		SessionKey: bfd.SessionKey{Peer: p.Address.WithZone(""), LocalAddress: p.SourceAddress},
		Profile: bfd.Profile{
			ReceiveInterval: p.BFD.ReceiveInterval, TransmitInterval: p.BFD.TransmitInterval, DetectMultiplier: p.BFD.Multiplier, EchoMode: p.BFD.EchoMode,
			EchoInterval: p.BFD.EchoInterval, Passive: p.BFD.Passive, MinimumTTL: p.BFD.MinTTL,
		},
	}
	s.Multihop = p.Multihop || (!p.IsExternal() || p.MaxHops > 1) && !isAddressOnLink(e.nodeAddresses, p.Device, p.Address)
	switch {
	case p.Address.IsLinkLocalUnicast() || p.Unnumbered:
		s.Interface = cmp.Or(p.Address.Zone(), p.Device)
	default:
		s.VRF = p.Device
	}
	return s
}

// bfdPathState returns the state and fault of a path. The state is Down before BFD has started.
func bfdPathState(all []bfd.Status, k bfd.SessionKey) (state string, fault names.Explanation) {
	for i := range all {
		if all[i].SessionKey == k {
			return all[i].State.String(), all[i].Fault
		}
	}
	return "Down", names.Explanation{}
}

// isBFDPathUp reports whether the BFD session of a peer's path is Up.
func (e *Engine) isBFDPathUp(peer string) bool {
	e.mu.Lock()
	k, ok := e.bfdRequestsOfPeers.bfdKeyByPeerName[peer]
	e.mu.Unlock()
	state, _ := bfdPathState(e.options.BFD.Status(), k)
	return ok && state == "Up"
}

// logBFDFaults logs each change of a BFD fault.
func (e *Engine) logBFDFaults() {
	for _, s := range e.options.BFD.Status() {
		if old, known := e.loggedFaultByBFDPath[s.SessionKey]; s.Fault != old {
			e.loggedFaultByBFDPath[s.SessionKey] = s.Fault
			switch {
			case s.Fault.IsSet():
				e.options.Log.Warn("BFD does not run as configured", "peers", e.peerNamesByBFDPath[s.SessionKey], "reason", s.Fault.Reason, "cause", s.Fault.Text)
			case known:
				e.options.Log.Info("BFD runs as configured", "peers", e.peerNamesByBFDPath[s.SessionKey])
			}
		}
	}
	maps.DeleteFunc(e.loggedFaultByBFDPath, func(k bfd.SessionKey, _ names.Explanation) bool { return e.peerNamesByBFDPath[k] == nil })
}

// forwardBFDEvent passes an event to the workers of its path.
func (e *Engine) forwardBFDEvent(v bfd.Event) {
	e.options.Log.Info("the state of a BFD session changed", "router", v.Key.String(), "up", v.Up, "cause", v.CauseText)
	for _, name := range e.peerNamesByBFDPath[v.Key] {
		if w, ok := e.workerByPeer[name]; ok {
			w.bfdEvents.Put(v)
		}
	}
}

// handleBFDEvent ends the session when the path has failed. The
// NOTIFICATION makes the router remove the routes too (RFC 9384).
func (w *worker) handleBFDEvent(v bfd.Event) {
	if w.currentDesiredState.peer.BFDStrict {
		w.updateAdjRIBOut()
	}
	w.bfdRecoveryTimer.Stop()
	switch {
	case !v.IsPathFailure() || w.session == nil:
	case v.Cause == bfdsession.CauseNeighbourDown && w.isSessionNew():
		w.log.Info("the router starts its BFD session again with the new BGP session", "within", bfdRecoveryTimeout)
		w.bfdRecoveryTimer.Reset(bfdRecoveryTimeout)
	default:
		w.endSessionForBFD(v.CauseText)
	}
}

// Times after the start of a BGP session. FRR deletes its BFD session and starts it again when a
// BGP session is established, and signals Down for that. The path works: BGP has just used it.
const (
	// toleratedBFDRestartInterval is how long after the start a router may do so.
	toleratedBFDRestartInterval = 2 * time.Second
	// bfdRecoveryTimeout is how long the BFD session may take to be Up again.
	bfdRecoveryTimeout = 3 * time.Second
)

// isSessionNew reports whether the session has started just now.
func (w *worker) isSessionNew() bool {
	return w.engine.options.Now().Sub(w.status.StateSince) < toleratedBFDRestartInterval
}

// endSessionForBFD ends the session because the path has failed.
func (w *worker) endSessionForBFD(cause string) {
	w.session.endWithNotification(sessionFault{names.ReasonBFDDown, fmt.Errorf("BFD: %s", cause)}, w.wrapInHardResetIfNeeded(message.NewCeaseNotification(message.CeaseBFDDown, "")))
}

// endSessionWithoutBFDRecovery ends the session whose BFD session did not come Up again.
func (w *worker) endSessionWithoutBFDRecovery() {
	if w.session != nil {
		w.endSessionForBFD(fmt.Sprintf("the neighbour signalled down, and the session was not up again within %s", bfdRecoveryTimeout))
	}
}
