package v1beta2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BGPPeerSpec says with which router a node has a session, and how.
//
// +kubebuilder:validation:XValidation:rule="[has(self.peerASN) && self.peerASN > 0, has(self.dynamicASN), has(self.gantry) && has(self.gantry.peerASNLabel)].filter(x, x).size() == 1",message="write either peerASN (the router's number, 1 to 4294967295) or dynamicASN (internal or external), but not both; gantry.peerASNLabel takes the place of both"
// +kubebuilder:validation:XValidation:rule="[has(self.peerAddress) && self.peerAddress.size() > 0, has(self.interface) && self.interface.size() > 0, has(self.gantry) && has(self.gantry.defaultGateway)].filter(x, x).size() == 1",message="write either peerAddress (the router's address) or interface (unnumbered, over the link's own IPv6 addresses), but not both; gantry.defaultGateway takes the place of both"
// +kubebuilder:validation:XValidation:rule="!has(self.gantry) || !has(self.gantry.ttlSecurityHops) || !has(self.ebgpMultiHop) || !self.ebgpMultiHop",message="ebgpMultiHop and gantry.ttlSecurityHops exclude each other: remove ebgpMultiHop, since ttlSecurityHops says how far away the router may be"
// +kubebuilder:validation:XValidation:rule="!has(self.gantry) || !has(self.gantry.passive) || !self.gantry.passive || !has(self.peerPort) || self.peerPort == 0 || self.peerPort == 179",message="peerPort is the port to connect to, and a passive peer does not connect: remove peerPort"
// +kubebuilder:validation:XValidation:rule="!has(self.sourceAddress) || !has(self.peerAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) || ip(self.sourceAddress).family() == ip(self.peerAddress).family()",message="sourceAddress and peerAddress are of different families: write a source address of the peer's family, or leave it out",messageExpression="\"sourceAddress '\" + self.sourceAddress + \"' and peerAddress '\" + self.peerAddress + \"' are of different families: write a source address of the peer's family, or leave it out\""
// +kubebuilder:validation:XValidation:rule="!has(self.password) || self.password.size() == 0 || !has(self.passwordSecret) || !has(self.passwordSecret.name) || self.passwordSecret.name.size() == 0",message="password and passwordSecret exclude each other: keep passwordSecret and remove password"
// +kubebuilder:validation:XValidation:rule="!has(self.ebgpMultiHop) || !self.ebgpMultiHop || !((has(self.peerASN) && self.peerASN == self.myASN) || (has(self.dynamicASN) && self.dynamicASN == 'internal'))",message="ebgpMultiHop is for external peers, but peerASN is myASN: remove ebgpMultiHop, since internal sessions may cross hops anyway"
// +kubebuilder:validation:XValidation:rule="!has(self.holdTime) || !has(self.keepaliveTime) || !self.holdTime.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$') || !self.keepaliveTime.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$') || duration(self.keepaliveTime) <= duration(self.holdTime)",message="keepaliveTime is longer than holdTime: write a keepaliveTime of at most the holdTime, best a third of it",messageExpression="\"keepaliveTime '\" + self.keepaliveTime + \"' is longer than holdTime '\" + self.holdTime + \"': write a keepaliveTime of at most the holdTime, best a third of it\""
// +kubebuilder:validation:XValidation:rule="!has(self.localASN) || self.localASN != self.myASN",message="localASN is myASN: remove localASN, or write the number that the router should see instead"
type BGPPeerSpec struct {
	// MyASN is the AS number of the node's end of the session. Example: 64512.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +kubebuilder:validation:Format=int64
	// +kubebuilder:validation:XValidation:rule="self > 0",message="myASN is 0: write the nodes' autonomous system number, such as 64512"
	MyASN uint32 `json:"myASN"`

	// PeerASN is the AS number of the router. Exactly one of peerASN and dynamicASN is set.
	// Default: none. Example: 65000.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +kubebuilder:validation:Format=int64
	// +optional
	PeerASN uint32 `json:"peerASN,omitempty"`

	// DynamicASN accepts a router without naming its AS number: "internal" accepts only myASN
	// itself, "external" any other number. Default: none. Example: external.
	// +kubebuilder:validation:Enum=internal;external
	// +optional
	DynamicASN DynamicASN `json:"dynamicASN,omitempty"`

	// LocalASN is the AS number that the router sees instead of myASN. Default: myASN. Example:
	// 64999.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967295
	// +kubebuilder:validation:Format=int64
	// +optional
	LocalASN uint32 `json:"localASN,omitempty"`

	// PeerAddress is the router's address. Exactly one of peerAddress and interface is set.
	// Default: none. Example: 192.0.2.1.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == '' || isIP(self)",message="peerAddress is no IP address: write one such as 192.0.2.1 or 2001:db8::1, without a mask or a zone",messageExpression="\"peerAddress '\" + self + \"' is no IP address: write one such as 192.0.2.1 or 2001:db8::1, without a mask or a zone\""
	// +optional
	PeerAddress string `json:"peerAddress,omitempty"`

	// Interface is the link to an unnumbered peer. The speaker finds the router by its router
	// advertisements. Default: none. Example: eth0.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches('^[^/ ]+$')",message="interface is no interface name: write one such as eth0",messageExpression="\"interface '\" + self + \"' is no interface name: write one such as eth0\""
	// +optional
	Interface string `json:"interface,omitempty"`

	// SourceAddress is the address of the node from which the session starts. Default: the kernel
	// chooses. Example: 192.0.2.11.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == '' || isIP(self)",message="sourceAddress is no IP address: write one of the node's own, such as 192.0.2.10",messageExpression="\"sourceAddress '\" + self + \"' is no IP address: write one of the node's own, such as 192.0.2.10\""
	// +optional
	SourceAddress string `json:"sourceAddress,omitempty"`

	// PeerPort is the router's TCP port; 0 means 179. Default: 179. Example: 1179.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	// +kubebuilder:validation:Format=int32
	// +kubebuilder:default:=179
	// +optional
	PeerPort uint16 `json:"peerPort,omitempty"`

	// HoldTime is how long the router may be silent before the session ends (RFC 4271, section
	// 4.2): 0s (never) or 3s to 65535s. Default: three times the keepaliveTime if that is set,
	// otherwise 90s. Example: 30s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$')",message="holdTime is no duration: write one such as 90s or 1m30s",messageExpression="\"holdTime '\" + self + \"' is no duration: write one such as 90s or 1m30s\""
	// +kubebuilder:validation:XValidation:rule="!self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') || duration(self) < duration('1s') || (duration(self) >= duration('3s') && duration(self) < duration('65536s'))",message="holdTime is out of range: write 0s (never) or 3s to 65535s",messageExpression="\"holdTime '\" + self + \"' is out of range: write 0s (never) or 3s to 65535s\""
	// +optional
	HoldTime *metav1.Duration `json:"holdTime,omitempty"`

	// KeepaliveTime is the interval between keepalives. Default: a third of the hold time. Example:
	// 10s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$')",message="keepaliveTime is no duration: write one such as 30s",messageExpression="\"keepaliveTime '\" + self + \"' is no duration: write one such as 30s\""
	// +optional
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`

	// ConnectTime is the interval between attempts to connect: whole seconds, 1s to 65535s.
	// Default: the interval grows from 250ms to 10s. Example: 5s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self).getMilliseconds() % 1000 == 0 && duration(self).getSeconds() >= 1 && duration(self).getSeconds() <= 65535",message="connectTime is out of range: write whole seconds, 1s to 65535s",messageExpression="\"connectTime '\" + self + \"' is out of range: write whole seconds, 1s to 65535s\""
	// +optional
	ConnectTime *metav1.Duration `json:"connectTime,omitempty"`

	// RouterID identifies the node's end, in the form of an IPv4 address (RFC 6286). Default: an
	// IPv4 address of the node. Example: 192.0.2.11.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == '' || (isIP(self) && ip(self).family() == 4 && self != '0.0.0.0')",message="routerID is no router ID: write one in the form of an IPv4 address other than 0.0.0.0, such as 192.0.2.10",messageExpression="\"routerID '\" + self + \"' is no router ID: write one in the form of an IPv4 address other than 0.0.0.0, such as 192.0.2.10\""
	// +optional
	RouterID string `json:"routerID,omitempty"`

	// NodeSelectors: only nodes that match one of them have a session. Without selectors all nodes
	// have one. Default: all nodes.
	// +optional
	NodeSelectors []metav1.LabelSelector `json:"nodeSelectors,omitempty"`

	// Password of the session in plain text (TCP MD5, RFC 2385). Default: none. Example: secret.
	// +kubebuilder:validation:MaxLength=80
	// +optional
	Password string `json:"password,omitempty"`

	// PasswordSecret names the Secret with the password. Its type is kubernetes.io/basic-auth, its
	// entry is "password", and it is in the namespace of the BGPPeer; the namespace written here is
	// ignored. Default: none.
	// +optional
	PasswordSecret SecretReference `json:"passwordSecret,omitempty,omitzero"`

	// BFDProfile names the BFDProfile for the BFD session that watches the router. Without a name
	// there is no BFD session. Default: none. Example: fast.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	BFDProfile string `json:"bfdProfile,omitempty"`

	// EnableGracefulRestart makes the router keep the routes while the speaker restarts (RFC 4724).
	// It cannot be changed later. Default: false. Example: true.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="enableGracefulRestart cannot be changed: delete the BGPPeer and create it again"
	// +optional
	EnableGracefulRestart bool `json:"enableGracefulRestart,omitempty"`

	// EBGPMultiHop allows an external peer to be more than one hop away. Default: false. Example:
	// true.
	// +optional
	EBGPMultiHop bool `json:"ebgpMultiHop,omitempty"`

	// VRFName is the VRF, or any other link, to which the session is bound. Default: none. Example:
	// blue.
	// +kubebuilder:validation:MaxLength=15
	// +optional
	VRFName string `json:"vrf,omitempty"`

	// DisableMP omits the multiprotocol capability, for very old routers. It affects only sessions
	// that carry IPv4 over IPv4. Default: false. Example: true.
	// +kubebuilder:default:=false
	// +optional
	DisableMP bool `json:"disableMP,omitempty"`

	// DualStackAddressFamily announces routes of both families over this session. Default: false.
	// Example: true.
	// +kubebuilder:default:=false
	// +optional
	DualStackAddressFamily bool `json:"dualStackAddressFamily,omitempty"`

	// Gantry holds settings that only Gantry has. Default: none.
	// +optional
	Gantry *PeerExtension `json:"gantry,omitempty"`
}

// DynamicASN says which AS numbers of a router are accepted.
type DynamicASN string

// The values of spec.dynamicASN.
const (
	DynamicASNInternal DynamicASN = "internal"
	DynamicASNExternal DynamicASN = "external"
)

// SecretReference names a Secret.
//
// +structType=atomic
type SecretReference struct {
	// Name of the Secret. Default: none. Example: tor-password.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Name string `json:"name,omitempty"`
	// Namespace is ignored: the Secret is read from the namespace of the BGPPeer. Default: none.
	// Example: routers.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// BGPPeerStatus reports how the peer is understood.
type BGPPeerStatus struct {
	// Gantry holds status fields that only Gantry has.
	// +optional
	Gantry *ObjectStatus `json:"gantry,omitempty"`
}

// ObjectStatus is what Gantry reports about a configuration object in addition to the metallb.io
// API.
type ObjectStatus struct {
	// Conditions say whether the object is understood, and what is wrong with it.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Sessions is how many nodes have an established session with the router, of how many that
	// should have one. Example: 2/3.
	// +optional
	Sessions string `json:"sessions,omitempty"`
}

// BGPPeer is a router with which nodes have BGP sessions.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:storageversion
// +kubebuilder:resource:path=bgppeers,scope=Namespaced,shortName=bgpp,categories=gantry
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.peerAddress`
// +kubebuilder:printcolumn:name="ASN",type=string,JSONPath=`.spec.peerASN`
// +kubebuilder:printcolumn:name="BFD Profile",type=string,JSONPath=`.spec.bfdProfile`
// +kubebuilder:printcolumn:name="Multi Hops",type=string,JSONPath=`.spec.ebgpMultiHop`
// +kubebuilder:printcolumn:name="Sessions",type=string,JSONPath=`.status.gantry.sessions`
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].reason`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].message`,priority=10
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BGPPeerSpec `json:"spec"`
	// +optional
	Status BGPPeerStatus `json:"status,omitempty"`
}

// BGPPeerList is a list of BGPPeers.
//
// +kubebuilder:object:root=true
type BGPPeerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BGPPeer `json:"items"`
}
