package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// PoolExtension is what Gantry adds to an IPAddressPool. Everything in it is optional, and none of it takes an address from a Service
// that has it.
type PoolExtension struct {
	// Exclude are addresses that the pool never gives though they lie in it, such as those of routers: CIDRs, ranges and single
	// addresses, as in spec.addresses.
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MaxLength=96
	// +kubebuilder:validation:items:XValidation:rule="self.contains('-') ? (self.split('-').size() == 2 && isIP(self.split('-')[0].trim()) && isIP(self.split('-')[1].trim())) : (isCIDR(self) || isIP(self))",message="the entry is no CIDR, range or address: write 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 192.0.2.1, without blanks",messageExpression="\"'\" + self + \"' is no CIDR, range or address: write 192.0.2.0/28, 192.0.2.10-192.0.2.20 or 192.0.2.1, without blanks\""
	// +optional
	Exclude []string `json:"exclude,omitempty"`

	// Order says which free address is given next. Lowest: the first one, in the order of spec.addresses. RoundRobin: the first one behind
	// the one given last, so that an address rests as long as possible. Hash: one that the Service's namespace and name decide, so
	// that a Service that is made again tends to get the address it had.
	// +kubebuilder:validation:Enum=Lowest;RoundRobin;Hash
	// +optional
	Order string `json:"order,omitempty"`

	// Cooldown is how long an address waits, after its last Service gave it back, before another Service may have it. A Service of the same
	// namespace and name may have it at once.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$') && duration(self) >= duration('0s') && duration(self) <= duration('8760h')",message="cooldown is between 0s and 8760h: write one such as 10m or 24h"
	// +optional
	Cooldown *metav1.Duration `json:"cooldown,omitempty"`

	// Quota bounds how many addresses of the pool the Services of one namespace may hold, whether they ask for them or not.
	// +optional
	Quota *PoolQuota `json:"quota,omitempty"`

	// Probe has a speaker ask its segment for an address (ARP, or Neighbor Solicitation) before the address is given to a Service that does not
	// have it. One that somebody answers for is put into quarantine, and another is tried.
	// +optional
	Probe *PoolProbe `json:"probe,omitempty"`
}

// PoolQuota bounds the addresses of each family that a namespace may hold. An address that Services of one namespace share counts once.
type PoolQuota struct {
	// PerNamespace holds for every namespace that is not named; absent is no bound.
	// +kubebuilder:validation:Minimum=0
	// +optional
	PerNamespace *int32 `json:"perNamespace,omitempty"`
	// Namespaces have bounds of their own.
	// +kubebuilder:validation:MaxItems=1024
	// +listType=map
	// +listMapKey=namespace
	// +optional
	Namespaces []NamespaceQuota `json:"namespaces,omitempty"`
}

// NamespaceQuota is the bound of one namespace.
type NamespaceQuota struct {
	// Namespace by name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Addresses of each family that it may hold.
	// +kubebuilder:validation:Minimum=0
	Addresses int32 `json:"addresses"`
}

// PoolProbe says what follows when somebody answers.
type PoolProbe struct {
	// Quarantine is how long an address is not given after somebody answered for it.
	// +kubebuilder:default="1h"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$|^0$') && duration(self) >= duration('1s') && duration(self) <= duration('8760h')",message="quarantine is between 1s and 8760h: write one such as 10m or 24h"
	// +optional
	Quarantine *metav1.Duration `json:"quarantine,omitempty"`
}
