package configuration

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// NewValidCondition returns the condition that says whether an object has Problems.
func NewValidCondition(o snapshot.ObjectReference, generation int64, problems []snapshot.Problem) metav1.Condition {
	cond := metav1.Condition{
		Type: names.ConditionValid, Status: metav1.ConditionTrue, ObservedGeneration: generation,
		Reason: string(names.ReasonValid), Message: "the object is understood",
	}
	var texts []string
	for _, p := range problems {
		if p.Object != o {
			continue
		}
		if len(texts) == 0 {
			cond.Status, cond.Reason = metav1.ConditionFalse, string(p.Reason)
		}
		texts = append(texts, p.Text)
	}
	if len(texts) > 0 {
		cond.Message = JoinTextsWithinStatusLimit(texts, "; ", "they are listed once these are corrected")
	}
	return cond
}
