package packages

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/v1beta2"
)

// oldBGPPeerCRDManifest is a CRD of BGPPeers that knows only the older version.
const oldBGPPeerCRDManifest = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: bgppeers.metallb.io}
spec:
  group: metallb.io
  scope: Namespaced
  names: {kind: BGPPeer, plural: bgppeers, singular: bgppeer, listKind: BGPPeerList}
  versions:
  - {name: v1beta1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// bgpPeerCRDWithWebhookManifest is the same CRD with a newer version, to which a webhook converts.
const bgpPeerCRDWithWebhookManifest = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: bgppeers.metallb.io}
spec:
  group: metallb.io
  scope: Namespaced
  names: {kind: BGPPeer, plural: bgppeers, singular: bgppeer, listKind: BGPPeerList}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1beta1, v1beta2]
      clientConfig: {service: {namespace: metallb-system, name: webhook-of-another-product, path: /convert}}
  versions:
  - {name: v1beta1, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v1beta2, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

const oldBGPPeerManifest = `apiVersion: metallb.io/v1beta1
kind: BGPPeer
metadata: {name: old, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.1, holdTime: 90s, nodeSelectors: [{matchLabels: {rack: a}}]}
`

// TestCRDsRemoveConversionWebhookOfAnotherProduct: a CRD that calls a webhook which is gone makes
// every list of its objects fail. What is applied from the client's side removes the webhook, and
// objects that are stored in the older version are read.
func TestCRDsRemoveConversionWebhookOfAnotherProduct(t *testing.T) {
	b := newPackageInstaller(t)
	crds, err := RenderKustomize(t.Context(), "crd")
	if err != nil {
		t.Fatal(err)
	}
	for way, apply := range map[string]func(){
		"apply":             func() { b.runKubectl(crds, "apply", "-f", "-") },
		"apply a directory": func() { b.runKubectl("", "apply", "-k", filepath.Join(RepositoryRoot(), "config", "crd")) },
	} {
		b.leaveConversionWebhook()
		apply()
		b.checkOldBGPPeerIsRead(way)
	}
}

// patchInErrorPattern finds the command in the error of the chart.
var patchInErrorPattern = regexp.MustCompile(`kubectl (patch customresourcedefinition bgppeers\.metallb\.io --type=merge --patch) '([^']*)'`)

// TestHelmNamesCommandThatRemovesConversionWebhook: the API server cannot remove the webhook for
// Helm, which applies on the server's side. Helm says so before it changes anything, and what it
// says works.
func TestHelmNamesCommandThatRemovesConversionWebhook(t *testing.T) {
	b := newPackageInstaller(t)
	b.leaveConversionWebhook()
	out, err := b.tryHelm("{}", "install", "gantry", "--take-ownership")
	command := patchInErrorPattern.FindStringSubmatch(out)
	if err == nil || command == nil {
		t.Fatalf("an installation over the webhook of another product gives %v\n%s", err, out)
	}
	b.runKubectl("", append(strings.Fields(command[1]), command[2])...)
	b.runHelm("{}", "install", "gantry", "--take-ownership", "--force-conflicts")
	b.checkOldBGPPeerIsRead("Helm")
}

// checkOldBGPPeerIsRead checks that the BGPPeer that is stored in the older version is listed and
// read, and can be applied in this version.
func (b *packageInstaller) checkOldBGPPeerIsRead(way string) {
	b.Helper()
	b.awaitOldBGPPeer()
	var peer v1beta2.BGPPeer
	if err := b.apiClient.Get(b.Context(), client.ObjectKey{Namespace: "metallb-system", Name: "old"}, &peer); err != nil {
		b.Fatal(err)
	}
	if s := peer.Spec; s.PeerAddress != "192.0.2.1" || s.PeerASN != 64513 || s.HoldTime == nil || s.HoldTime.Duration != 90*time.Second || s.NodeSelectors[0].MatchLabels["rack"] != "a" {
		text, _ := yaml.Marshal(s)
		b.Errorf("%s: the old BGPPeer is read as\n%s", way, text)
	}
	b.runKubectl(oldBGPPeerManifest, "apply", "-f", "-")
}

// leaveConversionWebhook leaves the CRD of BGPPeers as another product does: an object is stored in
// the older version, and the webhook that converts it is gone.
func (b *packageInstaller) leaveConversionWebhook() {
	b.Helper()
	b.runKubectl("", "delete", "customresourcedefinition", "bgppeers.metallb.io")
	b.runKubectl(oldBGPPeerCRDManifest, "create", "-f", "-")
	b.await("the older version of BGPPeers", func(ctx context.Context) error {
		_, err := b.kubectl.Run(ctx, oldBGPPeerManifest, "create", "-f", "-")
		return err
	})
	b.runKubectl(bgpPeerCRDWithWebhookManifest, "replace", "-f", "-")
	b.await("a list that fails", func(ctx context.Context) error {
		var list v1beta2.BGPPeerList
		err := b.apiClient.List(ctx, &list)
		if err != nil && strings.Contains(err.Error(), "webhook-of-another-product") {
			return nil
		}
		return fmt.Errorf("the list has %d objects and the error %w", len(list.Items), err)
	})
}

// awaitOldBGPPeer waits until lists have the BGPPeer that is stored in the older version.
func (b *packageInstaller) awaitOldBGPPeer() {
	b.Helper()
	b.await("the old BGPPeer", func(ctx context.Context) error {
		var list v1beta2.BGPPeerList
		if err := b.apiClient.List(ctx, &list); err != nil {
			return err
		}
		if len(list.Items) != 1 {
			return fmt.Errorf("the list has %d objects", len(list.Items))
		}
		return nil
	})
}
