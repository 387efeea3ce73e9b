package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPAddressPoolSpec says which addresses a pool has and which Services may have them.
type IPAddressPoolSpec struct {
	// Addresses are the pool's addresses: each entry is a CIDR ("192.0.2.0/24"), a range with both ends in it
	// ("192.0.2.10-192.0.2.20") or a single address. Entries may be of both families.
	// +kubebuilder:validation:MinItems=0
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=96
	// +kubebuilder:validation:XValidation:rule="self.size() > 0",message="addresses is empty: write at least one CIDR, range or address, such as 192.0.2.0/24 or 192.0.2.10-192.0.2.20"
	// +kubebuilder:validation:items:XValidation:rule="self.contains('-') ? (self.split('-').size() == 2 && isIP(self.split('-')[0].trim()) && isIP(self.split('-')[1].trim())) : (isCIDR(self) || isIP(self) || (self.contains('/') && self.split('/').size() == 2 && isIP(self.split('/')[0]) && self.split('/')[1].matches('^(0|[1-9][0-9]{0,2})$') && int(self.split('/')[1]) <= (ip(self.split('/')[0]).family() == 4 ? 32 : 128)))",message="the entry is no CIDR, range or address: write 192.0.2.0/24, 192.0.2.10-192.0.2.20 or 192.0.2.10, without blanks",messageExpression="\"'\" + self + \"' is no CIDR, range or address: write 192.0.2.0/24, 192.0.2.10-192.0.2.20 or 192.0.2.10, without blanks\""
	// +kubebuilder:validation:items:XValidation:rule="!self.contains('-') || self.split('-').size() != 2 || !isIP(self.split('-')[0].trim()) || !isIP(self.split('-')[1].trim()) || ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family()",message="the range mixes IPv4 and IPv6: write an entry for each family",messageExpression="\"the range '\" + self + \"' mixes IPv4 and IPv6: write an entry for each family\""
	Addresses []string `json:"addresses"`

	// AutoAssign false reserves the pool for Services that ask for it, by name or by address.
	// +kubebuilder:default:=true
	// +optional
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// AvoidBuggyIPs passes over IPv4 addresses that end in .0 or .255.
	// +kubebuilder:default:=false
	// +optional
	AvoidBuggyIPs bool `json:"avoidBuggyIPs,omitempty"`

	// AllocateTo pins the pool to some Services and ranks it among the pools of a Service.
	// +optional
	AllocateTo *ServiceAllocation `json:"serviceAllocation,omitempty"`

	// Gantry holds what only Gantry offers.
	// +optional
	Gantry *PoolExtension `json:"gantry,omitempty"`
}

// ServiceAllocation says which Services a pinned pool serves. The namespaces (by name or selector) and the Service
// selectors have to agree both.
type ServiceAllocation struct {
	// Priority ranks the pool: lower is tried first, 0 or absent last.
	// +optional
	Priority int `json:"priority,omitempty"`
	// Namespaces are names of admitted namespaces.
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`
	// NamespaceSelectors admit every namespace that one of them matches.
	// +optional
	NamespaceSelectors []metav1.LabelSelector `json:"namespaceSelectors,omitempty"`
	// ServiceSelectors admit every Service that one of them matches.
	// +optional
	ServiceSelectors []metav1.LabelSelector `json:"serviceSelectors,omitempty"`
}

// IPAddressPoolStatus counts the addresses of a pool. It is the controller's to write.
type IPAddressPoolStatus struct {
	// AssignedIPv4 is the number of different IPv4 addresses in use.
	AssignedIPv4 int64 `json:"assignedIPv4"`
	// AssignedIPv6 is the number of different IPv6 addresses in use.
	AssignedIPv6 int64 `json:"assignedIPv6"`
	// AvailableIPv4 is the number of IPv4 addresses that are free.
	AvailableIPv4 int64 `json:"availableIPv4"`
	// AvailableIPv6 is the number of IPv6 addresses that are free.
	AvailableIPv6 int64 `json:"availableIPv6"`
	// Gantry holds what only Gantry reports.
	// +optional
	Gantry *ObjectStatus `json:"gantry,omitempty"`
}

// ObjectStatus is what Gantry reports of a configuration object beyond the fields of the metallb.io API.
type ObjectStatus struct {
	// Conditions say whether the object is understood and what is wrong with it.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// IPAddressPool is a set of addresses from which Services of type LoadBalancer get theirs.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=ipaddresspools,scope=Namespaced
// +kubebuilder:printcolumn:name="Auto Assign",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Avoid Buggy IPs",type=boolean,JSONPath=`.spec.avoidBuggyIPs`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
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
