package names

// Reason says in one word why the answer is what it is. The same word stands in the condition, the event, the metric's
// label and the log.
type Reason string

// Reasons for what the controller decides about a Service.
const (
	// ReasonAssigned: the Service holds the addresses it asks for.
	ReasonAssigned Reason = "Assigned"
	// ReasonNoPools: no IPAddressPool exists.
	ReasonNoPools Reason = "NoPools"
	// ReasonPoolNotFound: the Service names a pool that does not exist.
	ReasonPoolNotFound Reason = "PoolNotFound"
	// ReasonPoolNotAllowed: the named pool exists, but its serviceAllocation does not admit this Service.
	ReasonPoolNotAllowed Reason = "PoolNotAllowed"
	// ReasonPoolExhausted: every pool that the Service may use is full, or has no address of the needed family.
	ReasonPoolExhausted Reason = "PoolExhausted"
	// ReasonNoEligiblePool: pools exist, but none may be used by this Service without being named.
	ReasonNoEligiblePool Reason = "NoEligiblePool"
	// ReasonAddressInUse: the requested address is held by another Service that may not share it.
	ReasonAddressInUse Reason = "AddressInUse"
	// ReasonSharingKeyDiffers: the address is held under another sharing key.
	ReasonSharingKeyDiffers Reason = "SharingKeyDiffers"
	// ReasonPortConflict: a Service with the same sharing key uses one of the ports on the address.
	ReasonPortConflict Reason = "PortConflict"
	// ReasonTrafficPolicyConflict: the Services on the address would need their traffic handled differently.
	ReasonTrafficPolicyConflict Reason = "TrafficPolicyConflict"
	// ReasonQuotaExceeded: the namespace holds as many addresses of the pool as its quota allows.
	ReasonQuotaExceeded Reason = "QuotaExceeded"
	// ReasonAddressReserved: an AddressReservation keeps the address for another Service.
	ReasonAddressReserved Reason = "AddressReserved"
	// ReasonReserved: an AddressReservation keeps its addresses for its Service.
	ReasonReserved Reason = "Reserved"
	// ReasonExpired: an AddressReservation has come to its end.
	ReasonExpired Reason = "Expired"
	// ReasonCoolingDown: the address was given back a short while ago and waits out the pool's cooldown.
	ReasonCoolingDown Reason = "CoolingDown"
	// ReasonQuarantined: a host on the segment that is not ours answered for the address.
	ReasonQuarantined Reason = "Quarantined"
	// ReasonProbing: the segment is being asked whether somebody uses the address already.
	ReasonProbing Reason = "Probing"
	// ReasonAddressNotInPool: the requested address belongs to no pool.
	ReasonAddressNotInPool Reason = "AddressNotInPool"
	// ReasonInvalidRequest: an annotation or field of the Service cannot be read.
	ReasonInvalidRequest Reason = "InvalidRequest"
	// ReasonFamilyMismatch: the requested addresses are not of the families of the Service's cluster IPs.
	ReasonFamilyMismatch Reason = "FamilyMismatch"
	// ReasonNoClusterIP: the Service has no cluster IP, so that nothing could deliver packets for its address.
	ReasonNoClusterIP Reason = "NoClusterIP"
	// ReasonWriteFailed: the API server did not take what was to be written; it is tried again.
	ReasonWriteFailed Reason = "WriteFailed"
)

