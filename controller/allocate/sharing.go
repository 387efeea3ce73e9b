package allocate

import (
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

// adviceToSetSharingKey says what to do about a missing key.
const adviceToSetSharingKey = "ask for another address, or give both the annotation " + names.AnnotationSharing + " with one value"

// explainConflictWith says why two Services may not share an address. It returns zero when they
// may. Both must have the same sharing key, use different ports, and have their traffic handled
// alike: by Pods on any node, or by the same Pods on the node where it arrives.
func (a *sharingProperties) explainConflictWith(b *sharingProperties) names.Explanation {
	switch {
	case a == nil:
		return names.Explanation{Reason: names.ReasonAddressInUse, Text: "this Service has no sharing key: " + adviceToSetSharingKey}
	case b == nil:
		return names.Explanation{Reason: names.ReasonAddressInUse, Text: "that Service has no sharing key: " + adviceToSetSharingKey}
	case a.sharingKey != b.sharingKey:
		return names.Explain(names.ReasonSharingKeyDiffers, "its sharing key is %q, not %q: ask for another address, or write the same key", b.sharingKey, a.sharingKey)
	case a.podSelector != b.podSelector && a.hasLocalTrafficPolicy && b.hasLocalTrafficPolicy:
		return names.Explanation{Reason: names.ReasonTrafficPolicyConflict, Text: "both have externalTrafficPolicy Local and their selectors differ: ask for another address, or select the same Pods"}
	case a.podSelector != b.podSelector:
		return names.Explanation{Reason: names.ReasonTrafficPolicyConflict, Text: "one has externalTrafficPolicy Local and the other Cluster: ask for another address, or give both the same policy"}
	}
	for _, p := range a.ports {
		if slices.Contains(b.ports, p) {
			return names.Explain(names.ReasonPortConflict, "both use %s/%d: ask for another address, or use another port", p.Protocol, p.Number)
		}
	}
	return names.Explanation{}
}

// sharedPositionsOfGroup are the positions that the Services of one requirementsToShare hold. It
// finds the lowest position where some ports are free without a look at each position.
type sharedPositionsOfGroup struct {
	// positions are in ascending order. usedPositionsByPort are those where a port is used.
	positions           []uint64
	usedPositionsByPort map[view.Port][]uint64
}

func (s *sharedPositionsOfGroup) addPositionAndPorts(at uint64, ports []view.Port) {
	s.positions = insertSorted(s.positions, at)
	for _, p := range ports {
		s.usedPositionsByPort[p] = insertSorted(s.usedPositionsByPort[p], at)
	}
}

// removePortsOfHolder removes the ports of one holder. The position stays until its last holder is
// gone.
func (s *sharedPositionsOfGroup) removePortsOfHolder(at uint64, ports []view.Port) {
	for _, p := range ports {
		if s.usedPositionsByPort[p] = removeSorted(s.usedPositionsByPort[p], at); len(s.usedPositionsByPort[p]) == 0 {
			delete(s.usedPositionsByPort, p)
		}
	}
}

// lowestWithFreePorts returns the lowest position where none of the ports is used.
func (s *sharedPositionsOfGroup) lowestWithFreePorts(ports []view.Port) (uint64, bool) {
	i := 0
	for _, p := range ports {
		// busy is a subset of the positions. Up to the first difference, the port is used at every
		// position.
		busy := s.usedPositionsByPort[p]
		i = max(i, sort.Search(len(busy), func(j int) bool { return busy[j] != s.positions[j] }))
	}
next:
	for ; i < len(s.positions); i++ {
		for _, p := range ports {
			if _, used := slices.BinarySearch(s.usedPositionsByPort[p], s.positions[i]); used {
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
