package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPAddressPoolSpec says which addresses a pool has and which Services may get them.
type IPAddressPoolSpec struct {
	// Addresses of the pool. An entry is a CIDR ("192.0.2.0/24"), a range that includes both ends
	// ("192.0.2.10-192.0.2.20") or a single address. Entries may be of both families. Example:
	// ["192.0.2.0/24", "2001:db8::/64"].
	// +kubebuilder:validation:MinItems=0
	// +kubebuilder:validation:MaxItems=10240
	// +kubebuilder:validation:items:MaxLength=96
	// +kubebuilder:validation:XValidation:rule="self.size() > 0",message="addresses is empty: write at least one CIDR, range or address, such as 192.0.2.0/24 or 192.0.2.10-192.0.2.20"
	// +kubebuilder:validation:items:XValidation:rule="self.contains('-') ? (self.split('-').size() == 2 && isIP(self.split('-')[0].trim()) && isIP(self.split('-')[1].trim())) : (isCIDR(self) || isIP(self) || (self.contains('/') && self.split('/').size() == 2 && isIP(self.split('/')[0]) && self.split('/')[1].matches('^(0|[1-9][0-9]{0,2})$') && int(self.split('/')[1]) <= (ip(self.split('/')[0]).family() == 4 ? 32 : 128)))",message="the entry is no CIDR, range or address: write 192.0.2.0/24, 192.0.2.10-192.0.2.20 or 192.0.2.10, without blanks",messageExpression="\"'\" + self + \"' is no CIDR, range or address: write 192.0.2.0/24, 192.0.2.10-192.0.2.20 or 192.0.2.10, without blanks\""
	// +kubebuilder:validation:items:XValidation:rule="!self.contains('-') || self.split('-').size() != 2 || !isIP(self.split('-')[0].trim()) || !isIP(self.split('-')[1].trim()) || ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()",message="the range mixes IPv4 and IPv6: write an entry for each family",messageExpression="\"the range '\" + self + \"' mixes IPv4 and IPv6: write an entry for each family\""
	Addresses []string `json:"addresses"`

	// AutoAssign: with false, only Services that name the pool or one of its addresses get an
	// address from it. Default: true. Example: false.
	// +kubebuilder:default:=true
	// +optional
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// AvoidBuggyIPs skips IPv4 addresses that end in .0 or .255. Default: false. Example: true.
	// +kubebuilder:default:=false
	// +optional
	AvoidBuggyIPs bool `json:"avoidBuggyIPs,omitempty"`

	// ServiceAllocation restricts the pool to some Services and ranks it among the pools of a
	// Service. Default: all Services.
	// +optional
	AllocateTo *ServiceAllocation `json:"serviceAllocation,omitempty"`

	// Gantry holds settings that only Gantry has. Default: none.
	// +optional
	Gantry *PoolExtension `json:"gantry,omitempty"`
}

// ServiceAllocation says which Services a restricted pool serves. A Service must match both the
// namespaces (by name or selector) and the Service selectors.
type ServiceAllocation struct {
	// Priority of the pool: a lower number is tried first; 0 or absent is last. Default: 0.
	// Example: 10.
	// +optional
	Priority int `json:"priority,omitempty"`
	// Namespaces are the names of admitted namespaces. Default: all namespaces, if
	// namespaceSelectors is empty too. Example: ["shop"].
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`
	// NamespaceSelectors admit every namespace that matches one of them. Default: none.
	// +optional
	NamespaceSelectors []metav1.LabelSelector `json:"namespaceSelectors,omitempty"`
	// ServiceSelectors admit every Service that matches one of them. Default: all Services.
	// +optional
	ServiceSelectors []metav1.LabelSelector `json:"serviceSelectors,omitempty"`
}

// IPAddressPoolStatus counts the addresses of a pool. The controller writes it.
type IPAddressPoolStatus struct {
	// AssignedIPv4 is the number of different IPv4 addresses that Services hold. Example: 12.
	AssignedIPv4 int64 `json:"assignedIPv4"`
	// AssignedIPv6 is the number of different IPv6 addresses that Services hold. Example: 12.
	AssignedIPv6 int64 `json:"assignedIPv6"`
	// AvailableIPv4 is the number of free IPv4 addresses. Example: 244.
	AvailableIPv4 int64 `json:"availableIPv4"`
	// AvailableIPv6 is the number of free IPv6 addresses. Example: 244.
	AvailableIPv6 int64 `json:"availableIPv6"`
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *PoolStatusExtension `json:"gantry,omitempty"`
}

// PoolStatusExtension is what Gantry reports about a pool in addition to the metallb.io API.
type PoolStatusExtension struct {
	ObjectStatus `json:",inline"`
	// Retire is the progress of spec.gantry.retire; absent without it.
	// +optional
	Retire *PoolRetirementStatus `json:"retire,omitempty"`
	// LiftedWithheld is the value of the annotation gantry.dev/lift-withheld that was carried out.
	// Example: all.
	// +optional
	LiftedWithheld string `json:"liftedWithheld,omitempty"`
}

// PoolRetirementStatus counts the Services that hold retired addresses of a pool.
type PoolRetirementStatus struct {
	// ServicesLeft hold a retired address. Example: 7.
	ServicesLeft int32 `json:"servicesLeft"`
	// ServicesWithoutOtherAddress are those of them that got no other address at their last turn:
	// none was free, or they request the retired one. Example: 1.
	ServicesWithoutOtherAddress int32 `json:"servicesWithoutOtherAddress"`
}

// ObjectStatus is what Gantry reports about a configuration object in addition to the metallb.io
// API.
type ObjectStatus struct {
	// Conditions say whether the object is understood, and what is wrong with it.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPAddressPool is a set of addresses for Services of type LoadBalancer.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=ipaddresspools,scope=Namespaced,shortName=ipap,categories=gantry
// +kubebuilder:printcolumn:name="Auto Assign",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Avoid Buggy IPs",type=boolean,JSONPath=`.spec.avoidBuggyIPs`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Assigned IPv4",type=integer,JSONPath=`.status.assignedIPv4`
// +kubebuilder:printcolumn:name="Available IPv4",type=integer,JSONPath=`.status.availableIPv4`
// +kubebuilder:printcolumn:name="Assigned IPv6",type=integer,JSONPath=`.status.assignedIPv6`
// +kubebuilder:printcolumn:name="Available IPv6",type=integer,JSONPath=`.status.availableIPv6`
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].message`,priority=10
type IPAddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec IPAddressPoolSpec `json:"spec"`
	// +optional
	Status IPAddressPoolStatus `json:"status,omitempty"`
}

// IPAddressPoolList is a list of IPAddressPools.
//
// +kubebuilder:object:root=true
type IPAddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []IPAddressPool `json:"items"`
}
