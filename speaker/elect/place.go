package elect

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// group is the addresses with the same candidates at the same preferences: over these nodes they are spread evenly.
type group struct {
	candidates *intent.Candidates
	total      int
	load       map[string]int // node -> addresses that it holds or is about to take
}

// count keeps the groups in step with an address.
func (m *Machine) count(a *address) {
	var g *group
	owner := ""
	if c := a.bid.Candidates; c != nil {
		if g = m.groups[c.Key]; g == nil {
			g = &group{candidates: c, load: map[string]int{}}
			m.groups[c.Key] = g
		}
		switch {
		case a.held && a.move != nil && a.move.to != "":
			owner = a.move.to
		case m.live(a.claim):
			owner = a.claim.Holder
		case a.contest != nil:
			owner = a.contest.target
		}
	}
	if g == a.group && owner == a.owner {
		return
	}
	if old := a.group; old != nil {
		old.total--
		if old.load[a.owner]--; old.load[a.owner] == 0 {
			delete(old.load, a.owner)
		}
		if old.total == 0 && old != g {
			delete(m.groups, old.candidates.Key)
		}
	}
	if g != nil {
		g.total++
		g.load[owner]++
	}
	a.group, a.owner = g, owner
}

// limit is how many addresses of a group a node may hold where n share them: a tenth above the mean, rounded up, so that
// there is always a node below it.
func limit(total, n int) int {
	if n == 0 {
		return total
	}
	return (11*total + 10*n - 1) / (10 * n)
}

// standing is what speaks for a node as the holder of an address.
type standing struct {
	node   string
	score  int
	full   bool // it holds its share of the group already
	near   bool // it holds another address of the same Service
	weight uint64
}

// compare orders nodes, the better first: preferred ones; then those with room; then those without a sibling of the
// address; then by rendezvous weight, so that the loss of a node moves only what it held.
func (s standing) compare(o standing) int {
	return cmp.Or(cmp.Compare(o.score, s.score), cmpBool(s.full, o.full), cmpBool(s.near, o.near),
		cmp.Compare(o.weight, s.weight), cmp.Compare(s.node, o.node))
}

func cmpBool(x, y bool) int {
	switch {
	case x == y:
		return 0
	case y:
		return -1
	}
	return 1
}

// standings ranks the nodes that could take the address, the best first. Nodes for which also returns true are ranked
// though they are no members.
func (m *Machine) standings(a *address, also func(string) bool) []standing {
	g := a.group
	if g == nil {
		return nil
	}
	var out []standing
	best, n := 0, 0
	for i, node := range g.candidates.Nodes {
		if (!m.alive(node) && !also(node)) || m.watch.leaving[node] || (node == m.self && m.leaving) {
			continue
		}
		s := standing{node: node, score: g.candidates.Scores[i], weight: weight(a.ip, node)}
		switch {
		case len(out) == 0 || s.score > best:
			best, n = s.score, 1
		case s.score == best:
			n++
		}
		out = append(out, s)
	}
	most := limit(g.total, n)
	for i := range out {
		out[i].full = g.load[out[i].node] >= most
		out[i].near = m.near(a, out[i].node)
	}
	slices.SortFunc(out, standing.compare)
	return out
}

// near says whether the node holds a sibling of the address, or is about to.
func (m *Machine) near(a *address, node string) bool {
	return slices.ContainsFunc(a.bid.Siblings, func(ip netip.Addr) bool {
		b := m.addresses[ip]
		return b != nil && b.owner == node
	})
}

// coldStart is for how many settling times after its start a speaker keeps room for nodes whose speakers are not there
// yet: when a whole cluster starts, the first one must not take everything.
const coldStart = 4

// place begins the contests for the addresses that nobody holds, in an order that every node has alike: each of them
// works out who is to take which, and waits the longer the less it is wanted.
func (m *Machine) place() {
	if len(m.unplaced) == 0 {
		return
	}
	list := make([]*address, 0, len(m.unplaced))
	for a := range m.unplaced {
		list = append(list, a)
	}
	clear(m.unplaced)
	slices.SortFunc(list, func(x, y *address) int { return x.ip.Compare(y.ip) })
	cold := m.now.Before(m.start.Add(coldStart * m.timing.Settle))
	absent := func(n string) bool { _, ok := m.members[n]; return cold && !ok }
	for _, a := range list {
		if a.held || a.contest != nil || !m.able(a) || m.live(a.claim) {
			continue
		}
		a.contest = &contest{reason: reasonUnheld, pause: m.timing.Retry}
		if c := a.claim; c.Epoch > 0 && !c.Released {
			a.contest.reason, a.contest.since = reasonHolderGone, m.watch.lastSign(c.Holder)
		}
		rank := 0
		wait := time.Duration(0)
		for i, s := range m.standings(a, absent) {
			if i == 0 {
				a.contest.target = s.node
			}
			if s.node == m.self {
				break
			}
			if absent(s.node) {
				wait = m.timing.Settle
				continue
			}
			rank++
		}
		m.count(a)
		m.wait(a, m.now.Add(wait+time.Duration(rank)*m.timing.Delta))
	}
}

// rebalance offers addresses that this node holds above its share to nodes that hold less, a few each time, and only
// while nobody comes or goes.
func (m *Machine) rebalance() {
	if !m.started || m.leaving || m.now.Sub(m.balanced) < m.timing.Pace || m.now.Sub(m.stirred) < m.timing.Calm {
		return
	}
	m.balanced = m.now
	movable := map[*group][]*address{}
	for a := range m.mine {
		if a.move != nil { // one round at a time
			return
		}
		if a.bid.Rebalance && a.group != nil {
			movable[a.group] = append(movable[a.group], a)
		}
	}
	for g, list := range movable {
		slices.SortFunc(list, func(x, y *address) int { return x.ip.Compare(y.ip) })
		m.relieve(g, list)
	}
}

// relieve begins the moves of one group.
func (m *Machine) relieve(g *group, list []*address) {
	batch := 1 + len(list)/50
	for _, a := range list {
		all := m.standings(a, func(string) bool { return false })
		if batch == 0 || len(all) == 0 {
			return
		}
		i := slices.IndexFunc(all, func(s standing) bool { return s.node == m.self })
		over := i < 0 || all[i].score < all[0].score
		if n := countOf(all); !over && g.load[m.self] <= limit(g.total, n) {
			return
		}
		if to := all[0]; to.node != m.self && !to.full && a.rumour.Epoch == 0 {
			batch--
			a.move = &move{epoch: a.claim.Epoch, rebalance: true}
			m.offer(a, to.node)
		}
	}
}

// countOf is how many share the highest score.
func countOf(all []standing) int {
	n := 0
	for _, s := range all {
		if s.score == all[0].score {
			n++
		}
	}
	return n
}

// weight is the rendezvous hash of an address and a node: FNV-1a over both, then mixed so that near inputs are far apart
// (the finaliser of SplitMix64).
func weight(a netip.Addr, node string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	b := a.As16()
	for _, c := range b {
		h = (h ^ uint64(c)) * prime
	}
	for i := range len(node) {
		h = (h ^ uint64(node[i])) * prime
	}
	return mix(h)
}

func mix(h uint64) uint64 {
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}
