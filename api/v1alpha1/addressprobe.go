package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressProbeSpec asks whether somebody on the segment uses an address already. It is the controller's to write.
type AddressProbeSpec struct {
	// Address that is about to be given.
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="the address is no IP address"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the address cannot be changed: delete the AddressProbe"
	Address string `json:"address"`
	// Pool of the address; its advertisements say on which links it is asked for.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Pool string `json:"pool,omitempty"`
	// Service that it is about to be given to.
	Service ServiceReference `json:"service"`
}

// Outcomes of an AddressProbe.
const (
	// OutcomeSilent: nobody answered.
	OutcomeSilent = "Silent"
	// OutcomeAnswered: a host uses the address, or is about to.
	OutcomeAnswered = "Answered"
)

// AddressProbeStatus is what a speaker found. The first one to find something writes it.
type AddressProbeStatus struct {
	// Outcome is Silent when nobody answered, and Answered when a host uses the address, or is about to.
	// +kubebuilder:validation:Enum=Silent;Answered
	// +optional
	Outcome string `json:"outcome,omitempty"`
	// By are the Ethernet addresses that answered.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	By string `json:"by,omitempty"`
	// Node whose speaker asked.
	// +optional
	Node string `json:"node,omitempty"`
	// Time when it was known.
	// +optional
	Time *metav1.Time `json:"time,omitempty"`
}

// AddressProbe is a question from the controller to the speakers: does somebody on the segment use this address? The controller makes it before it
// gives an address of a pool with spec.gantry.probe, and deletes it when it knows. A speaker asks three times, 200 ms apart, as one who
// may want to use the address (RFC 5227 section 2.1.1, RFC 4862 section 5.4), on the links where the address would be announced.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=addressprobes,scope=Namespaced
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
