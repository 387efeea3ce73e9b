package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPSessionStatus is the state of the session between one node and one BGPPeer.
type BGPSessionStatus struct {
	// Node that the session belongs to. Example: node1.
	// +optional
	Node string `json:"node,omitempty"`
	// Peer is the name of the BGPPeer. Example: tor.
	// +optional
	Peer string `json:"peer,omitempty"`
	// Address of the router, with its port. Example: 192.0.2.1:179.
	// +optional
	Address string `json:"address,omitempty"`
	// State of the session (RFC 4271, section 8.2.2). Of a session that is not established, a state
	// that lasts less than 30 s is not shown. It is Unknown if the speaker of the node is dead.
	// Example: Established.
	// +kubebuilder:validation:Enum=Idle;Connect;Active;OpenSent;OpenConfirm;Established;Unknown
	// +optional
	State string `json:"state,omitempty"`
	// Since is when the session was established, or when it ended. Example: 2026-11-29T08:30:00Z.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Families whose routes the session carries: ipv4-unicast, ipv6-unicast. Example:
	// ["ipv4-unicast"].
	// +optional
	Families []string `json:"families,omitempty"`
	// Prefixes is the number of prefixes that were sent to the router. Example: 12.
	// +optional
	Prefixes int32 `json:"prefixes"`
	// BFD is the state of the BFD session: Up, Down, Init or AdminDown; empty without BFD. Example:
	// Up.
	// +optional
	BFD string `json:"bfd,omitempty"`
	// LastError says why the session last ended or could not start, and what to do. Example: the
	// router refuses the connection: does BGP run there?
	// +optional
	LastError string `json:"lastError,omitempty"`
	// LastErrorTime is when LastError was first seen. Example: 2026-11-29T08:30:00Z.
	// +optional
	LastErrorTime *metav1.Time `json:"lastErrorTime,omitempty"`
	// LastErrorIsOver is true when the session has been established since. Example: true.
	// +optional
	LastErrorIsOver bool `json:"lastErrorIsOver,omitempty"`
	// Conditions of the session.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BGPSession is the session between one node and one BGPPeer. The node's speaker writes it. If that
// speaker is dead, another one does.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=bgpsessions,scope=Namespaced,shortName=bgps,categories=gantry
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.node`
// +kubebuilder:printcolumn:name="Peer",type=string,JSONPath=`.status.peer`
// +kubebuilder:printcolumn:name="Router",type=string,JSONPath=`.status.address`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="gantry.dev/Established")].reason`
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.since`
// +kubebuilder:printcolumn:name="Sent",type=integer,JSONPath=`.status.prefixes`
// +kubebuilder:printcolumn:name="BFD",type=string,JSONPath=`.status.bfd`
// +kubebuilder:printcolumn:name="Last Error",type=string,JSONPath=`.status.lastError`,priority=10
// +kubebuilder:printcolumn:name="Error At",type=date,JSONPath=`.status.lastErrorTime`,priority=10
// +kubebuilder:printcolumn:name="Error Is Over",type=boolean,JSONPath=`.status.lastErrorIsOver`,priority=10
type BGPSession struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status BGPSessionStatus `json:"status,omitempty"`
}

// BGPSessionList is a list of BGPSessions.
//
// +kubebuilder:object:root=true
type BGPSessionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BGPSession `json:"items"`
}
