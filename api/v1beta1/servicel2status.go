package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ServiceL2StatusSpec has no fields.
type ServiceL2StatusSpec struct{}

// ServiceL2StatusStatus says which node announces a Service on the local network segment.
type ServiceL2StatusStatus struct {
	// Node is the name of the node that announces. Example: node1.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="node cannot be changed: only speakers write this object"
	// +optional
	Node string `json:"node,omitempty"`
	// ServiceName is the name of the Service. Example: web.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="serviceName cannot be changed: only speakers write this object"
	// +optional
	ServiceName string `json:"serviceName,omitempty"`
	// ServiceNamespace is the namespace of the Service. Example: default.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="serviceNamespace cannot be changed: only speakers write this object"
	// +optional
	ServiceNamespace string `json:"serviceNamespace,omitempty"`
	// Interfaces are the interfaces it is announced on; an empty list means all.
	// +optional
	Interfaces []InterfaceInfo `json:"interfaces,omitempty"`
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *ServiceL2StatusGantry `json:"gantry,omitempty"`
}

// ServiceL2StatusGantry gives details of what the node announces.
type ServiceL2StatusGantry struct {
	// Addresses of the Service that the node answers for, sorted. Another node may answer for the
	// others. Example: ["192.0.2.10"].
	// +listType=atomic
	// +optional
	Addresses []string `json:"addresses,omitempty"`
	// Conflicts are hosts that are no nodes and that claim one of the addresses now.
	// +listType=atomic
	// +optional
	Conflicts []AddressConflict `json:"conflicts,omitempty"`
	// ReservedAddresses are those of the addresses that are the network or the broadcast address of
	// a subnet of the node. Hosts of that subnet cannot connect to them.
	// +listType=atomic
	// +optional
	ReservedAddresses []NetworkOrBroadcastAddress `json:"reservedAddresses,omitempty"`
}

// NetworkOrBroadcastAddress is the network or the broadcast address of a subnet.
type NetworkOrBroadcastAddress struct {
	// Address that the subnet reserves. Example: 192.168.0.255.
	Address string `json:"address"`
	// Subnet of the node. Example: 192.168.0.0/24.
	Subnet string `json:"subnet"`
}

// AddressConflict is a foreign host's claim to an address.
type AddressConflict struct {
	// Address that the host claims. Example: 192.0.2.10.
	Address string `json:"address"`
	// MAC is the hardware address of the host. Example: 02:00:5e:10:00:01.
	MAC string `json:"mac"`
	// Since is when the claim was first seen. Example: 2026-11-29T08:30:00Z.
	Since metav1.Time `json:"since"`
}

// InterfaceInfo names a network interface.
type InterfaceInfo struct {
	// Name of the interface. Example: eth0.
	// +optional
	Name string `json:"name,omitempty"`
}

// ServiceL2Status says that a node announces a Service by ARP and NDP. Speakers write it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=servicel2statuses,scope=Namespaced,shortName=svcl2,categories=gantry
// +kubebuilder:printcolumn:name="Allocated Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="Service Name",type=string,JSONPath=`.status.serviceName`
// +kubebuilder:printcolumn:name="Service Namespace",type=string,JSONPath=`.status.serviceNamespace`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.status.gantry.addresses`
// +kubebuilder:printcolumn:name="Interfaces",type=string,JSONPath=`.status.interfaces`
type ServiceL2Status struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec ServiceL2StatusSpec `json:"spec,omitempty"`
	// +optional
	Status ServiceL2StatusStatus `json:"status,omitempty"`
}

// ServiceL2StatusList is a list of ServiceL2Statuses.
//
// +kubebuilder:object:root=true
type ServiceL2StatusList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ServiceL2Status `json:"items"`
}
