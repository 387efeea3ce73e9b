package elect

import "time"

// ownStanding is where this node ranks among the candidates for an address.
type ownStanding struct {
	betterCount    int  // of members that rank before it
	isBehindAbsent bool // a candidate that is no member yet ranks before it
}

// acquireRanking finds where this node ranks for each address of one step. During a step the nodes
// that may take an address stay the same. Other than rankCandidates it sorts nothing: the addresses
// of a large dead node are ranked by all others at the same time.
type acquireRanking struct {
	isAbsent          func(string) bool // no member yet
	candidatesByGroup map[*candidateGroup]groupCandidates
}

// groupCandidates are the candidates of a group that may take an address.
type groupCandidates struct {
	nodes     []rankedCandidate // without what depends on the address
	bestCount int               // how many share the highest score
}

func (r *acquireRanking) candidatesOf(m *Machine, g *candidateGroup) groupCandidates {
	c, known := r.candidatesByGroup[g]
	if known {
		return c
	}
	best := 0
	for i, node := range g.candidates.Nodes {
		if !mayTakeAddresses(m, node, r.isAbsent) {
			continue
		}
		s := rankedCandidate{node: node, score: g.candidates.PreferenceScores[i]}
		switch {
		case c.bestCount == 0 || s.score > best:
			best, c.bestCount = s.score, 1
		case s.score == best:
			c.bestCount++
		}
		c.nodes = append(c.nodes, s)
	}
	r.candidatesByGroup[g] = c
	return c
}

// rankSelf returns where this node ranks for the address, and the node that ranks first.
func (r *acquireRanking) rankSelf(m *Machine, a *addressState) (own ownStanding, first string) {
	if a.group == nil {
		return own, ""
	}
	candidates := r.candidatesOf(m, a.group)
	most := maxAddressesPerNode(a.group.addressCount, candidates.bestCount)
	complete := func(s rankedCandidate) rankedCandidate {
		s.weight = rendezvousWeight(a.ip, s.node)
		s.holdsItsShareOfGroup = a.group.countByNode[s.node] >= most
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
		case r.isAbsent(s.node):
			own.isBehindAbsent = true
		default:
			own.betterCount++
		}
	}
	return own, best.node
}

// delayBeforeProbe is how long this node leaves the address to better candidates before it probes.
// It waits once for all that are not members yet, and some time for each of the others.
func (s ownStanding) delayBeforeProbe(timing *Timing) time.Duration {
	if s.isBehindAbsent {
		return timing.StartupWithoutMembersDelay + delayOfRank(s.betterCount, timing)
	}
	return delayOfRank(s.betterCount, timing)
}
