package announcedcondition

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// A new Service whose Pods or speakers are not that far yet needs no warning. A Service that was
// announced, or that lacks a part of the configuration, does.
func TestEventTypeForUnannouncedService(t *testing.T) {
	announced := &metav1.Condition{Status: metav1.ConditionTrue, Reason: string(names.ReasonAnnounced)}
	silent := &metav1.Condition{Status: metav1.ConditionFalse, Reason: string(names.ReasonNoEndpoints)}
	for _, tc := range []struct {
		before *metav1.Condition
		reason names.Reason
		want   string
	}{
		{nil, names.ReasonNoEndpoints, corev1.EventTypeNormal},
		{nil, names.ReasonNotAnnounced, corev1.EventTypeNormal},
		{silent, names.ReasonNotAnnounced, corev1.EventTypeNormal},
		{announced, names.ReasonNoEndpoints, corev1.EventTypeWarning},
		{announced, names.ReasonNotAnnounced, corev1.EventTypeWarning},
		{nil, names.ReasonNoAdvertisement, corev1.EventTypeWarning},
		{silent, names.ReasonNodeExcluded, corev1.EventTypeWarning},
	} {
		if got := eventKindForUnannounced(tc.before, tc.reason); got != tc.want {
			t.Errorf("before %+v, now %s: a %s event, want %s", tc.before, tc.reason, got, tc.want)
		}
	}
}
