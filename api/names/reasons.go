package names

// Reason says in one word why a decision is as it is. The same word is in the condition, the event,
// the metric's label and the log.
type Reason string

// Reasons for what the controller decides about a Service.
const (
	// ReasonAssigned: the Service holds the addresses it asks for.
	ReasonAssigned Reason = "Assigned"
	// ReasonNoPools: no IPAddressPool exists.
	ReasonNoPools Reason = "NoPools"
	// ReasonPoolNotFound: the Service names a pool that does not exist.
	ReasonPoolNotFound Reason = "PoolNotFound"
	// ReasonPoolNotAllowed: the named pool exists, but its serviceAllocation does not admit this
	// Service.
	ReasonPoolNotAllowed Reason = "PoolNotAllowed"
	// ReasonPoolExhausted: every pool that the Service may use is full or has no address of the
	// needed family.
	ReasonPoolExhausted Reason = "PoolExhausted"
	// ReasonNoEligiblePool: pools exist, but the Service may use none of them without naming it.
	ReasonNoEligiblePool Reason = "NoEligiblePool"
	// ReasonAddressInUse: another Service holds the requested address, and the two may not share
	// it, or the status of a Service that lost the address still shows it.
	ReasonAddressInUse Reason = "AddressInUse"
	// ReasonSharingKeyDiffers: the Service that holds the address has another sharing key.
	ReasonSharingKeyDiffers Reason = "SharingKeyDiffers"
	// ReasonPortConflict: a Service with the same sharing key uses one of the ports on the address.
	ReasonPortConflict Reason = "PortConflict"
	// ReasonTrafficPolicyConflict: the Services on the address need their traffic handled
	// differently.
	ReasonTrafficPolicyConflict Reason = "TrafficPolicyConflict"
	// ReasonQuotaExceeded: the namespace holds as many addresses of the pool as its quota allows.
	ReasonQuotaExceeded Reason = "QuotaExceeded"
	// ReasonServiceLimitReached: the Service asks for more addresses than the pool gives to one.
	ReasonServiceLimitReached Reason = "ServiceLimitReached"
	// ReasonAddressReserved: an AddressReservation keeps the address for another Service.
	ReasonAddressReserved Reason = "AddressReserved"
	// ReasonReserved: an AddressReservation keeps its addresses for its Service.
	ReasonReserved Reason = "Reserved"
	// ReasonExpired: an AddressReservation has expired.
	ReasonExpired Reason = "Expired"
	// ReasonCoolingDown: a Service gave the address back, and the pool's cooldown has not passed
	// yet.
	ReasonCoolingDown Reason = "CoolingDown"
	// ReasonQuarantined: a foreign host on the network segment answered for the address.
	ReasonQuarantined Reason = "Quarantined"
	// ReasonProbing: a speaker is checking whether a host on the segment uses the address already.
	ReasonProbing Reason = "Probing"
	// ReasonAddressNotInPool: the requested address belongs to no pool.
	ReasonAddressNotInPool Reason = "AddressNotInPool"
	// ReasonAddressRetired: the pool of the address retires it; the Service gets another one.
	ReasonAddressRetired Reason = "AddressRetired"
	// ReasonRetiring: Services still hold retired addresses of a pool.
	ReasonRetiring Reason = "Retiring"
	// ReasonRetired: no Service holds a retired address of the pool.
	ReasonRetired Reason = "Retired"
	// ReasonInvalidRequest: an annotation or field of the Service cannot be read.
	ReasonInvalidRequest Reason = "InvalidRequest"
	// ReasonFamilyMismatch: the requested addresses are not of the families of the Service's
	// cluster IPs.
	ReasonFamilyMismatch Reason = "FamilyMismatch"
	// ReasonNoClusterIP: the Service has no cluster IP, so that nothing could deliver packets for
	// its address.
	ReasonNoClusterIP Reason = "NoClusterIP"
	// ReasonWriteFailed: the API server refused a write or did not answer; the write is repeated.
	ReasonWriteFailed Reason = "WriteFailed"
)

