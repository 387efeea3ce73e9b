package explain

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/bundle"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// newBundleExplainer returns an Explainer of a support bundle of the cluster, which was written and
// read again.
func newBundleExplainer(t *testing.T, api client.WithWatch) *Explainer {
	t.Helper()
	made, err := bundle.Collect(t.Context(), bundle.Collection{
		API: api, GantryNamespace: names.DefaultNamespace, UserNamespace: "default", Now: func() time.Time { return fakeNow }, FastestAPIAnswerDelay: func() time.Duration { return time.Millisecond },
		RightsOfProgram: func(component string) []authorizationv1.ResourceAttributes {
			return RightsOfProgram(component, names.DefaultNamespace)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := made.WriteArchive(&archive, api.Scheme()); err != nil {
		t.Fatal(err)
	}
	read, err := bundle.ReadArchive(&archive, api.Scheme())
	if err != nil {
		t.Fatal(err)
	}
	from := bundle.NewClient(read, api.Scheme(), configuration.NewOfflineRESTMapper(api.Scheme(), objects.PluginOnlyAPIGroups...))
	return NewExplainer(ExplainerOptions{ObjectReader: objects.NewReader(from, LabelsFuncByIndex), GantryNamespace: names.DefaultNamespace, Now: read.Now, FastestAPIAnswerDelay: read.FastestAPIAnswerDelay, ShowProgress: func(string) {}})
}

// expectBundleAnswersAlike answers a question from a support bundle of the cluster too, which has
// to give the same answer.
func expectBundleAnswersAlike[T any](t *testing.T, api client.WithWatch, fromCluster T, ask func(context.Context, *Explainer) (T, error)) {
	t.Helper()
	fromBundle, err := ask(t.Context(), newBundleExplainer(t, api))
	if err != nil {
		t.Errorf("the bundle gives no answer: %v", err)
		return
	}
	if diff := cmp.Diff(fromCluster, fromBundle); diff != "" {
		t.Errorf("the bundle answers otherwise than the cluster (-cluster +bundle):\n%s", diff)
	}
}

// TestBundleAnswersEveryCommandAsTheClusterDid asks everything that the commands can ask.
func TestBundleAnswersEveryCommandAsTheClusterDid(t *testing.T) {
	manifests := installationManifests + workingServiceManifests + routerManifests + webhookManifest
	for name, more := range map[string]string{"a healthy cluster": "", "a second Gantry": "apiVersion: gantry.dev/v1alpha1\nkind: SpeakerStatus\nmetadata: {name: node1, namespace: network}\n---\n", "MetalLB": metalLBManifest, "ipvs": ipvsWithoutStrictARPManifest} {
		api := clustertest.NewAPIBuilder(t, manifests+more).Build()
		for question, ask := range map[string]func(context.Context, *Explainer) (string, error){
			"status":       func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ExplainInstallation(ctx)) },
			"explain node": func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ExplainNode(ctx, "node1")) },
			"explain pool": func(ctx context.Context, e *Explainer) (string, error) {
				return printed(e.ExplainPool(ctx, "first-pool"))
			},
			"explain peer": func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ExplainPeer(ctx, "tor")) },
			"explain address": func(ctx context.Context, e *Explainer) (string, error) {
				return printed(e.ExplainAddress(ctx, "192.168.0.201"))
			},
			"explain advertisement": func(ctx context.Context, e *Explainer) (string, error) {
				return printed(e.ExplainAdvertisement(ctx, "example"))
			},
			"pools":    func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ListPools(ctx)) },
			"holders":  func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ListHolders(ctx)) },
			"peers":    func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ListPeers(ctx)) },
			"moves":    func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ListMoves(ctx)) },
			"services": func(ctx context.Context, e *Explainer) (string, error) { return printed(e.ListServices(ctx, "")) },
			"names": func(ctx context.Context, e *Explainer) (string, error) {
				return printed(e.ListNamesForCompletion(ctx, "service", "default"), nil)
			},
		} {
			t.Run(name+"/"+question, func(t *testing.T) {
				fromCluster, err := ask(t.Context(), newTestExplainer(api))
				if err != nil {
					t.Fatal(err)
				}
				expectBundleAnswersAlike(t, api, fromCluster, ask)
			})
		}
	}
}

// printed is an answer as text.
func printed[T any](answer T, err error) (string, error) { return fmt.Sprintf("%+v", answer), err }

// TestBundleOfUserWithoutRightsSaysWhatWasNotSeen has a bundle of a user who may read little.
func TestBundleOfUserWithoutRightsSaysWhatWasNotSeen(t *testing.T) {
	api := newAPIRefusingLists(t, installationManifests+workingServiceManifests, refuseKindsExcept("Service", "Node", "Namespace"))
	fromCluster, err := newTestExplainer(api).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	fromBundle, err := newBundleExplainer(t, api).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
	if err != nil || fromBundle.AnswerWithReason() != fromCluster.AnswerWithReason() || len(fromBundle.MissingRights) == 0 {
		t.Errorf("%v: the bundle says %+v, the cluster %+v", err, fromBundle, fromCluster)
	}
}
