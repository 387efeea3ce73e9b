package elect

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// candidateGroup is all addresses with the same candidates and the same preferences. They are
// spread evenly over these nodes.
type candidateGroup struct {
	candidates   *intent.Candidates
	addressCount int
	countByNode  map[string]int // by node: addresses that it holds or is about to take
}

// updateGroupCounts updates the groups after a change of the address.
func (m *Machine) updateGroupCounts(a *addressState) {
	var g *candidateGroup
	owner := ""
	if c := a.bid.Candidates; c != nil {
		if g = m.groupsByKey[c.ContentHash]; g == nil {
			g = &candidateGroup{candidates: c, countByNode: map[string]int{}}
			m.groupsByKey[c.ContentHash] = g
		}
		switch {
		case a.isHeld && a.move != nil && a.move.target != "":
			owner = a.move.target
		case m.isLiveClaim(a.claim):
			owner = a.claim.Holder
		case a.acquisition != nil:
			owner = a.acquisition.expectedTaker
		}
	}
	if g == a.group && owner == a.countedNode {
		return
	}
	if old := a.group; old != nil {
		old.addressCount--
		if old.countByNode[a.countedNode]--; old.countByNode[a.countedNode] == 0 {
			delete(old.countByNode, a.countedNode)
		}
		if old.addressCount == 0 && old != g {
			delete(m.groupsByKey, old.candidates.ContentHash)
		}
	}
	if g != nil {
		g.addressCount++
		g.countByNode[owner]++
	}
	a.group, a.countedNode = g, owner
}

// maxAddressesPerNode is how many of total addresses one of n nodes may hold: a tenth above the
// mean, rounded up, so that at least one node is below it.
func maxAddressesPerNode(total, n int) int {
	if n == 0 {
		return total
	}
	return (11*total + 10*n - 1) / (10 * n)
}

// rankedCandidate is what ranks a node as holder of an address.
type rankedCandidate struct {
	node         string
	score        int
	hasFullShare bool // it holds its share of the group
	holdsSibling bool // it holds another address of the same Service
	weight       uint64
}

// compareRank orders nodes, the best first. The criteria, in order: preference; room in its share;
// no other address of the same Service; rendezvous weight, so that the loss of a node moves only
// its own addresses.
func (s rankedCandidate) compareRank(o rankedCandidate) int {
	return cmp.Or(
		cmp.Compare(o.score, s.score),
		compareFalseFirst(s.hasFullShare, o.hasFullShare),
		compareFalseFirst(s.holdsSibling, o.holdsSibling),
		cmp.Compare(o.weight, s.weight),
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
	g := a.group
	if g == nil {
		return nil
	}
	var out []rankedCandidate
	best, n := 0, 0
	for i, node := range g.candidates.Nodes {
		if (!m.isAlive(node) && !also(node)) || m.liveness.leavingNodes[node] || (node == m.self && m.leaving) {
			continue
		}
		s := rankedCandidate{node: node, score: g.candidates.Scores[i], weight: rendezvousWeight(a.ip, node)}
		switch {
		case len(out) == 0 || s.score > best:
			best, n = s.score, 1
		case s.score == best:
			n++
		}
		out = append(out, s)
	}
	most := maxAddressesPerNode(g.addressCount, n)
	for i := range out {
		out[i].hasFullShare = g.countByNode[out[i].node] >= most
		out[i].holdsSibling = m.holdsSibling(a, out[i].node)
	}
	slices.SortFunc(out, rankedCandidate.compareRank)
	return out
}

// holdsSibling reports whether the node holds another address of the same Service, or is about to.
func (m *Machine) holdsSibling(a *addressState, node string) bool {
	return slices.ContainsFunc(a.bid.Siblings, func(ip netip.Addr) bool {
		b := m.addressesByIP[ip]
		return b != nil && b.countedNode == node
	})
}

// coldStartDelayFactor times StartupDelay is how long a starting speaker leaves room for nodes that
// are not members yet. When a whole cluster starts, the first speaker must not take every address.
const coldStartDelayFactor = 4

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
	clear(m.addressesToAcquire)
	slices.SortFunc(list, func(x, y *addressState) int { return x.ip.Compare(y.ip) })
	cold := m.now.Before(m.startedAt.Add(coldStartDelayFactor * m.timing.StartupDelay))
	absent := func(n string) bool { _, ok := m.membersByName[n]; return cold && !ok }
	for _, a := range list {
		if a.isHeld || a.acquisition != nil || !m.canServe(a) || m.isLiveClaim(a.claim) {
			continue
		}
		a.acquisition = &acquisition{reason: reasonUnheld, nextProbeDelay: m.timing.FirstProbeRetryDelay}
		if c := a.claim; c.Epoch > 0 && !c.Released {
			a.acquisition.reason, a.acquisition.previousHolderSeenAt = reasonHolderGone, m.liveness.lastSeenAt(c.Holder)
		}
		rank := 0
		wait := time.Duration(0)
		for i, s := range m.rankCandidates(a, absent) {
			if i == 0 {
				a.acquisition.expectedTaker = s.node
			}
			if s.node == m.self {
				break
			}
			if absent(s.node) {
				wait = m.timing.StartupDelay
				continue
			}
			rank++
		}
		m.updateGroupCounts(a)
		m.dueAddresses.scheduleAddress(a, m.now.Add(wait+time.Duration(rank)*m.timing.PerCandidateDelay))
	}
}

// rebalanceHeldAddresses offers addresses above this node's share to nodes that hold fewer. It
// moves a few at a time, and none while members come or go.
func (m *Machine) rebalanceHeldAddresses() {
	if !m.acquisitionsAllowed || m.leaving || m.now.Sub(m.lastRebalanceAt) < m.timing.RebalanceInterval ||
		m.now.Sub(m.membersChangedAt) < m.timing.RebalanceDelay {
		return
	}
	m.lastRebalanceAt = m.now
	movable := map[*candidateGroup][]*addressState{}
	for a := range m.heldAddresses {
		if a.move != nil { // the last round is not over
			return
		}
		if a.bid.MayRebalance && a.group != nil {
			movable[a.group] = append(movable[a.group], a)
		}
	}
	for g, list := range movable {
		slices.SortFunc(list, func(x, y *addressState) int { return x.ip.Compare(y.ip) })
		m.rebalanceGroup(g, list)
	}
}

// rebalanceGroup starts the moves of one group.
func (m *Machine) rebalanceGroup(g *candidateGroup, list []*addressState) {
	batch := 1 + len(list)/50
	for _, a := range list {
		all := m.rankCandidates(a, func(string) bool { return false })
		if batch == 0 || len(all) == 0 {
			return
		}
		i := slices.IndexFunc(all, func(s rankedCandidate) bool { return s.node == m.self })
		over := i < 0 || all[i].score < all[0].score
		if n := countTopScoredCandidates(all); !over && g.countByNode[m.self] <= maxAddressesPerNode(g.addressCount, n) {
			return
		}
		if to := all[0]; to.node != m.self && !to.hasFullShare && a.orphanClaim.Epoch == 0 {
			batch--
			a.move = &move{offeredEpoch: a.claim.Epoch, forRebalance: true}
			m.offerAddress(a, to.node)
		}
	}
}

// countTopScoredCandidates returns how many candidates share the highest score.
func countTopScoredCandidates(all []rankedCandidate) int {
	n := 0
	for _, s := range all {
		if s.score == all[0].score {
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
	return mixHashBits(h.Sum64())
}

func mixHashBits(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}
