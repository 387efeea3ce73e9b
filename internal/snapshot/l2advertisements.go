package snapshot

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/v1beta1"
)

// WireCheck says what an answer of a host does to an address that a node wants to take.
type WireCheck uint8

// The values of WireCheck, the mildest first.
const (
	WireCheckOff WireCheck = iota + 1
	WireCheckWarn
	WireCheckEnforce
)

func parseWireCheck(e *v1beta1.L2AdvertisementExtension) WireCheck {
	switch {
	case e == nil:
	case e.WireCheck == v1beta1.WireCheckOff:
		return WireCheckOff
	case e.WireCheck == v1beta1.WireCheckWarn:
		return WireCheckWarn
	}
	return WireCheckEnforce
}

func (b *snapshotBuilder) parseL2Advertisement(in *v1beta1.L2Advertisement, pools []*Pool) *L2Advertisement {
	o := ObjectReference{Kind: "L2Advertisement", Namespace: in.Namespace, Name: in.Name}
	ad := &L2Advertisement{
		Name:             in.Name,
		Rebalance:        in.Spec.Gantry != nil && in.Spec.Gantry.Rebalance == v1beta1.RebalancePaced,
		WireCheck:        parseWireCheck(in.Spec.Gantry),
		Interfaces:       slices.Compact(slices.Sorted(slices.Values(in.Spec.Interfaces))),
		NodeSelectors:    b.parseSelectors(o, "spec.nodeSelectors", in.Spec.NodeSelectors),
		ServiceSelectors: b.parseSelectors(o, "spec.serviceSelectors", in.Spec.ServiceSelectors),
		Pools:            b.resolvePools(o, in.Spec.IPAddressPools, in.Spec.IPAddressPoolSelectors, pools),
	}
	b.reportDuplicateListEntries(o, "spec.ipAddressPools", in.Spec.IPAddressPools)
	b.reportDuplicateSelectors(o, "spec.nodeSelectors", in.Spec.NodeSelectors)
	for i := range in.Spec.PreferredNodeSelectors {
		w := &in.Spec.PreferredNodeSelectors[i]
		for _, s := range b.parseSelectors(o, fmt.Sprintf("spec.preferredNodeSelectors[%d].preference", i), []metav1.LabelSelector{w.Preference}) {
			ad.Preferences = append(ad.Preferences, NodePreference{Weight: int(w.Weight), NodeSelector: s})
		}
	}
	return ad
}
