// Package advertise decides which advertisements cover a Service, which nodes, links and peers they
// admit, and why not. The planner and the probes of a speaker act on it. The controller explains
// with it, so that the explanation of a Service is what speakers do. The package is pure: it has no
// client and no clock, and knows no endpoints.
//
// The rules in order: every address is in a pool (findPoolOfEachAddress); an advertisement names
// the pool and selects the Service (Layer2Fault, BGPFault); it selects the node
// (NodeExclusionReason, BGPAdsUsableOnNode); a link or a peer is left
// (AnsweringLinkIndexes, NamesOfPeersGettingRoute). ExplainUnannouncedService applies all of them
// to every node.
package advertise

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Service has the fields of a Service that the rules use.
type Service struct {
	Labels       labels.Labels
	RecordedPool string // as recorded on the Service
	Addresses    []netip.Addr
	// HasSharingKey means that the Service has the annotation for shared addresses.
	HasSharingKey bool
}

// ServiceFromView returns the fields of a Service that the rules use.
func ServiceFromView(v *view.Service) Service {
	return Service{
		Labels: labels.Set(v.Labels), RecordedPool: v.RecordedPool, Addresses: v.AssignedAddresses,
		HasSharingKey: v.HasSharingAnnotation,
	}
}

// findPoolOfEachAddress returns the pool of each address. The reason is empty if every address has
// one.
func findPoolOfEachAddress(s *snapshot.Snapshot, svc *Service) ([]*snapshot.Pool, names.Reason) {
	if len(svc.Addresses) == 0 {
		return nil, names.ReasonNoAddress
	}
	pools := s.PoolOfEachAddress(svc.RecordedPool, svc.Addresses...)
	if pools == nil {
		return nil, names.ReasonAddressOutsidePools
	}
	return pools, ""
}

// namesAnyPool says whether named has the name of one of the pools.
func namesAnyPool(named []string, pools []*snapshot.Pool) bool {
	return slices.ContainsFunc(pools, func(p *snapshot.Pool) bool { return slices.Contains(named, p.Name) })
}

// isNodeExcluded says whether the label of the node keeps it from announcing.
func isNodeExcluded(s *snapshot.Snapshot, labels map[string]string) bool {
	return (s == nil || !s.IgnoresExcludeLabel) && view.IsExcludedByLabels(labels)
}

// anyNodeSelectorMatches says whether one of the nodeSelectors matches the node.
func anyNodeSelectorMatches(nodeSelectors []labels.Selector, n *view.Node) bool {
	return snapshot.AnySelectorMatches(nodeSelectors, labels.Set(n.Labels))
}
