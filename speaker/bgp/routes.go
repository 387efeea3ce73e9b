package bgp

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// gracefulShutdownCommunity is GRACEFUL_SHUTDOWN (RFC 8326 section 3).
const gracefulShutdownCommunity = 0xffff0000

// exportRules decide how the routes of a peer are announced now. The value is immutable.
type exportRules struct {
	shutdownPhase gracefulShutdownPhase
	nextHops      sessionNextHops
	// families are those of the session; none before the first one.
	families []message.AFI
	localASN uint32
	// waitsForBFD is set if the peer needs a working BFD session and has none.
	waitsForBFD bool
	// drainDelay is how long a route stays whose last endpoints on this node terminate.
	drainDelay time.Duration
}

// equal reports whether both decide each route alike.
func (a *exportRules) equal(b *exportRules) bool {
	return a.shutdownPhase == b.shutdownPhase && a.nextHops == b.nextHops && slices.Equal(a.families, b.families) &&
		a.localASN == b.localASN && a.waitsForBFD == b.waitsForBFD && a.drainDelay == b.drainDelay
}

// decideAnnouncement returns the attributes with which a route is announced. The Reason is not
// empty if the route is withheld. drainEnd is when the route's endpoints end; zero if they do not.
func (a *exportRules) decideAnnouncement(r *intent.Route, drainEnd, now time.Time) (PathAttributes, names.Reason) {
	t := PathAttributes{Attributes: r.Attributes}
	family := message.AFIOf(r.Prefix)
	t.NextHop, t.LinkLocalNextHop = a.nextHops.nextHopOfFamily(family)
	switch {
	case a.shutdownPhase == routesWithdrawnForShutdown:
		return t, names.ReasonNodeLeaving
	case len(a.families) == 0:
		return t, names.ReasonNoSession
	case !drainEnd.IsZero() && !now.Before(drainEnd):
		return t, names.ReasonEndpointsTerminating
	case !slices.Contains(a.families, family):
		return t, names.ReasonFamilyNotCarried
	case a.waitsForBFD:
		return t, names.ReasonBFDDown
	case !t.NextHop.IsValid():
		return t, names.ReasonNoNextHop
	case r.HasTooManyCommunities():
		return t, names.ReasonTooManyCommunities
	}
	if t.LinkBandwidthBytesPerSecond > 0 {
		t.ExtendedCommunities = append(slices.Clone(t.ExtendedCommunities), encodeLinkBandwidthCommunity(a.localASN, t.LinkBandwidthBytesPerSecond))
	}
	if a.shutdownPhase == routesWithShutdownCommunity || !drainEnd.IsZero() {
		t.LocalPref = 1 // the lowest preference: 0 means the default
		t.Communities = append(slices.Clone(t.Communities), gracefulShutdownCommunity)
		slices.Sort(t.Communities)
		t.Communities = slices.Compact(t.Communities)
	}
	return t, ""
}

// withheldRoute is a route that is not announced.
type withheldRoute struct {
	route  *intent.Route
	reason names.Reason
}

// isWithheldOnPurpose reports whether the router should not have the route either.
func (r withheldRoute) isWithheldOnPurpose() bool {
	return r.reason == names.ReasonNodeLeaving || r.reason == names.ReasonEndpointsTerminating
}

// drainingRoute is a route whose last endpoints on this node terminate.
type drainingRoute struct {
	route *intent.Route
	start time.Time
}

// peerRoutes are the routes of one peer. Each is in the AdjRIBOut or withheld. Only the worker uses
// it.
type peerRoutes struct {
	adjRIBOut              *AdjRIBOut
	withheldByPrefix       map[netip.Prefix]withheldRoute
	drainingByPrefix       map[netip.Prefix]drainingRoute
	withheldOnPurposeCount int // of withheld routes that are expected to be withheld
}

func newPeerRoutes() *peerRoutes {
	return &peerRoutes{adjRIBOut: NewAdjRIBOut(), withheldByPrefix: map[netip.Prefix]withheldRoute{}, drainingByPrefix: map[netip.Prefix]drainingRoute{}}
}

