package migrate

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
)

// The marks of Helm on the objects of a release.
const (
	helmNameAnnotation      = "meta.helm.sh/release-name"
	helmNamespaceAnnotation = "meta.helm.sh/release-namespace"
	managedByLabel          = "app.kubernetes.io/managed-by"
	managedByHelm           = "Helm"
	// resourcePolicyAnnotation keeps an object when an upgrade takes it out of its release.
	resourcePolicyAnnotation = "helm.sh/resource-policy"
	resourcePolicyKeep       = "keep"
	// operatorLabelPrefix marks what the Operator Lifecycle Manager installed.
	operatorLabelPrefix = "operators.coreos.com/"
)

// helmReleaseLabels select the Secrets in which Helm stores its releases.
var helmReleaseLabels = map[string]string{"owner": "helm"}

// HelmRelease is the release of MetalLB.
type HelmRelease struct {
	Key types.NamespacedName
	// ChartVersion is that of the chart, and Values are what was set; both are empty if the user
	// may not read the Secrets of Helm.
	ChartVersion string
	Values       map[string]any
}

// helmReleaseOf returns the release that an object belongs to; empty for none.
func helmReleaseOf(annotations map[string]string) types.NamespacedName {
	return types.NamespacedName{Namespace: annotations[helmNamespaceAnnotation], Name: annotations[helmNameAnnotation]}
}

// readRelease finds the release of MetalLB by its programs, and reads its values from the Secret
// of its newest revision.
func (r *findingsReader) readRelease(ctx context.Context) error {
	at := slices.IndexFunc(r.Workloads, func(w Workload) bool { return helmReleaseOf(w.annotations).Name != "" })
	if at < 0 {
		return nil
	}
	r.Release.Key = helmReleaseOf(r.Workloads[at].annotations)
	labels := map[string]string{"name": r.Release.Key.Name}
	for k, v := range helmReleaseLabels {
		labels[k] = v
	}
	secrets, err := r.listObjects(ctx, secretKind, ListQuery{Namespace: r.Release.Key.Namespace, Labels: labels})
	if err != nil {
		return err
	}
	newest, revision := -1, 0
	for i := range secrets {
		if n, err := strconv.Atoi(secrets[i].GetLabels()["version"]); err == nil && n > revision {
			newest, revision = i, n
		}
	}
	if newest < 0 {
		return nil
	}
	encoded, _, _ := unstructured.NestedString(secrets[newest].Object, "data", "release")
	if err := r.Release.decode(encoded); err != nil {
		r.Unreadable = append(r.Unreadable, fmt.Sprintf("the values of Helm's release %s: %v", r.Release.Key, err))
	}
	return nil
}

// maxReleaseBytes bounds what is read of a release. A Secret has at most 1 MiB, compressed.
const maxReleaseBytes = 64 << 20

// decode reads what Helm stores in a Secret: JSON, compressed, in Base64, in the Base64 of
// Secrets.
func (h *HelmRelease) decode(encoded string) error {
	text := []byte(encoded)
	for range 2 {
		decoded, err := base64.StdEncoding.DecodeString(string(text))
		if err != nil {
			return fmt.Errorf("decoding Base64: %w", err)
		}
		text = decoded
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	if text, err = io.ReadAll(io.LimitReader(unpacked, maxReleaseBytes)); err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	var stored struct {
		Config map[string]any `json:"config"`
		Chart  struct {
			Metadata struct {
				Version string `json:"version"`
			} `json:"metadata"`
		} `json:"chart"`
	}
	if err := json.Unmarshal(text, &stored); err != nil {
		return fmt.Errorf("reading JSON: %w", err)
	}
	h.ChartVersion, h.Values = stored.Chart.Metadata.Version, stored.Config
	return nil
}

// ownershipOf reads who takes an object for its own.
func ownershipOf(o *unstructured.Unstructured) ownership {
	out := ownership{helmRelease: helmReleaseOf(o.GetAnnotations()), isKept: o.GetAnnotations()[resourcePolicyAnnotation] == resourcePolicyKeep}
	for l := range o.GetLabels() {
		out.byOperator = out.byOperator || len(l) > len(operatorLabelPrefix) && l[:len(operatorLabelPrefix)] == operatorLabelPrefix
	}
	return out
}

// isOfForeignRelease reports whether Helm would delete the object with a release that is not
// Gantry's.
func (f *Findings) isOfForeignRelease(o ownership) bool {
	return o.helmRelease.Name != "" && !slices.ContainsFunc(f.OwnWorkloads, func(w Workload) bool {
		return w.Component == names.ComponentController && helmReleaseOf(w.annotations) == o.helmRelease
	}) && (f.HelmReleaseOfGantry == "" || o.helmRelease != f.gantryRelease())
}

// gantryRelease is the release of Gantry that gets the CRDs.
func (f *Findings) gantryRelease() types.NamespacedName {
	return types.NamespacedName{Namespace: f.GantryNamespace, Name: f.HelmReleaseOfGantry}
}
