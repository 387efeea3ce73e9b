package view

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// The owner of a Service can edit annotations, and so could announce an address without a pool by
// the advertisements of any pool.
func TestRecordedPoolIsNotReadFromAnnotations(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{names.AnnotationAllocatedFromPool: "forged", names.AnnotationAllocatedFromSeveralPools: "forged,too"}}}
	if v := FromService(s); v.RecordedPool != "" {
		t.Errorf("the recorded pool is %q, as the annotation says", v.RecordedPool)
	}
	for message, want := range map[string]string{"a": "a", "a,b": "a"} {
		s.Status.Conditions = []metav1.Condition{{Type: names.ConditionAllocatedFromPool, Status: metav1.ConditionTrue, Message: message}}
		if v := FromService(s); v.RecordedPool != want {
			t.Errorf("the recorded pool is %q, want %q", v.RecordedPool, want)
		}
	}
}
