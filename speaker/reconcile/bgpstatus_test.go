package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/reconcile"
	"github.com/gantry-lb/gantry/speaker/status"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// fakeBGPSessionSource are sessions whose states the test sets.
type fakeBGPSessionSource struct {
	mu            sync.Mutex // guards states
	states        []bgp.PeerSessionStatus
	changedSignal chan struct{}
}

func (e *fakeBGPSessionSource) StatusChanged() <-chan struct{} { return e.changedSignal }

func (e *fakeBGPSessionSource) SessionStatuses() []bgp.PeerSessionStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.states)
}

func (e *fakeBGPSessionSource) setStates(states ...bgp.PeerSessionStatus) {
	e.mu.Lock()
	e.states = states
	e.mu.Unlock()
	e.changedSignal <- struct{}{}
}

// bgpStatusHarness is a BGPStatusWriter that runs with a real API server, and with the token and
// the rights of a speaker.
type bgpStatusHarness struct {
	api               client.Client
	writer            *reconcile.BGPStatusWriter
	sessions          *fakeBGPSessionSource
	statusOfOtherNode *v1beta1.ServiceBGPStatus // the object of another node
}

// newBGPStatusHarness starts the writer beside two Services, a ServiceBGPStatus of the node that an
// earlier version left, and one of another node.
func newBGPStatusHarness(t *testing.T) *bgpStatusHarness {
	t.Helper()
	config := apiserver.StartUntilTestEnds(t)
	config.QPS = -1
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := ctrl.NewManager(apiserver.CreateSpeakerPodAndToken(t, config, selfNode), ctrl.Options{
		Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"}, Cache: cache.Options{DefaultNamespaces: map[string]cache.Config{names.DefaultNamespace: {}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &bgpStatusHarness{sessions: &fakeBGPSessionSource{changedSignal: make(chan struct{}, 1)}}
	h.sessions.states = []bgp.PeerSessionStatus{establishedSession("tor1"), establishedSession("tor2")}
	if h.api, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"web", "dns"} {
		h.createObject(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: k}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}})
	}
	h.writer = reconcile.NewBGPStatusWriter(reconcile.BGPStatusWriterOptions{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Events: mgr.GetEventRecorder(names.SpeakerEventSource), Sessions: h.sessions, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Self: selfNode, Namespace: names.DefaultNamespace, ServiceBGPStatusLimit: 2, PodOwnerReferences: func(context.Context) []metav1.OwnerReference { return nil },
		ServiceReference: newServiceReader(t, h.api),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- mgr.Start(ctx) }()
	go func() { ended <- h.writer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
	h.createObject(t, &v1beta1.ServiceBGPStatus{ObjectMeta: metav1.ObjectMeta{
		Namespace: names.DefaultNamespace, Name: "bgp-of-an-earlier-version", Labels: map[string]string{names.LabelServiceStatusNode: selfNode, names.LabelServiceName: "old", names.LabelServiceNamespace: "default"},
	}})
	h.statusOfOtherNode = &v1beta1.ServiceBGPStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "bgp-of-another-node", Labels: map[string]string{names.LabelServiceStatusNode: otherNode}}}
	h.createObject(t, h.statusOfOtherNode)
	return h
}

