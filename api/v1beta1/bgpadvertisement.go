package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPAdvertisementSpec says which pools are announced by BGP: to which peers, from which nodes and
// with which attributes.
//
// +kubebuilder:validation:XValidation:rule="!has(self.serviceSelectors) || self.serviceSelectors.size() == 0 || ((!has(self.aggregationLength) || self.aggregationLength == 32) && (!has(self.aggregationLengthV6) || self.aggregationLengthV6 == 128))",message="serviceSelectors and aggregationLength are mutually exclusive: an aggregate cannot be announced for some of its Services; remove the lengths, or write 32 and 128"
type BGPAdvertisementSpec struct {
	// AggregationLength is the length of the announced IPv4 prefixes, 1 to 32. Default: 32.
	// Example: 24.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=32
	// +kubebuilder:default:=32
	// +optional
	AggregationLength *int32 `json:"aggregationLength,omitempty"`
	// AggregationLengthV6 is the length of the announced IPv6 prefixes, 1 to 128. Default: 128.
	// Example: 64.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=128
	// +kubebuilder:default:=128
	// +optional
	AggregationLengthV6 *int32 `json:"aggregationLengthV6,omitempty"`
	// LocalPref is the preference of the routes at internal peers (RFC 4271, section 5.1.5). With 0
	// the router chooses. Default: 0. Example: 200.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +kubebuilder:validation:Format=int64
	// +optional
	LocalPref uint32 `json:"localPref,omitempty"`
	// Communities of the routes: "A:B" (RFC 1997), "large:A:B:C" (RFC 8092), or an alias from a
	// Community. Default: none. Example: ["64512:100"].
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:XValidation:rule="!self.contains(':') || (self.matches('^[0-9]{1,5}:[0-9]{1,5}$') && self.split(':').all(n, int(n) <= 65535)) || (self.matches('^large:[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') && self.substring(6).split(':').all(n, int(n) <= 4294967295))",message="invalid community value: write A:B with both at most 65535, large:A:B:C with each at most 4294967295, or the name of an alias",messageExpression="\"invalid community value: '\" + self + \"': write A:B with both at most 65535, large:A:B:C with each at most 4294967295, or the name of an alias\""
	// +optional
	Communities []string `json:"communities,omitempty"`
	// IPAddressPools are names of pools. Without names and selectors the advertisement covers all
	// pools. Default: all pools, if ipAddressPoolSelectors is empty too. Example: ["first-pool"].
	// +optional
	IPAddressPools []string `json:"ipAddressPools,omitempty"`
	// IPAddressPoolSelectors add every pool that matches one of them. Default: none.
	// +optional
	IPAddressPoolSelectors []metav1.LabelSelector `json:"ipAddressPoolSelectors,omitempty"`
	// NodeSelectors: only nodes that match one of them announce. Without selectors all nodes do.
	// Default: all nodes.
	// +optional
	NodeSelectors []metav1.LabelSelector `json:"nodeSelectors,omitempty"`
	// Peers are names of the BGPPeers that get the routes. Without names all do. Default: all.
	// Example: ["tor"].
	// +optional
	Peers []string `json:"peers,omitempty"`
	// ServiceSelectors: only Services that match one of them are announced. Without selectors all
	// Services of the pools are. Default: all Services.
	// +optional
	ServiceSelectors []metav1.LabelSelector `json:"serviceSelectors,omitempty"`

	// Gantry holds settings that only Gantry has. Default: none.
	// +optional
	Gantry *BGPAdvertisementExtension `json:"gantry,omitempty"`
}

// BGPAdvertisementStatus reports how the advertisement is understood.
type BGPAdvertisementStatus struct {
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *ObjectStatus `json:"gantry,omitempty"`
}

// BGPAdvertisement announces the addresses of pools to routers.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=bgpadvertisements,scope=Namespaced,shortName=bgpadv,categories=gantry
// +kubebuilder:printcolumn:name="IPAddressPools",type=string,JSONPath=`.spec.ipAddressPools`
// +kubebuilder:printcolumn:name="IPAddressPool Selectors",type=string,JSONPath=`.spec.ipAddressPoolSelectors`
// +kubebuilder:printcolumn:name="Peers",type=string,JSONPath=`.spec.peers`
// +kubebuilder:printcolumn:name="Node Selectors",type=string,JSONPath=`.spec.nodeSelectors`,priority=10
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].message`,priority=10
type BGPAdvertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:default={}
	// +optional
	Spec BGPAdvertisementSpec `json:"spec,omitempty"`
	// +optional
	Status BGPAdvertisementStatus `json:"status,omitempty"`
}

// BGPAdvertisementList is a list of BGPAdvertisements.
//
// +kubebuilder:object:root=true
type BGPAdvertisementList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BGPAdvertisement `json:"items"`
}
