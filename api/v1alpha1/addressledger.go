package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressLedgerSpec is what the controllers have agreed on beyond what the Services' status says. It is written as a whole, on the
// base of the version last read (compare and swap), so that of two controllers that give addresses at once one is refused.
type AddressLedgerSpec struct {
	// Writer names the controller that wrote last.
	// +optional
	Writer string `json:"writer,omitempty"`
	// Pending are addresses given to Services whose status may not say so yet, sorted by namespace and name.
	// +kubebuilder:validation:MaxItems=8192
	// +listType=atomic
	// +optional
	Pending []PendingAssignment `json:"pending,omitempty"`
	// Withheld are addresses that nobody holds and that are not free all the same, sorted by address: those that cool down, and those
	// in quarantine. Of too many the ones that end soonest are left out.
	// +kubebuilder:validation:MaxItems=4096
	// +listType=atomic
	// +optional
	Withheld []WithheldAddress `json:"withheld,omitempty"`
}

// WithheldAddress is an address that is not given.
type WithheldAddress struct {
	// Address that is not given.
	// +kubebuilder:validation:MaxLength=45
	Address string `json:"address"`
	// Reason is CoolingDown or Quarantined.
	// +kubebuilder:validation:MaxLength=63
	Reason string `json:"reason"`
	// Namespace and name of the Service that had the address before; it may have it again.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Name of that Service.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Name string `json:"name,omitempty"`
	// Until is when it ends.
	Until metav1.Time `json:"until"`
	// By is who answered for the address on the segment.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	By string `json:"by,omitempty"`
}

// PendingAssignment says that a status with these addresses may be on its way to a Service.
type PendingAssignment struct {
	// Namespace of the Service.
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Name of the Service.
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Base is the resourceVersion of the Service on which the status is written. Once the Service has another, the status has
	// arrived or never will.
	// +kubebuilder:validation:MaxLength=64
	Base string `json:"base"`
	// Addresses that the Service has when the status has arrived.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Addresses []string `json:"addresses"`
}

// AddressLedger is what the controllers keep of addresses beyond the status of Services. There are two in their namespace: the one by which
// they keep each other from giving one address twice, and one that remembers what is withheld. They make them, and make them again
// when they are deleted; they are theirs alone to write.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=addressledgers,scope=Namespaced
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