func (h *bgpStatusHarness) createObject(t *testing.T, o client.Object) {
	t.Helper()
	if err := h.api.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// establishedSession is a session that carries IPv4.
func establishedSession(peer string) bgp.PeerSessionStatus {
	return bgp.PeerSessionStatus{PeerName: peer, State: bgp.Established, StateSince: time.Unix(1e9, 0), AnnounceableFamilies: []message.AFI{message.FamilyIPv4}}
}

// observeBGPVerdicts gives the writer a plan with the verdicts.
func (h *bgpStatusHarness) observeBGPVerdicts(v ...*plan.BGPVerdict) {
	h.writer.ObserveStatus(agent.Status{Plan: plan.Plan{BGPVerdicts: plan.NewSortedList(v...)}})
}

// bgpVerdict is the verdict on a Service: announced to the peers, or without endpoints if there are
// none.
func bgpVerdict(name string, peers ...string) *plan.BGPVerdict {
	v := &plan.BGPVerdict{Service: webServiceKey, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10")}, Peers: peers, Reason: names.ReasonAnnounced}
	if v.Service.Name = name; len(peers) == 0 {
		v.Reason = names.ReasonNoEndpoints
	}
	return v
}

// awaitServiceBGPStatuses waits until the ServiceBGPStatuses, without that of the other node, are
// those wanted.
func (h *bgpStatusHarness) awaitServiceBGPStatuses(t *testing.T, want ...string) {
	t.Helper()
	awaitLines(t, "the ServiceBGPStatuses", want, func() (out []string, err error) {
		var list v1beta1.ServiceBGPStatusList
		err = h.api.List(t.Context(), &list)
		for _, o := range list.Items {
			if o.Name != h.statusOfOtherNode.Name {
				out = append(out, fmt.Sprintf("%s %s/%s %v, labels %s", o.Status.Node, o.Status.ServiceNamespace, o.Status.ServiceName, o.Status.Peers, o.Labels[names.LabelServiceName]))
			}
		}
		return out, err
	})
}

// awaitBGPSessionObjects waits until the BGPSessions are those wanted.
func (h *bgpStatusHarness) awaitBGPSessionObjects(t *testing.T, want ...string) {
	t.Helper()
	awaitLines(t, "the BGPSessions", want, func() (out []string, err error) {
		var list v1alpha1.BGPSessionList
		err = h.api.List(t.Context(), &list)
		for _, o := range list.Items {
			s := o.Status
			var why []string
			for _, kind := range []string{names.ConditionEstablished, names.ConditionRoutesAnnounced} {
				// the status is written after the object
				if c := meta.FindStatusCondition(s.Conditions, kind); c != nil {
					why = append(why, c.Reason)
				}
			}
			out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s %v %d %s", s.Node, s.Peer, s.Address, s.State, strings.Join(why, " "), s.Families, s.Prefixes, s.LastError)))
		}
		return out, err
	})
}

// TestBGPStatusObjectsFollowTheAgent runs the scenarios in this order with one writer.
func TestBGPStatusObjectsFollowTheAgent(t *testing.T) {
	h := newBGPStatusHarness(t)
	t.Run("the ServiceBGPStatuses follow the verdicts", h.testServiceBGPStatuses)
	t.Run("the Service gets an event", h.testAnnouncementEvent)
	t.Run("the BGPSessions follow the sessions", h.testBGPSessions)
}

func (h *bgpStatusHarness) testServiceBGPStatuses(t *testing.T) {
	h.observeBGPVerdicts(bgpVerdict("dns"), bgpVerdict("web", "tor1", "tor2"))
	h.awaitServiceBGPStatuses(t, "node1 default/web [tor1 tor2], labels web")
	h.observeBGPVerdicts(bgpVerdict("dns", "tor1"), bgpVerdict("web", "tor2"))
	h.awaitServiceBGPStatuses(t, "node1 default/dns [tor1], labels dns", "node1 default/web [tor2], labels web")
	down := bgp.PeerSessionStatus{PeerName: "tor1", State: bgp.Idle, StateSince: time.Unix(1e9, 0)}
	h.sessions.setStates(down, establishedSession("tor2"))
	// no router has the other one
	h.awaitServiceBGPStatuses(t, "node1 default/web [tor2], labels web")
	h.sessions.setStates(establishedSession("tor1"), establishedSession("tor2"))
	h.awaitServiceBGPStatuses(t, "node1 default/dns [tor1], labels dns", "node1 default/web [tor2], labels web")
	h.observeBGPVerdicts(bgpVerdict("dns", "tor1"), bgpVerdict("third", "tor1"), bgpVerdict("web", "tor2"))
	h.awaitServiceBGPStatuses(t) // more than the limit
	h.observeBGPVerdicts(bgpVerdict("web", "tor2"))
	h.awaitServiceBGPStatuses(t, "node1 default/web [tor2], labels web")
	deletedByOther := &v1beta1.ServiceBGPStatus{}
	deletedByOther.Namespace, deletedByOther.Name = names.DefaultNamespace, status.ServiceBGPStatusName(selfNode, webServiceKey)
	if err := h.api.Delete(t.Context(), deletedByOther); err != nil {
		t.Fatal(err)
	}
	h.awaitServiceBGPStatuses(t, "node1 default/web [tor2], labels web")
	h.writer.ObserveStatus(agent.Status{Plan: plan.Plan{BGPVerdicts: plan.NewSortedList(bgpVerdict("web", "tor2")), NodeLeaving: true}})
	h.awaitServiceBGPStatuses(t)
	if err := h.api.Get(t.Context(), client.ObjectKeyFromObject(h.statusOfOtherNode), h.statusOfOtherNode); err != nil {
		t.Errorf("the object of another node: %v", err)
	}
}

func (h *bgpStatusHarness) testAnnouncementEvent(t *testing.T) {
	awaitLines(t, "the event", []string{`announcing from node "node1" with protocol "bgp"`}, func() (out []string, err error) {
		var list eventsv1.EventList
		err = h.api.List(t.Context(), &list, client.InNamespace("default"))
		for _, o := range list.Items {
			if o.Regarding.Name == "web" && o.Reason == names.EventNodeAssigned {
				out = append(out, o.Note)
			}
		}
		return slices.Compact(out), err
	})
}

func (h *bgpStatusHarness) testBGPSessions(t *testing.T) {
	remote := netip.MustParseAddrPort("192.0.2.1:179")
	up := bgp.PeerSessionStatus{PeerName: "tor1", RouterAddress: remote, State: bgp.Established, StateSince: time.Unix(1e9, 0), AnnounceableFamilies: []message.AFI{message.FamilyIPv4}, WantedRouteCount: 3, AnnouncedRouteCount: 3}
	down := bgp.PeerSessionStatus{PeerName: "tor2", RouterAddress: remote, State: bgp.Idle, StateSince: time.Unix(1e9, 0), LastError: names.Explanation{Reason: names.ReasonConnectionRefused, Text: "connecting: refused"}}
	h.sessions.setStates(up, down)
	h.awaitBGPSessionObjects(t, "node1 tor1 192.0.2.1:179 Established Established Announced [ipv4-unicast] 3", "node1 tor2 192.0.2.1:179 Idle ConnectionRefused [] 0 connecting: refused")
	up.AnnouncedRouteCount, up.WithheldRouteReason = 2, names.Explanation{Reason: names.ReasonNoNextHop, Text: "no next hop"}
	h.sessions.setStates(up, down)
	h.awaitBGPSessionObjects(t, "node1 tor1 192.0.2.1:179 Established Established NoNextHop [ipv4-unicast] 2", "node1 tor2 192.0.2.1:179 Idle ConnectionRefused [] 0 connecting: refused")
	up.WithheldRouteReason = names.Explanation{}
	// By a speaker that takes this one for dead.
	h.writeSpeakerDeadAndAwaitCorrection(t, "tor1.node1")
	h.awaitBGPSessionObjects(t, "node1 tor1 192.0.2.1:179 Established Established NoNextHop [ipv4-unicast] 2", "node1 tor2 192.0.2.1:179 Idle ConnectionRefused [] 0 connecting: refused")
	up.State, up.AnnouncedRouteCount, up.LastError.Text = bgp.Active, 0, "the router closed the connection"
	h.sessions.setStates(up)
	blocked := bgp.PeerSessionStatus{PeerName: "tor2", State: bgp.Idle, StateSince: time.Unix(1e9, 0), NotConnectingReason: names.ReasonUnknownSecret, LastError: names.Explanation{Text: "no Secret"}}
	h.sessions.setStates(up, blocked)
	h.awaitBGPSessionObjects(t, "node1 tor1 192.0.2.1:179 Active NoSession [] 0 the router closed the connection", "node1 tor2  Idle UnknownSecret [] 0 no Secret")
	h.sessions.setStates()
	h.awaitBGPSessionObjects(t)
}

// writeSpeakerDeadAndAwaitCorrection writes that the speaker of a session is dead, and waits until
// that is corrected.
func (h *bgpStatusHarness) writeSpeakerDeadAndAwaitCorrection(t *testing.T, name string) {
	t.Helper()
	var o v1alpha1.BGPSession
	if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: name}, &o); err != nil {
		t.Fatal(err)
	}
	base := client.MergeFrom(o.DeepCopy())
	o.Status = status.SessionStatusOfDeadSpeaker(o.Status, "it is dead", time.Now())
	if err := h.api.Status().Patch(t.Context(), &o, base); err != nil {
		t.Fatal(err)
	}
	marked := o.ResourceVersion
	awaitLines(t, "the session of a speaker that runs", []string{"corrected"}, func() ([]string, error) {
		if err := h.api.Get(t.Context(), client.ObjectKeyFromObject(&o), &o); err != nil || o.ResourceVersion == marked {
			return nil, err
		}
		return []string{"corrected"}, nil
	})
}

// awaitLines waits until the lines that read returns are those wanted, in any order.
func awaitLines(t *testing.T, what string, want []string, read func() ([]string, error)) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		got, err := read()
		slices.Sort(got)
		if err == nil && slices.Equal(got, want) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waiting for %s: %v\n%s", what, err, cmp.Diff(want, got))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
