package manifests

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/status"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// speakerTokenTester is an API server with the speakers of two nodes.
type speakerTokenTester struct {
	*testing.T
	adminConfig *rest.Config
	admin       client.Client
	// The speakers on the two nodes, with their tokens.
	victimNode, thiefNode string
	victim, thief         client.Client
}

// newSpeakerTokenTester makes the speakers of two nodes whose names begin with the prefix.
func newSpeakerTokenTester(t *testing.T, admin *rest.Config, prefix string) *speakerTokenTester {
	t.Helper()
	h := &speakerTokenTester{T: t, adminConfig: admin, victimNode: prefix + "-victim", thiefNode: prefix + "-thief"}
	h.admin = h.newClient(admin)
	h.victim = h.newClient(apiserver.CreateSpeakerPodAndToken(t, admin, h.victimNode))
	h.thief = h.newClient(apiserver.CreateSpeakerPodAndToken(t, admin, h.thiefNode))
	return h
}

func (h *speakerTokenTester) newClient(config *rest.Config) client.Client {
	h.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		h.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		h.Fatal(err)
	}
	return c
}

// speakerObjectKind is a kind of which each speaker writes objects.
type speakerObjectKind struct {
	// newObject returns an object of the node, as its speaker creates it.
	newObject func(node string) client.Object
	// statusPatch is the status that the speaker of the node writes.
	statusPatch func(node string) string
}

// speakerObjectKinds are all kinds that speakers create.
func speakerObjectKinds() map[string]speakerObjectKind {
	meta := func(name, label, node string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: name, Labels: map[string]string{label: node}}
	}
	serviceStatus := func(node string) string {
		return fmt.Sprintf(`{"status":{"node":%q,"serviceName":"web","serviceNamespace":"default"}}`, node)
	}
	return map[string]speakerObjectKind{
		"ConfigurationState": {
			func(node string) client.Object {
				return &v1beta1.ConfigurationState{ObjectMeta: meta("speaker-"+node, names.LabelConfigurationStateNode, node)}
			},
			func(string) string { return `{"status":{"result":"Valid"}}` },
		},
		"ServiceL2Status": {
			func(node string) client.Object {
				return &v1beta1.ServiceL2Status{ObjectMeta: meta("default.web."+node, names.LabelServiceStatusNode, node)}
			}, serviceStatus,
		},
		"ServiceBGPStatus": {
			func(node string) client.Object {
				return &v1beta1.ServiceBGPStatus{ObjectMeta: meta("default.web."+node, names.LabelServiceStatusNode, node)}
			}, serviceStatus,
		},
		"BGPSession": {
			func(node string) client.Object {
				return &v1alpha1.BGPSession{ObjectMeta: meta(status.BGPSessionName(node, "tor.example.com"), names.LabelServiceStatusNode, node)}
			},
			func(node string) string {
				return fmt.Sprintf(`{"status":{"node":%q,"peer":"tor.example.com","state":"Established","prefixes":3}}`, node)
			},
		},
		"SpeakerStatus": {
			func(node string) client.Object {
				return &v1alpha1.SpeakerStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: node}}
			},
			func(node string) string { return fmt.Sprintf(`{"status":{"node":%q,"held":7,"version":"v9"}}`, node) },
		},
	}
}

// writeStatus patches the status of an object.
func (h *speakerTokenTester) writeStatus(c client.Client, o client.Object, patch string) error {
	return c.Status().Patch(h.Context(), o.DeepCopyObject().(client.Object), client.RawPatch(types.MergePatchType, []byte(patch)))
}

// applyLabels writes the labels of an object by server-side apply.
func (h *speakerTokenTester) applyLabels(c client.Client, o client.Object, labels map[string]string) error {
	u := h.newApplyConfiguration(o)
	u.SetLabels(labels)
	return c.Apply(h.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(names.SpeakerEventSource), client.ForceOwnership)
}

// checkRefused checks that a write was refused by a right, by a policy or by a rule of the CRD.
func (h *speakerTokenTester) checkRefused(what string, err error) {
	h.Helper()
	if !apierrors.IsForbidden(err) && !(apierrors.IsInvalid(err) && strings.Contains(err.Error(), "node cannot be changed")) {
		h.Errorf("%s: got the error %v, want that it is forbidden", what, err)
	}
}

// checkAccepted checks that a write was accepted.
func (h *speakerTokenTester) checkAccepted(what string, err error) {
	h.Helper()
	if err != nil {
		h.Errorf("%s: %v", what, err)
	}
}