// Reasons for what a speaker decides about a Service.
const (
	// ReasonAnnounced: this node holds the address and answers for it.
	ReasonAnnounced Reason = "Announced"
	// ReasonNotAnnounced: an advertisement fits, endpoints serve and nodes may announce, but no
	// speaker reports that it announces the Service.
	ReasonNotAnnounced Reason = "NotAnnounced"
	// ReasonNoSpeaker: no speaker runs on a node that should announce the Service, or it is dead.
	ReasonNoSpeaker Reason = "NoSpeaker"
	// ReasonNotHolder: another node holds the address.
	ReasonNotHolder Reason = "NotHolder"
	// ReasonNoAddress: the Service has no address yet.
	ReasonNoAddress Reason = "NoAddress"
	// ReasonNotLoadBalancer: the Service is not of type LoadBalancer, or has another class.
	ReasonNotLoadBalancer Reason = "NotLoadBalancer"
	// ReasonAddressOutsidePools: the address of the Service is in no pool.
	ReasonAddressOutsidePools Reason = "AddressOutsidePools"
	// ReasonNoAdvertisement: no advertisement selects the pool, the Service and this node.
	ReasonNoAdvertisement Reason = "NoAdvertisement"
	// ReasonNoPeers: no usable BGPPeer that the advertisements name selects this node and carries
	// the address's family.
	ReasonNoPeers Reason = "NoPeers"
	// ReasonNoEndpoints: no endpoint of the Service can serve.
	ReasonNoEndpoints Reason = "NoEndpoints"
	// ReasonNoLocalEndpoints: externalTrafficPolicy is Local and no endpoint on this node can
	// serve.
	ReasonNoLocalEndpoints Reason = "NoLocalEndpoints"
	// ReasonServiceProxyNotReady: externalTrafficPolicy is Local, and kube-proxy on this node has
	// not written the rules for the endpoints here yet.
	ReasonServiceProxyNotReady Reason = "ServiceProxyNotReady"
	// ReasonHolderUnavailable: the annotation AnnotationRequestedHolder names a node that cannot
	// hold the addresses.
	ReasonHolderUnavailable Reason = "HolderUnavailable"
	// ReasonServiceProxySilent: kube-proxy on the node has answered its health check since the boot
	// of the node, and does not answer any more. Another node serves.
	ReasonServiceProxySilent Reason = "ServiceProxySilent"
	// ReasonServiceProxyStarting: the node has just booted, and kube-proxy on it has not answered
	// its health check yet. Another node serves.
	ReasonServiceProxyStarting Reason = "ServiceProxyStarting"
	// ReasonKubeletSilent: the node's condition Ready is Unknown, and the speakers are told to
	// leave such nodes. Another node serves.
	ReasonKubeletSilent Reason = "KubeletSilent"
	// ReasonLinkSilent: the node hears no neighbour on the link of the address, although it has
	// carrier. Another node serves.
	ReasonLinkSilent Reason = "LinkSilent"
	// ReasonNodeExcluded: the node has the label that excludes it from external load balancers.
	ReasonNodeExcluded Reason = "NodeExcluded"
	// ReasonNodeNetworkUnavailable: the node's condition NetworkUnavailable is True.
	ReasonNodeNetworkUnavailable Reason = "NodeNetworkUnavailable"
	// ReasonNodeLeaving: the node is being drained or its speaker is stopping.
	ReasonNodeLeaving Reason = "NodeLeaving"
	// ReasonNoLinks: none of the links that the advertisement asks for is usable on this node.
	ReasonNoLinks Reason = "NoLinks"
	// ReasonNoAddressFamily: this node has no address of the family on the link, so that its kernel
	// drops what arrives there.
	ReasonNoAddressFamily Reason = "NoAddressFamily"
	// ReasonSharedWithServiceSelector: the address is shared and an advertisement selects by
	// Service.
	ReasonSharedWithServiceSelector Reason = "SharedWithServiceSelector"
	// ReasonRawSocketDenied: the speaker may not open a raw socket; it lacks NET_RAW.
	ReasonRawSocketDenied Reason = "RawSocketDenied"
)

