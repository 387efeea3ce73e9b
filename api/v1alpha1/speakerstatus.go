package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// SpeakerStatusStatus is the state of one node's speaker.
type SpeakerStatusStatus struct {
	// Node that the speaker runs on. Example: node1.
	// +optional
	Node string `json:"node,omitempty"`
	// Version of the speaker. Example: v0.1.0.
	// +optional
	Version string `json:"version,omitempty"`
	// Held is the number of addresses for which the node answers ARP or NDP. Example: 3.
	// +optional
	Held int32 `json:"held"`
	// Routes is the number of prefixes that the node announces by BGP. Example: 12.
	// +optional
	Routes int32 `json:"routes"`
	// LastSeen is when the speaker last wrote this status. It writes at least every minute.
	// Example: 2026-11-29T08:30:00Z.
	// +optional
	LastSeen *metav1.Time `json:"lastSeen,omitempty"`
	// Unavailable says in one word why the node announces nothing. It is empty if the node may
	// announce. Example: NodeLeaving.
	// +optional
	Unavailable string `json:"unavailable,omitempty"`
	// Unreachable are nodes whose speakers run, and with which this one cannot exchange gossip,
	// sorted. It has at most 16 names. Example: ["node2"].
	// +listType=atomic
	// +optional
	Unreachable []string `json:"unreachable,omitempty"`
	// Conflicts are foreign hosts that answer for an address that the node holds or wants to take:
	// for each address the host that was heard first. It has at most 512 entries.
	// +listType=atomic
	// +optional
	Conflicts []SpeakerConflict `json:"conflicts,omitempty"`
	// ConflictsOmitted is how many more addresses have a conflict. Example: 3.
	// +optional
	ConflictsOmitted int32 `json:"conflictsOmitted,omitempty"`
	// AwaitingProxy are Services ("namespace/name") with new endpoints on this node that kube-proxy
	// does not know yet. It has at most 512 entries. Example: ["default/web"].
	// +listType=atomic
	// +optional
	AwaitingProxy []string `json:"awaitingProxy,omitempty"`
	// AwaitingProxyOmitted is how many more Services await kube-proxy. Example: 3.
	// +optional
	AwaitingProxyOmitted int32 `json:"awaitingProxyOmitted,omitempty"`
	// Moves are the last addresses that the node took over, or gave up without a successor, the
	// newest first. It has at most 32 entries; earlier moves are not known.
	// +listType=atomic
	// +optional
	Moves []AddressMoveBetweenNodes `json:"moves,omitempty"`
	// UsableLinks are the names of the links on which addresses may be announced, sorted. Example:
	// eth0.
	// +listType=atomic
	// +optional
	UsableLinks []string `json:"usableLinks,omitempty"`
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

// WasFoundDead reports whether a living speaker has found this one dead. A nil status is of no
// speaker.
func (s *SpeakerStatusStatus) WasFoundDead() bool {
	return s != nil && meta.IsStatusConditionFalse(s.Conditions, names.ConditionSpeakerReady)
}

// SpeakerConflict is a foreign host that answers for an address.
type SpeakerConflict struct {
	// Address for which the host answers. Example: 192.0.2.10.
	Address string `json:"address"`
	// MAC is the hardware address of the host. Example: 02:00:5e:10:00:01.
	MAC string `json:"mac"`
	// Since is when the host first answered. Example: 2026-11-29T08:30:00Z.
	Since metav1.Time `json:"since"`
}

// MaxMovesInSpeakerStatus is how many moves a SpeakerStatus has at most.
const MaxMovesInSpeakerStatus = 32

// AddressMoveBetweenNodes is a change of the node that answers for an address.
type AddressMoveBetweenNodes struct {
	// At is when the address moved. Example: 2026-11-29T08:30:00Z.
	At metav1.Time `json:"at"`
	// Address that moved. Example: 192.0.2.10.
	Address string `json:"address"`
	// Service ("namespace/name") of the address. Several that share it are separated by commas.
	// Example: default/web.
	// +optional
	Service string `json:"service,omitempty"`
	// From is the node that answered for the address before. It is empty if none did. Example:
	// node1.
	// +optional
	From string `json:"from,omitempty"`
	// To is the node that answers since then. It is empty if none does. Example: node2.
	// +optional
	To string `json:"to,omitempty"`
	// Cause is one word that says why the address moved. Example: HolderGone.
	Cause string `json:"cause"`
	// Duration is how long no node answered. It is empty if that is not known. Example: 212ms.
	// +optional
	Duration *metav1.Duration `json:"duration,omitempty"`
}

// SpeakerLink is a link of a node as its speaker sees it.
type SpeakerLink struct {
	// Name of the link. Example: eth0.
	Name string `json:"name"`
	// Usable says whether addresses may be announced on it. Example: true.
	Usable bool `json:"usable"`
	// Reason is one word that says why the link is not usable. Example: LinkDown.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message says in one sentence what failed. Example: opening a socket for ARP: operation not
	// permitted.
	// +optional
	Message string `json:"message,omitempty"`
	// MAC is the hardware address in the answers. Example: 02:00:5e:10:00:01.
	// +optional
	MAC string `json:"mac,omitempty"`
	// Families are the address families for which the node can answer on the link: IPv4, IPv6.
	// Example: ["IPv4"].
	// +listType=atomic
	// +optional
	Families []string `json:"families,omitempty"`
	// Subnets of the link, sorted, without link-local ones. It has at most 512 entries. Example:
	// ["192.0.2.0/24"].
	// +listType=atomic
	// +optional
	Subnets []string `json:"subnets,omitempty"`
}

// SpeakerStatus is the state of a node's speaker. The speaker writes it; it is named after the
// node.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=speakerstatuses,scope=Namespaced,shortName=speakers,categories=gantry
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="gantry.dev/Ready")].status`
// +kubebuilder:printcolumn:name="Layer2",type=string,JSONPath=`.status.conditions[?(@.type=="gantry.dev/Layer2Usable")].status`
// +kubebuilder:printcolumn:name="Held",type=integer,JSONPath=`.status.held`
// +kubebuilder:printcolumn:name="Routes",type=integer,JSONPath=`.status.routes`
// +kubebuilder:printcolumn:name="Links",type=string,JSONPath=`.status.usableLinks`
// +kubebuilder:printcolumn:name="Unavailable",type=string,JSONPath=`.status.unavailable`
// +kubebuilder:printcolumn:name="Unreachable",type=string,JSONPath=`.status.unreachable`
// +kubebuilder:printcolumn:name="Last Seen",type=date,JSONPath=`.status.lastSeen`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`,priority=10
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,priority=10
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