// TestStolenSpeakerToken tries what the token of one node can do to the other nodes.
func TestStolenSpeakerToken(t *testing.T) {
	admin := apiserver.StartUntilTestEnds(t)
	for name, test := range map[string]func(*testing.T, *rest.Config){
		"writes no object of another node":                      testStolenSpeakerTokenWritesNoObjectOfAnotherNode,
		"deletes only what says that a node announces Services": testSpeakersDeleteOnlyWhatAnnouncesServicesOfDeadNodes,
		"marks dead speakers in its own name":                   testSpeakersMarkDeadSpeakersInTheirOwnName,
		"answers AddressProbes in its own name":                 testSpeakersAnswerAddressProbesInTheirOwnName,
		"writes only its own events":                            testSpeakersWriteOnlyTheirOwnEvents,
		"writes nothing if it names no node":                    testSpeakerTokenWithoutNodeWritesNothing,
	} {
		t.Run(name, func(t *testing.T) { test(t, admin) })
	}
}

// A speaker writes the objects of its own node. With the token of another node, none of these
// objects can be created, changed or taken over.
func testStolenSpeakerTokenWritesNoObjectOfAnotherNode(t *testing.T, admin *rest.Config) {
	h := newSpeakerTokenTester(t, admin, "objects")
	for kind, k := range speakerObjectKinds() {
		own, victims := k.newObject(h.thiefNode), k.newObject(h.victimNode)
		h.checkRefused(kind+": creating an object of another node", h.thief.Create(t.Context(), victims.DeepCopyObject().(client.Object)))
		if kind != "SpeakerStatus" { // its name is the node
			squatted := k.newObject(h.thiefNode)
			squatted.SetName(victims.GetName())
			h.checkRefused(kind+": taking the name of an object of another node", h.thief.Create(t.Context(), squatted))
		}
		h.checkAccepted(kind+": creating the object of the own node", h.victim.Create(t.Context(), victims))
		h.checkAccepted(kind+": writing the status of the own node", h.writeStatus(h.victim, victims, k.statusPatch(h.victimNode)))
		h.checkAccepted(kind+": writing the status of the own node again", h.writeStatus(h.victim, victims, k.statusPatch(h.victimNode)))
		h.checkAccepted(kind+": creating the other object", h.thief.Create(t.Context(), own))

		before := h.read(victims)
		h.checkRefused(kind+": writing the status of another node", h.writeStatus(h.thief, victims, k.statusPatch(h.victimNode)))
		h.checkRefused(kind+": writing the own status into the object of another node", h.writeStatus(h.thief, victims, k.statusPatch(h.thiefNode)))
		h.checkRefused(kind+": emptying the status of another node", h.writeStatus(h.thief, victims, `{"status":null}`))
		h.checkRefused(kind+": labelling the object of another node", h.applyLabels(h.thief, victims, map[string]string{"a": "b"}))
		h.checkRefused(kind+": taking over the object of another node", h.applyLabels(h.thief, victims, own.GetLabels()))
		if kind != "SpeakerStatus" {
			h.checkRefused(kind+": giving the own object to another node", h.applyLabels(h.thief, own, victims.GetLabels()))
		}
		if kind != "ConfigurationState" { // its status does not name the node
			h.checkRefused(kind+": writing the status of another node into the own object", h.writeStatus(h.thief, own, k.statusPatch(h.victimNode)))
		}
		if after := h.read(victims); after.GetResourceVersion() != before.GetResourceVersion() {
			t.Errorf("%s: the object of another node was changed", kind)
		}
	}
	controllers := &v1beta1.ConfigurationState{ObjectMeta: metav1.ObjectMeta{
		Namespace: names.DefaultNamespace, Name: "controller", Labels: map[string]string{names.LabelConfigurationStateComponent: names.ComponentController},
	}}
	h.checkAccepted("the ConfigurationState of the controller", h.admin.Create(t.Context(), controllers))
	h.checkRefused("writing the status of the controller", h.writeStatus(h.thief, controllers, `{"status":{"result":"Invalid"}}`))
	h.checkRefused("writing that the controller is dead", h.writeStatus(h.thief, controllers, `{"status":{"result":"Unknown"}}`))
}

// What one speaker deletes of another one: the holder of an address removes the ServiceL2Status of
// the node that held it before, and the ServiceBGPStatus of a node that died. Nothing else.
func testSpeakersDeleteOnlyWhatAnnouncesServicesOfDeadNodes(t *testing.T, admin *rest.Config) {
	h := newSpeakerTokenTester(t, admin, "deletion")
	for kind, k := range speakerObjectKinds() {
		o := k.newObject(h.victimNode)
		h.checkAccepted(kind+": creating it", h.victim.Create(t.Context(), o))
		h.checkRefused(kind+": deleting all at once", h.thief.DeleteAllOf(t.Context(), k.newObject(h.victimNode), client.InNamespace(names.DefaultNamespace)))
		err := h.thief.Delete(t.Context(), o)
		if kind == "ServiceL2Status" || kind == "ServiceBGPStatus" {
			h.checkAccepted(kind+": deleting that of another node", err)
		} else {
			h.checkRefused(kind+": deleting that of another node", err)
		}
	}
	session := speakerObjectKinds()["BGPSession"].newObject(h.victimNode)
	h.checkAccepted("BGPSession: deleting that of the own node", h.victim.Delete(t.Context(), session))
}

