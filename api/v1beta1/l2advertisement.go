package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// L2AdvertisementSpec says which pools are announced by ARP and NDP, from which nodes and on which interfaces.
type L2AdvertisementSpec struct {
	// IPAddressPools are names of pools. Neither names nor selectors means all pools.
	// +optional
	IPAddressPools []string `json:"ipAddressPools,omitempty"`
	// IPAddressPoolSelectors add every pool that one of them matches.
	// +optional
	IPAddressPoolSelectors []metav1.LabelSelector `json:"ipAddressPoolSelectors,omitempty"`
	// NodeSelectors limit the nodes that may announce to those that one of them matches; none means all nodes.
	// +optional
	NodeSelectors []metav1.LabelSelector `json:"nodeSelectors,omitempty"`
	// ServiceSelectors limit the Services to those that one of them matches; none means all of the pools' Services.
	// +optional
	ServiceSelectors []metav1.LabelSelector `json:"serviceSelectors,omitempty"`
	// Interfaces are exact names of the interfaces to announce on; none means all usable ones.
	// +optional
	Interfaces []string `json:"interfaces,omitempty"`
	// PreferredNodeSelectors rank the nodes: the weights of those that match a node add up.
	// +optional
	PreferredNodeSelectors []WeightedNodeSelector `json:"preferredNodeSelectors,omitempty"`
	// Gantry holds what only Gantry reads.
	// +optional
	Gantry *L2AdvertisementExtension `json:"gantry,omitempty"`
}

// The values of L2AdvertisementExtension.Rebalance.
const (
	RebalanceNever = "Never"
	RebalancePaced = "Paced"
)

// L2AdvertisementExtension holds the fields of an L2Advertisement that only Gantry reads.
type L2AdvertisementExtension struct {
	// Rebalance says whether a node that holds more addresses than its share, or holds them though a preferred node could,
	// gives some away while all is well: Never, which is the default, or Paced, a few a second once no speaker has come or
	// gone for ten seconds. Either way a new address goes to a node that holds few.
	// +kubebuilder:validation:Enum=Never;Paced
	// +optional
	Rebalance string `json:"rebalance,omitempty"`
}

// WeightedNodeSelector is a soft preference for nodes.
type WeightedNodeSelector struct {
	// Weight of the preference, 1 to 100.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Weight int32 `json:"weight"`
	// Preference selects the preferred nodes; an empty one matches all.
	// +structType=atomic
	Preference metav1.LabelSelector `json:"preference"`
}

// L2AdvertisementStatus reports how the advertisement is understood.
type L2AdvertisementStatus struct {
	// Gantry holds what only Gantry reports.
	// +optional
	Gantry *ObjectStatus `json:"gantry,omitempty"`
}

// L2Advertisement has the addresses of pools announced on the local segment.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=l2advertisements,scope=Namespaced
// +kubebuilder:printcolumn:name="IPAddressPools",type=string,JSONPath=`.spec.ipAddressPools`
// +kubebuilder:printcolumn:name="IPAddressPool Selectors",type=string,JSONPath=`.spec.ipAddressPoolSelectors`
// +kubebuilder:printcolumn:name="Interfaces",type=string,JSONPath=`.spec.interfaces`
// +kubebuilder:printcolumn:name="Node Selectors",type=string,JSONPath=`.spec.nodeSelectors`,priority=10
type L2Advertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec L2AdvertisementSpec `json:"spec,omitempty"`
	// +optional
	Status L2AdvertisementStatus `json:"status,omitempty"`
}

// L2AdvertisementList is a list of L2Advertisements.
//
// +kubebuilder:object:root=true
type L2AdvertisementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []L2Advertisement `json:"items"`
}
