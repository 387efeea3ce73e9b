package v1beta1

// BGPAdvertisementExtension is what Gantry offers for a BGPAdvertisement beyond the metallb.io API. Where several
// advertisements cover one prefix at a peer, the lowest med, the longest asPathPrepend and all communities count.
type BGPAdvertisementExtension struct {
	// MED is the metric of the routes (RFC 4271, section 5.1.4): of several links to one neighbouring system the router takes the
	// one with the lowest. Unset sends none.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	// +kubebuilder:validation:Format=int64
	// +optional
	MED *int64 `json:"med,omitempty"`
	// ASPathPrepend repeats the own number in the AS path that often, beyond the one time that is due: 0 to 16.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16
	// +optional
	ASPathPrepend int32 `json:"asPathPrepend,omitempty"`
	// ExtendedCommunities of the routes (RFC 4360): "rt:A:N" or "soo:A:N", where A is a number of an autonomous system or an IPv4
	// address, eight bytes as they stand on the wire, such as "0x4004fc0047c35000", or the name of an alias in a Community.
	// +kubebuilder:validation:MaxItems=63
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +listType=atomic
	// +optional
	ExtendedCommunities []string `json:"extendedCommunities,omitempty"`
	// LinkBandwidthPerEndpoint, in megabits per second, adds a link bandwidth community of that much for each endpoint that
	// serves on the node, so that routers weigh their equal routes by endpoints. It goes for Services with
	// externalTrafficPolicy Local alone: the traffic of others is spread over all endpoints anyway.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	// +optional
	LinkBandwidthPerEndpoint int32 `json:"linkBandwidthPerEndpoint,omitempty"`
}

// CommunityExtension is what Gantry offers for a Community beyond the metallb.io API.
type CommunityExtension struct {
	// Extended are aliases of extended communities.
	// +kubebuilder:validation:MaxItems=128
	// +listType=map
	// +listMapKey=name
	// +optional
	Extended []ExtendedCommunityAlias `json:"extended,omitempty"`
}

// ExtendedCommunityAlias gives an extended community a name.
type ExtendedCommunityAlias struct {
	// Name of the alias, as gantry.extendedCommunities of BGPAdvertisements writes it; unique over all Community objects.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="!self.contains(':')",message="the alias name contains ':', which only values have: write a name without it",messageExpression="\"the alias name '\" + self + \"' contains ':', which only values have: write a name without it\""
	Name string `json:"name"`
	// Value is "rt:A:N", "soo:A:N" or eight bytes in hexadecimal digits after "0x".
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^(rt|soo):([0-9]{1,10}|[0-9.]{7,15}):[0-9]{1,10}$|^0x[0-9a-fA-F]{16}$')",message="invalid extended community value: write rt:A:N or soo:A:N, such as rt:64512:100, or eight bytes such as 0x0002fc0000000064",messageExpression="\"invalid extended community value: '\" + self + \"': write rt:A:N or soo:A:N, such as rt:64512:100, or eight bytes such as 0x0002fc0000000064\""
	Value string `json:"value"`
}