// A speaker may write of another one that it is dead, in its own name, and nothing more.
func testSpeakersMarkDeadSpeakersInTheirOwnName(t *testing.T, admin *rest.Config) {
	h := newSpeakerTokenTester(t, admin, "mark")
	kinds := speakerObjectKinds()
	for _, kind := range []string{"ConfigurationState", "BGPSession", "SpeakerStatus"} {
		o := kinds[kind].newObject(h.victimNode)
		h.checkAccepted(kind+": creating it", h.victim.Create(t.Context(), o))
		h.checkAccepted(kind+": writing its status", h.writeStatus(h.victim, o, kinds[kind].statusPatch(h.victimNode)))
		mark := func(conditionType, state, writer, more string) string {
			return fmt.Sprintf(`{"status":{%s%s"conditions":[{"type":%q,"status":%q,"reason":"NoSpeaker","message":%q,"lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`,
				more, map[string]string{"ConfigurationState": `"result":"Unknown",`, "BGPSession": `"state":"Unknown","prefixes":0,`, "SpeakerStatus": `"held":0,"routes":0,`}[kind],
				conditionType, state, status.DeadSpeakerText(h.victimNode, writer))
		}
		forgery := map[string]string{"ConfigurationState": `"errorSummary":"x",`, "BGPSession": `"lastError":"x",`, "SpeakerStatus": `"version":"v666",`}[kind]
		for what, patch := range map[string]string{
			"in the name of another node": mark("gantry.dev/Ready", "False", h.victimNode, ""),
			"that it is alive":            mark("gantry.dev/Ready", "True", h.thiefNode, ""),
			"with more":                   mark("gantry.dev/Ready", "False", h.thiefNode, forgery),
		} {
			h.checkRefused(kind+": marking it "+what, h.writeStatus(h.thief, o, patch))
		}
	}
	text := status.DeadSpeakerText(h.victimNode, h.thiefNode)
	state := configuration.StateWriter{ReportingComponent: names.ComponentSpeaker, Node: h.victimNode, Namespace: names.DefaultNamespace}
	h.checkAccepted("ConfigurationState: marking it", state.WriteUnknownStateOfDeadSpeaker(t.Context(), h.thief, h.thief, text))

	session := h.read(kinds["BGPSession"].newObject(h.victimNode)).(*v1alpha1.BGPSession)
	base := session.DeepCopy()
	session.Status = status.SessionStatusOfDeadSpeaker(session.Status, text, time.Now())
	h.checkAccepted("BGPSession: marking it", h.thief.Status().Patch(t.Context(), session, client.MergeFrom(base)))

	speaker := h.read(kinds["SpeakerStatus"].newObject(h.victimNode)).(*v1alpha1.SpeakerStatus)
	speaker.Status = status.DeadSpeakerStatus(h.victimNode, h.thiefNode, time.Now())
	u := h.newApplyConfiguration(speaker)
	u.Object["status"] = map[string]any{"held": int64(0), "routes": int64(0), "conditions": []any{map[string]any{
		"type": names.ConditionSpeakerReady, "status": "False", "reason": string(names.ReasonNoSpeaker), "message": text, "lastTransitionTime": "2026-01-01T00:00:00Z",
	}}}
	h.checkAccepted("SpeakerStatus: marking it", h.thief.Status().Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("witness"), client.ForceOwnership))
	if s := h.read(speaker).(*v1alpha1.SpeakerStatus); !s.Status.WasFoundDead() || s.Status.Version != "v9" {
		t.Errorf("the status of the dead speaker is %+v", s.Status)
	}
	h.checkAccepted("SpeakerStatus: correcting it", h.writeStatus(h.victim, speaker, `{"status":{"conditions":[]}}`))
}