// Reasons for what a speaker decides about a Service.
const (
	// ReasonAnnounced: this node holds the address and answers for it.
	ReasonAnnounced Reason = "Announced"
	// ReasonNotAnnounced: an advertisement fits and endpoints serve, but no speaker reports that it announces the Service.
	ReasonNotAnnounced Reason = "NotAnnounced"
	// ReasonNotHolder: another node holds the address.
	ReasonNotHolder Reason = "NotHolder"
	// ReasonNoAddress: the Service has no address yet.
	ReasonNoAddress Reason = "NoAddress"
	// ReasonNotLoadBalancer: the Service is not of type LoadBalancer, or of another class.
	ReasonNotLoadBalancer Reason = "NotLoadBalancer"
	// ReasonAddressOutsidePools: the address of the Service is in no pool.
	ReasonAddressOutsidePools Reason = "AddressOutsidePools"
	// ReasonNoAdvertisement: no advertisement selects the pool, the Service and this node.
	ReasonNoAdvertisement Reason = "NoAdvertisement"
	// ReasonNoPeers: no BGPPeer that the advertisements name selects this node, carries the address's family, and can be peered with.
	ReasonNoPeers Reason = "NoPeers"
	// ReasonNoEndpoints: no endpoint of the Service can serve.
	ReasonNoEndpoints Reason = "NoEndpoints"
	// ReasonNoLocalEndpoints: externalTrafficPolicy is Local and no endpoint on this node can serve.
	ReasonNoLocalEndpoints Reason = "NoLocalEndpoints"
	// ReasonNodeExcluded: the node has the label that excludes it from external load balancers.
	ReasonNodeExcluded Reason = "NodeExcluded"
	// ReasonNodeNetworkUnavailable: the node's condition NetworkUnavailable is True.
	ReasonNodeNetworkUnavailable Reason = "NodeNetworkUnavailable"
	// ReasonNodeLeaving: the node is being drained or its speaker is stopping.
	ReasonNodeLeaving Reason = "NodeLeaving"
	// ReasonNoLinks: none of the links that the advertisement asks for is usable on this node.
	ReasonNoLinks Reason = "NoLinks"
	// ReasonSharedWithServiceSelector: the address is shared and an advertisement selects by Service.
	ReasonSharedWithServiceSelector Reason = "SharedWithServiceSelector"
	// ReasonRawSocketDenied: the speaker may not open a raw socket; it lacks NET_RAW.
	ReasonRawSocketDenied Reason = "RawSocketDenied"
)

// Reasons for what a speaker says of its node and links.
const (
	// ReasonUsable: there is a link on which addresses can be announced.
	ReasonUsable Reason = "Usable"
	// ReasonLinkExcluded: the name of the link is excluded by the configuration.
	ReasonLinkExcluded Reason = "LinkExcluded"
	// ReasonLinkDown: the link is down or has no carrier.
	ReasonLinkDown Reason = "LinkDown"
	// ReasonLinkMember: the link is a port of a bridge, bond or VRF, which speaks for it.
	ReasonLinkMember Reason = "LinkMember"
	// ReasonLinkNoEthernet: the link has no Ethernet address, no ARP or no broadcast.
	ReasonLinkNoEthernet Reason = "LinkNoEthernet"
	// ReasonPortFailed: a socket on the link could not be opened or failed; it is tried again.
	ReasonPortFailed Reason = "PortFailed"
	// ReasonUncontested: no foreign host claims an address that the node holds.
	ReasonUncontested Reason = "Uncontested"
	// ReasonForeignClaim: a host that is no node's claims an address that the node holds. A Service's condition Announced is True
	// with this reason.
	ReasonForeignClaim Reason = "ForeignClaim"
)

// Reasons for which an address changes its holder.
const (
	// ReasonUnheld: the node took an address that nobody held.
	ReasonUnheld Reason = "Unheld"
	// ReasonHolderGone: the node took over from a holder that died or left.
	ReasonHolderGone Reason = "HolderGone"
	// ReasonHandedOver: the node took the address because its holder offered it.
	ReasonHandedOver Reason = "HandedOver"
	// ReasonSuperseded: the node stopped because another one holds the address by a later claim.
	ReasonSuperseded Reason = "Superseded"
	// ReasonNobodyServes: the node stopped because no node can serve the address any more.
	ReasonNobodyServes Reason = "NobodyServes"
	// ReasonNoTaker: the node cannot serve the address any more, and those that could did not take it.
	ReasonNoTaker Reason = "NoTaker"
)

