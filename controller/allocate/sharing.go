package allocate

import (
	"fmt"
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// sharing is what two Services on one address are compared by. A Service that shares with nobody has none.
type sharing struct {
	sharingGroup
	ports        []view.Port
	localTraffic bool
}

// sharingGroup is what Services have to agree on to share an address at all.
type sharingGroup struct {
	key string
	// podSelector is the selector of a Service whose traffic stays on the node that it arrives at, so that all who share the
	// address need the same Pods there. It is empty where any node will do.
	podSelector string
}

func sharingOf(s *view.Service) *sharing {
	if s.SharingKey == "" {
		return nil
	}
	out := &sharing{sharingGroup: sharingGroup{key: s.SharingKey}, ports: s.Ports, localTraffic: s.LocalTrafficPolicy}
	if s.LocalTrafficPolicy {
		out.podSelector = s.PodSelector
	}
	return out
}

// CanShareAddress says whether two Services may hold one address.
func CanShareAddress(a, b *view.Service) bool {
	reason, _ := sharingOf(a).conflictWith(sharingOf(b))
	return reason == ""
}

func (a *sharing) isEqual(b *sharing) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.sharingGroup == b.sharingGroup && a.localTraffic == b.localTraffic && slices.Equal(a.ports, b.ports)
}

// sharingAdvice says what to do about a missing key.
const sharingAdvice = "ask for another address, or give both the annotation " + names.AnnotationSharing + " with one value"

// conflictWith says why two Services may not hold one address; the Reason is empty when they may. Both have to name the same sharing key, use no port
// twice, and have their traffic handled alike: by Pods on any node, or by the same Pods on the node where it arrives.
func (a *sharing) conflictWith(b *sharing) (names.Reason, string) {
	switch {
	case a == nil:
		return names.ReasonAddressInUse, "this Service has no sharing key: " + sharingAdvice
	case b == nil:
		return names.ReasonAddressInUse, "that Service has no sharing key: " + sharingAdvice
	case a.key != b.key:
		return names.ReasonSharingKeyDiffers, fmt.Sprintf("its sharing key is %q, not %q: ask for another address, or write the same key", b.key, a.key)
	case a.podSelector != b.podSelector && a.localTraffic && b.localTraffic:
		return names.ReasonTrafficPolicyConflict, "both have externalTrafficPolicy Local and their selectors differ: ask for another address, or select the same Pods"
	case a.podSelector != b.podSelector:
		return names.ReasonTrafficPolicyConflict, "one has externalTrafficPolicy Local and the other Cluster: ask for another address, or give both the same policy"
	}
	for _, p := range a.ports {
		if slices.Contains(b.ports, p) {
			return names.ReasonPortConflict, fmt.Sprintf("both use %s/%d: ask for another address, or use another port", p.Protocol, p.Number)
		}
	}
	return "", ""
}

// sharedSlots holds the positions of a stock that one circle holds, so that the lowest one where some ports are free is found without
// looking at each.
type sharedSlots struct {
	// positions are the positions, ascending, and busy those of them where a port is used.
	positions       []uint64
	positionsByPort map[view.Port][]uint64
}

func (s *sharedSlots) addHolder(at uint64, ports []view.Port) {
	s.positions = insertSorted(s.positions, at)
	for _, p := range ports {
		s.positionsByPort[p] = insertSorted(s.positionsByPort[p], at)
	}
}

// removePorts takes the ports of one holder away; the spot stays until the last one left.
func (s *sharedSlots) removePorts(at uint64, ports []view.Port) {
	for _, p := range ports {
		if s.positionsByPort[p] = removeSorted(s.positionsByPort[p], at); len(s.positionsByPort[p]) == 0 {
			delete(s.positionsByPort, p)
		}
	}
}

// lowestWithoutPorts returns the lowest spot where none of the ports is used.
func (s *sharedSlots) lowestWithoutPorts(ports []view.Port) (uint64, bool) {
	i := 0
	for _, p := range ports {
		// busy is a part of spots: as long as the two run alike, the port is used everywhere.
		busy := s.positionsByPort[p]
		i = max(i, sort.Search(len(busy), func(j int) bool { return busy[j] != s.positions[j] }))
	}
next:
	for ; i < len(s.positions); i++ {
		for _, p := range ports {
			if _, used := slices.BinarySearch(s.positionsByPort[p], s.positions[i]); used {
				continue next
			}
		}
		return s.positions[i], true
	}
	return 0, false
}

func insertSorted(to []uint64, at uint64) []uint64 {
	i, there := slices.BinarySearch(to, at)
	if there {
		return to
	}
	return slices.Insert(to, i, at)
}

func removeSorted(from []uint64, at uint64) []uint64 {
	i, there := slices.BinarySearch(from, at)
	if !there {
		return from
	}
	return slices.Delete(from, i, i+1)
}
