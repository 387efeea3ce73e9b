package elect

import "time"

// ownRank is where this node ranks among the candidates for an address.
type ownRank struct {
	betterMemberCount int  // of members that rank before it
	isBehindNonMember bool // a candidate that is no member yet ranks before it
}

// ownRankFinder finds where this node ranks for each address of one step. During a step the nodes
// that may take an address stay the same. Other than rankCandidates it sorts nothing: the addresses
// of a large dead node are ranked by all others at the same time.
type ownRankFinder struct {
	isNotYetMember    func(string) bool // no member yet
	candidatesByGroup map[*sameCandidatesGroup]eligibleCandidates
}

// eligibleCandidates are the candidates of a group that may take an address.
type eligibleCandidates struct {
	nodes          []rankedCandidate // without what depends on the address
	topScoredCount int               // how many share the highest score
}

func (r *ownRankFinder) eligibleCandidatesOfGroup(m *Machine, g *sameCandidatesGroup) eligibleCandidates {
	c, known := r.candidatesByGroup[g]
	if known {
		return c
	}
	best := 0
	for i, node := range g.candidates.Nodes {
		if !mayTakeAddresses(m, node, r.isNotYetMember) {
			continue
		}
		s := rankedCandidate{node: node, preferenceScore: g.candidates.PreferenceScores[i]}
		switch {
		case c.topScoredCount == 0 || s.preferenceScore > best:
			best, c.topScoredCount = s.preferenceScore, 1
		case s.preferenceScore == best:
			c.topScoredCount++
		}
		c.nodes = append(c.nodes, s)
	}
	r.candidatesByGroup[g] = c
	return c
}

// rankSelf returns where this node ranks for the address, and the node that ranks first.
func (r *ownRankFinder) rankSelf(m *Machine, a *addressState) (own ownRank, first string) {
	if a.group == nil {
		return own, ""
	}
	candidates := r.eligibleCandidatesOfGroup(m, a.group)
	most := evenShareLimitPerNode(a.group.addressCount, candidates.topScoredCount)
	complete := func(s rankedCandidate) rankedCandidate {
		s.rendezvousWeight = rendezvousWeight(a.ip, s.node)
		s.holdsItsShareOfGroup = a.group.addressCountByNode[s.node] >= most
		s.holdsOtherAddressOfService = a.holdsOtherAddressOfService(m.addressesByIP, s.node)
		return s
	}
	var self, best rankedCandidate
	for _, s := range candidates.nodes {
		if s.node == m.self {
			self = complete(s)
		}
	}
	for _, s := range candidates.nodes {
		s = complete(s)
		if best.node == "" || s.compareRank(best) < 0 {
			best = s
		}
		switch {
		case s.node == m.self || self.node != "" && s.compareRank(self) > 0:
		case r.isNotYetMember(s.node):
			own.isBehindNonMember = true
		default:
			own.betterMemberCount++
		}
	}
	return own, best.node
}

// delayBeforeProbe is how long this node leaves the address to better candidates before it probes.
// It waits once for all that are not members yet, and some time for each of the others.
func (s ownRank) delayBeforeProbe(timing *Timing) time.Duration {
	if s.isBehindNonMember {
		return timing.StartupWithoutMembersDelay + acquireDelayOfRank(s.betterMemberCount, timing)
	}
	return acquireDelayOfRank(s.betterMemberCount, timing)
}
