package v1beta1

// BGPAdvertisementExtension holds the settings of a BGPAdvertisement that are not in the metallb.io
// API. Where several advertisements announce one prefix to a peer, the route has the lowest med,
// the longest asPathPrepend and all communities.
type BGPAdvertisementExtension struct {
	// MED is the metric of the routes (RFC 4271, section 5.1.4). A router with several links to one
	// neighbouring autonomous system prefers the route with the lowest. Unset: none is sent.
	// Default: none. Example: 50.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +kubebuilder:validation:Format=int64
	// +optional
	MED *int64 `json:"med,omitempty"`
	// ASPathPrepend is how many more times the AS path repeats our own number, 0 to 16. Default: 0.
	// Example: 2.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16
	// +optional
	ASPathPrepend int32 `json:"asPathPrepend,omitempty"`
	// ExtendedCommunities of the routes (RFC 4360): "rt:A:N" or "soo:A:N", where A is an AS number
	// or an IPv4 address; eight bytes as on the wire, such as "0x4004fc0047c35000"; or an alias
	// from a Community. Default: none. Example: ["rt:64512:100"].
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=atomic
	// +optional
	ExtendedCommunities []string `json:"extendedCommunities,omitempty"`
	// LinkBandwidthPerEndpoint, in megabits per second, adds a link bandwidth community to the
	// routes: this value times the number of endpoints that serve on the node. Routers then weigh
	// equal routes by endpoints. It applies only to Services with externalTrafficPolicy Local,
	// since other traffic is spread over all endpoints anyway. Default: 0, no such community.
	// Example: 100.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	// +optional
	LinkBandwidthPerEndpoint int32 `json:"linkBandwidthPerEndpoint,omitempty"`
}

// CommunityExtension holds the settings of a Community that are not in the metallb.io API.
type CommunityExtension struct {
	// Extended are aliases of extended communities. Default: none.
	// +kubebuilder:validation:MaxItems=2048
	// +listType=map
	// +listMapKey=name
	// +optional
	Extended []ExtendedCommunityAlias `json:"extended,omitempty"`
}

// ExtendedCommunityAlias gives a name to an extended community.
type ExtendedCommunityAlias struct {
	// Name of the alias, as written in gantry.extendedCommunities of BGPAdvertisements. It is
	// unique across all Community objects. Example: blue.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!self.contains(':')",message="the alias name contains ':', which only values have: write a name without it",messageExpression="\"the alias name '\" + self + \"' contains ':', which only values have: write a name without it\""
	Name string `json:"name"`
	// Value is "rt:A:N", "soo:A:N", or "0x" and eight bytes in hexadecimal digits. Example:
	// rt:64512:100.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^(rt|soo):([0-9]{1,10}|[0-9.]{7,15}):[0-9]{1,10}$|^0x[0-9a-fA-F]{16}$')",message="invalid extended community value: write rt:A:N or soo:A:N, such as rt:64512:100, or eight bytes such as 0x0002fc0000000064",messageExpression="\"invalid extended community value: '\" + self + \"': write rt:A:N or soo:A:N, such as rt:64512:100, or eight bytes such as 0x0002fc0000000064\""
	Value string `json:"value"`
}
