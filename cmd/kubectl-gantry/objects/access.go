package objects

import (
	"context"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// PluginOnlyAPIGroups are the API groups of the kinds that kubectl gantry reads, and the two other
// programs do not.
var PluginOnlyAPIGroups = []string{"apps", "coordination.k8s.io", "admissionregistration.k8s.io", "authorization.k8s.io"}

// NewAccessReview returns the question whether a ServiceAccount has a right.
func NewAccessReview(account client.ObjectKey, right authorizationv1.ResourceAttributes) *authorizationv1.SubjectAccessReview {
	return &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + account.Namespace + ":" + account.Name,
		Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + account.Namespace, "system:authenticated"},
		ResourceAttributes: &right,
	}}
}

// IsServiceAccountDenied reports whether a ServiceAccount lacks a right. It is false if the user
// may not ask. The API server answers the question, and does not store it.
func (r *Reader) IsServiceAccountDenied(ctx context.Context, account client.ObjectKey, right authorizationv1.ResourceAttributes) bool {
	question := NewAccessReview(account, right)
	err := r.apiClient.Create(ctx, question)
	if apierrors.IsForbidden(err) {
		_ = r.recordMissingRightOrKind(err, itemKindAndResource{resource: "subjectaccessreviews.authorization.k8s.io"}, "create", "")
	}
	return err == nil && !question.Status.Allowed
}