// setRouteLocked sets the route of a prefix; nil removes it. The caller has locked the table, so
// that a subscriber gets many changes at once.
func (p *peerRoutes) setRouteLocked(prefix netip.Prefix, r *intent.Route, rules *exportRules, now time.Time) {
	if old, ok := p.withheldByPrefix[prefix]; ok {
		delete(p.withheldByPrefix, prefix)
		if old.isWithheldOnPurpose() {
			p.withheldOnPurposeCount--
		}
	}
	if r == nil {
		delete(p.drainingByPrefix, prefix)
		p.adjRIBOut.setRouteLocked(prefix, nil)
		return
	}
	attributes, reason := rules.decideAnnouncement(r, p.updateDrainAndReturnEnd(r, rules, now), now)
	if reason == "" {
		p.adjRIBOut.setRouteLocked(prefix, &attributes)
		return
	}
	p.adjRIBOut.setRouteLocked(prefix, nil)
	w := withheldRoute{r, reason}
	p.withheldByPrefix[prefix] = w
	if w.isWithheldOnPurpose() {
		p.withheldOnPurposeCount++
	}
}

// updateDrainAndReturnEnd returns when a route is withdrawn whose last endpoints terminate; zero if
// they do not. The time starts when the endpoints begin to terminate.
func (p *peerRoutes) updateDrainAndReturnEnd(r *intent.Route, rules *exportRules, now time.Time) time.Time {
	if !r.EndpointsTerminating {
		delete(p.drainingByPrefix, r.Prefix)
		return time.Time{}
	}
	d, ok := p.drainingByPrefix[r.Prefix]
	if !ok {
		d.start = now
	}
	d.route = r
	p.drainingByPrefix[r.Prefix] = d
	return d.start.Add(rules.drainDelay)
}

// replaceRoutes sets all routes.
func (p *peerRoutes) replaceRoutes(all []*intent.Route, rules *exportRules, now time.Time) {
	p.adjRIBOut.mu.Lock()
	defer p.adjRIBOut.mu.Unlock()
	wanted := make(map[netip.Prefix]struct{}, len(all))
	for _, r := range all {
		wanted[r.Prefix] = struct{}{}
		p.setRouteLocked(r.Prefix, r, rules, now)
	}
	for prefix := range p.withheldByPrefix {
		if _, ok := wanted[prefix]; !ok {
			p.setRouteLocked(prefix, nil, rules, now)
		}
	}
	if len(p.adjRIBOut.attributesByPrefix)+len(p.withheldByPrefix) == len(wanted) {
		return
	}
	for prefix := range p.adjRIBOut.attributesByPrefix {
		if _, ok := wanted[prefix]; !ok {
			p.setRouteLocked(prefix, nil, rules, now)
		}
	}
}

// applyChanges sets the routes of some prefixes; nil removes one.
func (p *peerRoutes) applyChanges(changes map[netip.Prefix]*intent.Route, rules *exportRules, now time.Time) {
	p.adjRIBOut.mu.Lock()
	defer p.adjRIBOut.mu.Unlock()
	for prefix, r := range changes {
		p.setRouteLocked(prefix, r, rules, now)
	}
}

// withdrawDrainedRoutes withdraws the routes whose drain has ended. It returns when the next one
// ends; zero if there is none.
func (p *peerRoutes) withdrawDrainedRoutes(rules *exportRules, now time.Time) (next time.Time) {
	p.adjRIBOut.mu.Lock()
	defer p.adjRIBOut.mu.Unlock()
	for prefix, d := range p.drainingByPrefix {
		switch end := d.start.Add(rules.drainDelay); {
		case !now.Before(end):
			if _, withheld := p.withheldByPrefix[prefix]; !withheld {
				p.setRouteLocked(prefix, d.route, rules, now)
			}
		case next.IsZero() || end.Before(next):
			next = end
		}
	}
	return next
}

// drainingAndDrainedPrefixes returns the prefixes whose last endpoints on this node terminate:
// those that are still announced, and those that were withdrawn for this reason.
func (p *peerRoutes) drainingAndDrainedPrefixes() (draining, drained []netip.Prefix) {
	for prefix := range p.drainingByPrefix {
		switch w, withheld := p.withheldByPrefix[prefix]; {
		case !withheld:
			draining = append(draining, prefix)
		case w.reason == names.ReasonEndpointsTerminating:
			drained = append(drained, prefix)
		}
	}
	return draining, drained
}

// wantedRouteCount returns how many routes the router should have.
func (p *peerRoutes) wantedRouteCount() int {
	return p.adjRIBOut.RouteCount() + len(p.withheldByPrefix) - p.withheldOnPurposeCount
}

