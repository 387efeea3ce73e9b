// Package names holds every string that people and other programs see: annotations, labels, object
// names, condition types and Reasons. No other package declares such a string. It imports nothing,
// so that every package may use it.
package names

// The workloads and objects of an installation.
const (
	// DefaultNamespace is the default namespace, the one in existing manifests.
	DefaultNamespace = "metallb-system"
	// LeaderLease is the Lease with which the controllers elect a leader.
	LeaderLease = "gantry-controller"
	// PendingAssignmentsLedger names the object that keeps two controllers from giving one address
	// twice.
	PendingAssignmentsLedger = "gantry-controller"
	// WithheldAddressesLedger names the object that stores which addresses cool down or are in
	// quarantine.
	WithheldAddressesLedger = "gantry-withheld"
	// OperatorProbeNamePrefix begins the names of the AddressProbes that kubectl gantry probe
	// creates. Those of the controller are addresses.
	OperatorProbeNamePrefix = "operator-"
	// GossipSecret holds the key that encrypts and authenticates the gossip between speakers. The
	// controller creates it.
	GossipSecret = "gantry-gossip"
	// GossipKeySecretEntry is the entry of GossipSecret with the key that encrypts: 32 random
	// bytes. The speakers also accept messages that were encrypted with the optional next and
	// previous keys.
	GossipKeySecretEntry         = "key"
	GossipNextKeySecretEntry     = "key-next"
	GossipPreviousKeySecretEntry = "key-previous"
	// AnnotationRotateGossipKey on GossipSecret, with any value, makes the controller replace the
	// key. AnnotationGossipKeyChangedAt is when the controller last changed the Secret.
	AnnotationRotateGossipKey    = "gantry.dev/rotate-gossip-key"
	AnnotationGossipKeyChangedAt = "gantry.dev/gossip-key-changed-at"
	// WebhookService is the webhook's Service, WebhookSecret the Secret with its certificate
	// (created by the controller), WebhookConfiguration the ValidatingWebhookConfiguration that
	// registers it with the API server.
	WebhookService       = "gantry-webhook"
	WebhookSecret        = "gantry-webhook-certificate"
	WebhookConfiguration = "gantry-webhook"
	// AppName and the components are the values of the labels that select our Pods.
	AppName             = "gantry"
	ComponentSpeaker    = "speaker"
	ComponentController = "controller"
	// LabelAppName and LabelComponent are the recommended labels of Kubernetes on our Pods.
	LabelAppName   = "app.kubernetes.io/name"
	LabelComponent = "app.kubernetes.io/component"
	// ControllerEventSource and SpeakerEventSource are the components that events come from.
	ControllerEventSource = "gantry-controller"
	SpeakerEventSource    = "gantry-speaker"
)

// Annotations of the metallb.io API. Each key that users write has an older spelling, which counts
// when the newer one is absent.
const (
	AnnotationRequestedPool      = "metallb.io/address-pool"
	AnnotationRequestedPoolOld   = "metallb.universe.tf/address-pool"
	AnnotationLoadBalancerIPs    = "metallb.io/loadBalancerIPs"
	AnnotationLoadBalancerIPsOld = "metallb.universe.tf/loadBalancerIPs"
	AnnotationSharingKey         = "metallb.io/allow-shared-ip"
	AnnotationSharingKeyOld      = "metallb.universe.tf/allow-shared-ip"
	// AnnotationAllocatedFromPool is written on a Service with its addresses: the name of their
	// pool. It is for people and other programs. Nothing here reads it, because the owner of a
	// Service can edit it: see ConditionAllocatedFromPool.
	AnnotationAllocatedFromPool = "metallb.io/ip-allocated-from-pool"
)

// Annotations of the gantry.dev domain on Services.
const (
	// AnnotationAllocatedFromSeveralPools is written in addition to AnnotationAllocatedFromPool
	// when the addresses come from more than one pool: the names of all pools, separated by commas,
	// in the order of the addresses.
	AnnotationAllocatedFromSeveralPools = "gantry.dev/ip-allocated-from-pools"
	// AnnotationAddressesPerFamily asks for this many addresses of each family, 1 to 16.
	AnnotationAddressesPerFamily = "gantry.dev/address-count"
	// AnnotationAddressesToExchange lists addresses, separated by commas, that the Service wants to
	// exchange for others. Addresses that it does not hold are ignored, so that the annotation may
	// stay.
	AnnotationAddressesToExchange = "gantry.dev/release-address"
	// AnnotationRequestedHolder names the node that should answer ARP and NDP for the addresses.
	AnnotationRequestedHolder = "gantry.dev/holder"
)

// AnnotationLiftWithheld on an IPAddressPool ends the cool-down and the quarantine of addresses of
// the pool, once for each value: "all", or addresses, CIDRs and ranges, separated by commas.
const AnnotationLiftWithheld = "gantry.dev/lift-withheld"

// Labels of ServiceL2Status, ServiceBGPStatus and ConfigurationState objects (metallb.io API).
const (
	LabelConfigurationStateComponent = "metallb.io/component-type"
	LabelConfigurationStateNode      = "metallb.io/node-name"
	LabelServiceStatusNode           = "metallb.io/node"
	LabelServiceName                 = "metallb.io/service-name"
	LabelServiceNamespace            = "metallb.io/service-namespace"
	// LabelBGPPeerOfSession on a BGPSession is the name of its BGPPeer.
	LabelBGPPeerOfSession = "gantry.dev/peer"
)

