package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressProbeSpec asks whether a host on the network segment uses an address already. The
// controller writes it, or kubectl gantry probe does.
//
// +kubebuilder:validation:XValidation:rule="has(self.node) == has(oldSelf.node) && (!has(self.node) || self.node == oldSelf.node)",message="the node cannot be changed: delete the AddressProbe"
type AddressProbeSpec struct {
	// Address that the speakers ask for: the controller is about to give it, or an operator wants
	// to know who answers. Example: 192.0.2.10.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="the address is no IP address"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the address cannot be changed: delete the AddressProbe"
	Address string `json:"address"`
	// Pool of the address. Its advertisements say on which links the speakers probe. Default: none.
	// Example: first-pool.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Pool string `json:"pool,omitempty"`
	// Service that is about to get the address, or has it.
	Service ServiceReference `json:"service"`
	// Node whose speaker alone asks, and asks like a neighbour, also if a node holds the address.
	// kubectl gantry probe sets it. Default: none: the speakers take turns, and ask for no address
	// that a node holds. Example: node1.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Node string `json:"node,omitempty"`
}

// The outcomes of an AddressProbe.
const (
	// ProbeOutcomeSilent: no host answered.
	ProbeOutcomeSilent = "Silent"
	// ProbeOutcomeAnswered: a host uses the address, or is about to.
	ProbeOutcomeAnswered = "Answered"
	// ProbeOutcomeNotSent: the speaker of the node in the spec has no link on which it can ask.
	ProbeOutcomeNotSent = "NotSent"
)

// AddressProbeStatus is what a speaker found. The first speaker with a result writes it.
type AddressProbeStatus struct {
	// Outcome is Silent when no host answered, and Answered when a host uses the address or is
	// about to. It is NotSent when the node in the spec can ask on no link. Example: Silent.
	// +kubebuilder:validation:Enum=Silent;Answered;NotSent
	// +optional
	Outcome string `json:"outcome,omitempty"`
	// By lists the Ethernet addresses that answered. Example: 02:00:5e:10:00:01.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	By string `json:"by,omitempty"`
	// Node whose speaker probed. Example: node1.
	// +optional
	Node string `json:"node,omitempty"`
	// Time of the result. Example: 2026-11-29T08:30:00Z.
	// +optional
	Time *metav1.Time `json:"time,omitempty"`
}

// AddressProbe is a question from the controller to the speakers: does a host on the network
// segment use this address? The controller creates it before it gives an address of a pool with
// spec.gantry.probe, and deletes it when it has the answer. A speaker sends three probes, 200 ms
// apart (RFC 5227, section 2.1.1; RFC 4862, section 5.4), on the links where the address would be
// announced. kubectl gantry probe creates one with a node in the spec, and deletes it too.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=addressprobes,scope=Namespaced,shortName=ipprobe,categories=gantry
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="For Namespace",type=string,JSONPath=`.spec.service.namespace`
// +kubebuilder:printcolumn:name="For Service",type=string,JSONPath=`.spec.service.name`
// +kubebuilder:printcolumn:name="Outcome",type=string,JSONPath=`.status.outcome`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressProbe struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AddressProbeSpec `json:"spec"`
	// +optional
	Status AddressProbeStatus `json:"status,omitempty"`
}

// AddressProbeList is a list of AddressProbes.
//
// +kubebuilder:object:root=true
type AddressProbeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []AddressProbe `json:"items"`
}