// explainFirstWithheldRoute returns why the first route that is missing is not announced.
func (p *peerRoutes) explainFirstWithheldRoute() names.Explanation {
	if len(p.withheldByPrefix) == p.withheldOnPurposeCount {
		return names.Explanation{}
	}
	var first withheldRoute
	for _, w := range p.withheldByPrefix {
		if !w.isWithheldOnPurpose() && (first.route == nil || w.route.Prefix.Compare(first.route.Prefix) < 0) {
			first = w
		}
	}
	return explainWithheldRoute(first)
}

// explainWithheldRoute says why a route is not announced, and what to do.
func explainWithheldRoute(w withheldRoute) names.Explanation {
	prefix, family := w.route.Prefix, message.AFIOf(w.route.Prefix)
	switch w.reason {
	case names.ReasonFamilyNotCarried:
		return names.NewExplanation(w.reason, "the router does not get %s: it does not accept routes of %s on this session: activate that address family for this neighbour there", prefix, family)
	case names.ReasonNoNextHop:
		return names.NewExplanation(w.reason, "the router does not get %s: the link of this session has no address that can be the next hop of %s routes: add one to the node's link, set or correct gantry.nextHops of the BGPPeer, or remove dualStackAddressFamily", prefix, family)
	case names.ReasonBFDDown:
		return names.NewExplanation(w.reason, "the router does not get %s: gantry.bfdStrict is set and the BFD session is not Up: enable BFD on the router, and check the path", prefix)
	case names.ReasonTooManyCommunities:
		return names.NewExplanation(w.reason, "the router does not get %s: it has more communities than fit into a message: remove some from its BGPAdvertisements", prefix)
	case names.ReasonNodeLeaving:
		return names.NewExplanation(w.reason, "the node is leaving or excluded")
	case names.ReasonEndpointsTerminating:
		return names.NewExplanation(w.reason, "the last endpoints on this node terminate, and drainDelay has passed")
	}
	return names.NewExplanation(names.ReasonNoSession, "no session with the router is established")
}

// updateAdjRIBOut decides all routes again if their rules have changed, and otherwise those that
// changed. Most changes of a node's addresses, such as those of Pods' links, change no rule.
func (w *peerWorker) updateAdjRIBOut() {
	rules := w.currentExportRules()
	if w.lastExportRules != nil && w.lastExportRules.equal(&rules) {
		w.applyRouteChangesToAdjRIBOut()
		return
	}
	w.lastExportRules = &rules
	w.routes.replaceRoutes(w.routeInbox.routesOfPeerClearingChanges(w.peerName), &rules, w.engine.options.Now())
	w.withdrawDrainedAndSetTimer()
}

// applyRouteChangesToAdjRIBOut decides the routes that changed.
func (w *peerWorker) applyRouteChangesToAdjRIBOut() {
	rules, now := w.currentExportRules(), w.engine.options.Now()
	w.routes.applyChanges(w.routeInbox.takeChanges(), &rules, now)
	w.withdrawDrainedAndSetTimer()
}

// withdrawDrainedAndSetTimer withdraws the routes whose drain has ended, and sets the timer for the
// next one.
func (w *peerWorker) withdrawDrainedAndSetTimer() {
	if len(w.routes.drainingByPrefix) == 0 {
		return
	}
	rules, now := w.currentExportRules(), w.engine.options.Now()
	if next := w.routes.withdrawDrainedRoutes(&rules, now); !next.IsZero() {
		w.drainTimer.Reset(next.Sub(now))
	}
}

// currentExportRules returns the rules for the routes of the peer.
func (w *peerWorker) currentExportRules() exportRules {
	p := &w.currentDesiredState.peer
	rules := exportRules{
		shutdownPhase: w.routeShutdown.phase, nextHops: w.nextHops, families: w.sessionFamilies, localASN: p.LocalASN,
		drainDelay: drainDelayOfPeer(p), waitsForBFD: p.BFDStrict && p.BFD != nil && !w.engine.isBFDUpForPeer(p.Name),
	}
	return rules
}

// encodeLinkBandwidthCommunity returns the link bandwidth extended community
// (draft-ietf-idr-link-bandwidth): non-transitive, with a two-octet AS
// number and bytes per second as an IEEE 754 number.
func encodeLinkBandwidthCommunity(asn uint32, bytes uint64) [8]byte {
	as, bits := message.TwoOctetASN(asn), math.Float32bits(float32(bytes))
	return [8]byte{0x40, 4, byte(as >> 8), byte(as), byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}
}
