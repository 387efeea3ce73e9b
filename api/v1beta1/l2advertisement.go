package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// L2AdvertisementSpec says which pools are announced by ARP and NDP: from which nodes and on which
// interfaces.
type L2AdvertisementSpec struct {
	// IPAddressPools are names of pools. Without names and selectors the advertisement covers all
	// pools. Default: all pools, if ipAddressPoolSelectors is empty too. Example: ["first-pool"].
	// +optional
	IPAddressPools []string `json:"ipAddressPools,omitempty"`
	// IPAddressPoolSelectors add every pool that matches one of them. Default: none.
	// +optional
	IPAddressPoolSelectors []metav1.LabelSelector `json:"ipAddressPoolSelectors,omitempty"`
	// NodeSelectors: only nodes that match one of them may announce. Without selectors all nodes
	// may. Default: all nodes.
	// +optional
	NodeSelectors []metav1.LabelSelector `json:"nodeSelectors,omitempty"`
	// ServiceSelectors: only Services that match one of them are announced. Without selectors all
	// Services of the pools are. Default: all Services.
	// +optional
	ServiceSelectors []metav1.LabelSelector `json:"serviceSelectors,omitempty"`
	// Interfaces are the exact names of the interfaces to announce on. Without names all usable
	// ones are. Default: all usable ones. Example: ["eth0"].
	// +optional
	Interfaces []string `json:"interfaces,omitempty"`
	// PreferredNodeSelectors rank the nodes: a node's rank is the sum of the weights that match it.
	// Default: none.
	// +optional
	PreferredNodeSelectors []WeightedNodeSelector `json:"preferredNodeSelectors,omitempty"`
	// Gantry holds settings that only Gantry has. Default: none.
	// +optional
	Gantry *L2AdvertisementExtension `json:"gantry,omitempty"`
}

// The values of L2AdvertisementExtension.Rebalance.
const (
	RebalanceNever = "Never"
	RebalancePaced = "Paced"
)

// The values of L2AdvertisementExtension.WireCheck.
const (
	WireCheckOff     = "Off"
	WireCheckWarn    = "Warn"
	WireCheckEnforce = "Enforce"
)

// L2AdvertisementExtension holds the settings of an L2Advertisement that are not in the metallb.io
// API.
type L2AdvertisementExtension struct {
	// Rebalance says whether a node gives addresses away while everything works: when it holds more
	// than its share, or when a preferred node could hold them. Never (the default) moves none.
	// Paced moves a few per second, once no speaker has joined or left for ten seconds. In both
	// cases a new address goes to a node that holds few. Default: Never. Example: Paced.
	// +kubebuilder:validation:Enum=Never;Paced
	// +optional
	Rebalance string `json:"rebalance,omitempty"`
	// WireCheck says what happens if a host answers for an address that no node holds. Enforce asks
	// before a node takes the address, and waits until the host is silent: two hosts with one
	// address would harm each other. With Warn, a node answers at once for a new address, and asks
	// meanwhile. If a host answers, the node leaves the address to the host. Warn takes an address
	// that a node has held before, and reports the host. Off takes every address, answers at once
	// for new ones, and says nothing. An address is new if no speaker remembers that a node has
	// held it: they forget it ten minutes after no node could hold it any more, and when all of
	// them restart together. The answer of the network for a node that is dead does not count as a
	// host. Default: Enforce. Example: Warn.
	// +kubebuilder:validation:Enum=Off;Warn;Enforce
	// +optional
	WireCheck string `json:"wireCheck,omitempty"`
}

// WeightedNodeSelector prefers some nodes over others.
type WeightedNodeSelector struct {
	// Weight of the preference, 1 to 100. Example: 50.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Weight int32 `json:"weight"`
	// Preference selects the preferred nodes; an empty one selects all.
	// +structType=atomic
	Preference metav1.LabelSelector `json:"preference"`
}

// L2AdvertisementStatus reports how the advertisement is understood.
type L2AdvertisementStatus struct {
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *ObjectStatus `json:"gantry,omitempty"`
}

// L2Advertisement announces the addresses of pools on the local network segment.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=l2advertisements,scope=Namespaced,shortName=l2adv,categories=gantry
// +kubebuilder:printcolumn:name="IPAddressPools",type=string,JSONPath=`.spec.ipAddressPools`
// +kubebuilder:printcolumn:name="IPAddressPool Selectors",type=string,JSONPath=`.spec.ipAddressPoolSelectors`
// +kubebuilder:printcolumn:name="Interfaces",type=string,JSONPath=`.spec.interfaces`
// +kubebuilder:printcolumn:name="Node Selectors",type=string,JSONPath=`.spec.nodeSelectors`,priority=10
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].message`,priority=10
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
