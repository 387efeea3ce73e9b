package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// PoolExtension holds the settings of an IPAddressPool that are not in the metallb.io API. All are
// optional. None but Retire takes an address away from a Service that holds it.
type PoolExtension struct {
	// Exclude lists addresses that the pool never gives, such as those of routers: CIDRs, ranges
	// and single addresses, as in spec.addresses. Default: none. Example: ["192.0.2.1"].
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=96
	// +kubebuilder:validation:items:XValidation:rule="self.contains('-') ? (self.split('-').size() == 2 && isIP(self.split('-')[0].trim()) && isIP(self.split('-')[1].trim())) : (isCIDR(self) || isIP(self))",message="the entry is no CIDR, range or address: write 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 192.0.2.1, without blanks",messageExpression="\"'\" + self + \"' is no CIDR, range or address: write 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 192.0.2.1, without blanks\""
	// +optional
	Exclude []string `json:"exclude,omitempty"`

	// Order says which free address is given next. Lowest (the default): the first one in the order
	// of spec.addresses. RoundRobin: the one after the address given last, so that a released
	// address stays unused as long as possible. Hash: an address derived from the Service's
	// namespace and name, so that a Service that is created again usually gets its old address.
	// Default: Lowest. Example: Hash.
	// +kubebuilder:validation:Enum=Lowest;RoundRobin;Hash
	// +optional
	Order string `json:"order,omitempty"`

	// Cooldown is how long a released address waits before another Service may get it. A Service of
	// the same namespace and name may have it at once. Default: 0s. Example: 10m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$') && duration(self) >= duration('0s') && duration(self) <= duration('8760h')",message="cooldown is between 0s and 8760h: write one such as 10m or 24h"
	// +optional
	Cooldown *metav1.Duration `json:"cooldown,omitempty"`

	// Quota limits how many addresses of the pool the Services of one namespace may hold. Requested
	// addresses count, and so do those that nobody else may get because of the namespace: they cool
	// down, or are being probed. Default: no limit.
	// +optional
	Quota *PoolQuota `json:"quota,omitempty"`

	// MaxPerService is how many addresses of each family a Service may have when this pool gives it
	// one more; the annotation gantry.dev/address-count of the Service asks for them. Default: 1.
	// Example: 2.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	// +optional
	MaxPerService int32 `json:"maxPerService,omitempty"`

	// Sharing says which Services may share an address of the pool, if their sharing keys and ports
	// allow it. Cluster: those of all namespaces. Namespace: only those of one namespace; Services
	// of several namespaces that share one already keep it. Default: Cluster. Example: Namespace.
	// +kubebuilder:validation:Enum=Cluster;Namespace
	// +optional
	Sharing string `json:"sharing,omitempty"`

	// Probe makes a speaker check by ARP or Neighbor Solicitation whether a host uses an address
	// already, before a new Service gets it. If a host answers, the address goes into quarantine
	// and another one is tried. Default: no check.
	// +structType=atomic
	// +optional
	Probe *PoolAcquireProbe `json:"probe,omitempty"`

	// Retire makes the Services give up addresses of the pool, and keeps the pool from giving these
	// to others. Each Service gets another address that it could get if it were new, at its turn.
	// It keeps what it has until the other address is written, and for as long as none is free. A
	// Service that requests a retired address keeps it. Default: nothing is retired.
	// +structType=atomic
	// +optional
	Retire *PoolRetirement `json:"retire,omitempty"`
}

// PoolRetirement says which addresses are retired, and how fast.
type PoolRetirement struct {
	// Addresses that are retired: CIDRs, ranges and single addresses, as in spec.addresses. Without
	// any, the whole pool is retired. Default: the whole pool. Example: ["192.0.2.128/25"].
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MaxLength=96
	// +kubebuilder:validation:items:XValidation:rule="self.contains('-') ? (self.split('-').size() == 2 && isIP(self.split('-')[0].trim()) && isIP(self.split('-')[1].trim())) : (isCIDR(self) || isIP(self))",message="the entry is no CIDR, range or address: write 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 192.0.2.1, without blanks",messageExpression="\"'\" + self + \"' is no CIDR, range or address: write 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 192.0.2.1, without blanks\""
	// +optional
	Addresses []string `json:"addresses,omitempty"`
	// ServicesPerMinute is how many Services at most get other addresses in a minute. Default: 60.
	// Example: 10.
	// +kubebuilder:default=60
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=6000
	// +optional
	ServicesPerMinute int32 `json:"servicesPerMinute,omitempty"`
}

// PoolQuota limits the addresses of each family that a namespace may hold. An address that Services
// of one namespace share counts once.
type PoolQuota struct {
	// PerNamespace is the limit for every namespace that is not listed. Unset: no limit. Default:
	// no limit. Example: 5.
	// +kubebuilder:validation:Minimum=0
	// +optional
	PerNamespace *int32 `json:"perNamespace,omitempty"`
	// Namespaces with a limit of their own. Default: none.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=map
	// +listMapKey=namespace
	// +optional
	Namespaces []NamespaceQuota `json:"namespaces,omitempty"`
}

// NamespaceQuota is the limit of one namespace.
type NamespaceQuota struct {
	// Namespace is the name of the namespace. Example: shop.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Addresses is how many addresses of each family it may hold. Example: 20.
	// +kubebuilder:validation:Minimum=0
	Addresses int32 `json:"addresses"`
}

// PoolAcquireProbe says what happens when a host answers.
type PoolAcquireProbe struct {
	// Quarantine is how long an address is not given after a host answered for it. Default: 1h.
	// Example: 30m.
	// +kubebuilder:default="1h"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$') && duration(self) >= duration('1s') && duration(self) <= duration('8760h')",message="quarantine is between 1s and 8760h: write one such as 10m or 24h"
	// +optional
	Quarantine *metav1.Duration `json:"quarantine,omitempty"`
}
