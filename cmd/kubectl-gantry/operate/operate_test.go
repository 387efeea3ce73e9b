package operate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// clusterManifests are a node that answers for the address of Service default/web, and whose router
// has a route.
const clusterManifests = `
apiVersion: v1
kind: Node
metadata: {name: node1}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
---
apiVersion: gantry.dev/v1alpha1
kind: SpeakerStatus
metadata: {name: node1, namespace: metallb-system}
status: {node: node1, held: 1}
---
apiVersion: gantry.dev/v1alpha1
kind: BGPSession
metadata: {name: tor.node1, namespace: metallb-system}
status: {node: node1, peer: tor, prefixes: 1}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: office, namespace: metallb-system, generation: 2}
spec: {addresses: [192.0.2.0/29]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, annotations: {gantry.dev/release-address: "192.0.2.9, 192.0.2.2"}}
spec: {type: LoadBalancer, clusterIPs: [10.96.0.1]}
status:
  loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2}]}
  conditions:
  - {type: gantry.dev/AddressAssigned, status: "True", reason: AddressRetired, message: pool office retires 192.0.2.1, lastTransitionTime: "2026-03-01T11:00:00Z"}
---
apiVersion: metallb.io/v1beta1
kind: ServiceL2Status
metadata: {name: web.node1, namespace: metallb-system, labels: {metallb.io/node: node1, metallb.io/service-name: web, metallb.io/service-namespace: default}}
status: {node: node1, serviceName: web, serviceNamespace: default, gantry: {addresses: [192.0.2.1, 192.0.2.2]}}
`

// newTestOperator returns an Operator of a cluster in memory, after replacements in its manifests.
func newTestOperator(t *testing.T, replacements ...string) *Operator {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	builder := fake.NewClientBuilder().WithScheme(scheme)
	for _, part := range strings.Split(strings.NewReplacer(replacements...).Replace(clusterManifests), "\n---\n") {
		o, _, err := decoder.Decode([]byte(part), nil, nil)
		if err != nil {
			t.Fatalf("%v:\n%s", err, part)
		}
		builder = builder.WithObjects(o.(client.Object))
	}
	return &Operator{API: builder.Build(), GantryNamespace: names.DefaultNamespace}
}

// prepareFunc makes the Operation of a test.
type prepareFunc func(context.Context, *Operator) (*Operation, error)

func drainNode1(ctx context.Context, o *Operator) (*Operation, error) {
	return o.DrainNode(ctx, "node1")
}

func undrainNode1(ctx context.Context, o *Operator) (*Operation, error) {
	return o.UndrainNode(ctx, "node1")
}

func moveWebToNode2(ctx context.Context, o *Operator) (*Operation, error) {
	return o.MoveService(ctx, client.ObjectKey{Namespace: "default", Name: "web"}, "node2")
}

func releaseFirstAddress(ctx context.Context, o *Operator) (*Operation, error) {
	return o.ReleaseAddress(ctx, netip.MustParseAddr("192.0.2.1"))
}

func retireOffice(ctx context.Context, o *Operator) (*Operation, error) {
	return o.RetirePool(ctx, "office", RetirementSettings{Addresses: []string{"192.0.2.0/31"}, ServicesPerMinute: 10})
}

// isLeaving are the replacements for a speaker that has seen the drain.
var isLeaving = []string{"held: 1", "held: 0, unavailable: NodeLeaving"}

// noReport are the replacements for a node whose speaker reports nothing in this namespace.
var noReport = []string{"metadata: {name: node1, namespace: metallb-system}", "metadata: {name: node1, namespace: elsewhere}"}

const speakerPodOnNode1 = `apiVersion: v1
kind: Pod
metadata: {name: gantry-speaker-1, namespace: gantry-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: speaker}}
spec: {nodeName: node1, containers: [{name: speaker}]}`

// onlyRoutes are the replacements for a Service that is announced by BGP alone, and by nobody after
// the drain.
var onlyRoutes = []string{
	"kind: ServiceL2Status", "kind: ServiceBGPStatus", "gantry: {addresses: [192.0.2.1, 192.0.2.2]}", "peers: [tor]", "prefixes: 1", "prefixes: 0",
	"type: gantry.dev/AddressAssigned, status: \"True\", reason: AddressRetired", "type: gantry.dev/Announced, status: \"False\", reason: NodeLeaving",
}

