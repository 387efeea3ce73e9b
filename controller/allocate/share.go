package allocate

import (
	"fmt"
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// share is what two Services on one address are compared by. A Service that shares with nobody has none.
type share struct {
	circle
	ports []view.Port
	local bool
}

// circle is what Services have to agree on to share an address at all.
type circle struct {
	key string
	// backend is the selector of a Service whose traffic stays on the node that it arrives at, so that all who share the
	// address need the same Pods there. It is empty where any node will do.
	backend string
}

func shareOf(s *view.Service) *share {
	if s.SharingKey == "" {
		return nil
	}
	out := &share{circle: circle{key: s.SharingKey}, ports: s.Ports, local: s.LocalTrafficPolicy}
	if s.LocalTrafficPolicy {
		out.backend = s.PodSelector
	}
	return out
}

// MayShare says whether two Services may hold one address.
func MayShare(a, b *view.Service) bool {
	reason, _ := shareOf(a).clash(shareOf(b))
	return reason == ""
}

func (a *share) equal(b *share) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.circle == b.circle && a.local == b.local && slices.Equal(a.ports, b.ports)
}

// shareable says what to do about a missing key.
const shareable = "ask for another address, or give both the annotation " + names.AnnotationSharing + " with one value"

// clash says why two Services may not hold one address; the Reason is empty when they may. Both have to name the same sharing key, use no port
// twice, and have their traffic handled alike: by Pods on any node, or by the same Pods on the node where it arrives.
func (a *share) clash(b *share) (names.Reason, string) {
	switch {
	case a == nil:
		return names.ReasonAddressInUse, "this Service has no sharing key: " + shareable
	case b == nil:
		return names.ReasonAddressInUse, "that Service has no sharing key: " + shareable
	case a.key != b.key:
		return names.ReasonSharingKeyDiffers, fmt.Sprintf("its sharing key is %q, not %q: ask for another address, or write the same key", b.key, a.key)
	case a.backend != b.backend && a.local && b.local:
		return names.ReasonTrafficPolicyConflict, "both have externalTrafficPolicy Local and their selectors differ: ask for another address, or select the same Pods"
	case a.backend != b.backend:
		return names.ReasonTrafficPolicyConflict, "one has externalTrafficPolicy Local and the other Cluster: ask for another address, or give both the same policy"
	}
	for _, p := range a.ports {
		if slices.Contains(b.ports, p) {
			return names.ReasonPortConflict, fmt.Sprintf("both use %s/%d: ask for another address, or use another port", p.Protocol, p.Number)
		}
	}
	return "", ""
}

// shelf holds the positions of a stock that one circle holds, so that the lowest one where some ports are free is found without
// looking at each.
type shelf struct {
	// spots are the positions, ascending, and busy those of them where a port is used.
	spots []uint64
	busy  map[view.Port][]uint64
}

func (s *shelf) add(at uint64, ports []view.Port) {
	s.spots = insert(s.spots, at)
	for _, p := range ports {
		s.busy[p] = insert(s.busy[p], at)
	}
}

// leave takes the ports of one holder away; the spot stays until the last one left.
func (s *shelf) leave(at uint64, ports []view.Port) {
	for _, p := range ports {
		if s.busy[p] = remove(s.busy[p], at); len(s.busy[p]) == 0 {
			delete(s.busy, p)
		}
	}
}

// first returns the lowest spot where none of the ports is used.
func (s *shelf) first(ports []view.Port) (uint64, bool) {
	i := 0
	for _, p := range ports {
		// busy is a part of spots: as long as the two run alike, the port is used everywhere.
		busy := s.busy[p]
		i = max(i, sort.Search(len(busy), func(j int) bool { return busy[j] != s.spots[j] }))
	}
next:
	for ; i < len(s.spots); i++ {
		for _, p := range ports {
			if _, used := slices.BinarySearch(s.busy[p], s.spots[i]); used {
				continue next
			}
		}
		return s.spots[i], true
	}
	return 0, false
}

func insert(to []uint64, at uint64) []uint64 {
	i, there := slices.BinarySearch(to, at)
	if there {
		return to
	}
	return slices.Insert(to, i, at)
}

func remove(from []uint64, at uint64) []uint64 {
	i, there := slices.BinarySearch(from, at)
	if !there {
		return from
	}
	return slices.Delete(from, i, i+1)
}