// A speaker answers an AddressProbe once, and in its own name.
func testSpeakersAnswerAddressProbesInTheirOwnName(t *testing.T, admin *rest.Config) {
	h := newSpeakerTokenTester(t, admin, "probe")
	p := &v1alpha1.AddressProbe{Spec: v1alpha1.AddressProbeSpec{Address: "192.0.2.1", Service: v1alpha1.ServiceReference{Namespace: "default", Name: "web"}}}
	p.Namespace, p.Name = names.DefaultNamespace, "a"
	h.checkAccepted("creating an AddressProbe", h.admin.Create(t.Context(), p))
	addNode := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"node":"node1"}}`))
	h.checkRefused("adding a node to the question", h.admin.Patch(t.Context(), p.DeepCopy(), addNode))
	answer := func(node, outcome string) string {
		return fmt.Sprintf(`{"status":{"outcome":%q,"node":%q}}`, outcome, node)
	}
	h.checkRefused("answering in the name of another node", h.writeStatus(h.thief, p, answer(h.victimNode, "Answered")))
	h.checkRefused("answering in no name", h.writeStatus(h.thief, p, `{"status":{"outcome":"Answered"}}`))
	h.checkAccepted("answering", h.writeStatus(h.victim, p, answer(h.victimNode, "Silent")))
	h.checkRefused("changing an answer", h.writeStatus(h.thief, p, answer(h.thiefNode, "Answered")))
}

// Events of speakers are about Services and the own node. Events of other programs stay as they
// are.
func testSpeakersWriteOnlyTheirOwnEvents(t *testing.T, admin *rest.Config) {
	h := newSpeakerTokenTester(t, admin, "events")
	event := func(name, controller string, regarding corev1.ObjectReference) *eventsv1.Event {
		e := &eventsv1.Event{
			EventTime: metav1.NowMicro(), ReportingController: controller, ReportingInstance: controller + "-x", Action: "Announce", Reason: "nodeAssigned", Type: "Normal", Regarding: regarding,
		}
		e.Namespace, e.Name = "default", name
		return e
	}
	service := corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: "default", Name: "web"}
	node := func(name string) corev1.ObjectReference {
		return corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name}
	}
	h.checkAccepted("an event about a Service", h.thief.Create(t.Context(), event("a", names.SpeakerEventSource, service)))
	h.checkAccepted("an event about the own node", h.thief.Create(t.Context(), event("b", names.SpeakerEventSource, node(h.thiefNode))))
	h.checkRefused("an event about another node", h.thief.Create(t.Context(), event("c", names.SpeakerEventSource, node(h.victimNode))))
	h.checkRefused("an event of another program", h.thief.Create(t.Context(), event("d", "kubelet", service)))
	kubelets := event("e", "kubelet", node(h.victimNode))
	h.checkAccepted("an event of the kubelet", h.admin.Create(t.Context(), kubelets))
	series := client.RawPatch(types.MergePatchType, []byte(`{"series":{"count":2,"lastObservedTime":"2026-01-01T00:00:00.000000Z"}}`))
	h.checkRefused("repeating the event of another program", h.thief.Patch(t.Context(), kubelets.DeepCopy(), series))
	h.checkAccepted("repeating an own event", h.thief.Patch(t.Context(), event("a", names.SpeakerEventSource, service), series))
}

// A token that is not that of a Pod names no node. It writes nothing, so a copy that lives longer
// than a Pod is of no use.
func testSpeakerTokenWithoutNodeWritesNothing(t *testing.T, admin *rest.Config) {
	h := newSpeakerTokenTester(t, admin, "unbound")
	c := h.newClient(apiserver.CreateSpeakerToken(t, h.adminConfig, nil))
	for kind, k := range speakerObjectKinds() {
		h.checkRefused(kind, c.Create(t.Context(), k.newObject(h.victimNode)))
	}
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name = names.DefaultNamespace, "gantry-speaker-"+h.thiefNode
	if err := h.admin.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	// The API server remembers for some seconds that a token was valid.
	ctx, cancel := context.WithTimeout(t.Context(), awaitTimeout)
	defer cancel()
	own := speakerObjectKinds()["SpeakerStatus"].newObject(h.thiefNode)
	for err := h.thief.Create(ctx, own, client.DryRunAll); !apierrors.IsUnauthorized(err); err = h.thief.Create(ctx, own, client.DryRunAll) {
		if ctx.Err() != nil {
			t.Fatalf("the token of a deleted Pod: got the error %v, want Unauthorized", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// read returns an object as it is now.
func (h *speakerTokenTester) read(o client.Object) client.Object {
	h.Helper()
	now := o.DeepCopyObject().(client.Object)
	if err := h.admin.Get(h.Context(), client.ObjectKeyFromObject(o), now); err != nil {
		h.Fatal(err)
	}
	return now
}

// newApplyConfiguration returns what identifies an object, for server-side apply.
func (h *speakerTokenTester) newApplyConfiguration(o client.Object) *unstructured.Unstructured {
	h.Helper()
	kind, err := h.admin.GroupVersionKindFor(o)
	if err != nil {
		h.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kind)
	u.SetNamespace(o.GetNamespace())
	u.SetName(o.GetName())
	return u
}
