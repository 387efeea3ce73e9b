package configuration

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// StateWriter writes one ConfigurationState.
type StateWriter struct {
	// ReportingComponent is names.ComponentController or names.ComponentSpeaker. Node is empty for
	// the controller.
	ReportingComponent, Node string
	Namespace                string
	// Owner is the owner reference of the object; nil for none.
	Owner *metav1.OwnerReference
}

// ObjectName is "controller", or "speaker-NODE".
func (s StateWriter) ObjectName() string {
	if s.Node == "" {
		return s.ReportingComponent
	}
	return s.ReportingComponent + "-" + s.Node
}

func (s StateWriter) conditionType() string {
	if s.ReportingComponent == names.ComponentController {
		return names.ConditionControllerConfigValid
	}
	return names.ConditionSpeakerConfigValid
}

func (s StateWriter) objectLabels() map[string]string {
	out := map[string]string{names.LabelConfigurationStateComponent: s.ReportingComponent}
	if s.Node != "" {
		out[names.LabelConfigurationStateNode] = s.Node
	}
	return out
}

// TextsOfProblemsThatPreventServing returns the texts of the Problems that keep a part of the
// configuration from being served, in their order. References to pools and peers are left out:
// those may be created later, and the condition of the advertisement reports them. So is advice.
func TextsOfProblemsThatPreventServing(problems []snapshot.Problem) []string {
	var out []string
	for _, p := range problems {
		if p.Reason != names.ReasonUnknownPool && p.Reason != names.ReasonUnknownPeer && !p.IsOnlyAdvice() {
			out = append(out, fmt.Sprintf("configuration error: %s %s/%s: %s", p.Object.Kind, p.Object.Namespace, p.Object.Name, p.Text))
		}
	}
	return out
}

// maxSummaryBytesInStatus bounds a summary, without the note on what is left out. The API server
// accepts 32768 bytes in a condition.
const maxSummaryBytesInStatus = 4096

// BuildConfigurationStateStatus returns the status for the Problems, given the status before.
func (s StateWriter) BuildConfigurationStateStatus(before v1beta1.ConfigurationStateStatus, problems []snapshot.Problem) v1beta1.ConfigurationStateStatus {
	texts := TextsOfProblemsThatPreventServing(problems)
	after := v1beta1.ConfigurationStateStatus{Result: v1beta1.ConfigurationValid, Conditions: slices.Clone(before.Conditions)}
	c := metav1.Condition{
		Type: s.conditionType(), Status: metav1.ConditionTrue, Reason: string(names.ReasonReconciled), Message: "the whole configuration is understood",
	}
	if len(texts) > 0 {
		after.Result, after.ErrorSummary = v1beta1.ConfigurationInvalid, JoinTextsWithinStatusLimit(texts, "\n", "see the conditions of the objects")
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(names.ReasonConfigurationError), after.ErrorSummary
	}
	meta.SetStatusCondition(&after.Conditions, c)
	return after
}

// JoinTextsWithinStatusLimit joins texts into one that fits into a status. The first text is always
// in it, shortened if it is too long. Texts that do not fit are counted, followed by the advice.
func JoinTextsWithinStatusLimit(texts []string, separator, advice string) string {
	var b strings.Builder
	for i, t := range texts {
		if i == 0 && len(t) > maxSummaryBytesInStatus {
			t = strings.ToValidUTF8(t[:maxSummaryBytesInStatus], "") + "…"
		} else if b.Len()+len(t) > maxSummaryBytesInStatus {
			fmt.Fprintf(&b, "%sand %d more: %s", separator, len(texts)-i, advice)
			break
		}
		if i > 0 {
			b.WriteString(separator)
		}
		b.WriteString(t)
	}
	return b.String()
}

// WriteProblemsIntoState writes the Problems into the object. It creates a missing object, and
// writes only when something has changed.
func (s StateWriter) WriteProblemsIntoState(ctx context.Context, c client.Client, problems []snapshot.Problem) error {
	var o v1beta1.ConfigurationState
	key := client.ObjectKey{Namespace: s.Namespace, Name: s.ObjectName()}
	err := c.Get(ctx, key, &o)
	if apierrors.IsNotFound(err) {
		o = v1beta1.ConfigurationState{}
		o.Namespace, o.Name, o.Labels = s.Namespace, s.ObjectName(), s.objectLabels()
		if s.Owner != nil {
			o.OwnerReferences = []metav1.OwnerReference{*s.Owner}
		}
		err = c.Create(ctx, &o)
	}
	if err != nil {
		return fmt.Errorf("writing ConfigurationState %q: %w", s.ObjectName(), err)
	}
	before := o.DeepCopy()
	o.Status = s.BuildConfigurationStateStatus(before.Status, problems)
	if c := meta.FindStatusCondition(o.Status.Conditions, s.conditionType()); c != nil {
		c.ObservedGeneration = o.Generation
	}
	if areStatusesEqual(before.Status, o.Status) {
		return nil
	}
	if err := c.Status().Patch(ctx, &o, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("writing ConfigurationState %q: %w", s.ObjectName(), err)
	}
	return nil
}

// WriteUnknownStateOfDeadSpeaker writes into the object that nobody knows whether the component
// understands the configuration: it does not run any more, as the text says. A missing object stays
// missing.
func (s StateWriter) WriteUnknownStateOfDeadSpeaker(ctx context.Context, reader client.Reader, c client.Client, text string) error {
	var o v1beta1.ConfigurationState
	err := reader.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: s.ObjectName()}, &o)
	if err == nil {
		before := o.DeepCopy()
		o.Status = v1beta1.ConfigurationStateStatus{Result: v1beta1.ConfigurationUnknown, Conditions: o.Status.Conditions}
		meta.SetStatusCondition(&o.Status.Conditions, metav1.Condition{
			Type: s.conditionType(), Status: metav1.ConditionUnknown, Reason: string(names.ReasonNoSpeaker), Message: text, ObservedGeneration: o.Generation,
		})
		err = c.Status().Patch(ctx, &o, client.MergeFrom(before))
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("writing ConfigurationState %q: %w", s.ObjectName(), err)
	}
	return nil
}

func areStatusesEqual(a, b v1beta1.ConfigurationStateStatus) bool {
	return a.Result == b.Result && a.ErrorSummary == b.ErrorSummary && slices.Equal(a.Conditions, b.Conditions)
}
