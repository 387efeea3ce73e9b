package announcedcondition

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

// createDualStackService creates the Service dual with an address of each family. The IPv6 address
// is in the pool six. The peer tor carries both families.
func (h *conditionWriterHarness) createDualStackService(endpoints ...discoveryv1.AddressType) {
	h.t.Helper()
	h.createObject(&v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "six"}, Spec: v1beta1.IPAddressPoolSpec{Addresses: []string{"2001:db8::/124"}}})
	var tor v1beta2.BGPPeer
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "tor"}, &tor); err != nil {
		h.t.Fatal(err)
	}
	tor.Spec.DualStackAddressFamily = true
	if err := h.api.Update(h.t.Context(), &tor); err != nil {
		h.t.Fatal(err)
	}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "dual"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.5"}, {IP: "2001:db8::5"}}
	h.createObject(s)
	node := "node1"
	for _, family := range endpoints {
		h.createObject(&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "dual-" + strings.ToLower(string(family)), Labels: map[string]string{discoveryv1.LabelServiceName: "dual"}},
			AddressType: family, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, NodeName: &node}},
		})
	}
}

// setCarriedFamilies writes that the session with tor is established and carries these families.
func (h *conditionWriterHarness) setCarriedFamilies(node string, withheld names.Explanation, families ...string) {
	h.t.Helper()
	h.setSessionWithTor(node, names.Explanation{})
	o := &v1alpha1.BGPSession{}
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "tor." + node}, o); err != nil {
		h.t.Fatal(err)
	}
	o.Status.Families = families
	if withheld.IsSet() {
		o.Status.Conditions = append(o.Status.Conditions, metav1.Condition{Type: names.ConditionRoutesAnnounced, Status: metav1.ConditionFalse, Reason: string(withheld.Reason), Message: withheld.Text})
	}
	if err := h.api.Status().Update(h.t.Context(), o); err != nil {
		h.t.Fatal(err)
	}
}

// editSpeakerStatus changes the SpeakerStatus of a node.
func (h *conditionWriterHarness) editSpeakerStatus(node string, edit func(s *v1alpha1.SpeakerStatusStatus)) {
	h.t.Helper()
	var o v1alpha1.SpeakerStatus
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: node}, &o); err != nil {
		h.t.Fatal(err)
	}
	edit(&o.Status)
	if err := h.api.Status().Update(h.t.Context(), &o); err != nil {
		h.t.Fatal(err)
	}
}

// TestConditionExplainsAddressMissingFromBGP checks a Service with two addresses of which routers
// have one.
func TestConditionExplainsAddressMissingFromBGP(t *testing.T) {
	const ipv4, ipv6 = discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6
	for name, tt := range map[string]struct {
		advertisedPools []string
		endpoints       []discoveryv1.AddressType
		families        []string
		withheld        names.Explanation
		reason          names.Reason
		text            string
	}{
		"the router accepts one family": {
			endpoints: []discoveryv1.AddressType{ipv4, ipv6}, families: []string{ipv4Unicast}, withheld: names.NewExplanation(names.ReasonFamilyNotCarried, "activate IPv6"),
			reason: names.ReasonNoSession, text: "192.0.2.5: announced by BGP; 2001:db8::5: 0 of 2 BGP sessions carry the Service: tor on node1: activate IPv6 (FamilyNotCarried)",
		},
		"the advertisement has one of the pools": {
			advertisedPools: []string{"first"}, endpoints: []discoveryv1.AddressType{ipv4, ipv6}, families: []string{ipv4Unicast, ipv6Unicast},
			reason: names.ReasonNoAdvertisement, text: "192.0.2.5: announced by BGP; 2001:db8::5: no L2Advertisement or BGPAdvertisement",
		},
		"the endpoints have one family": {
			endpoints: []discoveryv1.AddressType{ipv4}, families: []string{ipv4Unicast, ipv6Unicast},
			reason: names.ReasonNoEndpoints, text: "192.0.2.5: announced by BGP; 2001:db8::5: no endpoint of the Service has an IPv6 address",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newConditionWriterHarness(t)
			h.createDualStackService(tt.endpoints...)
			ad := &v1beta1.BGPAdvertisement{}
			if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "first"}, ad); err != nil {
				t.Fatal(err)
			}
			ad.Spec.IPAddressPools = tt.advertisedPools
			if err := h.api.Update(t.Context(), ad); err != nil {
				t.Fatal(err)
			}
			if _, err := h.configurationReader.ReadNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, node := range []string{"node1", "node2"} {
				h.setCarriedFamilies(node, tt.withheld, tt.families...)
			}
			h.expectCondition(name, h.reconcileAndAdvanceTimeFor("dual", time.Minute), metav1.ConditionFalse, tt.reason, tt.text)
		})
	}
}