func TestProgressOfOperations(t *testing.T) {
	const retired = "status: {gantry: {retire: {servicesLeft: %, servicesWithoutOtherAddress: 1}, conditions: [{type: gantry.dev/Retired, status: \"False\", reason: Retiring, message: \"\", observedGeneration: 2, lastTransitionTime: \"2026-03-01T11:00:00Z\"}]}}"
	withRetirement := func(left string) []string {
		return []string{"spec: {addresses: [192.0.2.0/29]}", "spec: {addresses: [192.0.2.0/29]}\n" + strings.Replace(retired, "%", left, 1)}
	}
	for name, tc := range map[string]struct {
		prepare      prepareFunc
		replacements []string
		wantDone     bool
		wantText     string
		wantLeft     []string
	}{
		"a drain that the speaker has not seen": {drainNode1, nil, false, "has not seen it yet", []string{"the speaker does not say"}},
		"a drain that has begun":                {drainNode1, isLeaving, false, "still answers for 2 addresses, and 1 routers", []string{"still answers for 192.0.2.1", "still answers for 192.0.2.2", "the router tor still has routes"}},
		"a drain that is done, with a Service that nobody announces": {drainNode1, append(slices.Clone(isLeaving), "addresses: [192.0.2.1, 192.0.2.2]", "addresses: []", "prefixes: 1", "prefixes: 0",
			"type: gantry.dev/AddressAssigned, status: \"True\", reason: AddressRetired", "type: gantry.dev/Announced, status: \"False\", reason: NodeLeaving"), true, "announces nothing any more", []string{"Service default/web is not announced: pool office retires 192.0.2.1 (NodeLeaving)"}},
		"a drain of a node without a speaker":                       {drainNode1, noReport, true, "no speaker runs on node1", nil},
		"a drain while a speaker runs that reports nothing here":    {drainNode1, append(slices.Clone(noReport), "metadata: {name: node2}", "metadata: {name: node2}\n---\n"+speakerPodOnNode1), false, "says nothing", []string{"the speaker Pod gantry-system/gantry-speaker-1"}},
		"a drain that is done, with a Service that had only routes": {drainNode1, append(slices.Clone(isLeaving), onlyRoutes...), true, "announces nothing any more", []string{"Service default/web is not announced: pool office retires 192.0.2.1 (NodeLeaving)"}},
		"the end of a drain":                                        {undrainNode1, nil, true, "may announce again", nil},
		"the end of a drain while a taint remains":                  {undrainNode1, append(slices.Clone(isLeaving), "metadata: {name: node1}\n", "metadata: {name: node1}\nspec: {taints: [{key: node.kubernetes.io/out-of-service, effect: NoExecute}]}\n"), true, "is still leaving", []string{"node.kubernetes.io/out-of-service"}},
		"a move that has not happened":                              {moveWebToNode2, nil, false, "192.0.2.1 is on node1, 192.0.2.2 is on node1", []string{"192.0.2.1 is on node1", "192.0.2.2 is on node1"}},
		"a move that is done":                                       {moveWebToNode2, []string{"status: {node: node1, serviceName", "status: {node: node2, serviceName"}, true, "192.0.2.1 is on node2", nil},
		"a release that waits":                                      {releaseFirstAddress, nil, false, "1 Services have 192.0.2.1", []string{"Service default/web keeps it: pool office retires 192.0.2.1 (AddressRetired)"}},
		"a retirement that the controller waits for":                {retireOffice, nil, false, "has not seen it yet", []string{"the controller does not report"}},
		"a retirement that goes on":                                 {retireOffice, withRetirement("3"), false, "3 Services have retired addresses; 1 of them", []string{"Service default/web keeps it"}},
		"a retirement that is stuck":                                {retireOffice, withRetirement("1"), true, "1 Services have retired addresses; 1 of them", []string{"Service default/web keeps it"}},
		"a retirement that is done":                                 {retireOffice, withRetirement("0"), true, "no Service has a retired address", nil},
	} {
		t.Run(name, func(t *testing.T) {
			op, err := tc.prepare(t.Context(), newTestOperator(t, tc.replacements...))
			if err != nil {
				t.Fatal(err)
			}
			p, err := op.ReadProgress(t.Context())
			if err != nil || p.IsDone != tc.wantDone || !strings.Contains(p.Text, tc.wantText) || len(p.Left) != len(tc.wantLeft) {
				t.Fatalf("%v, %+v, want %t, %q, %q", err, p, tc.wantDone, tc.wantText, tc.wantLeft)
			}
			for i := range p.Left {
				if !strings.Contains(p.Left[i], tc.wantLeft[i]) {
					t.Errorf("left is %q, want %q", p.Left[i], tc.wantLeft[i])
				}
			}
		})
	}
}

