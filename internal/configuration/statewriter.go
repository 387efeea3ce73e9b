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

// StateWriter is a ConfigurationState to be written.
type StateWriter struct {
	// Component is names.ComponentController or names.ComponentSpeaker; Node is the speaker's.
	Component, Node string
	Namespace       string
	// Owner goes with the object; nil for none.
	Owner *metav1.OwnerReference
}

// ObjectName of the object: "controller", or "speaker-NODE".
func (s StateWriter) ObjectName() string {
	if s.Node == "" {
		return s.Component
	}
	return s.Component + "-" + s.Node
}

func (s StateWriter) conditionType() string {
	if s.Component == names.ComponentController {
		return names.ConditionPoolsValid
	}
	return names.ConditionConfigurationValid
}

func (s StateWriter) objectLabels() map[string]string {
	out := map[string]string{names.LabelComponentType: s.Component}
	if s.Node != "" {
		out[names.LabelNodeName] = s.Node
	}
	return out
}

// ErrorTexts are the texts of the Problems that keep a part of the configuration from being served, in their order. An
// advertisement may name pools and peers that are yet to come; that is told on the advertisement alone.
func ErrorTexts(problems []snapshot.Problem) []string {
	var out []string
	for _, p := range problems {
		if p.Reason != names.ReasonUnknownPool && p.Reason != names.ReasonUnknownPeer {
			out = append(out, fmt.Sprintf("configuration error: %s %s/%s: %s", p.Object.Kind, p.Object.Namespace, p.Object.Name, p.Text))
		}
	}
	return out
}

// maxSummaryBytes bounds a Summary, in bytes, some words for what is left out aside. The API server takes 32768 in a condition.
const maxSummaryBytes = 4096

// NextStatus returns what the State is to say about Problems, given what it said before.
func (s StateWriter) NextStatus(before v1beta1.ConfigurationStateStatus, problems []snapshot.Problem) v1beta1.ConfigurationStateStatus {
	texts := ErrorTexts(problems)
	after := v1beta1.ConfigurationStateStatus{Result: v1beta1.ConfigurationValid, Conditions: slices.Clone(before.Conditions)}
	c := metav1.Condition{
		Type: s.conditionType(), Status: metav1.ConditionTrue, Reason: string(names.ReasonReconciled), Message: "the whole configuration is understood",
	}
	if len(texts) > 0 {
		after.Result, after.ErrorSummary = v1beta1.ConfigurationInvalid, SummarizeTexts(texts, "\n", "see the conditions of the objects")
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(names.ReasonConfigurationError), after.ErrorSummary
	}
	meta.SetStatusCondition(&after.Conditions, c)
	return after
}

// SummarizeTexts joins texts to one that a status can hold. The first is in it, cut short if need be; those that do not fit are counted, not listed,
// and then says what to do about them.
func SummarizeTexts(texts []string, separator, advice string) string {
	var b strings.Builder
	for i, t := range texts {
		if i == 0 && len(t) > maxSummaryBytes {
			t = strings.ToValidUTF8(t[:maxSummaryBytes], "") + "…"
		} else if b.Len()+len(t) > maxSummaryBytes {
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

// WriteState brings the object in line with the Problems: made where it is missing, written only when it says something else.
func (s StateWriter) WriteState(ctx context.Context, c client.Client, problems []snapshot.Problem) error {
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
	o.Status = s.NextStatus(before.Status, problems)
	if equalStatuses(before.Status, o.Status) {
		return nil
	}
	if err := c.Status().Patch(ctx, &o, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("writing ConfigurationState %q: %w", s.ObjectName(), err)
	}
	return nil
}

func equalStatuses(a, b v1beta1.ConfigurationStateStatus) bool {
	return a.Result == b.Result && a.ErrorSummary == b.ErrorSummary && slices.Equal(a.Conditions, b.Conditions)
}
