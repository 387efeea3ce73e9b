package elect

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// membership is the set of members, this node included, and the ring in which they watch each
// other. It knows nothing of silence: a member may be dead. Call replaceMembers for each new set.
// The owner sets membersChangedAt when a member came or went.
type membership struct {
	self          string
	membersByName map[string]facts.Member
	memberNames   []string // sorted
	// the members in the order in which they watch each other
	watchRing            []string
	ringPositionByMember map[string]int // index in watchRing
	otherMembers         []string       // memberNames without this node
	// claimReceivers are otherMembers in the order in which they get new claims.
	claimReceivers   []string
	nodesByMAC       map[facts.MAC]string // current or last owner of each Ethernet address
	membersChangedAt time.Time
}

// replaceMembers replaces the members and returns the earlier ones. It always adds this node, with
// the nonce of its process.
func (s *membership) replaceMembers(set facts.MemberSet, nonce uint64) (old map[string]facts.Member) {
	old = s.membersByName
	s.membersByName = map[string]facts.Member{s.self: {Name: s.self, RunNonce: nonce}}
	for _, p := range set.Members {
		if p.Name != s.self {
			s.membersByName[p.Name] = p
		}
	}
	s.memberNames = s.memberNames[:0]
	for n := range s.membersByName {
		s.memberNames = append(s.memberNames, n)
	}
	slices.Sort(s.memberNames)
	s.otherMembers = slices.DeleteFunc(slices.Clone(s.memberNames), func(n string) bool { return n == s.self })
	s.buildWatchRing()
	s.recordMemberMACs()
	return old
}

// buildWatchRing orders the members by a hash of their names. Nodes in one rack may fail together,
// and their names are often adjacent in alphabetical order.
func (s *membership) buildWatchRing() {
	s.watchRing, s.ringPositionByMember = slices.Clone(s.memberNames), make(map[string]int, len(s.memberNames))
	hash := func(n string) uint64 { return rendezvousWeight(netip.IPv6Unspecified(), n) }
	slices.SortFunc(s.watchRing, func(x, y string) int {
		return cmp.Or(cmp.Compare(hash(x), hash(y)), cmp.Compare(x, y))
	})
	for i, n := range s.watchRing {
		s.ringPositionByMember[n] = i
	}
}

// ringNeighbours returns the k members after n in the ring, without n. A negative k returns the
// members before n.
func (s *membership) ringNeighbours(n string, k int) []string {
	i := s.ringPositionByMember[n]
	step, size := 1, len(s.watchRing)
	if k < 0 {
		step, k = size-1, -k
	}
	var out []string
	for j := 1; j < size && len(out) < k; j++ {
		out = append(out, s.watchRing[(i+j*step)%size])
	}
	return out
}

// orderClaimReceivers returns the other members in the order in which they get new claims: the
// watchers of this node first, since a difference of their claims shows in its beacons.
func (s *membership) orderClaimReceivers(watchersOfSelf []string) []string {
	out := slices.Clone(watchersOfSelf)
	for _, n := range s.otherMembers {
		if !slices.Contains(watchersOfSelf, n) {
			out = append(out, n)
		}
	}
	return out
}

func (s *membership) recordMemberMACs() {
	for _, n := range s.memberNames {
		for _, mac := range s.membersByName[n].LinkMACs {
			if n != s.self {
				s.nodesByMAC[mac] = n
			}
		}
	}
	if len(s.nodesByMAC) > 64*len(s.memberNames)+4096 {
		// network cards were replaced often: start over
		s.nodesByMAC = map[facts.MAC]string{}
	}
}

// firstUnknownMAC returns the first of the Ethernet addresses that belongs to no node.
func (s *membership) firstUnknownMAC(macs []facts.MAC) (facts.MAC, bool) {
	for _, mac := range macs {
		if _, known := s.nodeOfMAC(mac); !known {
			return mac, true
		}
	}
	return facts.MAC{}, false
}

// nodeOfMAC returns the node with the Ethernet address: a current or an earlier member.
func (s *membership) nodeOfMAC(mac facts.MAC) (string, bool) {
	n, ok := s.nodesByMAC[mac]
	return n, ok
}