// Reasons for what a speaker says of its node and links.
const (
	// ReasonSteeringPossible: if a node dies, new connections are steered around it.
	ReasonSteeringPossible Reason = "SteeringPossible"
	// ReasonForwardingPossible: packets of open connections are forwarded to former holders.
	ReasonForwardingPossible Reason = "ForwardingPossible"
	// ReasonPacketRulesRefused: the kernel refuses the packet rules of the speaker.
	ReasonPacketRulesRefused Reason = "PacketRulesRefused"
	// ReasonNoServiceProxy: kube-proxy has no rules on the node; another program replaces it.
	ReasonNoServiceProxy Reason = "NoServiceProxy"
	// ReasonUsable: there is a link on which addresses can be announced.
	ReasonUsable Reason = "Usable"
	// ReasonLinkExcluded: the name of the link is excluded by the configuration.
	ReasonLinkExcluded Reason = "LinkExcluded"
	// ReasonLinkDown: the link is down or has no carrier, or, about an address: the link into its
	// subnet is.
	ReasonLinkDown Reason = "LinkDown"
	// ReasonLinkMember: the link is a port of a bridge or bond; that one is used instead.
	ReasonLinkMember Reason = "LinkMember"
	// ReasonLinkNoEthernet: the link has no Ethernet address, no ARP or no broadcast.
	ReasonLinkNoEthernet Reason = "LinkNoEthernet"
	// ReasonPortFailed: a socket on the link could not be opened or failed; it is opened again
	// later.
	ReasonPortFailed Reason = "PortFailed"
	// ReasonSpeakerRuns: the speaker lives.
	ReasonSpeakerRuns Reason = "SpeakerRuns"
	// ReasonGossipComplete: the speaker exchanges gossip with every other living one.
	ReasonGossipComplete Reason = "GossipComplete"
	// ReasonGossipBlocked: the speaker cannot exchange gossip with another one that lives.
	ReasonGossipBlocked Reason = "GossipBlocked"
	// ReasonGossipKeyDiffers: another speaker that lives encrypts its gossip with another key.
	ReasonGossipKeyDiffers Reason = "GossipKeyDiffers"
	// ReasonFit: nothing speaks against the node as one that serves addresses.
	ReasonFit Reason = "Fit"
	// ReasonUncontested: no foreign host claims an address that the node holds.
	ReasonUncontested Reason = "Uncontested"
	// ReasonForeignClaim: a host that is no node answers for an address. A Service's condition
	// Announced is True with this reason if a node holds the address, and False if no node does.
	ReasonForeignClaim Reason = "ForeignClaim"
	// ReasonBroadcastAddress: a node announces an address that is the network or the broadcast
	// address of its subnet, so that hosts of the subnet cannot connect to it.
	ReasonBroadcastAddress Reason = "BroadcastAddress"
	// ReasonStrayAnswer: the node of another speaker answers for an address without holding it, or
	// the network answers for a dead node.
	ReasonStrayAnswer Reason = "StrayAnswer"
)

// Reasons why an address changes its holder.
const (
	// ReasonUnheld: the node took an address without a holder.
	ReasonUnheld Reason = "Unheld"
	// ReasonHolderGone: the node took over from a holder that died or left.
	ReasonHolderGone Reason = "HolderGone"
	// ReasonHandedOver: the node took the address because its holder offered it.
	ReasonHandedOver Reason = "HandedOver"
	// ReasonSuperseded: the node stopped because another node holds the address with a newer claim.
	ReasonSuperseded Reason = "Superseded"
	// ReasonNobodyServes: the node stopped because no node can serve the address any more, or
	// because the Service or its L2Advertisement was deleted.
	ReasonNobodyServes Reason = "NobodyServes"
	// ReasonNoTaker: the node cannot serve the address any more, and no other node took it.
	ReasonNoTaker Reason = "NoTaker"
)

