package probe

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// newProbeAPI returns an API server in memory. It calls onCreate before it stores an AddressProbe,
// as a speaker or the API server itself may change it.
func newProbeAPI(t *testing.T, onCreate func(*v1alpha1.AddressProbe) error) client.WithWatch {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if err := onCreate(o.(*v1alpha1.AddressProbe)); err != nil {
				return err
			}
			return c.Create(ctx, o, opts...)
		},
	}).Build()
}

// TestSpeakerOfNodeIsAskedByAddressProbe has each way in which the question ends. The AddressProbe
// is always deleted.
func TestSpeakerOfNodeIsAskedByAddressProbe(t *testing.T) {
	answered := func(s v1alpha1.AddressProbeStatus) func(*v1alpha1.AddressProbe) error {
		return func(p *v1alpha1.AddressProbe) error {
			if p.Status = s; s.Node == "" {
				p.Status.Node = "node2"
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		onCreate func(*v1alpha1.AddressProbe) error
		want     NodeAnswer
		wantErr  string
	}{
		"two hosts answer":         {answered(v1alpha1.AddressProbeStatus{Outcome: v1alpha1.ProbeOutcomeAnswered, By: holderMAC + ", " + otherMAC}), NodeAnswer{Outcome: NodeOutcomeAnswered, MACs: []string{holderMAC, otherMAC}}, ""},
		"no host answers":          {answered(v1alpha1.AddressProbeStatus{Outcome: v1alpha1.ProbeOutcomeSilent}), NodeAnswer{Outcome: NodeOutcomeSilent}, ""},
		"no link":                  {answered(v1alpha1.AddressProbeStatus{Outcome: v1alpha1.ProbeOutcomeNotSent}), NodeAnswer{Outcome: NodeOutcomeNotSent}, ""},
		"another speaker answers":  {answered(v1alpha1.AddressProbeStatus{Outcome: v1alpha1.ProbeOutcomeSilent, Node: "node3"}), NodeAnswer{Outcome: NodeOutcomeOldSpeaker, Detail: "the speaker of node3 answered in its place, as one of an older version does"}, ""},
		"the speaker says nothing": {answered(v1alpha1.AddressProbeStatus{}), NodeAnswer{Outcome: NodeOutcomeNoSpeaker, Detail: "its speaker did not answer within 10ms"}, ""},
		"the CRD knows no node":    {func(p *v1alpha1.AddressProbe) error { p.Spec.Node = ""; return nil }, NodeAnswer{}, "older than this program"},
		"the user may not ask": {func(*v1alpha1.AddressProbe) error {
			return apierrors.NewForbidden(schema.GroupResource{}, "", fmt.Errorf("no"))
		}, NodeAnswer{Outcome: NodeOutcomeNotAsked, Detail: "you have no right to create addressprobes.gantry.dev in namespace metallb-system"}, ""},
		"the API server is not well": {func(*v1alpha1.AddressProbe) error { return apierrors.NewInternalError(fmt.Errorf("no")) }, NodeAnswer{}, "creating an AddressProbe"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked v1alpha1.AddressProbeSpec
			api := newProbeAPI(t, func(p *v1alpha1.AddressProbe) error { asked = p.Spec; return c.onCreate(p) })
			asker := &NodeAsker{API: api, GantryNamespace: names.DefaultNamespace, AnswerTimeout: 10 * time.Millisecond}
			got, err := asker.AskNode(t.Context(), "node2", client.ObjectKey{Namespace: "shop", Name: "web"}, netip.MustParseAddr("192.0.2.10"))
			if (err == nil) != (c.wantErr == "") || err != nil && !strings.Contains(err.Error(), c.wantErr) || !reflect.DeepEqual(got, c.want) {
				t.Errorf("it answers %+v, %v, want %+v, %q", got, err, c.want, c.wantErr)
			}
			if want := (v1alpha1.AddressProbeSpec{Address: "192.0.2.10", Node: "node2", Service: v1alpha1.ServiceReference{Namespace: "shop", Name: "web"}}); asked != want {
				t.Errorf("it asks %+v, want %+v", asked, want)
			}
			var left v1alpha1.AddressProbeList
			if err := api.List(t.Context(), &left); err != nil || len(left.Items) > 0 {
				t.Errorf("AddressProbes are left: %v, %v", left.Items, err)
			}
		})
	}
}
