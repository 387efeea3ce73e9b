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
	"github.com/gantry-lb/gantry/test/apiserver"
)

// fakeSessions are sessions whose states the test sets.
type fakeSessions struct {
	mu      sync.Mutex // guards states
	states  []bgp.Status
	changed chan struct{}
}

func (e *fakeSessions) StatusChanged() <-chan struct{} { return e.changed }

func (e *fakeSessions) Status() []bgp.Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.states)
}

func (e *fakeSessions) setStates(states ...bgp.Status) {
	e.mu.Lock()
	e.states = states
	e.mu.Unlock()
	e.changed <- struct{}{}
}

// TestBGPStatusObjectsFollowTheAgent runs the writer with a real API server.
func TestBGPStatusObjectsFollowTheAgent(t *testing.T) {
	config := apiserver.Start(t)
	config.QPS = -1
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"web", "dns"} {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: k}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
		if err := api.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	e := &fakeSessions{changed: make(chan struct{}, 1)}
	w := reconcile.NewBGPStatusWriter(reconcile.BGPStatusWriterOptions{
		Client: mgr.GetClient(), Events: mgr.GetEventRecorder(names.SpeakerEventSource), Sessions: e, Log: slog.New(slog.DiscardHandler),
		Self: selfNode, Namespace: names.Namespace, ServiceBGPStatusLimit: 2, PodOwnerReferences: func(context.Context) []metav1.OwnerReference { return nil },
		ServiceReference: newServiceReference(t, api),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- mgr.Start(ctx) }()
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
	stray := &v1beta1.ServiceBGPStatus{ObjectMeta: metav1.ObjectMeta{
		Namespace: names.Namespace, Name: "bgp-of-an-earlier-version", Labels: map[string]string{names.LabelNode: selfNode, names.LabelServiceName: "old", names.LabelServiceNamespace: "default"},
	}}
	foreign := &v1beta1.ServiceBGPStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: "bgp-of-another-node", Labels: map[string]string{names.LabelNode: otherNode}}}
	for _, o := range []*v1beta1.ServiceBGPStatus{stray, foreign} {
		if err := api.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	announced := func(want ...string) {
		t.Helper()
		awaitLines(t, "the ServiceBGPStatuses", want, func() (out []string, err error) {
			var list v1beta1.ServiceBGPStatusList
			err = api.List(t.Context(), &list)
			for _, o := range list.Items {
				if o.Name != foreign.Name {
					out = append(out, fmt.Sprintf("%s %s/%s %v, labels %s", o.Status.Node, o.Status.ServiceNamespace, o.Status.ServiceName, o.Status.Peers, o.Labels[names.LabelServiceName]))
				}
			}
			return out, err
		})
	}
	verdict := func(name string, peers ...string) *plan.BGPVerdict {
		v := &plan.BGPVerdict{Service: webService, Peers: peers, Reason: names.ReasonAnnounced}
		if v.Service.Name = name; len(peers) == 0 {
			v.Reason = names.ReasonNoEndpoints
		}
		return v
	}
	observe := func(v ...*plan.BGPVerdict) {
		w.ObserveStatus(agent.Status{Plan: plan.Plan{BGPVerdicts: plan.NewSortedList(v...)}})
	}

	observe(verdict("dns"), verdict("web", "tor1", "tor2"))
	announced("node1 default/web [tor1 tor2], labels web")
	observe(verdict("dns", "tor1"), verdict("web", "tor2"))
	announced("node1 default/dns [tor1], labels dns", "node1 default/web [tor2], labels web")
	observe(verdict("dns", "tor1"), verdict("third", "tor1"), verdict("web", "tor2"))
	announced() // more than the limit
	observe(verdict("web", "tor2"))
	announced("node1 default/web [tor2], labels web")
	w.ObserveStatus(agent.Status{Plan: plan.Plan{BGPVerdicts: plan.NewSortedList(verdict("web", "tor2")), NodeLeaving: true}})
	announced()
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign); err != nil {
		t.Errorf("the object of another node: %v", err)
	}
	awaitLines(t, "the event", []string{`announcing from node "node1" with protocol "bgp"`}, func() (out []string, err error) {
		var list eventsv1.EventList
		err = api.List(t.Context(), &list, client.InNamespace("default"))
		for _, o := range list.Items {
			if o.Regarding.Name == "web" && o.Reason == names.EventNodeAssigned {
				out = append(out, o.Note)
			}
		}
		return slices.Compact(out), err
	})

	sessions := func(want ...string) {
		t.Helper()
		awaitLines(t, "the BGPSessions", want, func() (out []string, err error) {
			var list v1alpha1.BGPSessionList
			err = api.List(t.Context(), &list)
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
	remote := netip.MustParseAddrPort("192.0.2.1:179")
	up := bgp.Status{Peer: "tor1", Remote: remote, State: bgp.Established, StateSince: time.Unix(1e9, 0), Families: []message.AFI{message.IPv4}, WantedRouteCount: 3, AnnouncedRouteCount: 3}
	down := bgp.Status{Peer: "tor2", Remote: remote, State: bgp.Idle, StateSince: time.Unix(1e9, 0), LastError: "connecting: refused"}
	e.setStates(up, down)
	sessions("node1 tor1 192.0.2.1:179 Established Established Announced [ipv4-unicast] 3", "node1 tor2 192.0.2.1:179 Idle NoSession [] 0 connecting: refused")
	up.AnnouncedRouteCount, up.Withheld = 2, names.Explanation{Reason: names.ReasonNoNextHop, Text: "no next hop"}
	e.setStates(up, down)
	sessions("node1 tor1 192.0.2.1:179 Established Established NoNextHop [ipv4-unicast] 2", "node1 tor2 192.0.2.1:179 Idle NoSession [] 0 connecting: refused")
	up.Withheld = names.Explanation{}
	up.State, up.AnnouncedRouteCount, up.LastError = bgp.Active, 0, "the router closed the connection"
	e.setStates(up)
	blocked := bgp.Status{Peer: "tor2", State: bgp.Idle, StateSince: time.Unix(1e9, 0), Reason: names.ReasonUnknownSecret, LastError: "no Secret"}
	e.setStates(up, blocked)
	sessions("node1 tor1 192.0.2.1:179 Active NoSession [] 0 the router closed the connection", "node1 tor2  Idle UnknownSecret [] 0 no Secret")
	e.setStates()
	sessions()
}

// awaitLines waits until the lines that read returns are those wanted, in any order.
func awaitLines(t *testing.T, what string, want []string, read func() ([]string, error)) {
	t.Helper()
	deadline := time.After(40 * time.Second)
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
