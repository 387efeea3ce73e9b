package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CommunitySpec lists aliases of communities.
type CommunitySpec struct {
	// Communities are the aliases. Default: none.
	// +kubebuilder:validation:MaxItems=2048
	// +kubebuilder:validation:items:XValidation:rule="has(self.name) && has(self.value)",message="an alias needs both name and value: write name: vpn and value: 64512:100, or remove it"
	// +optional
	Communities []CommunityAlias `json:"communities,omitempty"`

	// Gantry holds settings that only Gantry has. Default: none.
	// +optional
	Gantry *CommunityExtension `json:"gantry,omitempty"`
}

// CommunityAlias gives a name to a BGP community.
type CommunityAlias struct {
	// Name of the alias, as written in BGPAdvertisements. It is unique across all Community
	// objects. Default: none. Example: no-advertise.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!self.contains(':')",message="the alias name contains ':', which only values have: write a name without it",messageExpression="\"the alias name '\" + self + \"' contains ':', which only values have: write a name without it\""
	// +optional
	Name string `json:"name,omitempty"`
	// Value is "A:B" (RFC 1997) or "large:A:B:C" (RFC 8092). Default: none. Example: 65535:65282.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="(self.matches('^[0-9]{1,5}:[0-9]{1,5}$') && self.split(':').all(n, int(n) <= 65535)) || (self.matches('^large:[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') && self.substring(6).split(':').all(n, int(n) <= 4294967295))",message="invalid community value: write A:B with both at most 65535, or large:A:B:C with each at most 4294967295",messageExpression="\"invalid community value: '\" + self + \"': write A:B with both at most 65535, or large:A:B:C with each at most 4294967295\""
	// +optional
	Value string `json:"value,omitempty"`
}

// CommunityStatus reports how the aliases are understood.
type CommunityStatus struct {
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *ObjectStatus `json:"gantry,omitempty"`
}

// Community is a list of aliases for BGP communities.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=communities,scope=Namespaced,shortName=bgpcomm,categories=gantry
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].message`,priority=10
type Community struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec CommunitySpec `json:"spec,omitempty"`
	// +optional
	Status CommunityStatus `json:"status,omitempty"`
}

// CommunityList is a list of Communities.
//
// +kubebuilder:object:root=true
type CommunityList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Community `json:"items"`
}
