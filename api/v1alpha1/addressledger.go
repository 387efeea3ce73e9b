package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressLedgerSpec is what the controllers know beyond the status of the Services. It is written
// as a whole by compare and swap on the resourceVersion last read. If two controllers give
// addresses at once, one of them is refused.
type AddressLedgerSpec struct {
	// Writer is the controller that wrote last. Default: none. Example:
	// gantry-controller-7c9d_1f0e.
	// +optional
	Writer string `json:"writer,omitempty"`
	// Pending are addresses given to Services whose status may not show them yet, sorted by
	// namespace and name. Default: none.
	// +kubebuilder:validation:MaxItems=8192
	// +listType=atomic
	// +optional
	Pending []PendingAssignment `json:"pending,omitempty"`
	// Incomplete says that a status may still arrive that Pending does not list. A controller that
	// reads this gives each Service another resourceVersion before it assigns an address. Default:
	// false. Example: true.
	// +optional
	Incomplete bool `json:"incomplete,omitempty"`
	// Withheld are addresses that no Service holds and that are not free: they cool down or are in
	// quarantine. They are sorted by address. When there are too many, those that end soonest are
	// left out. Default: none.
	// +kubebuilder:validation:MaxItems=4096
	// +listType=atomic
	// +optional
	Withheld []WithheldAddress `json:"withheld,omitempty"`
}

// WithheldAddress is an address that is not given to a Service at present.
type WithheldAddress struct {
	// Address in text form. Example: 192.0.2.10.
	// +kubebuilder:validation:MaxLength=45
	Address string `json:"address"`
	// Reason is CoolingDown or Quarantined. Example: CoolingDown.
	// +kubebuilder:validation:MaxLength=63
	Reason string `json:"reason"`
	// Namespace of the Service that had the address before and may have it again. Default: none.
	// Example: default.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Name of that Service. Default: none. Example: web.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Name string `json:"name,omitempty"`
	// Until is when the address becomes free. Example: 2026-11-29T08:30:00Z.
	Until metav1.Time `json:"until"`
	// By lists the Ethernet addresses that answered for the address on the segment. Default: none.
	// Example: 02:00:5e:10:00:01.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	By string `json:"by,omitempty"`
}

// PendingAssignment says that the API server may still receive a status with these addresses for a
// Service.
type PendingAssignment struct {
	// Namespace of the Service. Example: default.
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Name of the Service. Example: web.
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Base is the resourceVersion of the Service on which the status is written. Once the Service
	// has another one, the status has arrived or never will. Example: "48151".
	// +kubebuilder:validation:MaxLength=64
	Base string `json:"base"`
	// Addresses that the Service has once the status has arrived. Example: ["192.0.2.10"].
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Addresses []string `json:"addresses"`
}

// AddressLedger stores what the controllers know about addresses beyond the status of the Services.
// It is not the list of all assignments: that is the status of the Services.
// There are two in their namespace: one keeps two controllers from giving one address twice, the
// other stores which addresses are withheld. The controllers create both, and create them again
// when they are deleted. Only controllers may write them.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=addressledgers,scope=Namespaced,shortName=ipledger,categories=gantry
// +kubebuilder:printcolumn:name="Writer",type=string,JSONPath=`.spec.writer`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressLedger struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec AddressLedgerSpec `json:"spec,omitempty"`
}

// AddressLedgerList is a list of AddressLedgers.
//
// +kubebuilder:object:root=true
type AddressLedgerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []AddressLedger `json:"items"`
}
