// Package v1alpha1 holds the kinds of the gantry.dev API, version v1alpha1: what Gantry reports or
// stores beyond the metallb.io API. It has structs, validation markers and generated code, no
// behaviour.
//
// +kubebuilder:object:generate=true
// +groupName=gantry.dev
package v1alpha1

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GroupVersion is the group and version of every kind here.
var GroupVersion = schema.GroupVersion{Group: "gantry.dev", Version: "v1alpha1"}

// AddToScheme registers the kinds.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&SpeakerStatus{}, &SpeakerStatusList{},
		&BGPSession{}, &BGPSessionList{},
		&AddressReservation{}, &AddressReservationList{},
		&AddressLedger{}, &AddressLedgerList{},
		&AddressProbe{}, &AddressProbeList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
