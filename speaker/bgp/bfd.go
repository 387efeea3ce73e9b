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
	SessionStatuses() []bfd.SessionStatus
	StatusChanged() <-chan struct{}
}

// BFDRequestSniffer finds routers that ask for a BFD session. *udp.Overhearer implements it.
type BFDRequestSniffer interface {
	SetRoutersToSniff(routers []netip.Addr)
	UpdatesOfRoutersAskingForBFD() <-chan []netip.Addr
}

// bfdSetupOfPeers is what the last update of the peers asked of BFD. The maps are keyed by the
// names of the peers.
type bfdSetupOfPeers struct {
	peersOfLastUpdate  []intent.Peer
	bfdKeyByPeerName   map[string]bfd.SessionKey
	bfdFaultByPeerName map[string]names.Explanation
	// routersAskingForBFD are routers of peers without BFD that send BFD packets.
	routersAskingForBFD []netip.Addr
}

// updateBFDSessions sets one BFD session for each path with a BFD profile. Two peers
// with one address share a session, since it describes only the path.
func (e *Engine) updateBFDSessions(peers []intent.Peer) {
	e.peerNamesByBFDSession = map[bfd.SessionKey][]string{}
	keys, faults := map[string]bfd.SessionKey{}, map[string]names.Explanation{}
	first := map[bfd.SessionKey]bfd.SessionConfig{}
	var sessions []bfd.SessionConfig
	for i := range peers {
		p := &peers[i]
		if p.BFD == nil || !p.Address.IsValid() {
			continue
		}
		s := e.bfdSessionConfigOfPeer(p)
		if f, shared := first[s.SessionKey]; !shared {
			first[s.SessionKey], sessions = s, append(sessions, s)
		} else if f != s {
			faults[p.Name] = names.NewExplanation(names.ReasonConflictingBFD, "BFD watches the path to %s with the settings of the BGPPeer %q, and this one has others: use the same bfdProfile in both, or set another sourceAddress in one", s.PeerAddress, e.peerNamesByBFDSession[s.SessionKey][0])
		}
		e.peerNamesByBFDSession[s.SessionKey] = append(e.peerNamesByBFDSession[s.SessionKey], p.Name)
		keys[p.Name] = s.SessionKey
	}
	e.mu.Lock()
	changed := !maps.Equal(e.bfdSetupOfPeers.bfdKeyByPeerName, keys) || !maps.Equal(e.bfdSetupOfPeers.bfdFaultByPeerName, faults)
	e.bfdSetupOfPeers.peersOfLastUpdate, e.bfdSetupOfPeers.bfdKeyByPeerName, e.bfdSetupOfPeers.bfdFaultByPeerName = peers, keys, faults
	e.mu.Unlock()
	e.sniffRoutersOfPeersWithoutBFD(peers)
	if changed {
		e.statusChanged.Signal()
	}
	if !slices.Equal(sessions, e.lastSetBFDSessions) {
		e.lastSetBFDSessions = sessions
		e.options.BFDEngine.SetSessions(sessions)
	}
}

// sniffRoutersOfPeersWithoutBFD finds out whether the routers of peers without BFD profile ask for
// BFD.
func (e *Engine) sniffRoutersOfPeersWithoutBFD(peers []intent.Peer) {
	if e.options.BFDRequestSniffer == nil {
		return
	}
	var routers []netip.Addr
	for i := range peers {
		if p := &peers[i]; p.BFD == nil && p.Address.IsValid() {
			routers = append(routers, p.Address.WithZone(""))
		}
	}
	slices.SortFunc(routers, netip.Addr.Compare)
	if routers = slices.Compact(routers); !slices.Equal(routers, e.routersOfPeersWithoutBFD) {
		e.routersOfPeersWithoutBFD = routers
		e.options.BFDRequestSniffer.SetRoutersToSniff(routers)
	}
}

// updatesOfRoutersAskingForBFD delivers the routers that ask for BFD; never without a
// BFDRequestSniffer.
func (e *Engine) updatesOfRoutersAskingForBFD() <-chan []netip.Addr {
	if e.options.BFDRequestSniffer == nil {
		return nil
	}
	return e.options.BFDRequestSniffer.UpdatesOfRoutersAskingForBFD()
}

// recordRoutersAskingForBFD takes the routers that ask for BFD.
func (e *Engine) recordRoutersAskingForBFD(routers []netip.Addr) {
	e.mu.Lock()
	e.bfdSetupOfPeers.routersAskingForBFD = routers
	e.mu.Unlock()
	e.statusChanged.Signal()
}

