// Package names holds every string that people and other programs see: annotations, labels, object names, condition
// types and Reasons. No other package declares such a string. It imports nothing, so that every tier may use it.
package names

// The workloads and objects of an installation.
const (
	// Namespace is the default namespace, the one that existing manifests name.
	Namespace = "metallb-system"
	// LeaderLease is the Lease on which controllers elect their leader.
	LeaderLease = "gantry-controller"
	// AddressLedger is the object by which controllers keep each other from giving one address twice.
	AddressLedger = "gantry-controller"
	// WithheldLedger is the object that remembers which addresses cool down or are in quarantine.
	WithheldLedger = "gantry-withheld"
	// GossipSecret holds the key with which speakers encrypt and authenticate gossip. The controller makes it.
	GossipSecret = "gantry-gossip"
	// GossipSecretKey is the entry of GossipSecret: 32 random bytes.
	GossipSecretKey = "key"
	// WebhookService, WebhookSecret and WebhookConfiguration are the webhook's Service, the Secret with its certificate, which
	// the controller makes, and the ValidatingWebhookConfiguration that has the API server call it.
	WebhookService       = "gantry-webhook"
	WebhookSecret        = "gantry-webhook-certificate"
	WebhookConfiguration = "gantry-webhook"
	// AppName and ComponentSpeaker are the values of the labels by which speakers find each other's Pods.
	AppName             = "gantry"
	ComponentSpeaker    = "speaker"
	ComponentController = "controller"
	// LabelAppName and LabelComponent are the recommended labels on our Pods.
	LabelAppName   = "app.kubernetes.io/name"
	LabelComponent = "app.kubernetes.io/component"
	// ControllerEventSource and SpeakerEventSource are the components that events come from.
	ControllerEventSource = "gantry-controller"
	SpeakerEventSource    = "gantry-speaker"
)

// Annotations of the metallb.io API. Each key that is read has an older spelling, honoured when the newer is absent.
const (
	AnnotationPool               = "metallb.io/address-pool"
	AnnotationPoolOld            = "metallb.universe.tf/address-pool"
	AnnotationLoadBalancerIPs    = "metallb.io/loadBalancerIPs"
	AnnotationLoadBalancerIPsOld = "metallb.universe.tf/loadBalancerIPs"
	AnnotationSharing            = "metallb.io/allow-shared-ip"
	AnnotationSharingOld         = "metallb.universe.tf/allow-shared-ip"
	// AnnotationFromPool is written on a Service beside its addresses: the name of their Pool.
	AnnotationFromPool = "metallb.io/ip-allocated-from-pool"
)

// Annotations of ours on Services.
const (
	// AnnotationFromPools is written beside AnnotationFromPool when the addresses are of more than one Pool: the names of all,
	// separated by commas, in the order of the addresses.
	AnnotationFromPools = "gantry.dev/ip-allocated-from-pools"
	// AnnotationAddressCount asks for that many addresses of each family, 1 to 16.
	AnnotationAddressCount = "gantry.dev/address-count"
	// AnnotationRelease names addresses, separated by commas, that the Service wants to exchange for others. Those that
	// it does not hold are passed over, so that the annotation may stay.
	AnnotationRelease = "gantry.dev/release-address"
)

// Labels of ServiceL2Status, ServiceBGPStatus and ConfigurationState objects (metallb.io API).
const (
	LabelComponentType    = "metallb.io/component-type"
	LabelNodeName         = "metallb.io/node-name"
	LabelNode             = "metallb.io/node"
	LabelServiceName      = "metallb.io/service-name"
	LabelServiceNamespace = "metallb.io/service-namespace"
	// LabelPeer on a BGPSession is the name of its BGPPeer.
	LabelPeer = "gantry.dev/peer"
)

// Labels and taints of Kubernetes that decide whether a node may announce.
const (
	LabelExcludeNode  = "node.kubernetes.io/exclude-from-external-load-balancers"
	TaintOutOfService = "node.kubernetes.io/out-of-service"
	// AnnotationDrain on a Node asks its speaker to hand its addresses over and to take no new ones.
	AnnotationDrain = "gantry.dev/drain"
)

// Condition types.
const (
	// ConditionAddressAssigned on a Service: it has the addresses it asks for.
	ConditionAddressAssigned = "gantry.dev/AddressAssigned"
	// ConditionAnnounced on a Service: some node announces its addresses.
	ConditionAnnounced = "gantry.dev/Announced"
	// ConditionReserved on an AddressReservation: its addresses are kept for its Service.
	ConditionReserved = "gantry.dev/Reserved"
	// ConditionLayer2Usable on a SpeakerStatus: the node can answer for addresses on some link.
	ConditionLayer2Usable = "gantry.dev/Layer2Usable"
	// ConditionUncontested on a SpeakerStatus: no foreign host claims an address that the node holds.
	ConditionUncontested = "gantry.dev/AddressesUncontested"
	// ConditionEstablished on a BGPSession: the session with the router is established.
	ConditionEstablished = "gantry.dev/Established"
	// ConditionRoutesAnnounced on a BGPSession that is established: the router gets every route that it should.
	ConditionRoutesAnnounced = "gantry.dev/RoutesAnnounced"
	// ConditionPathWatched on a BGPSession whose peer has a bfdProfile: BFD watches the path, as the profile asks.
	ConditionPathWatched = "gantry.dev/PathWatched"
	// ConditionValid on our kinds: the object is understood and every object that it names exists.
	ConditionValid = "gantry.dev/Valid"
	// ConditionPoolsValid and ConditionConfigurationValid on a ConfigurationState: the controller, or a speaker, understands everything.
	ConditionPoolsValid         = "poolReconcilerValid"
	ConditionConfigurationValid = "configReconcilerValid"
)

// Event reasons that the metallb.io API fixes; users filter on them.
const (
	EventAllocated          = "IPAllocated"
	EventAllocationFailed   = "AllocationFailed"
	EventLoadBalancerFailed = "LoadBalancerFailed"
	EventClearAssignment    = "ClearAssignment"
	// EventAdditionalAssignFailed is told of a Service that prefers two families and got an address of one.
	EventAdditionalAssignFailed = "AdditionalAssignFailed"
	// EventDeprecatedAnnotation is told of a Service with an annotation in its older spelling.
	EventDeprecatedAnnotation = "deprecatedAnnotation"
	// EventNotEnoughClusterIPs is told of a Service that requires two families and has cluster IPs of one, EventNoClusterIPs of one
	// that has none.
	EventNotEnoughClusterIPs = "not enough clusterips"
	EventNoClusterIPs        = "noclusterIPsIPFamily"
	EventNodeAssigned        = "nodeAssigned"
	EventAnnounceFailed      = "announceFailed"
)
