package v1beta2

// PeerExtension is what Gantry offers for a BGPPeer beyond the metallb.io API.
//
// +kubebuilder:validation:XValidation:rule="!has(self.myASNLabel) || self.myASNLabel.size() > 0",message="myASNLabel is empty: write the key of a node label, or take it out"
// +kubebuilder:validation:XValidation:rule="!has(self.peerASNLabel) || self.peerASNLabel.size() > 0",message="peerASNLabel is empty: write the key of a node label, or take it out"
type PeerExtension struct {
	// DefaultGateway, IPv4 or IPv6, peers each node with its own default gateway of that family, in place of peerAddress: one
	// BGPPeer serves every rack. Of several gateways it is the one of the lowest metric, of those the lowest address.
	// +kubebuilder:validation:Enum=IPv4;IPv6
	// +optional
	DefaultGateway string `json:"defaultGateway,omitempty"`

	// PeerASNLabel is the key of a node label whose value is the router's autonomous system number, in place of peerASN. A
	// node without it does not peer.
	// +kubebuilder:validation:MaxLength=317
	// +optional
	PeerASNLabel string `json:"peerASNLabel,omitempty"`

	// MyASNLabel is the key of a node label whose value goes before myASN on the nodes that have it.
	// +kubebuilder:validation:MaxLength=317
	// +optional
	MyASNLabel string `json:"myASNLabel,omitempty"`

	// TTLSecurityHops is how many hops away the router is at most (GTSM, RFC 5082): packets from farther away are dropped by
	// the kernel, and ours are sent with a TTL of 255, as the router has to be told too. 1 is a router on the link.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=254
	// +optional
	TTLSecurityHops *int32 `json:"ttlSecurityHops,omitempty"`

	// Passive waits for the router to connect to TCP port 179 of the node, and never connects itself. The port is open as
	// long as some BGPPeer waits; the speaker needs the capability NET_BIND_SERVICE for it.
	// +optional
	Passive bool `json:"passive,omitempty"`
}
