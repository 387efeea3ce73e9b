package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SpeakerStatusStatus is the state of one node's speaker.
type SpeakerStatusStatus struct {
	// Node that the speaker runs on.
	// +optional
	Node string `json:"node,omitempty"`
	// Version of the speaker.
	// +optional
	Version string `json:"version,omitempty"`
	// Held is the number of addresses for which the node answers ARP or NDP.
	// +optional
	Held int32 `json:"held"`
	// Routes is the number of prefixes that the node announces by BGP.
	// +optional
	Routes int32 `json:"routes"`
	// Members are the nodes whose speakers this one can reach, itself included, sorted.
	// +optional
	Members []string `json:"members,omitempty"`
	// Links are the links of the node, sorted by name.
	// +listType=map
	// +listMapKey=name
	// +optional
	Links []SpeakerLink `json:"links,omitempty"`
	// Conditions of the speaker.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// SpeakerLink is a link of a node as its speaker sees it.
type SpeakerLink struct {
	// Name of the link.
	Name string `json:"name"`
	// Usable says whether addresses may be announced on it.
	Usable bool `json:"usable"`
	// Reason is one word that says why the link is not usable.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message says in one sentence what failed.
	// +optional
	Message string `json:"message,omitempty"`
	// MAC is the hardware address in the answers.
	// +optional
	MAC string `json:"mac,omitempty"`
}

// SpeakerStatus is the state of a node's speaker. The speaker writes it; it is named after the
// node.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=speakerstatuses,scope=Namespaced
// +kubebuilder:printcolumn:name="Held",type=integer,JSONPath=`.status.held`
// +kubebuilder:printcolumn:name="Routes",type=integer,JSONPath=`.status.routes`
// +kubebuilder:printcolumn:name="Members",type=string,JSONPath=`.status.members`,priority=10
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type SpeakerStatus struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status SpeakerStatusStatus `json:"status,omitempty"`
}

// SpeakerStatusList is a list of SpeakerStatuses.
//
// +kubebuilder:object:root=true
type SpeakerStatusList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []SpeakerStatus `json:"items"`
}
