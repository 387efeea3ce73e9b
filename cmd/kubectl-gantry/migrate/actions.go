package migrate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
)

// Action is a step that kubectl gantry migrate does itself. It restarts nothing, and deletes
// nothing that holds configuration.
type Action struct {
	// Text says what the action does and why, Change shows what is sent to the API server.
	Text, Change string
	apply        func(context.Context, ClusterAccess) error
}

// Apply does the action. The error is that of the API server.
func (a *Action) Apply(ctx context.Context, access ClusterAccess) error {
	if err := a.apply(ctx, access); err != nil {
		return fmt.Errorf("%s: %w", a.Text, err)
	}
	return nil
}

// ListActions returns the actions that are left for the cluster, in their order. There are none
// when all is done.
func (f *Findings) ListActions() (out []Action) {
	for i := range f.CRDs {
		out = append(out, f.actionsForCRD(&f.CRDs[i])...)
	}
	for _, k := range configurationKinds {
		for i := range f.Configuration[k] {
			o := &f.Configuration[k][i]
			if owner := ownershipOf(o); f.isOfForeignRelease(owner) {
				out = append(out, newPatchAction(k, types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, ownershipPatch(types.NamespacedName{}),
					fmt.Sprintf("take %s %s out of Helm's release %s, so that helm uninstall does not delete it", k.Kind, o.GetName(), owner.helmRelease.Name)))
			}
		}
	}
	for i := range f.Webhooks {
		if w := &f.Webhooks[i]; !w.HasEndpoint && !f.hasMetalLBComponent(names.ComponentController) {
			out = append(out, newDeleteAction(webhookKind, types.NamespacedName{Name: w.Name},
				fmt.Sprintf("delete ValidatingWebhookConfiguration %s: nobody answers for its Service %s, so the API server refuses every change of the configuration", w.Name, w.Service)))
		}
	}
	if f.isExcludeListEdited() && f.OwnExcludeList == nil {
		out = append(out, f.newExcludeListAction())
	}
	return out
}

// actionsForCRD keeps a CRD from being deleted with MetalLB's release, and removes a conversion
// webhook for which nobody answers.
func (f *Findings) actionsForCRD(c *CRD) (out []Action) {
	key := types.NamespacedName{Name: c.Name}
	isForeign := f.isOfForeignRelease(c.owner)
	switch {
	case f.HelmReleaseOfGantry != "" && c.owner.helmRelease != f.gantryRelease():
		out = append(out, newPatchAction(crdKind, key, ownershipPatch(f.gantryRelease()), fmt.Sprintf("give CRD %s to Helm's release %s", c.Name, f.gantryRelease())))
	case isForeign:
		out = append(out, newPatchAction(crdKind, key, ownershipPatch(types.NamespacedName{}),
			fmt.Sprintf("take CRD %s out of Helm's release %s: helm uninstall would delete it, and all its objects with it", c.Name, c.owner.helmRelease.Name)))
	}
	if c.ConversionService.Name != "" && !f.hasMetalLBComponent(names.ComponentController) {
		patch := map[string]any{"spec": map[string]any{"conversion": map[string]any{"strategy": "None", "webhook": nil}}}
		out = append(out, newPatchAction(crdKind, key, patch, fmt.Sprintf("remove the conversion webhook of CRD %s: nobody answers for its Service %s, so its objects cannot be listed", c.Name, c.ConversionService)))
	}
	return out
}

// ownershipPatch gives an object to a release, or to none if the name is empty. The annotation for
// the policy keeps it when an upgrade takes it out of MetalLB's release.
func ownershipPatch(release types.NamespacedName) map[string]any {
	annotations := map[string]any{helmNameAnnotation: nil, helmNamespaceAnnotation: nil, resourcePolicyAnnotation: resourcePolicyKeep}
	labels := map[string]any{managedByLabel: nil}
	if release.Name != "" {
		annotations[helmNameAnnotation], annotations[helmNamespaceAnnotation], labels[managedByLabel] = release.Name, release.Namespace, managedByHelm
	}
	return map[string]any{"metadata": map[string]any{"annotations": annotations, "labels": labels}}
}

func newPatchAction(k ObjectKind, key types.NamespacedName, patch map[string]any, text string) Action {
	encoded, err := json.Marshal(patch)
	return Action{
		Text: text, Change: describeCommand("patch", k, key) + " --type=merge --patch '" + string(encoded) + "'",
		apply: func(ctx context.Context, access ClusterAccess) error {
			if err != nil {
				return err
			}
			return access.PatchObject(ctx, k, key, encoded)
		},
	}
}

func newDeleteAction(k ObjectKind, key types.NamespacedName, text string) Action {
	return Action{Text: text, Change: describeCommand("delete", k, key), apply: func(ctx context.Context, access ClusterAccess) error {
		if err := access.DeleteObject(ctx, k, key); !apierrors.IsNotFound(err) {
			return err
		}
		return nil
	}}
}

// newExcludeListAction copies the edited list.
func (f *Findings) newExcludeListAction() Action {
	// JSON is YAML.
	expressions, _ := json.Marshal(map[string]any{"announcedInterfacesToExclude": f.ExcludeList})
	o := newObject(configMapKind, types.NamespacedName{Namespace: f.GantryNamespace, Name: excludeListOfGantry})
	_ = unstructured.SetNestedStringMap(o.Object, map[string]string{excludeListEntry: string(expressions)}, "data")
	return Action{
		Text:   fmt.Sprintf("copy the edited list of excluded interfaces from ConfigMap %s/%s to %s/%s", f.Namespace, excludeListOfMetalLB, f.GantryNamespace, excludeListOfGantry),
		Change: fmt.Sprintf("kubectl -n %s create configmap %s --from-literal='%s=%s'", f.GantryNamespace, excludeListOfGantry, excludeListEntry, expressions),
		apply:  func(ctx context.Context, access ClusterAccess) error { return access.CreateObject(ctx, o) },
	}
}

// describeCommand is the beginning of the command of kubectl that does the same.
func describeCommand(verb string, k ObjectKind, key types.NamespacedName) string {
	var b strings.Builder
	b.WriteString("kubectl ")
	if key.Namespace != "" {
		b.WriteString("-n " + key.Namespace + " ")
	}
	b.WriteString(verb + " " + k.String() + " " + key.Name)
	return b.String()
}

// findWorkload returns the program of MetalLB with a component; nil if there is none.
func (f *Findings) findWorkload(component string) *Workload {
	at := slices.IndexFunc(f.Workloads, func(w Workload) bool { return w.Component == component })
	if at < 0 {
		return nil
	}
	return &f.Workloads[at]
}