func TestChangesAreTheDocumentedAnnotationsAndFields(t *testing.T) {
	o := newTestOperator(t)
	for _, prepare := range []prepareFunc{drainNode1, moveWebToNode2, releaseFirstAddress, retireOffice} {
		op, err := prepare(t.Context(), o)
		if err == nil {
			err = o.ApplyChanges(t.Context(), op)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var node corev1.Node
	var service corev1.Service
	var pool v1beta1.IPAddressPool
	for into, key := range map[client.Object]client.ObjectKey{&node: {Name: "node1"}, &service: {Namespace: "default", Name: "web"}, &pool: {Namespace: names.DefaultNamespace, Name: "office"}} {
		if err := o.API.Get(t.Context(), key, into); err != nil {
			t.Fatal(err)
		}
	}
	if value, isSet := node.Annotations[names.AnnotationDrainNode]; !isSet || value != "" {
		t.Errorf("the node has %v", node.Annotations)
	}
	// 192.0.2.9, which the Service does not have any more, is dropped.
	if a := service.Annotations; a[names.AnnotationRequestedHolder] != "node2" || a[names.AnnotationAddressesToExchange] != "192.0.2.2, 192.0.2.1" {
		t.Errorf("the Service has %v", a)
	}
	if r := pool.Spec.Gantry.Retire; !slices.Equal(r.Addresses, []string{"192.0.2.0/31"}) || r.ServicesPerMinute != 10 {
		t.Errorf("the pool retires %+v", r)
	}
	op, err := o.RetirePool(t.Context(), "office", RetirementSettings{})
	if err == nil {
		err = o.ApplyChanges(t.Context(), op)
	}
	whole := &v1beta1.IPAddressPool{}
	if err == nil {
		err = o.API.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "office"}, whole)
	}
	if err != nil || whole.Spec.Gantry.Retire == nil || len(whole.Spec.Gantry.Retire.Addresses) > 0 {
		t.Errorf("%v: the whole pool is to be retired, and it has %+v", err, whole.Spec.Gantry)
	}
	op, err = undrainNode1(t.Context(), o)
	if err == nil {
		err = o.ApplyChanges(t.Context(), op)
	}
	if err == nil {
		err = o.API.Get(t.Context(), client.ObjectKey{Name: "node1"}, &node)
	}
	if _, isSet := node.Annotations[names.AnnotationDrainNode]; isSet || err != nil {
		t.Errorf("%v: the node still has %v", err, node.Annotations)
	}
}

// TestApplyingChangesRefusesAnObjectThatChanged changes the Service between the answer and the
// change.
func TestApplyingChangesRefusesAnObjectThatChanged(t *testing.T) {
	o := newTestOperator(t)
	op, err := releaseFirstAddress(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	moved, err := moveWebToNode2(t.Context(), o)
	if err == nil {
		err = o.ApplyChanges(t.Context(), moved)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := o.ApplyChanges(t.Context(), op); err == nil {
		t.Error("a change of an object that somebody else changed meanwhile is made")
	}
}

func TestAwaitingEndsWhenDoneOrAtTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		readings := 0
		op := &Operation{ReadProgress: func(context.Context) (Progress, error) {
			readings++
			return Progress{IsDone: readings > 3, Text: map[bool]string{false: "begins", true: "is done"}[readings > 3]}, nil
		}}
		var shown []string
		p, err := op.AwaitDone(t.Context(), time.Minute, func(text string) { shown = append(shown, text) })
		if err != nil || !p.IsDone || !slices.Equal(shown, []string{"begins", "is done"}) {
			t.Errorf("%v, %+v, shown %q", err, p, shown)
		}
		readings = -1000
		if p, err := op.AwaitDone(t.Context(), time.Minute, func(string) {}); err != nil || p.IsDone {
			t.Errorf("at the timeout: %v, %+v", err, p)
		}
	})
}

// TestAwaitingSurvivesReadingsThatFail has an API server that restarts, and refuses in the end.
func TestAwaitingSurvivesReadingsThatFail(t *testing.T) {
	tooMany, forbidden := apierrors.NewTooManyRequests("later", 1), apierrors.NewForbidden(corev1.Resource("nodes"), "node1", nil)
	for name, tc := range map[string]struct {
		failure    error
		failsFrom  int
		failsUntil int
		wantError  error
		wantText   string
	}{
		"too many requests":        {tooMany, 2, 5, nil, "is done"},
		"an error of the server":   {apierrors.NewInternalError(errors.New("etcd")), 1, 5, nil, "is done"},
		"a time-out":               {fmt.Errorf("reading: %w", os.ErrDeadlineExceeded), 2, 5, nil, "is done"},
		"a refused connection":     {fmt.Errorf("reading: %w", syscall.ECONNREFUSED), 2, 5, nil, "is done"},
		"no answer until the end":  {tooMany, 2, 1000, tooMany, "begins"},
		"a right that was removed": {forbidden, 2, 5, forbidden, "begins"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				readings := 0
				op := &Operation{ReadProgress: func(context.Context) (Progress, error) {
					if readings++; readings >= tc.failsFrom && readings < tc.failsUntil {
						return Progress{}, tc.failure
					}
					return Progress{IsDone: readings > 3, Text: map[bool]string{false: "begins", true: "is done"}[readings > 3]}, nil
				}}
				p, err := op.AwaitDone(t.Context(), time.Minute, func(string) {})
				if !errors.Is(err, tc.wantError) || p.Text != tc.wantText {
					t.Errorf("it says %v, %+v, want %v, %q", err, p, tc.wantError, tc.wantText)
				}
			})
		})
	}
}
