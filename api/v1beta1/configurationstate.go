package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ConfigurationResult says whether a component understands the whole configuration.
//
// +kubebuilder:validation:Enum=Valid;Invalid;Unknown
type ConfigurationResult string

// The results: Unknown before the configuration is first read, Invalid while an object has a
// problem, Valid otherwise.
const (
	ConfigurationValid   ConfigurationResult = "Valid"
	ConfigurationInvalid ConfigurationResult = "Invalid"
	ConfigurationUnknown ConfigurationResult = "Unknown"
)

// ConfigurationStateStatus says whether a component understands the configuration.
type ConfigurationStateStatus struct {
	// Result is Valid, Invalid or Unknown. Example: Valid.
	// +optional
	Result ConfigurationResult `json:"result,omitempty"`
	// ErrorSummary lists the errors, one per line. Example: IPAddressPool "dmz": spec.addresses:
	// 192.0.2.300 is no address.
	// +optional
	ErrorSummary string `json:"errorSummary,omitempty"`
	// Conditions of the component that reads the configuration.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ConfigurationState says what is wrong with the configuration. The controller writes the one named
// "controller", each speaker the one named "speaker-NODE".
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=configurationstates,scope=Namespaced,shortName=cfgstate,categories=gantry
// +kubebuilder:printcolumn:name="Result",type=string,JSONPath=`.status.result`
// +kubebuilder:printcolumn:name="ErrorSummary",type=string,JSONPath=`.status.errorSummary`,priority=10
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ConfigurationState struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Status ConfigurationStateStatus `json:"status,omitempty"`
}

// ConfigurationStateList is a list of ConfigurationStates.
//
// +kubebuilder:object:root=true
type ConfigurationStateList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ConfigurationState `json:"items"`
}
