package v1beta2

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// PeerExtension holds the settings of a BGPPeer that are not in the metallb.io API.
//
// +kubebuilder:validation:XValidation:rule="!has(self.myASNLabel) || self.myASNLabel.size() > 0",message="myASNLabel is empty: write the key of a node label, or remove it"
// +kubebuilder:validation:XValidation:rule="!has(self.peerASNLabel) || self.peerASNLabel.size() > 0",message="peerASNLabel is empty: write the key of a node label, or remove it"
type PeerExtension struct {
	// DefaultGateway (IPv4 or IPv6) makes each node peer with its own default gateway of that
	// family instead of peerAddress, so that one BGPPeer serves every rack. If a node has several
	// gateways, it uses the one with the lowest metric, then the lowest address. Default: none.
	// Example: IPv4.
	// +kubebuilder:validation:Enum=IPv4;IPv6
	// +optional
	DefaultGateway string `json:"defaultGateway,omitempty"`

	// PeerASNLabel is the key of a node label whose value is the router's AS number. It replaces
	// peerASN. A node without the label has no session. Default: none. Example:
	// example.com/rack-asn.
	// +kubebuilder:validation:MaxLength=317
	// +optional
	PeerASNLabel string `json:"peerASNLabel,omitempty"`

	// MyASNLabel is the key of a node label whose value overrides myASN on the nodes that have the
	// label. Default: none. Example: example.com/node-asn.
	// +kubebuilder:validation:MaxLength=317
	// +optional
	MyASNLabel string `json:"myASNLabel,omitempty"`

	// TTLSecurityHops is the largest number of hops to the router (GTSM, RFC 5082); 1 means that
	// the router is on the link. The kernel drops packets from farther away, and ours have a TTL of
	// 255. Configure the router alike. Default: no limit. Example: 1.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=254
	// +optional
	TTLSecurityHops *int32 `json:"ttlSecurityHops,omitempty"`

	// Passive makes the node wait for the router to connect to its TCP port 179; the node never
	// connects itself. The port is open while a passive BGPPeer selects the node. The speaker needs
	// the capability NET_BIND_SERVICE. Default: false. Example: true.
	// +optional
	Passive bool `json:"passive,omitempty"`

	// NextHops are the next hops of the routes, at most one of each family: an address, which every
	// node then announces, or a network such as 192.0.2.0/24 that contains an address of each node.
	// By default the speaker chooses an address of the node that the router reaches. Default: an
	// address of the node that the router reaches. Example: ["192.0.2.0/24"].
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MinLength=2
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="self.all(h, isIP(h) || isCIDR(h))",message="nextHops has an entry that is neither an IP address nor a network: write one such as 192.0.2.10 or 192.0.2.0/24"
	// +kubebuilder:validation:XValidation:rule="[4, 6].all(f, self.filter(h, isIP(h) ? ip(h).family() == f : isCIDR(h) && cidr(h).ip().family() == f).size() < 2)",message="nextHops has two entries of one address family: write at most one of each"
	// +listType=atomic
	// +optional
	NextHops []string `json:"nextHops,omitempty"`

	// DrainDelay is how long routes are announced with a low preference (GRACEFUL_SHUTDOWN, RFC
	// 8326) before they are withdrawn, 0s to 10m: if the node is drained or excluded, if the
	// speaker stops (at most 2s), and if the last endpoints of a Service with externalTrafficPolicy
	// Local terminate on the node. Default: 10s, and 500ms if the speaker stops. Example: 30s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self) <= duration('10m')",message="drainDelay is out of range: write 0s to 10m",messageExpression="\"drainDelay '\" + self + \"' is out of range: write 0s to 10m\""
	// +optional
	DrainDelay *metav1.Duration `json:"drainDelay,omitempty"`

	// RestartTime is how long the router keeps the routes while the speaker restarts (RFC 4724), if
	// enableGracefulRestart is set: whole seconds, 1s to 4095s. Default: 120s. Example: 60s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$') && duration(self).getMilliseconds() % 1000 == 0 && duration(self).getSeconds() >= 1 && duration(self).getSeconds() <= 4095",message="restartTime is out of range: write whole seconds, 1s to 4095s",messageExpression="\"restartTime '\" + self + \"' is out of range: write whole seconds, 1s to 4095s\""
	// +optional
	RestartTime *metav1.Duration `json:"restartTime,omitempty"`

	// BFDStrict withholds all routes from the router while the BFD session of bfdProfile is not Up,
	// also before it is Up for the first time. Default: false. Example: true.
	// +optional
	BFDStrict bool `json:"bfdStrict,omitempty"`
}
