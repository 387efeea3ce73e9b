package packages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// userObjectsManifest has an object of each kind that users write. Its texts are not in the form
// that a program would write them.
const userObjectsManifest = `---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: pool, namespace: metallb-system}
spec: {addresses: [192.0.2.10 - 192.0.2.20, "2001:DB8:0::/120"]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: l2, namespace: metallb-system}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: bgp, namespace: metallb-system}
spec: {communities: ["64512:100"]}
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
---
apiVersion: metallb.io/v1beta1
kind: Community
metadata: {name: communities, namespace: metallb-system}
spec: {communities: [{name: vpn, value: "64512:1"}]}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: router, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: "2001:DB8:0::1", holdTime: 90s, keepaliveTime: 0h0m30s, bfdProfile: fast}
---
apiVersion: metallb.io/v1beta1
kind: BGPPeer
metadata: {name: old, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.1}
---
apiVersion: gantry.dev/v1alpha1
kind: AddressReservation
metadata: {name: later, namespace: metallb-system}
spec: {service: {namespace: default, name: web}, addresses: [192.0.2.11]}
`

// TestApplyingTwiceChangesNothing: a tool that compares what is applied with what is stored, such
// as Argo CD or Flux, would otherwise write for ever.
func TestApplyingTwiceChangesNothing(t *testing.T) {
	skipWithoutDiff(t)
	b := newPackageInstaller(t)
	b.installForeignCRDs()
	// Nothing runs here that could answer for the webhook.
	const values = "{webhook: {enabled: true, failurePolicy: Ignore}, prometheus: {enabled: true}}"
	byHelm, err := RenderHelm(t.Context(), "metallb-system", values)
	if err != nil {
		t.Fatal(err)
	}
	byKustomize, err := RenderKustomize(t.Context(), "prometheus")
	if err != nil {
		t.Fatal(err)
	}
	b.checkSecondApplicationChangesNothing("kustomize", byKustomize+userObjectsManifest)
	b.checkSecondApplicationChangesNothing("Helm", byHelm+userObjectsManifest)
	b.runHelm(values, "install", "gantry", "--take-ownership", "--force-conflicts")
	before := b.resourceVersions(byHelm)
	b.runHelm(values, "upgrade", "gantry")
	if diff := gocmp.Diff(before, b.resourceVersions(byHelm)); diff != "" {
		t.Errorf("an upgrade to the same values has changed objects:\n%s", diff)
	}
}

// checkSecondApplicationChangesNothing applies manifests twice from the client's side, and then
// twice from the server's, as whoever changes over to it does.
func (b *packageInstaller) checkSecondApplicationChangesNothing(what, manifests string) {
	b.Helper()
	for _, side := range []string{"client", "server"} {
		var flags []string
		if side == "server" {
			flags = []string{"--server-side", "--force-conflicts"}
		}
		apply := func() string {
			b.runKubectl(manifests, slices.Concat([]string{"apply", "-f", "-"}, flags)...)
			return b.resourceVersions(manifests)
		}
		before := apply()
		if out, err := b.kubectl.Run(b.Context(), manifests, slices.Concat([]string{"diff", "-f", "-"}, flags)...); err != nil {
			b.Errorf("%s, on the %s's side: a second application would change\n%s%v", what, side, out, err)
		}
		if diff := gocmp.Diff(before, apply()); diff != "" {
			b.Errorf("%s, on the %s's side: a second application has changed objects:\n%s", what, side, diff)
		}
	}
}

// skipWithoutDiff skips the test if kubectl diff cannot run.
func skipWithoutDiff(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("diff"); err != nil {
		t.Skip("kubectl diff runs the program diff, which is missing")
	}
}

// kindsOfUsers are the kinds that users write.
var kindsOfUsers = []string{"Service", "IPAddressPool", "L2Advertisement", "BGPAdvertisement", "BGPPeer", "BFDProfile", "Community", "AddressReservation"}

// emptyFieldsManifest has the fields that can be empty objects. The API server puts defaults into
// some of them. If these do not belong to whoever applies the object, a server-side apply can
// remove them, and then refuse what is left.
const emptyFieldsManifest = `---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
spec: {}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
spec: {gantry: {}}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
spec: {}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
spec: {gantry: {}}
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
spec: {}
---
apiVersion: metallb.io/v1beta1
kind: Community
spec: {}
---
apiVersion: metallb.io/v1beta1
kind: Community
spec: {gantry: {}}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
spec: {myASN: 1, peerASN: 2, peerAddress: 192.0.2.1, gantry: {}, passwordSecret: {}}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
spec: {addresses: [192.0.2.0/28], gantry: {}, serviceAllocation: {}}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
spec: {addresses: [192.0.2.0/28], gantry: {probe: {}, quota: {}, retire: {}}}
`

// fencedYAMLPattern finds the YAML blocks of a document.
var fencedYAMLPattern = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// readExampleObjects returns the objects of the samples, of the documents and of the tests of
// manifests, with names and namespaces that make them differ.
func readExampleObjects(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	var texts []string
	for _, pattern := range []string{"config/samples/*.yaml", "test/manifests/testdata/*.yaml", "*.md", "docs/*.md"} {
		files, err := filepath.Glob(filepath.Join(RepositoryRoot(), pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no file is %s: %v", pattern, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if filepath.Ext(f) != ".md" {
				texts = append(texts, string(text))
				continue
			}
			for _, block := range fencedYAMLPattern.FindAllStringSubmatch(string(text), -1) {
				texts = append(texts, block[1])
			}
		}
	}
	texts = append(texts, emptyFieldsManifest)
	var out []*unstructured.Unstructured
	for _, text := range texts {
		for _, doc := range strings.Split("\n"+text, "\n---") {
			o := &unstructured.Unstructured{}
			// What is no object, such as a values file, is not meant.
			if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil || !slices.Contains(kindsOfUsers, o.GetKind()) {
				continue
			}
			o.SetName(fmt.Sprintf("example-%d", len(out)))
			o.SetNamespace("metallb-system")
			if o.GetKind() == "Service" {
				o.SetNamespace("default")
			}
			out = append(out, o)
		}
	}
	return out
}

