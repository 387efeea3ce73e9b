package snapshot

import (
	"cmp"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

// NamespaceLabels is what Build needs to know of a namespace.
type NamespaceLabels struct {
	Name   string
	Labels map[string]string
}

// ConfigurationObjects are the configuration objects as the API server has them, in any order.
type ConfigurationObjects struct {
	// Namespace is the only one whose objects are read.
	Namespace string
	// IgnoreExcludeLabel sets Snapshot.IgnoresExcludeLabel.
	IgnoreExcludeLabel bool
	Pools              []v1beta1.IPAddressPool
	L2Advertisements   []v1beta1.L2Advertisement
	BGPAdvertisements  []v1beta1.BGPAdvertisement
	BGPPeers           []v1beta2.BGPPeer
	BFDProfiles        []v1beta1.BFDProfile
	Communities        []v1beta1.Community
	Reservations       []v1alpha1.AddressReservation
	Namespaces         []NamespaceLabels
	Nodes              []NodeLabels
	// ClusterAddresses are those that the cluster itself uses.
	ClusterAddresses []ClusterAddressRange
	// Secrets are those of type kubernetes.io/basic-auth.
	Secrets []BasicAuthSecret
	// PreviousSnapshot is the Snapshot before this one; nil at the start. If an edit breaks an
	// object, its state in Previous stays in force.
	PreviousSnapshot *Snapshot
}

// snapshotBuilder collects the Problems of one Build.
type snapshotBuilder struct {
	problems []Problem
	// currentObjectUnservable says that the current object cannot be served as written,
	// currentObjectServableForSomePools that it can be for some of its pools.
	currentObjectUnservable, currentObjectServableForSomePools bool
	// currentObjectFirstFault is the first Problem that broke the current object.
	currentObjectFirstFault Problem
}

// reportProblemAndMarkBroken records a Problem that makes the object keep its last good state.
func (b *snapshotBuilder) reportProblemAndMarkBroken(o ObjectReference, field string, reason names.Reason, format string, args ...any) {
	b.reportProblem(o, field, reason, format, args...)
	if !b.currentObjectUnservable {
		b.currentObjectUnservable, b.currentObjectFirstFault = true, b.problems[len(b.problems)-1]
	}
}

func (b *snapshotBuilder) reportProblem(o ObjectReference, field string, reason names.Reason, format string, args ...any) {
	b.problems = append(b.problems, Problem{Object: o, Field: field, Reason: reason, Text: fmt.Sprintf(format, args...)})
}

// BuildSnapshot parses the objects. The Snapshot has everything that is sound; a Problem names each
// fault.
func BuildSnapshot(o ConfigurationObjects) (*Snapshot, []Problem) {
	var b snapshotBuilder
	s := &Snapshot{Namespace: o.Namespace, IgnoresExcludeLabel: o.IgnoreExcludeLabel, Pools: b.parsePools(o.Pools, o.Namespaces, o.PreviousSnapshot)}
	b.reportAddressesUsedByCluster(o.Pools, s.Pools, o.ClusterAddresses)
	advertisements := slices.Clone(o.L2Advertisements)
	slices.SortFunc(advertisements, func(x, y v1beta1.L2Advertisement) int { return cmp.Compare(x.Name, y.Name) })
	for i := range advertisements {
		b.currentObjectUnservable = false
		ad := b.parseL2Advertisement(&advertisements[i], s.Pools)
		if last := o.PreviousSnapshot.l2AdvertisementByName(ad.Name); b.currentObjectUnservable && last != nil {
			ad = last
		}
		s.L2Advertisements = append(s.L2Advertisements, ad)
	}
	s.BGPAdvertisements = b.parseBGPAdvertisements(o.BGPAdvertisements, &o, s.Pools)
	s.Peers = b.parsePeers(o.BGPPeers, &o)
	s.Reservations = b.parseReservations(o.Reservations, s.Pools)
	slices.SortFunc(b.problems, func(x, y Problem) int {
		return cmp.Or(cmp.Compare(x.Object.Kind, y.Object.Kind), cmp.Compare(x.Object.Name, y.Object.Name),
			cmp.Compare(x.Field, y.Field), cmp.Compare(x.Text, y.Text))
	})
	return s, b.problems
}

// parseSelectors parses label selectors. An invalid one matches nothing: it must not widen what the
// object selects.
func (b *snapshotBuilder) parseSelectors(o ObjectReference, field string, in []metav1.LabelSelector) []labels.Selector {
	var out []labels.Selector
	for i := range in {
		s, err := metav1.LabelSelectorAsSelector(&in[i])
		if err != nil {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidSelector, "%s[%d]: %v: write matchLabels, or matchExpressions with the operator In or NotIn and values, or Exists or DoesNotExist without values", field, i, err)
			s = labels.Nothing()
		}
		out = append(out, s)
	}
	return out
}

// resolvePools returns the names of the pools that an advertisement covers: by name and by
// selector, or all pools when it has neither.
func (b *snapshotBuilder) resolvePools(o ObjectReference, wanted []string, selectors []metav1.LabelSelector, pools []*Pool) []string {
	all := len(wanted) == 0 && len(selectors) == 0
	parsed := b.parseSelectors(o, "spec.ipAddressPoolSelectors", selectors)
	var out []string
	for _, p := range pools {
		selected := slices.ContainsFunc(parsed, func(s labels.Selector) bool { return s.Matches(labels.Set(p.Labels)) })
		if all || selected || slices.Contains(wanted, p.Name) {
			out = append(out, p.Name)
		}
	}
	for i, n := range wanted {
		if !slices.ContainsFunc(pools, func(p *Pool) bool { return p.Name == n }) {
			field := fmt.Sprintf("spec.ipAddressPools[%d]", i)
			b.reportProblem(o, field, names.ReasonUnknownPool, "%s: no IPAddressPool %q exists in namespace %q: create it, or correct the name", field, n, o.Namespace)
		}
	}
	return out
}