// Reasons of Problems, which are faults in configuration objects.
const (
	// ReasonValid: the object has no Problem.
	ReasonValid Reason = "Valid"
	// ReasonInvalidAddress: an entry of spec.addresses cannot be read.
	ReasonInvalidAddress Reason = "InvalidAddress"
	// ReasonOverlap: an entry overlaps one of the same or another pool.
	ReasonOverlap Reason = "Overlap"
	// ReasonClusterAddress: a pool has an address that the cluster itself uses, for a node or as a
	// part of the Pod or Service networks. It is given all the same.
	ReasonClusterAddress Reason = "ClusterAddress"
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
	// ReasonUnknownSecret: a BGPPeer names a Secret that does not exist or holds no usable
	// password.
	ReasonUnknownSecret Reason = "UnknownSecret"
	// ReasonInvalidCommunity: the value of a community cannot be read.
	ReasonInvalidCommunity Reason = "InvalidCommunity"
	// ReasonNodeLabel: a node lacks the label from which a BGPPeer takes an AS number, or the label
	// has no such number.
	ReasonNodeLabel Reason = "NodeLabel"
	// ReasonInvalidTimer: the timers of a BGPPeer contradict each other, are out of range or have
	// no effect.
	ReasonInvalidTimer Reason = "InvalidTimer"
	// ReasonDuplicatePeer: two BGPPeers connect to one router, which cannot tell their sessions
	// apart; only the older one connects.
	ReasonDuplicatePeer Reason = "DuplicatePeer"
	// ReasonAggregationLength: an advertisement announces a prefix that is wider than the pool.
	ReasonAggregationLength Reason = "AggregationLength"
	// ReasonConflictingAdvertisements: two advertisements give one prefix different values of
	// localPref.
	ReasonConflictingAdvertisements Reason = "ConflictingAdvertisements"
	// ReasonTooManyCommunities: the advertisements of a Service have more communities in total than
	// a route can carry.
	ReasonTooManyCommunities Reason = "TooManyCommunities"
)

// Reasons for what a speaker says of its BGP sessions. The Reasons that make a BGPPeer unusable
// occur here too.
const (
	// ReasonEstablished: the session with the router is established.
	ReasonEstablished Reason = "Established"
	// ReasonFlapping: the session is established, and ended and returned again and again before.
	// Until it has lasted for a while, no Service counts as announced over it.
	ReasonFlapping Reason = "Flapping"
	// ReasonNoSession: the session is not established, and no other Reason fits or is known yet. On
	// a Service: no established session carries its routes.
	ReasonNoSession Reason = "NoSession"
	// ReasonNoAnswer: the router does not answer, as it does with a wrong password or behind a
	// filter.
	ReasonNoAnswer Reason = "NoAnswer"
	// ReasonConnectionRefused: the host refuses the TCP connection.
	ReasonConnectionRefused Reason = "ConnectionRefused"
	// ReasonUnreachable: no host answers for the router's address, or there is no route to it.
	ReasonUnreachable Reason = "Unreachable"
	// ReasonSourceUnavailable: the node does not have the link or the source address of the
	// BGPPeer.
	ReasonSourceUnavailable Reason = "SourceUnavailable"
	// ReasonWrongASNumber: the AS numbers of both sides do not fit.
	ReasonWrongASNumber Reason = "WrongASNumber"
	// ReasonRefusedByRouter: the router ended or refused the session by a NOTIFICATION, or closed
	// the connection at once.
	ReasonRefusedByRouter Reason = "RefusedByRouter"
	// ReasonTooManyPrefixes: the node announces more prefixes than the router accepts.
	ReasonTooManyPrefixes Reason = "TooManyPrefixes"
	// ReasonHoldTimeExpired: no message arrived within the hold time.
	ReasonHoldTimeExpired Reason = "HoldTimeExpired"
	// ReasonConnectionLost: the connection of the session failed or was closed.
	ReasonConnectionLost Reason = "ConnectionLost"
	// ReasonProtocolError: the router sent a message that violates the protocol.
	ReasonProtocolError Reason = "ProtocolError"
	// ReasonNoGateway: the BGPPeer asks for the node's default gateway, and the node has none of
	// that family.
	ReasonNoGateway Reason = "NoGateway"
	// ReasonNoRouter: no router advertisement of an unnumbered BGPPeer's router arrives on the
	// link, or the link is unusable.
	ReasonNoRouter Reason = "NoRouter"
	// ReasonPortUnavailable: a passive BGPPeer needs TCP port 179, and the speaker cannot listen on
	// it.
	ReasonPortUnavailable Reason = "PortUnavailable"
	// ReasonFamilyNotCarried: the session should carry both families, and the router accepts only
	// one.
	ReasonFamilyNotCarried Reason = "FamilyNotCarried"
	// ReasonEndpointsTerminating: externalTrafficPolicy is Local, the last endpoints on the node
	// terminate, and drainDelay of the BGPPeer has passed.
	ReasonEndpointsTerminating Reason = "EndpointsTerminating"
	// ReasonNoNextHop: the node has no address on the session's link that can be the next hop for a
	// family.
	ReasonNoNextHop Reason = "NoNextHop"
)