// bfdSessionConfigOfPeer returns the BFD session of a peer. A peer that may be several hops
// away gets a single-hop session if it is on a link of this node.
func (e *Engine) bfdSessionConfigOfPeer(p *intent.Peer) bfd.SessionConfig {
	s := bfd.SessionConfig{
		SessionKey: bfd.SessionKey{PeerAddress: p.Address.WithZone(""), LocalAddress: p.SourceAddress},
		Profile: bfd.Profile{
			ReceiveInterval: p.BFD.ReceiveInterval, TransmitInterval: p.BFD.TransmitInterval, DetectMultiplier: p.BFD.Multiplier, EchoMode: p.BFD.EchoMode,
			EchoInterval: p.BFD.EchoInterval, Passive: p.BFD.Passive, MinimumTTL: p.BFD.MinTTL,
		},
	}
	s.Multihop = p.Multihop || (!p.IsExternal() || p.MaxHops > 1) && !isInSubnetOfVRFLink(e.nodeAddresses, p.Device, p.Address)
	switch {
	case p.Address.IsLinkLocalUnicast() || p.Unnumbered:
		s.Interface = cmp.Or(p.Address.Zone(), p.Device)
	default:
		s.VRF = p.Device
	}
	return s
}

// bfdSessionStateAndFault returns the state and fault of a path. The state is Down before BFD has
// started.
func bfdSessionStateAndFault(all []bfd.SessionStatus, k bfd.SessionKey) (state string, fault names.Explanation) {
	for i := range all {
		if all[i].SessionKey == k {
			return all[i].State.String(), all[i].Fault
		}
	}
	return "Down", names.Explanation{}
}

// isBFDUpForPeer reports whether the BFD session of a peer's path is Up.
func (e *Engine) isBFDUpForPeer(peer string) bool {
	e.mu.Lock()
	k, ok := e.bfdSetupOfPeers.bfdKeyByPeerName[peer]
	e.mu.Unlock()
	state, _ := bfdSessionStateAndFault(e.options.BFDEngine.SessionStatuses(), k)
	return ok && state == "Up"
}

// logBFDFaultChanges logs each change of a BFD fault.
func (e *Engine) logBFDFaultChanges() {
	for _, s := range e.options.BFDEngine.SessionStatuses() {
		if old, known := e.loggedFaultByBFDSession[s.SessionKey]; s.Fault != old {
			e.loggedFaultByBFDSession[s.SessionKey] = s.Fault
			switch {
			case s.Fault.IsSet():
				e.options.Log.Warn("BFD does not run as configured", "peers", e.peerNamesByBFDSession[s.SessionKey], "reason", s.Fault.Reason, "cause", s.Fault.Text)
			case known:
				e.options.Log.Info("BFD runs as configured", "peers", e.peerNamesByBFDSession[s.SessionKey])
			}
		}
	}
	maps.DeleteFunc(e.loggedFaultByBFDSession, func(k bfd.SessionKey, _ names.Explanation) bool { return e.peerNamesByBFDSession[k] == nil })
}

// forwardBFDEvent passes an event to the workers of its path.
func (e *Engine) forwardBFDEvent(v bfd.Event) {
	e.options.Log.Info("the state of a BFD session changed", "router", v.Key.String(), "up", v.Up, "cause", v.CauseText)
	for _, name := range e.peerNamesByBFDSession[v.Key] {
		if w, ok := e.workerByPeer[name]; ok {
			w.bfdEvents.PutDroppingOldest(v)
		}
	}
}

// handleBFDEvent ends the session when the path has failed. The
// NOTIFICATION makes the router remove the routes too (RFC 9384).
func (w *peerWorker) handleBFDEvent(v bfd.Event) {
	if w.currentDesiredState.peer.BFDStrict {
		w.updateAdjRIBOut()
	}
	w.bfdRecoveryTimer.Stop()
	switch {
	case !v.IsPathFailure() || w.session == nil:
	case v.Cause == bfdsession.CauseNeighbourSignalledDown && w.isSessionNew():
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
func (w *peerWorker) isSessionNew() bool {
	return w.engine.options.Now().Sub(w.status.StateSince) < toleratedBFDRestartInterval
}

// endSessionForBFD ends the session because the path has failed.
func (w *peerWorker) endSessionForBFD(cause string) {
	w.session.endWithNotification(sessionFault{names.ReasonBFDDown, fmt.Errorf("BFD: %s", cause)}, w.wrapInHardResetIfNeeded(message.NewCeaseNotification(message.CeaseBFDDown, "")))
}

// endSessionAfterBFDRecoveryTimeout ends the session whose BFD session did not come Up again.
func (w *peerWorker) endSessionAfterBFDRecoveryTimeout() {
	if w.session != nil {
		w.endSessionForBFD(fmt.Sprintf("the neighbour signalled down, and the session was not up again within %s", bfdRecoveryTimeout))
	}
}
