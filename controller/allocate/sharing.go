package allocate

import (
	"cmp"
	"iter"
	"slices"
	"sort"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// sharingProperties is what decides whether two Services may share an address; nil for a Service
// that shares with none.
type sharingProperties struct {
	requirementsToShare
	ports                 []view.Port
	hasLocalTrafficPolicy bool
}

// requirementsToShare is what Services must have in common to share an address at all.
type requirementsToShare struct {
	sharingKey string
	// podSelector is the selector of a Service with externalTrafficPolicy Local: all Services on
	// the address need the same Pods on a node. It is empty with policy Cluster.
	podSelector string
}

func sharingPropertiesOf(s *view.Service) *sharingProperties {
	if s.SharingKey == "" {
		return nil
	}
	out := &sharingProperties{requirementsToShare: requirementsToShare{sharingKey: s.SharingKey}, ports: s.Ports, hasLocalTrafficPolicy: s.HasLocalTrafficPolicy}
	if s.HasLocalTrafficPolicy {
		out.podSelector = s.PodSelector
	}
	return out
}

// CanShareAddress says whether two Services may hold one address.
func CanShareAddress(a, b *view.Service) bool {
	return !sharingPropertiesOf(a).explainConflictWith(sharingPropertiesOf(b)).IsSet()
}

func (a *sharingProperties) isEqual(b *sharingProperties) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.requirementsToShare == b.requirementsToShare && a.hasLocalTrafficPolicy == b.hasLocalTrafficPolicy && slices.Equal(a.ports, b.ports)
}

// sharingConflict says why two Services may not share an address. The zero value says that they
// may.
type sharingConflict struct {
	names.Explanation
	// advice says what else the user could do than to take another address.
	advice string
}

// adviceToSetSharingKey says what to do about a missing key.
const adviceToSetSharingKey = "give both the annotation " + names.AnnotationSharingKey + " with one value"

// explainConflictWith says why two Services may not share an address. It returns zero when they
// may. Both must have the same sharing key, use different ports, and have their traffic handled
// alike: by Pods on any node, or by the same Pods on the node where it arrives.
func (a *sharingProperties) explainConflictWith(b *sharingProperties) sharingConflict {
	conflict := func(r names.Reason, advice, format string, args ...any) sharingConflict {
		return sharingConflict{names.NewExplanation(r, format, args...), advice}
	}
	switch {
	case a == nil:
		return conflict(names.ReasonAddressInUse, adviceToSetSharingKey, "this Service has no sharing key")
	case b == nil:
		return conflict(names.ReasonAddressInUse, adviceToSetSharingKey, "that Service has no sharing key")
	case a.sharingKey != b.sharingKey:
		return conflict(names.ReasonSharingKeyDiffers, "write the same key", "its sharing key is %s, not %s", names.QuoteShortened(b.sharingKey), names.QuoteShortened(a.sharingKey))
	case a.podSelector != b.podSelector && a.hasLocalTrafficPolicy && b.hasLocalTrafficPolicy:
		return conflict(names.ReasonTrafficPolicyConflict, "select the same Pods", "both have externalTrafficPolicy Local and their selectors differ")
	case a.podSelector != b.podSelector:
		return conflict(names.ReasonTrafficPolicyConflict, "give both the same policy", "one has externalTrafficPolicy Local and the other Cluster")
	}
	for _, p := range a.ports {
		if slices.Contains(b.ports, p) {
			return conflict(names.ReasonPortConflict, "use another port", "both use %s/%d", p.Protocol, p.Number)
		}
	}
	return sharingConflict{}
}

// sharedPositionsOfGroup are the positions that the Services of one requirementsToShare hold. It
// finds the lowest position where some ports are free without a look at each position. Services
// that may not share hold a position together until the status of one of them is written: then a
// port is used twice, or Services of other groups hold it too.
type sharedPositionsOfGroup struct {
	// positions are in ascending order. usedPositionsByPort are those where a port is used.
	positions             []uint64
	holderCountByPosition map[uint64]int
	usedPositionsByPort   map[view.Port][]uint64
	// secondUsesOfPort counts the holders that use a port at a position beyond the first one.
	secondUsesOfPort map[portAtPosition]int
}

// portAtPosition is a port of a shared address.
type portAtPosition struct {
	port view.Port
	at   uint64
}

func newSharedPositionsOfGroup() *sharedPositionsOfGroup {
	return &sharedPositionsOfGroup{holderCountByPosition: map[uint64]int{}, usedPositionsByPort: map[view.Port][]uint64{}, secondUsesOfPort: map[portAtPosition]int{}}
}

// addHolder adds a holder of a position with its ports.
func (s *sharedPositionsOfGroup) addHolder(at uint64, ports []view.Port) {
	if s.holderCountByPosition[at]++; s.holderCountByPosition[at] == 1 {
		s.positions = insertSorted(s.positions, at)
	}
	for _, p := range ports {
		before := len(s.usedPositionsByPort[p])
		if s.usedPositionsByPort[p] = insertSorted(s.usedPositionsByPort[p], at); len(s.usedPositionsByPort[p]) == before {
			s.secondUsesOfPort[portAtPosition{p, at}]++
		}
	}
}

// removeHolder is the reverse of addHolder.
func (s *sharedPositionsOfGroup) removeHolder(at uint64, ports []view.Port) {
	for _, p := range ports {
		if use := (portAtPosition{p, at}); s.secondUsesOfPort[use] > 0 {
			if s.secondUsesOfPort[use]--; s.secondUsesOfPort[use] == 0 {
				delete(s.secondUsesOfPort, use)
			}
			continue
		}
		if s.usedPositionsByPort[p] = removeSorted(s.usedPositionsByPort[p], at); len(s.usedPositionsByPort[p]) == 0 {
			delete(s.usedPositionsByPort, p)
		}
	}
	if s.holderCountByPosition[at]--; s.holderCountByPosition[at] == 0 {
		delete(s.holderCountByPosition, at)
		s.positions = removeSorted(s.positions, at)
	}
}

// positionsWithFreePorts returns the positions where none of the ports is used, in ascending order.
// It is empty for a nil group.
func (s *sharedPositionsOfGroup) positionsWithFreePorts(ports []view.Port) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		if s == nil {
			return
		}
		i := 0
		for _, p := range ports {
			// busy is a subset of the positions. Up to the first difference, the port is used at
			// every position.
			busy := s.usedPositionsByPort[p]
			i = max(i, sort.Search(len(busy), func(j int) bool { return busy[j] != s.positions[j] }))
		}
		for _, at := range s.positions[i:] {
			used := func(p view.Port) bool {
				_, used := slices.BinarySearch(s.usedPositionsByPort[p], at)
				return used
			}
			if !slices.ContainsFunc(ports, used) && !yield(at) {
				return
			}
		}
	}
}

func insertSorted[T cmp.Ordered](to []T, at T) []T {
	i, there := slices.BinarySearch(to, at)
	if there {
		return to
	}
	return slices.Insert(to, i, at)
}

func removeSorted[T cmp.Ordered](from []T, at T) []T {
	i, there := slices.BinarySearch(from, at)
	if !there {
		return from
	}
	return slices.Delete(from, i, i+1)
}