// Reasons for faults of BFD sessions.
const (
	// ReasonWatched: BFD watches the path, as its profile asks.
	ReasonWatched Reason = "Watched"
	// ReasonBFDDown: the BFD session is not Up, because no packets arrive from the router or ours
	// do not arrive there.
	ReasonBFDDown Reason = "BFDDown"
	// ReasonInvalidBFD: an interval, the multiplier, the TTL or an address of a BFD session is out
	// of range.
	ReasonInvalidBFD Reason = "InvalidBFD"
	// ReasonConflictingBFD: two BGPPeers with one address ask for different BFD parameters; they
	// share one BFD session.
	ReasonConflictingBFD Reason = "ConflictingBFD"
	// ReasonEchoUnsupported: echo packets cannot be sent on this path, or the neighbour does not
	// return them.
	ReasonEchoUnsupported Reason = "EchoUnsupported"
	// ReasonBFDAuthentication: the neighbour authenticates its BFD packets, which Gantry does not
	// support.
	ReasonBFDAuthentication Reason = "BFDAuthentication"
	// ReasonBFDTTLTooLow: the neighbour's packets cross more routers than minimumTtl allows, or
	// leave it with a TTL below 255.
	ReasonBFDTTLTooLow Reason = "BFDTTLTooLow"
	// ReasonBFDNotConfigured: the router asks for a BFD session, and the BGPPeer has no profile.
	ReasonBFDNotConfigured Reason = "BFDNotConfigured"
	// ReasonBFDPortInUse: another program on the node has the UDP port of BFD.
	ReasonBFDPortInUse Reason = "BFDPortInUse"
	// ReasonBFDUnsent: BFD packets cannot be sent, because the link is gone or there is no route.
	ReasonBFDUnsent Reason = "BFDUnsent"
	// ReasonReconciled: on a ConfigurationState, every object is understood.
	ReasonReconciled Reason = "Reconciled"
	// ReasonConfigurationError: on a ConfigurationState, some object has a Problem.
	ReasonConfigurationError Reason = "ConfigurationError"
)

// Reasons that only kubectl gantry gives: it sees more than one Service or one node.
const (
	// ReasonNotInstalled: the cluster has no Gantry.
	ReasonNotInstalled Reason = "NotInstalled"
	// ReasonNoController: no controller leads, or the one that leads writes nothing.
	ReasonNoController Reason = "NoController"
	// ReasonPoolElsewhere: an IPAddressPool is in a namespace where it does not count.
	ReasonPoolElsewhere Reason = "PoolElsewhere"
	// ReasonUnknownAnnotation: a Service has an annotation of ours that nothing reads.
	ReasonUnknownAnnotation Reason = "UnknownAnnotation"
	// ReasonOtherController: another program serves the same Services, so that each undoes what the
	// other one writes.
	ReasonOtherController Reason = "OtherController"
	// ReasonWebhookDown: the API server refuses changes of the configuration, since a webhook that
	// it has to ask has no endpoint.
	ReasonWebhookDown Reason = "WebhookDown"
	// ReasonSlowAPIServer: every answer of the API server takes long.
	ReasonSlowAPIServer Reason = "SlowAPIServer"
	// ReasonNodeSetting: a setting of a node stands in the way, such as one of its kernel, of its
	// kube-proxy or of its clock.
	ReasonNodeSetting Reason = "NodeSetting"
	// ReasonLinksDiffer: the links of the nodes differ, so that an address works on some nodes
	// only.
	ReasonLinksDiffer Reason = "LinksDiffer"
	// ReasonNoConnection: a client does not reach a port of a Service.
	ReasonNoConnection Reason = "NoConnection"
)
