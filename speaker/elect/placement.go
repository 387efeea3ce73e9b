package elect

import (
	"cmp"
	"hash/fnv"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// sameCandidatesGroup is all addresses with the same candidates and the same preferences. They are
// spread evenly over these nodes.
type sameCandidatesGroup struct {
	candidates         *intent.Candidates
	addressCount       int
	addressCountByNode map[string]int // by node: addresses that it holds or is about to take
}

// updateAddressGroupCounts updates the groups after a change of the address.
func (m *Machine) updateAddressGroupCounts(a *addressState) {
	owner := ""
	if a.bid.Candidates != nil {
		switch {
		case a.isHeldBySelf && a.move != nil && a.move.target != "":
			owner = a.move.target
		case m.isLiveClaim(a.highestKnownClaim):
			owner = a.highestKnownClaim.Holder
		case a.acquisition != nil:
			owner = a.acquisition.expectedTaker
		}
	}
	m.addressGroupsByCandidates.countAddressForNode(a, owner)
}

// sameCandidatesGroups are the groups that have addresses, by the content hash of their candidates.
type sameCandidatesGroups map[uint64]*sameCandidatesGroup

// countAddressForNode counts the address for a node in the group of its candidates, and no longer
// where it was counted before. The node is empty while no node holds the address or is about to.
func (s sameCandidatesGroups) countAddressForNode(a *addressState, owner string) {
	var g *sameCandidatesGroup
	if c := a.bid.Candidates; c != nil {
		if g = s[c.ContentHash]; g == nil {
			g = &sameCandidatesGroup{candidates: c, addressCountByNode: map[string]int{}}
			s[c.ContentHash] = g
		}
	}
	if g == a.group && owner == a.countedForNode {
		return
	}
	if old := a.group; old != nil {
		old.addressCount--
		if old.addressCountByNode[a.countedForNode]--; old.addressCountByNode[a.countedForNode] == 0 {
			delete(old.addressCountByNode, a.countedForNode)
		}
		if old.addressCount == 0 && old != g {
			delete(s, old.candidates.ContentHash)
		}
	}
	if g != nil {
		g.addressCount++
		g.addressCountByNode[owner]++
	}
	a.group, a.countedForNode = g, owner
}

// canOthersHoldAddressesOf reports whether another node could hold an address that is counted for
// the given node.
func (s sameCandidatesGroups) canOthersHoldAddressesOf(node string) bool {
	for _, g := range s {
		if g.addressCountByNode[node] > 0 && len(g.candidates.Nodes) > 1 {
			return true
		}
	}
	return false
}

// evenShareLimitPerNode is how many of total addresses one of n nodes may hold: a tenth above the
// mean, rounded up, so that at least one node is below it.
func evenShareLimitPerNode(total, n int) int {
	if n == 0 {
		return total
	}
	return (11*total + 10*n - 1) / (10 * n)
}

// rankedCandidate is what ranks a node as holder of an address.
type rankedCandidate struct {
	node                       string
	preferenceScore            int
	holdsItsShareOfGroup       bool // it holds its share of the group
	holdsOtherAddressOfService bool // it holds another address of the same Service
	rendezvousWeight           uint64
}

// compareRank orders nodes, the best first. The criteria, in order: preference; room in its share;
// no other address of the same Service; rendezvous weight, so that the loss of a node moves only
// its own addresses.
func (s rankedCandidate) compareRank(o rankedCandidate) int {
	return cmp.Or(
		cmp.Compare(o.preferenceScore, s.preferenceScore),
		compareFalseFirst(s.holdsItsShareOfGroup, o.holdsItsShareOfGroup),
		compareFalseFirst(s.holdsOtherAddressOfService, o.holdsOtherAddressOfService),
		cmp.Compare(o.rendezvousWeight, s.rendezvousWeight),
		cmp.Compare(s.node, o.node),
	)
}

func compareFalseFirst(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// rankCandidates ranks the nodes that could take the address, the best first. It includes nodes
// that are not members if also returns true for them.
func (m *Machine) rankCandidates(a *addressState, also func(string) bool) []rankedCandidate {
	if a.group == nil {
		return nil
	}
	return a.group.rankCandidates(a, m.addressesByIP, func(node string) bool { return mayTakeAddresses(m, node, also) })
}

// mayTakeAddresses reports whether a candidate could take an address now.
func mayTakeAddresses(m *Machine, node string, also func(string) bool) bool {
	return (m.isAlive(node) || also(node)) && !m.liveness.leavingNodes[node] && (node != m.self || !m.shutdownHandoverRequested)
}

// rankCandidates ranks the nodes that may take an address of the group, the best first.
func (g *sameCandidatesGroup) rankCandidates(
	a *addressState, addressesByIP map[netip.Addr]*addressState, mayTake func(string) bool,
) []rankedCandidate {
	var out []rankedCandidate
	best, n := 0, 0
	for i, node := range g.candidates.Nodes {
		if !mayTake(node) {
			continue
		}
		s := rankedCandidate{node: node, preferenceScore: g.candidates.PreferenceScores[i], rendezvousWeight: rendezvousWeight(a.ip, node)}
		switch {
		case len(out) == 0 || s.preferenceScore > best:
			best, n = s.preferenceScore, 1
		case s.preferenceScore == best:
			n++
		}
		out = append(out, s)
	}
	most := evenShareLimitPerNode(g.addressCount, n)
	for i := range out {
		out[i].holdsItsShareOfGroup = g.addressCountByNode[out[i].node] >= most
		out[i].holdsOtherAddressOfService = a.holdsOtherAddressOfService(addressesByIP, out[i].node)
	}
	slices.SortFunc(out, rankedCandidate.compareRank)
	return out
}

// startupWaitForNonMembersFactor times StartupWithoutMembersDelay is how long a starting speaker
// leaves room for nodes that are not members yet. When a whole cluster starts, the first speaker
// must not take every address.
const startupWaitForNonMembersFactor = 4

// maxCandidatesComparedPerStep and minAcquisitionsPerStep bound how many candidates one step
// compares, and so how long beacons wait: some milliseconds. The next step continues.
const (
	maxCandidatesComparedPerStep = 1 << 16
	minAcquisitionsPerStep       = 64
)

// beginAcquisitions starts the acquisitions of addresses without a holder, in an order that is the
// same on all nodes. Each node computes which node should take which address. The lower its own
// rank, the longer it waits.
func (m *Machine) beginAcquisitions() {
	if len(m.addressesToAcquire) == 0 {
		return
	}
	list := make([]*addressState, 0, len(m.addressesToAcquire))
	for a := range m.addressesToAcquire {
		list = append(list, a)
	}
	slices.SortFunc(list, func(x, y *addressState) int { return x.ip.Compare(y.ip) })
	list = list[:min(len(list), max(minAcquisitionsPerStep, maxCandidatesComparedPerStep/len(m.memberNames)))]
	cold := m.now.Before(m.startedAt.Add(startupWaitForNonMembersFactor * m.timing.StartupWithoutMembersDelay))
	absent := func(n string) bool { _, ok := m.membersByName[n]; return cold && !ok }
	// if this node runs late, it also learns late what other nodes do about the address
	extraDelay := m.stepContext().extraDelayForOwnLateness()
	ranking := ownRankFinder{isNotYetMember: absent, candidatesByGroup: map[*sameCandidatesGroup]eligibleCandidates{}}
	for _, a := range list {
		delete(m.addressesToAcquire, a)
		if a.isHeldBySelf || a.acquisition != nil || !a.canBeHeldBySelf(m.self) || m.isLiveClaim(a.highestKnownClaim) {
			continue
		}
		a.acquisition = &acquisitionAttempt{takeReason: reasonUnheld, nextProbeDelay: m.timing.FirstProbeRetryDelay}
		if c := a.highestKnownClaim; c.Epoch > 0 && !c.Released {
			a.acquisition.takeReason, a.acquisition.previousHolderSeenAt = reasonHolderGone, m.liveness.lastSeenAt(c.Holder)
		}
		var own ownRank
		own, a.acquisition.expectedTaker = ranking.rankSelf(m, a)
		a.acquisition.mayAnswerEarly = mayAnswerBeforeProbe(m, a, own, a.acquisition.expectedTaker)
		m.updateAddressGroupCounts(a)
		m.scheduledAddresses.scheduleAddress(a, m.now.Add(extraDelay+own.delayBeforeProbe(m.timing.withExtraPerRankDelay(extraDelay))))
	}
}

// withExtraPerRankDelay returns the durations with an additional delay for each rank.
func (t Timing) withExtraPerRankDelay(extraDelay time.Duration) *Timing {
	t.PerRankAcquireDelay += extraDelay
	return &t
}

// individuallyDelayedRankCount is how many of the best candidates have a delay of their own. Later
// candidates share delays: see acquireDelayOfRank. Hardly ever do all of the best ones fail at
// once.
const individuallyDelayedRankCount = 4

// acquireDelayOfRank is how long the candidate of a rank leaves an address to the better ones. Each
// of the first ones waits for all before it. Further ones probe in groups that double in size, so
// that an address does not wait long if many candidates cannot take it for a reason that others do
// not know. The candidates of a group that find the address free compare their weights; see
// isOutrankedByRivalProber.
func acquireDelayOfRank(rank int, timing *Timing) time.Duration {
	if rank >= individuallyDelayedRankCount {
		rank = individuallyDelayedRankCount - 1 + bits.Len(uint(rank-individuallyDelayedRankCount+1))
	}
	return time.Duration(rank) * timing.PerRankAcquireDelay
}

// rebalanceHeldAddresses offers addresses above this node's share to nodes that hold fewer. It
// moves a few at a time, and none while members come or go.
func (m *Machine) rebalanceHeldAddresses() {
	if !m.acquisitionsAllowed || m.shutdownHandoverRequested || m.now.Sub(m.rebalanceLastConsideredAt) < m.timing.RebalanceInterval ||
		m.now.Sub(m.membersChangedAt) < m.timing.RebalanceAfterMemberChangeDelay || m.stepContext().extraDelayForOwnLateness() > 0 {
		return
	}
	m.rebalanceLastConsideredAt = m.now
	movable, movableCount := map[*sameCandidatesGroup][]*addressState{}, 0
	for a := range m.addressesHeldBySelf {
		if a.move != nil { // the last round is not over
			return
		}
		if a.bid.MayRebalance && a.group != nil {
			movable[a.group] = append(movable[a.group], a)
			movableCount++
		}
	}
	// With externalTrafficPolicy Local, nearly each address has a group of its own. So the limit is
	// for all groups together.
	left := 1 + movableCount/50
	groups := slices.SortedFunc(maps.Keys(movable), func(x, y *sameCandidatesGroup) int {
		return cmp.Compare(x.candidates.ContentHash, y.candidates.ContentHash)
	})
	for i := range groups {
		// another group is first each second, since the moves of one may be refused again and again
		g := groups[(i+int(m.now.Unix()))%len(groups)]
		list := movable[g]
		slices.SortFunc(list, func(x, y *addressState) int { return x.ip.Compare(y.ip) })
		if left -= m.rebalanceGroup(g, list, left); left == 0 {
			return
		}
	}
}

// rebalanceGroup starts at most limit moves of one group, and returns how many it started.
func (m *Machine) rebalanceGroup(g *sameCandidatesGroup, list []*addressState, limit int) int {
	started := 0
	for _, a := range list {
		all := m.rankCandidates(a, func(string) bool { return false })
		if started == limit || len(all) == 0 || !g.isAboveShare(m.self, all) {
			return started
		}
		if to := all[0]; to.node != m.self && !to.holdsItsShareOfGroup && a.orphanClaim.Epoch == 0 {
			started++
			a.move = &move{offeredEpoch: a.highestKnownClaim.Epoch, forRebalance: true}
			m.offerAddress(a, to.node)
		}
	}
	return started
}

// isAboveShare reports whether the node holds more addresses of the group than its share. A node
// that is not among the most preferred candidates has no share.
func (g *sameCandidatesGroup) isAboveShare(node string, ranked []rankedCandidate) bool {
	i := slices.IndexFunc(ranked, func(s rankedCandidate) bool { return s.node == node })
	return i < 0 || ranked[i].preferenceScore < ranked[0].preferenceScore ||
		g.addressCountByNode[node] > evenShareLimitPerNode(g.addressCount, countTopScoredCandidates(ranked))
}

// countTopScoredCandidates returns how many candidates share the highest score.
func countTopScoredCandidates(all []rankedCandidate) int {
	n := 0
	for _, s := range all {
		if s.preferenceScore == all[0].preferenceScore {
			n++
		}
	}
	return n
}

// rendezvousWeight is the rendezvous hash of an address and a node: FNV-1a over both, then the
// finaliser of SplitMix64, so that similar inputs have very different hashes.
func rendezvousWeight(a netip.Addr, node string) uint64 {
	h := fnv.New64a()
	b := a.As16()
	h.Write(b[:])
	h.Write([]byte(node))
	return finalizeSplitMix64(h.Sum64())
}

func finalizeSplitMix64(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}