// TestConditionNamesSessionOfLeavingNode checks the text about a session that stays established
// while its node withdraws the routes.
func TestConditionNamesSessionOfLeavingNode(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", names.Explanation{})
	h.reportRoutesOfServiceWeb("node1")
	h.setCarriedFamilies("node2", names.Explanation{})
	h.editSpeakerStatus("node2", func(s *v1alpha1.SpeakerStatusStatus) { s.Unavailable, s.Routes = string(names.ReasonNodeLeaving), 0 })
	c := h.reconcileAndAdvanceTimeFor("web", time.Minute)
	h.expectCondition("one of two nodes leaves", c, metav1.ConditionTrue, names.ReasonAnnounced, "on 1 of 2 BGP sessions: not on tor on node2: the node is being drained")
}

// TestEstablishedSessionOfANodeWithoutRoutesDoesNotCount checks a node that reports no Service at
// all: its SpeakerStatus says whether it has routes.
func TestEstablishedSessionOfANodeWithoutRoutesDoesNotCount(t *testing.T) {
	h := newConditionWriterHarness(t)
	for _, node := range []string{"node1", "node2"} {
		h.setSessionWithTor(node, names.Explanation{})
		h.editSpeakerStatus(node, func(s *v1alpha1.SpeakerStatusStatus) { s.Routes = 0 })
	}
	c := h.reconcileAndAdvanceTimeFor("web", time.Minute)
	h.expectCondition("no node has a route", c, metav1.ConditionFalse, names.ReasonNoSession, "the router does not have the route yet")
	h.editSpeakerStatus("node1", func(s *v1alpha1.SpeakerStatusStatus) { s.Routes = 600 })
	c = h.reconcileAndAdvanceTimeFor("web", time.Minute)
	h.expectCondition("a node has too many routes to list them", c, metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	before := &v1alpha1.SpeakerStatus{}
	after := before.DeepCopy()
	if after.Status.Routes = 1; !isSpeakerChangeRelevant(before, after) {
		t.Error("the first route of a node does not count as a change")
	}
	if before.Status.Routes = 2; isSpeakerChangeRelevant(before, after) {
		t.Error("each route of a node counts as a change")
	}
}

// TestL2ReportWithoutStatusAnnouncesNothing checks a report that was created, and whose status
// follows.
func TestL2ReportWithoutStatusAnnouncesNothing(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.createObject(&v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "all"}})
	if _, err := h.configurationReader.ReadNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	status := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "default.web.node1", Labels: map[string]string{
		names.LabelServiceStatusNode: "node1", names.LabelServiceName: "web", names.LabelServiceNamespace: "default",
	}}}
	h.createObject(status)
	if c := h.reconcileAndAdvanceTimeFor("web", time.Second); c.Status != "" {
		t.Errorf("a report without status is enough for the condition %s: %s", c.Status, c.Message)
	}
	status.Status = v1beta1.ServiceL2StatusStatus{Node: "node1", ServiceName: "web", ServiceNamespace: "default", Gantry: &v1beta1.ServiceL2StatusGantry{Addresses: []string{"192.0.2.1"}}}
	if err := h.api.Status().Update(t.Context(), status); err != nil {
		t.Fatal(err)
	}
	h.expectCondition("the status is written", h.reconcileAndAdvanceTimeFor("web", time.Second), metav1.ConditionTrue, names.ReasonAnnounced, "announced by layer 2")
	if h.serviceWrites != 1 {
		t.Errorf("the Service was written %d times, want 1", h.serviceWrites)
	}
}

// TestConflictReportedByDeadSpeakerIsIgnored checks a conflict that a speaker reported before it
// died.
func TestConflictReportedByDeadSpeakerIsIgnored(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", wrongASNumberFault)
	h.setSessionWithTor("node2", wrongASNumberFault)
	h.editSpeakerStatus("node2", func(s *v1alpha1.SpeakerStatusStatus) {
		s.Conflicts = []v1alpha1.SpeakerConflict{{Address: "192.0.2.1", MAC: "02:00:00:00:00:99", Since: metav1.NewTime(h.now)}}
	})
	h.expectCondition("a living speaker", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionFalse, names.ReasonForeignClaim, "02:00:00:00:00:99")
	h.editSpeakerStatus("node2", func(s *v1alpha1.SpeakerStatusStatus) {
		s.Conditions = []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: metav1.ConditionFalse, Reason: string(names.ReasonNoSpeaker)}}
	})
	h.expectCondition("a dead one", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionFalse, names.ReasonNoSession, "tor on node1: it expects another AS number")
}

// setLocalTrafficPolicyOfServiceWeb gives the Service web the traffic policy Local, and an endpoint
// on each of the nodes.
func (h *conditionWriterHarness) setLocalTrafficPolicyOfServiceWeb(nodes ...string) {
	h.t.Helper()
	var s corev1.Service
	if err := h.api.Get(h.t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}, &s); err != nil {
		h.t.Fatal(err)
	}
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	if err := h.api.Update(h.t.Context(), &s); err != nil {
		h.t.Fatal(err)
	}
	for _, node := range nodes {
		h.createObject(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-" + node, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}, NodeName: &node}},
		})
	}
}

