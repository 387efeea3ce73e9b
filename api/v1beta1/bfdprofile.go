package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BFDProfileSpec holds the parameters of BFD sessions (RFC 5880). Unset fields have the defaults of
// FRR.
type BFDProfileSpec struct {
	// ReceiveInterval is the shortest interval between packets that this end can receive, in ms.
	// Default: 300. Example: 50.
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=60000
	// +optional
	ReceiveInterval *uint32 `json:"receiveInterval,omitempty"`
	// TransmitInterval is the shortest interval between packets that this end sends, in ms.
	// Default: 300. Example: 50.
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=60000
	// +optional
	TransmitInterval *uint32 `json:"transmitInterval,omitempty"`
	// DetectMultiplier is the number of packets in a row that may be lost before the session goes
	// down. Default: 3. Example: 3.
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=255
	// +optional
	DetectMultiplier *uint32 `json:"detectMultiplier,omitempty"`
	// EchoInterval is the interval between echo packets, in ms. Default: 50. Example: 100.
	// +kubebuilder:validation:Minimum=10
	// +kubebuilder:validation:Maximum=60000
	// +optional
	EchoInterval *uint32 `json:"echoInterval,omitempty"`
	// EchoMode turns on the echo function (RFC 5880, section 6.4). Default: false. Example: true.
	// +optional
	EchoMode *bool `json:"echoMode,omitempty"`
	// PassiveMode sends no packet before the router does (RFC 5880, section 6.1). Default: false.
	// Example: true.
	// +optional
	PassiveMode *bool `json:"passiveMode,omitempty"`
	// MinimumTTL is the lowest TTL of received packets that multihop sessions accept. Default: 254.
	// Example: 250.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=254
	// +optional
	MinimumTTL *uint32 `json:"minimumTtl,omitempty"`
}

// BFDProfileStatus reports how the profile is understood.
type BFDProfileStatus struct {
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *ObjectStatus `json:"gantry,omitempty"`
}

// BFDProfile is a set of parameters for BFD sessions. BGPPeers refer to it by name.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=bfdprofiles,scope=Namespaced,shortName=bfdprof,categories=gantry
// +kubebuilder:printcolumn:name="Passive Mode",type=boolean,JSONPath=`.spec.passiveMode`
// +kubebuilder:printcolumn:name="Transmit Interval",type=integer,JSONPath=`.spec.transmitInterval`
// +kubebuilder:printcolumn:name="Receive Interval",type=integer,JSONPath=`.spec.receiveInterval`
// +kubebuilder:printcolumn:name="Multiplier",type=integer,JSONPath=`.spec.detectMultiplier`
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].message`,priority=10
type BFDProfile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec BFDProfileSpec `json:"spec,omitempty"`
	// +optional
	Status BFDProfileStatus `json:"status,omitempty"`
}

// BFDProfileList is a list of BFDProfiles.
//
// +kubebuilder:object:root=true
type BFDProfileList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BFDProfile `json:"items"`
}