// Reasons of Problems: faults in configuration objects.
const (
	// ReasonValid: the object has no Problem.
	ReasonValid Reason = "Valid"
	// ReasonInvalidAddress: an entry of spec.addresses cannot be read.
	ReasonInvalidAddress Reason = "InvalidAddress"
	// ReasonOverlap: an entry overlaps one of the same or another pool.
	ReasonOverlap Reason = "Overlap"
	// ReasonInvalidSelector: a label selector cannot be read.
	ReasonInvalidSelector Reason = "InvalidSelector"
	// ReasonDuplicate: a list names the same thing twice.
	ReasonDuplicate Reason = "Duplicate"
	// ReasonUnknownPool: an advertisement names a pool that does not exist.
	ReasonUnknownPool Reason = "UnknownPool"
	// ReasonUnknownPeer: an advertisement names a BGPPeer that does not exist.
	ReasonUnknownPeer Reason = "UnknownPeer"
	// ReasonUnknownCommunity: an advertisement names an alias that no Community has.
	ReasonUnknownCommunity Reason = "UnknownCommunity"
	// ReasonUnknownBFDProfile: a BGPPeer names a BFDProfile that does not exist.
	ReasonUnknownBFDProfile Reason = "UnknownBFDProfile"
	// ReasonUnknownSecret: a BGPPeer names a Secret that does not exist or holds no usable password.
	ReasonUnknownSecret Reason = "UnknownSecret"
	// ReasonInvalidCommunity: the value of a community cannot be read.
	ReasonInvalidCommunity Reason = "InvalidCommunity"
	// ReasonNodeLabel: a node lacks a label that a BGPPeer takes an AS number from, or the label has no such number.
	ReasonNodeLabel Reason = "NodeLabel"
	// ReasonInvalidTimer: the timers of a BGPPeer contradict each other or are out of range.
	ReasonInvalidTimer Reason = "InvalidTimer"
	// ReasonDuplicatePeer: two BGPPeers connect to one router in a way that it cannot tell apart; the older one does.
	ReasonDuplicatePeer Reason = "DuplicatePeer"
	// ReasonAggregationLength: an advertisement aggregates over more addresses than a pool has.
	ReasonAggregationLength Reason = "AggregationLength"
	// ReasonConflictingAdvertisements: two advertisements give one prefix different values of localPref.
	ReasonConflictingAdvertisements Reason = "ConflictingAdvertisements"
	// ReasonTooManyCommunities: the advertisements of a Service have more communities together than a route can carry.
	ReasonTooManyCommunities Reason = "TooManyCommunities"
)

// Reasons for what a speaker says of its sessions with routers; beside these, what keeps a BGPPeer from every node.
const (
	// ReasonEstablished: the session with the router is established.
	ReasonEstablished Reason = "Established"
	// ReasonNoSession: the router was not reached, refused the session or ended it, or has not answered yet.
	ReasonNoSession Reason = "NoSession"
	// ReasonNoGateway: the BGPPeer asks for the node's default gateway, and the node has none of that family.
	ReasonNoGateway Reason = "NoGateway"
	// ReasonNoRouter: the router of an unnumbered BGPPeer is not heard on the link, or the link cannot be used.
	ReasonNoRouter Reason = "NoRouter"
	// ReasonPortUnavailable: the speaker cannot wait for routers on TCP port 179, as a passive BGPPeer asks.
	ReasonPortUnavailable Reason = "PortUnavailable"
	// ReasonFamilyNotCarried: the router does not take routes of a family on a session that should carry both.
	ReasonFamilyNotCarried Reason = "FamilyNotCarried"
	// ReasonNoNextHop: the node has no address on the session's link that routes of a family could have as next hop.
	ReasonNoNextHop Reason = "NoNextHop"
)

// Reasons for faults of BFD sessions.
const (
	// ReasonWatched: BFD watches the path, as its profile asks.
	ReasonWatched Reason = "Watched"
	// ReasonBFDDown: the BFD session is not Up, because nothing is heard of the router or it does not hear us.
	ReasonBFDDown Reason = "BFDDown"
	// ReasonInvalidBFD: an interval, the multiplier, the TTL or an address of a BFD session is outside of what is possible.
	ReasonInvalidBFD Reason = "InvalidBFD"
	// ReasonConflictingBFD: two BGPPeers to one address ask for different BFD, and there is one BFD session to it.
	ReasonConflictingBFD Reason = "ConflictingBFD"
	// ReasonEchoUnsupported: echo packets are asked for where they cannot be sent, or the neighbour does not return them.
	ReasonEchoUnsupported Reason = "EchoUnsupported"
	// ReasonBFDAuthentication: the neighbour authenticates its BFD packets, which is not supported.
	ReasonBFDAuthentication Reason = "BFDAuthentication"
	// ReasonBFDTTLTooLow: the neighbour's packets cross more routers than minimumTtl allows, or are not sent with a TTL of 255.
	ReasonBFDTTLTooLow Reason = "BFDTTLTooLow"
	// ReasonBFDPortInUse: another program on the node has the UDP port of BFD.
	ReasonBFDPortInUse Reason = "BFDPortInUse"
	// ReasonBFDUnsent: BFD packets cannot be sent, because the link is gone or there is no route.
	ReasonBFDUnsent Reason = "BFDUnsent"
	// ReasonReconciled: on a ConfigurationState, every object is understood.
	ReasonReconciled Reason = "Reconciled"
	// ReasonConfigurationError: on a ConfigurationState, some object has a Problem.
	ReasonConfigurationError Reason = "ConfigurationError"
)