// TestApplyingExamplesTwiceChangesNothing: every field that an example sets is stored as it is
// written, and the API server adds nothing to it that a comparison would find.
func TestApplyingExamplesTwiceChangesNothing(t *testing.T) {
	skipWithoutDiff(t)
	b := newPackageInstaller(t)
	accepted, kinds := []string{}, map[string]int{}
	for _, o := range readExampleObjects(t) {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		// Some examples show what is refused.
		if b.createAsDryRun(o.DeepCopy()) == nil {
			accepted = append(accepted, string(text))
			kinds[o.GetKind()]++
		}
	}
	for _, kind := range kindsOfUsers {
		if kinds[kind] == 0 {
			t.Errorf("no example is a %s: this test looks in the wrong place", kind)
		}
	}
	if len(accepted) < 150 {
		t.Errorf("the API server accepts %d examples, want at least 150: %v", len(accepted), kinds)
	}
	b.checkSecondApplicationChangesNothing("the examples", strings.Join(accepted, "---\n"))
}

// TestObjectsConvergeInAnyOrder applies the installation and what users write in one go and in
// several orders, as tools do that try again what has failed. The CRDs and the Namespace can come
// last.
func TestObjectsConvergeInAnyOrder(t *testing.T) {
	b := newPackageInstaller(t)
	var want string
	for i, order := range []string{"as rendered", "reversed", "shuffled", "shuffled again"} {
		namespace := fmt.Sprintf("order-%d", i)
		// Nothing runs here that could answer for the webhook.
		text, err := RenderHelm(t.Context(), namespace, "{webhook: {enabled: true, failurePolicy: Ignore}, podSecurity: {createNamespace: true}}")
		if err != nil {
			t.Fatal(err)
		}
		manifests := text + strings.ReplaceAll(userObjectsManifest, "metallb-system", namespace)
		objects, err := SplitObjects(manifests)
		if err != nil {
			t.Fatal(err)
		}
		switch random := rand.New(rand.NewPCG(uint64(i), 0)); order {
		case "reversed":
			slices.Reverse(objects)
		case "shuffled", "shuffled again":
			random.Shuffle(len(objects), func(a, b int) { objects[a], objects[b] = objects[b], objects[a] })
		}
		b.removeClusterObjects(objects)
		b.await("all objects, "+order, func(context.Context) error { return b.applyEach(objects) })
		stored, err := json.MarshalIndent(b.readObjects(manifests), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		got := strings.ReplaceAll(string(stored), namespace, "NAMESPACE")
		if i == 0 {
			want = got
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s: the objects differ from those that are applied in the usual order:\n%s", order, diff)
		}
	}
}

// removeClusterObjects removes those of the objects that are in no namespace. The objects of a CRD
// go with it.
func (b *packageInstaller) removeClusterObjects(objects []*unstructured.Unstructured) {
	b.Helper()
	for _, o := range objects {
		if o.GetNamespace() == "" && o.GetKind() != "Namespace" {
			b.runKubectl("", "delete", o.GetKind(), o.GetName(), "--ignore-not-found", "--timeout=5m")
		}
	}
}

// applyEach applies each object, whatever happens to the others.
func (b *packageInstaller) applyEach(objects []*unstructured.Unstructured) error {
	var problems []error
	for _, o := range objects {
		if err := b.apiClient.Apply(b.Context(), client.ApplyConfigurationFromUnstructured(o.DeepCopy()), client.FieldOwner("test"), client.ForceOwnership); err != nil {
			problems = append(problems, fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err))
		}
	}
	return errors.Join(problems...)
}

// resourceVersions returns a line for each object of the manifests, with its version.
func (b *packageInstaller) resourceVersions(manifests string) string {
	b.Helper()
	return b.runKubectl(manifests, "get", "-f", "-", "-o", `jsonpath={range .items[*]}{.kind}{" "}{.metadata.name}{" "}{.metadata.resourceVersion}{"\n"}{end}`)
}

// TestProgramsMayNotWriteWhatUsersApply: what a program adds to the spec of an object is a
// difference to what the user applied. The API server lets the programs write the status alone.
func TestProgramsMayNotWriteWhatUsersApply(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	text, err := RenderHelm(t.Context(), "metallb-system", "webhook: {enabled: true}")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := SplitObjects(text)
	if err != nil {
		t.Fatal(err)
	}
	ofUsers := []string{"services", "ipaddresspools", "l2advertisements", "bgpadvertisements", "bgppeers", "bfdprofiles", "communities", "addressreservations"}
	found := map[string]bool{}
	for _, o := range objects {
		rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
		for _, r := range rules {
			resources, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "resources")
			verbs, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "verbs")
			for _, resource := range resources {
				if !slices.Contains(ofUsers, resource) {
					continue
				}
				found[resource] = true
				for _, verb := range verbs {
					if !slices.Contains([]string{"get", "list", "watch"}, verb) {
						t.Errorf("%s %s may %s %s", o.GetKind(), o.GetName(), verb, resource)
					}
				}
			}
		}
	}
	if len(found) != len(ofUsers) {
		t.Errorf("the roles are about %v, want %v: this test looks in the wrong place", found, ofUsers)
	}
}
