package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressReservationSpec keeps addresses for one Service, whether it exists or not. With addresses,
// it keeps these. With a pool, it keeps one address of each family of the pool, chosen at once.
// With neither, it keeps what the Service holds once the Service is deleted.
//
// +kubebuilder:validation:XValidation:rule="!has(self.addresses) || !has(self.pool)",message="name addresses or a pool, not both"
type AddressReservationSpec struct {
	// Service for which the addresses are kept.
	Service ServiceReference `json:"service"`
	// Addresses to keep. Default: what the Service holds, if no pool is set either. Example:
	// ["192.0.2.10"].
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=45
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="the entry is no address: write one such as 192.0.2.10 or 2001:db8::10",messageExpression="\"'\" + self + \"' is no address: write one such as 192.0.2.10 or 2001:db8::10\""
	// +listType=set
	// +optional
	Addresses []string `json:"addresses,omitempty"`
	// Pool is the name of an IPAddressPool that gives the addresses. Default: none. Example:
	// first-pool.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Pool string `json:"pool,omitempty"`
	// Expires is when the reservation ends; unset: never. A Service that holds an address then
	// continues to hold it. Default: never. Example: 2026-12-31T23:59:59Z.
	// +optional
	Expires *metav1.Time `json:"expires,omitempty"`
}

// ServiceReference names a Service.
type ServiceReference struct {
	// Namespace of the Service. Example: default.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Name of the Service. Example: web.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
}

// AddressReservationStatus says which addresses are kept. The controller writes it.
type AddressReservationStatus struct {
	// Addresses that are kept. Example: ["192.0.2.10"].
	// +kubebuilder:validation:MaxItems=32
	// +optional
	Addresses []string `json:"addresses,omitempty"`
	// Conditions say whether the addresses can be kept.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AddressReservation keeps addresses for a Service before it is created or after it is deleted.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=addressreservations,scope=Namespaced,shortName=ipres,categories=gantry
// +kubebuilder:printcolumn:name="For Namespace",type=string,JSONPath=`.spec.service.namespace`
// +kubebuilder:printcolumn:name="For Service",type=string,JSONPath=`.spec.service.name`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.status.addresses`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.spec.expires`
// +kubebuilder:printcolumn:name="Reserved",type=string,JSONPath=`.status.conditions[?(@.type=="gantry.dev/Reserved")].status`
type AddressReservation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AddressReservationSpec `json:"spec"`
	// +optional
	Status AddressReservationStatus `json:"status,omitempty"`
}

// AddressReservationList is a list of AddressReservations.
//
// +kubebuilder:object:root=true
type AddressReservationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []AddressReservation `json:"items"`
}