// TestConditionSaysWhyANodeWithholdsTheRoute has a node that announces other Services, and whose
// session stays established.
func TestConditionSaysWhyANodeWithholdsTheRoute(t *testing.T) {
	unfit := func(reason names.Reason) func(*v1alpha1.SpeakerStatusStatus) {
		return func(s *v1alpha1.SpeakerStatusStatus) {
			s.Conditions = []metav1.Condition{{Type: names.ConditionNodeFit, Status: metav1.ConditionFalse, Reason: string(reason), Message: "it is unfit"}}
		}
	}
	for name, tt := range map[string]struct {
		edit func(*v1alpha1.SpeakerStatusStatus)
		text string
	}{
		"nothing is known":        {func(*v1alpha1.SpeakerStatusStatus) {}, "the router does not have the route yet (NoSession)"},
		"kube-proxy is silent":    {unfit(names.ReasonServiceProxySilent), "it is unfit (ServiceProxySilent)"},
		"the kubelet is silent":   {unfit(names.ReasonKubeletSilent), "it is unfit (KubeletSilent)"},
		"a link is silent":        {unfit(names.ReasonLinkSilent), "the router does not have the route yet (NoSession)"},
		"kube-proxy is behind":    {func(s *v1alpha1.SpeakerStatusStatus) { s.AwaitingProxy = []string{"default/web"} }, "look at kube-proxy (ServiceProxyNotReady)"},
		"behind, another Service": {func(s *v1alpha1.SpeakerStatusStatus) { s.AwaitingProxy = []string{"default/dns"} }, "the router does not have the route yet (NoSession)"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newConditionWriterHarness(t)
			h.setLocalTrafficPolicyOfServiceWeb("node2")
			for _, node := range []string{"node1", "node2"} {
				h.setSessionWithTor(node, names.Explanation{})
			}
			h.reportRoutesOfServiceWeb("node1")
			h.createObject(&v1beta1.ServiceBGPStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "default.dns.node2", Labels: map[string]string{
				names.LabelServiceStatusNode: "node2", names.LabelServiceName: "dns", names.LabelServiceNamespace: "default",
			}}, Status: v1beta1.ServiceBGPStatusStatus{Node: "node2", ServiceName: "dns", ServiceNamespace: "default", Peers: []string{"tor"}}})
			h.editSpeakerStatus("node2", tt.edit)
			h.expectCondition(name, h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "on 1 of 2 BGP sessions: not on tor on node2: ")
			h.expectCondition(name, h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, tt.text)
		})
	}
	before, after := &v1alpha1.SpeakerStatus{}, &v1alpha1.SpeakerStatus{}
	if unfit(names.ReasonKubeletSilent)(&after.Status); !isSpeakerChangeRelevant(before, after) {
		t.Error("a node that becomes unfit does not count as a change")
	}
}

// TestNodeOfManyServicesThatAwaitsKubeProxyDoesNotCount has a node with too many Services to list
// them. It withholds the route of one of them.
func TestNodeOfManyServicesThatAwaitsKubeProxyDoesNotCount(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setLocalTrafficPolicyOfServiceWeb()
	h.setSessionWithTor("node1", names.Explanation{})
	h.editSpeakerStatus("node1", func(s *v1alpha1.SpeakerStatusStatus) {
		s.Conditions = []metav1.Condition{{Type: names.ConditionNodeFit, Status: metav1.ConditionFalse, Reason: string(names.ReasonServiceProxySilent)}}
	})
	h.expectCondition("the node may announce it all the same", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
	h.editSpeakerStatus("node1", func(s *v1alpha1.SpeakerStatusStatus) { s.AwaitingProxy = []string{"default/web"} })
	h.expectCondition("kube-proxy is behind", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionFalse, names.ReasonServiceProxyNotReady, "kube-proxy there does not know the endpoints")
	h.editSpeakerStatus("node1", func(s *v1alpha1.SpeakerStatusStatus) { s.AwaitingProxy = nil })
	h.expectCondition("kube-proxy knows them", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionTrue, names.ReasonAnnounced, "announced by BGP")
}

// TestTextSaysWhichListsAreCut has a Service that nobody announces. A node lists only some of the
// Services that await kube-proxy.
func TestTextSaysWhichListsAreCut(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.announceByLayer2Only(corev1.ServiceExternalTrafficPolicyLocal)
	h.setSpeakerPodReadiness("node1", corev1.ConditionTrue)
	if err := h.api.DeleteAllOf(t.Context(), &v1beta1.ServiceL2Status{}, client.InNamespace(names.DefaultNamespace)); err != nil {
		t.Fatal(err)
	}
	h.editSpeakerStatus("node1", func(s *v1alpha1.SpeakerStatusStatus) {
		s.AwaitingProxy, s.AwaitingProxyOmitted = []string{"default/a", "default/b"}, 7
	})
	h.expectCondition("a cut list", h.reconcileAndAdvanceTimeFor("web", time.Minute), metav1.ConditionFalse, names.ReasonNotAnnounced, "on node1, kube-proxy does not know the endpoints of 9 Services, of which the SpeakerStatus names 2")
}
