package elect

import "time"

// A network can be cut so that one side loses the default gateway. Both sides then have a holder,
// and clients beyond the gateway reach only one of them. So a node asks the gateways while it takes
// an address, and its claim says if they were silent: it is a claim without gateway. When the cut
// heals, the holder on the other side hears this claim. If a gateway answers that holder, it claims
// the address again, above the claim without gateway. The order of the claims then is the same for
// all nodes, also for those of an earlier version.

// gatewayWatch is what this node knows of its default gateways.
type gatewayWatch struct {
	askedAt, answeredAt time.Time
	// isSilent is set after a probe that no gateway answered, until one answers. A node without a
	// default gateway counts as one whose gateways are silent.
	isSilent bool
	// awaited is set from a probe until its result.
	awaited bool
	// recentClaims are the addresses that this node has just claimed without gateway, the last one
	// at recentClaimsAt. A gateway that answers late clears the mark.
	recentClaims   map[*addressState]struct{}
	recentClaimsAt time.Time
	// contestingClaimByAddress has the held addresses to which another node has a higher claim
	// without gateway. They wait for the result.
	contestingClaimByAddress map[*addressState]Claim
}

const (
	// gatewayAnswerTimeout is how long an answer of a gateway counts.
	gatewayAnswerTimeout = time.Second
	// gatewayProbeTimeout is when the result of a probe counts as lost.
	gatewayProbeTimeout = 500 * time.Millisecond
	// lateGatewayAnswerTimeout is how long after a claim without gateway the gateways are asked
	// again. On a busy machine an answer may miss the first probe.
	lateGatewayAnswerTimeout = 300 * time.Millisecond
	// gatewayFrameIntervalDivisor makes the probe of a gateway end before the acquire probe that
	// begins with it.
	gatewayFrameIntervalDivisor = 2
)

// hasFreshAnswer reports whether a gateway answered a short time ago.
func (g *gatewayWatch) hasFreshAnswer(now time.Time) bool {
	return !g.answeredAt.IsZero() && now.Sub(g.answeredAt) < gatewayAnswerTimeout
}

// askGateways asks the default gateways, unless one has just answered, or they were just asked.
func askGateways(m *Machine) {
	g := &m.gateways
	if g.hasFreshAnswer(m.now) || !g.askedAt.IsZero() && m.now.Sub(g.askedAt) < m.timing.ReachabilityProbeInterval {
		return
	}
	g.askedAt, g.awaited = m.now, true
	m.outbox.emitEffect(ReachabilityProbe{
		ID: m.pendingProbes.registerProbe(pendingProbe{asksGateways: true}, m.now), FramesPerTarget: m.timing.FramesPerProbe,
		FrameInterval: m.timing.ProbeFrameInterval / gatewayFrameIntervalDivisor, OnlyGateways: true,
	})
}

// recordGatewayProbe records the result of askGateways.
func recordGatewayProbe(m *Machine, sentAt time.Time, isAnswered bool) {
	g := &m.gateways
	g.awaited, g.isSilent = false, !isAnswered
	if isAnswered {
		g.answeredAt = m.now
		m.lease.handleReachabilityProbeResult(sentAt, m.now, m.syncRequests.nextRequestID())
		unmarkRecentClaims(m)
	}
	resolveContestedAddresses(m)
}

// recordOwnClaim records an address that this node claims.
func (g *gatewayWatch) recordOwnClaim(a *addressState, now time.Time) {
	if a.isClaimedWithoutGateway {
		g.recentClaims[a], g.recentClaimsAt = struct{}{}, now
	}
}

// askGatewaysAboutRecentClaims asks again for a while after a claim without gateway.
func askGatewaysAboutRecentClaims(m *Machine) {
	g := &m.gateways
	switch {
	case len(g.recentClaims) == 0:
	case m.now.Sub(g.recentClaimsAt) >= lateGatewayAnswerTimeout:
		clear(g.recentClaims)
	default:
		askGateways(m)
	}
}

// unmarkRecentClaims claims the recent addresses again, without the mark.
func unmarkRecentClaims(m *Machine) {
	for _, a := range sortedByIP(m.gateways.recentClaims) {
		if a.isHeldBySelf && a.move == nil && a.isClaimedWithoutGateway {
			a.isClaimedWithoutGateway = false
			m.claimAddress(a, a.highestKnownClaim.Epoch+1)
		}
	}
	clear(m.gateways.recentClaims)
}

// isContestable reports whether this node may keep a held address although the claim of another
// living node is higher.
func isContestable(m *Machine, a *addressState, c Claim) bool {
	return c.WithoutGateway && !a.highestKnownClaim.WithoutGateway && a.move == nil && !m.lease.isExpired &&
		a.canBeHeldBySelf(m.self) && !m.shutdownHandoverRequested
}

// contestAddress keeps the address until it is known whether a gateway answers this node.
func contestAddress(m *Machine, a *addressState, c Claim) {
	if known := m.gateways.contestingClaimByAddress[a]; known.Epoch == 0 || c.supersedes(known) {
		m.gateways.contestingClaimByAddress[a] = c
	}
	if askGateways(m); !m.gateways.awaited {
		resolveContestedAddresses(m)
	}
}

// resolveContestedAddresses keeps the contested addresses if a gateway answers this node, and gives
// them up otherwise.
func resolveContestedAddresses(m *Machine) {
	isKept := m.gateways.hasFreshAnswer(m.now)
	for _, a := range sortedByIP(m.gateways.contestingClaimByAddress) {
		c := m.gateways.contestingClaimByAddress[a]
		delete(m.gateways.contestingClaimByAddress, a)
		switch {
		case !a.isHeldBySelf || !c.supersedes(a.highestKnownClaim):
		case isKept && isContestable(m, a, c):
			m.claimAgainWithHigherEpoch(a, c)
			m.outbox.emitAddressEffect(RepeatAnnouncement{a.ip})
			m.reconcileAddress(a)
		default:
			yieldToClaim(m, a, c)
		}
	}
}

// resolveOverdueContests gives contested addresses up when the result of the probe was lost.
func resolveOverdueContests(m *Machine) {
	if len(m.gateways.contestingClaimByAddress) > 0 && m.now.Sub(m.gateways.askedAt) >= gatewayProbeTimeout {
		m.gateways.awaited = false
		resolveContestedAddresses(m)
	}
}
