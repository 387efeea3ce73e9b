package v1beta2

// PeerExtension holds the settings of a BGPPeer that are not in the metallb.io API.
//
// +kubebuilder:validation:XValidation:rule="!has(self.myASNLabel) || self.myASNLabel.size() > 0",message="myASNLabel is empty: write the key of a node label, or remove it"
// +kubebuilder:validation:XValidation:rule="!has(self.peerASNLabel) || self.peerASNLabel.size() > 0",message="peerASNLabel is empty: write the key of a node label, or remove it"
type PeerExtension struct {
	// DefaultGateway (IPv4 or IPv6) makes each node peer with its own default gateway of that
	// family instead of peerAddress, so that one BGPPeer serves every rack. If a node has several
	// gateways, it uses the one with the lowest metric, then the lowest address.
	// +kubebuilder:validation:Enum=IPv4;IPv6
	// +optional
	DefaultGateway string `json:"defaultGateway,omitempty"`

	// PeerASNLabel is the key of a node label whose value is the router's AS number. It replaces
	// peerASN. A node without the label has no session.
	// +kubebuilder:validation:MaxLength=317
	// +optional
	PeerASNLabel string `json:"peerASNLabel,omitempty"`

	// MyASNLabel is the key of a node label whose value overrides myASN on the nodes that have the
	// label.
	// +kubebuilder:validation:MaxLength=317
	// +optional
	MyASNLabel string `json:"myASNLabel,omitempty"`

	// TTLSecurityHops is the largest number of hops to the router (GTSM, RFC 5082); 1 means that
	// the router is on the link. The kernel drops packets from farther away, and ours have a TTL of
	// 255. Configure the router alike.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=254
	// +optional
	TTLSecurityHops *int32 `json:"ttlSecurityHops,omitempty"`

	// Passive makes the node wait for the router to connect to its TCP port 179; the node never
	// connects itself. The port is open while a passive BGPPeer selects the node. The speaker needs
	// the capability NET_BIND_SERVICE.
	// +optional
	Passive bool `json:"passive,omitempty"`
}
