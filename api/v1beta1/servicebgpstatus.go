package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ServiceBGPStatusStatus says which node announces a Service to which peers.
type ServiceBGPStatusStatus struct {
	// Node is the name of the node that announces. Example: node1.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="node cannot be changed: only speakers write this object"
	// +optional
	Node string `json:"node,omitempty"`
	// ServiceName is the name of the announced Service. Example: web.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="serviceName cannot be changed: only speakers write this object"
	// +optional
	ServiceName string `json:"serviceName,omitempty"`
	// ServiceNamespace is the namespace of the announced Service. Example: default.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="serviceNamespace cannot be changed: only speakers write this object"
	// +optional
	ServiceNamespace string `json:"serviceNamespace,omitempty"`
	// Peers are the names of the BGPPeers whose routers have the Service's routes: the session is
	// established and carries the family of an address. The names are sorted. Example: ["tor"].
	// +optional
	Peers []string `json:"peers,omitempty"`
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *ServiceBGPStatusGantry `json:"gantry,omitempty"`
}

// ServiceBGPStatusGantry gives details of what the node announces.
type ServiceBGPStatusGantry struct {
	// DrainingPeers are those of the peers whose routers are about to lose the routes:
	// externalTrafficPolicy is Local, and the last endpoints on the node terminate. The routes are
	// marked with GRACEFUL_SHUTDOWN until then. The names are sorted. Example: ["tor"].
	// +listType=atomic
	// +optional
	DrainingPeers []string `json:"drainingPeers,omitempty"`
}

// ServiceBGPStatus says that a node announces a Service by BGP. Speakers write one for each node
// and Service.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=servicebgpstatuses,scope=Namespaced,shortName=svcbgp,categories=gantry
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="Service Name",type=string,JSONPath=`.status.serviceName`
// +kubebuilder:printcolumn:name="Service Namespace",type=string,JSONPath=`.status.serviceNamespace`
// +kubebuilder:printcolumn:name="Peers",type=string,JSONPath=`.status.peers`
// +kubebuilder:printcolumn:name="Draining",type=string,JSONPath=`.status.gantry.drainingPeers`,priority=10
type ServiceBGPStatus struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec has no fields.
	// +optional
	Spec ServiceBGPStatusSpec `json:"spec,omitempty"`
	// +optional
	Status ServiceBGPStatusStatus `json:"status,omitempty"`
}

// ServiceBGPStatusSpec has no fields.
type ServiceBGPStatusSpec struct{}

// ServiceBGPStatusList is a list of ServiceBGPStatuses.
//
// +kubebuilder:object:root=true
type ServiceBGPStatusList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ServiceBGPStatus `json:"items"`
}