// Labels and taints of Kubernetes that decide whether a node may announce.
const (
	LabelExcludeNode  = "node.kubernetes.io/exclude-from-external-load-balancers"
	TaintOutOfService = "node.kubernetes.io/out-of-service"
	// AnnotationDrainNode on a Node makes its speaker hand its addresses over and take no
	// new ones.
	AnnotationDrainNode = "gantry.dev/drain"
)

// Condition types.
const (
	// ConditionAddressAssigned on a Service: it has the addresses it asks for.
	ConditionAddressAssigned = "gantry.dev/AddressAssigned"
	// ConditionAllocatedFromPool on a Service: its message is the name of the pool of the first
	// address, or the names of all pools of its addresses, separated by commas. Only those who may
	// write the status of Services can change it.
	ConditionAllocatedFromPool = "gantry.dev/AllocatedFromPool"
	// ConditionAnnounced on a Service: each of its addresses is announced, by a node that answers
	// for it or over an established session.
	ConditionAnnounced = "gantry.dev/Announced"
	// ConditionPoolRetirementDone on an IPAddressPool with spec.gantry.retire: no Service holds a
	// retired address any more.
	ConditionPoolRetirementDone = "gantry.dev/Retired"
	// ConditionReservationEffective on an AddressReservation: its addresses are reserved for its
	// Service.
	ConditionReservationEffective = "gantry.dev/Reserved"
	// ConditionSpeakerReady on a SpeakerStatus: the speaker lives. Another speaker sets it to False
	// when this one is dead.
	ConditionSpeakerReady = "gantry.dev/Ready"
	// ConditionGossipComplete on a SpeakerStatus: the speaker exchanges gossip with every other
	// living speaker.
	ConditionGossipComplete = "gantry.dev/GossipComplete"
	// ConditionLayer2Usable on a SpeakerStatus: the node can answer for addresses on some link.
	ConditionLayer2Usable = "gantry.dev/Layer2Usable"
	// ConditionNodeFit on a SpeakerStatus: the node serves addresses as well as any other. Other
	// nodes serve the addresses of an unfit node, as far as they can.
	ConditionNodeFit = "gantry.dev/Fit"
	// ConditionHeldAddressesUncontested on a SpeakerStatus: no foreign host claims an address that
	// the node holds.
	ConditionHeldAddressesUncontested = "gantry.dev/AddressesUncontested"
	// ConditionSteersAroundDeadNodes on a SpeakerStatus, if the speaker should do so: new
	// connections go to living endpoints while a node is dead and Kubernetes does not know it yet.
	ConditionSteersAroundDeadNodes = "gantry.dev/SteersAroundDeadNodes"
	// ConditionKeepsConnections on a SpeakerStatus, if the speaker should do so: TCP connections
	// stay open when their address moves as planned.
	ConditionKeepsConnections = "gantry.dev/KeepsConnections"
	// ConditionEstablished on a BGPSession: the session with the router is established.
	ConditionEstablished = "gantry.dev/Established"
	// ConditionRoutesAnnounced on an established BGPSession: the router gets every route that it
	// should get.
	ConditionRoutesAnnounced = "gantry.dev/RoutesAnnounced"
	// ConditionBFDWatchesPath on a BGPSession whose peer has a bfdProfile: BFD watches the path as
	// the profile says.
	ConditionBFDWatchesPath = "gantry.dev/PathWatched"
	// ConditionValid on configuration objects: the object is understood and every object that it
	// names exists.
	ConditionValid = "gantry.dev/Valid"
	// ConditionControllerConfigValid is the controller's, ConditionSpeakerConfigValid a speaker's
	// condition on a ConfigurationState: the whole configuration is understood.
	ConditionControllerConfigValid = "poolReconcilerValid"
	ConditionSpeakerConfigValid    = "configReconcilerValid"
)

// Event reasons that the metallb.io API fixes; users filter on them.
const (
	EventAllocated          = "IPAllocated"
	EventAllocationFailed   = "AllocationFailed"
	EventLoadBalancerFailed = "LoadBalancerFailed"
	EventClearAssignment    = "ClearAssignment"
	// EventAdditionalAssignFailed: a Service prefers two families and got an address of one.
	EventAdditionalAssignFailed = "AdditionalAssignFailed"
	// EventDeprecatedAnnotation: a Service has an annotation in its older spelling.
	EventDeprecatedAnnotation = "deprecatedAnnotation"
	// EventUnknownAnnotation: a Service has an annotation in one of our domains that nothing reads.
	EventUnknownAnnotation = "unknownAnnotation"
	// EventAddressRetired: the pool retires an address of a Service, which has it until its turn.
	EventAddressRetired = "addressRetired"
	// EventNotEnoughClusterIPs: a Service requires two families and has cluster IPs of one.
	EventNotEnoughClusterIPs = "not enough clusterips"
	// EventNoClusterIPs: a Service has no cluster IP.
	EventNoClusterIPs = "noclusterIPsIPFamily"
	// EventOtherController: another program has changed the addresses of a Service.
	EventOtherController = "otherController"
	EventNodeAssigned    = "nodeAssigned"
	EventAnnounceFailed  = "announceFailed"
	// EventAnnounced: a Service that was not announced is announced again.
	EventAnnounced = "announced"
	// EventRequestedHolderUnavailable: the node that a Service asks for cannot hold its addresses.
	EventRequestedHolderUnavailable = "holderUnavailable"
	// EventGossipBlocked: the speaker of a Node cannot exchange gossip with another living speaker.
	EventGossipBlocked = "gossipBlocked"
)
