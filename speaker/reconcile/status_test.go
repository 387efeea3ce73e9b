package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/reconcile"
	"github.com/gantry-lb/gantry/speaker/status"
	"github.com/gantry-lb/gantry/test/apiserver"
)

const selfNode, otherNode = "node1", "node2"

var (
	heldIPv4        = netip.MustParseAddr("192.168.0.201")
	heldIPv6        = netip.MustParseAddr("fd00:a8::201")
	webServiceKey   = view.ObjectKey{Namespace: "default", Name: "web"}
	dnsServiceKey   = view.ObjectKey{Namespace: "default", Name: "dns"}
	foreignMAC      = facts.MAC{2, 0, 0, 0, 0, 0x99}
	bothLinkIndexes = []int{2, 3}
	nodeLinks       = facts.LinkSet{{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, 2}}, {Index: 3, Name: "eth1", MAC: facts.MAC{2, 0, 0, 0, 0, 3}}}
)

// statusWriterHarness is a StatusWriter with a real API server, and with the token and the rights
// of a speaker.
type statusWriterHarness struct {
	t                  *testing.T
	apiClient          client.Client
	writer             *reconcile.StatusWriter
	metricsRegistry    *prometheus.Registry
	lastObservedStatus agent.Status // as last observed
}

func newStatusWriterHarness(t *testing.T) *statusWriterHarness {
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
	d := &statusWriterHarness{t: t, metricsRegistry: prometheus.NewRegistry()}
	if d.apiClient, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	sessions := &fakeBGPSessionSource{states: []bgp.PeerSessionStatus{{PeerName: "tor", State: bgp.Established, AnnounceableFamilies: []message.AFI{message.FamilyIPv4}}}}
	announced := reconcile.NewAnnouncedMetrics(selfNode, sessions)
	d.writer = reconcile.NewStatusWriter(reconcile.StatusWriterOptions{
		Client: mgr.GetClient(), UncachedReader: mgr.GetAPIReader(), Cache: mgr.GetCache(), Events: mgr.GetEventRecorder(names.SpeakerEventSource), Log: log,
		SkippedLinks: func() []facts.SkippedLink {
			return []facts.SkippedLink{{Name: "storage0", Reason: facts.SkippedExcludedByName}}
		},
		Now: time.Now, Metrics: announced, Self: selfNode, Namespace: names.DefaultNamespace, Version: "v1.2.3", ServiceReference: newServiceReader(t, d.apiClient),
	})
	d.metricsRegistry.MustRegister(announced)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- mgr.Start(ctx) }()
	go func() { ended <- d.writer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended); err != nil {
			t.Error(err)
		}
	})
	for _, k := range []view.ObjectKey{webServiceKey, dnsServiceKey} {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}}
		s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		d.createObject(s)
	}
	d.lastObservedStatus = agent.Status{UsableLinks: nodeLinks, MemberNames: []string{selfNode, otherNode}}
	d.lastObservedStatus.Plan.Layer2Verdicts = plan.NewSortedList(&plan.Layer2Verdict{Service: dnsServiceKey, Addresses: []netip.Addr{heldIPv4}}, &plan.Layer2Verdict{Service: webServiceKey, Addresses: []netip.Addr{heldIPv4, heldIPv6}})
	return d
}

// newServiceReader returns a function that reads the Service for an event.
func newServiceReader(t *testing.T, api client.Reader) func(view.ObjectKey) *corev1.Service {
	return func(k view.ObjectKey) *corev1.Service {
		s := &corev1.Service{}
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: k.Namespace, Name: k.Name}, s); err != nil {
			return nil
		}
		return s
	}
}

func (d *statusWriterHarness) createObject(o client.Object) {
	d.t.Helper()
	if err := d.apiClient.Create(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

// observeBindings passes the bindings to the writer, and events that are reported once.
func (d *statusWriterHarness) observeBindings(bindings []intent.Binding, electionEvents ...elect.Event) {
	d.lastObservedStatus.HeldBindings, d.lastObservedStatus.HeldAddresses = bindings, nil
	for _, c := range bindings {
		d.lastObservedStatus.HeldAddresses = append(d.lastObservedStatus.HeldAddresses, c.Address)
	}
	s := d.lastObservedStatus
	s.NewElectionEvents = electionEvents
	d.writer.ObserveStatus(s)
}

// awaitCheck calls check until it returns nil.
func (d *statusWriterHarness) awaitCheck(what string, check func() error) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			d.t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// listServiceL2StatusLines returns a line for each ServiceL2Status, sorted.
func (d *statusWriterHarness) listServiceL2StatusLines() (lines []string, versions map[string]string, err error) {
	var list v1beta1.ServiceL2StatusList
	if err := d.apiClient.List(d.t.Context(), &list, client.InNamespace(names.DefaultNamespace)); err != nil {
		return nil, nil, err
	}
	versions = map[string]string{}
	for _, o := range list.Items {
		s := o.Status
		line := fmt.Sprintf("%s on %s labelled %s/%s@%s", s.ServiceNamespace+"/"+s.ServiceName, s.Node,
			o.Labels[names.LabelServiceNamespace], o.Labels[names.LabelServiceName], o.Labels[names.LabelServiceStatusNode])
		for _, i := range s.Interfaces {
			line += " " + i.Name
		}
		if s.Gantry != nil {
			line += " " + strings.Join(s.Gantry.Addresses, " ")
			for _, c := range s.Gantry.Conflicts {
				line += " but " + c.Address + " by " + c.MAC
			}
		}
		lines = append(lines, line)
		versions[o.Name] = o.ResourceVersion
	}
	slices.Sort(lines)
	return lines, versions, nil
}

func (d *statusWriterHarness) awaitServiceL2StatusLines(what string, want ...string) {
	d.t.Helper()
	d.awaitCheck(what, func() error {
		got, _, err := d.listServiceL2StatusLines()
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			err = fmt.Errorf("the entries are (-want +got)\n%s", diff)
		}
		return err
	})
}

// awaitSpeakerStatus waits until check accepts the node's SpeakerStatus.
func (d *statusWriterHarness) awaitSpeakerStatus(what string, check func(s v1alpha1.SpeakerStatusStatus) bool) {
	d.t.Helper()
	d.awaitCheck(what, func() error {
		var s v1alpha1.SpeakerStatus
		err := d.apiClient.Get(d.t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: selfNode}, &s)
		if err == nil && !check(s.Status) {
			err = fmt.Errorf("the SpeakerStatus is %+v", s.Status)
		}
		return err
	})
}

// countEventsByText returns how often each sentence was sent with a reason.
func (d *statusWriterHarness) countEventsByText(reason string) (map[string]int, error) {
	var list eventsv1.EventList
	if err := d.apiClient.List(d.t.Context(), &list); err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, e := range list.Items {
		if e.Reason != reason {
			continue
		}
		n := 1
		if e.Series != nil {
			n = int(e.Series.Count)
		}
		out[e.Regarding.Kind+" "+e.Regarding.Name+": "+e.Note] += n
	}
	return out, nil
}

func (d *statusWriterHarness) awaitEventCounts(what, reason string, want map[string]int) {
	d.t.Helper()
	d.awaitCheck(what, func() error {
		got, err := d.countEventsByText(reason)
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			err = fmt.Errorf("the events %s are (-want +got)\n%s", reason, diff)
		}
		return err
	})
}

// announcedMetricLines returns a line for each announced address, sorted.
func (d *statusWriterHarness) announcedMetricLines() (lines []string) {
	d.t.Helper()
	all, err := d.metricsRegistry.Gather()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.Metric {
			line := f.GetName()
			for _, l := range m.Label {
				line += " " + l.GetName() + "=" + l.GetValue()
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines
}

const (
	dnsServiceL2StatusLine = "default/dns on node1 labelled default/dns@node1 192.168.0.201"
	webServiceL2StatusLine = "default/web on node1 labelled default/web@node1 192.168.0.201 fd00:a8::201"
)

// The objects follow what the speaker holds, and are written only when it changes.
func TestStatusObjectsFollowTheAgent(t *testing.T) {
	d := newStatusWriterHarness(t)
	both := []intent.Binding{{Address: heldIPv4, LinkIndexes: bothLinkIndexes}, {Address: heldIPv6, LinkIndexes: bothLinkIndexes}}
	d.observeBindings(both, elect.Event{Kind: elect.EventAddressTaken, Address: heldIPv6, Reason: names.ReasonUnheld, Text: "taken"})
	d.awaitServiceL2StatusLines("two addresses are held", dnsServiceL2StatusLine, webServiceL2StatusLine)
	d.awaitEventCounts("one of them was taken now", names.EventNodeAssigned,
		map[string]int{`Service web: announcing from node "node1" with protocol "layer2": taken`: 1})
	d.awaitSpeakerStatus("the speaker is described", func(s v1alpha1.SpeakerStatusStatus) bool {
		return s.Node == selfNode && s.Version == "v1.2.3" && s.Held == 2 && s.LastSeen != nil && len(s.Links) == 3 && len(s.Unreachable) == 0 &&
			meta.IsStatusConditionTrue(s.Conditions, names.ConditionSpeakerReady) &&
			s.Links[2].Name == "storage0" && s.Links[2].Reason == string(names.ReasonLinkExcluded) &&
			meta.IsStatusConditionTrue(s.Conditions, names.ConditionLayer2Usable) && meta.IsStatusConditionTrue(s.Conditions, names.ConditionHeldAddressesUncontested)
	})

	_, before, err := d.listServiceL2StatusLines()
	if err != nil {
		t.Fatal(err)
	}
	d.observeBindings(both)
	d.checkStatusOfDeadSpeaker(both)
	// its write comes after those of the status before
	d.lastObservedStatus.Plan.NodeUnavailableReason = names.ReasonNodeLeaving
	d.observeBindings(both)
	d.awaitSpeakerStatus("the node leaves", func(s v1alpha1.SpeakerStatusStatus) bool { return s.Unavailable == "NodeLeaving" })
	if _, after, err := d.listServiceL2StatusLines(); err != nil || !cmp.Equal(before, after) {
		t.Errorf("entries are written again without a change: %v, %v (%v)", before, after, err)
	}
	d.awaitEventCounts("no new event is sent", names.EventNodeAssigned,
		map[string]int{`Service web: announcing from node "node1" with protocol "layer2": taken`: 1})

	d.checkRepairOfObjectsChangedByOthers(both)
	d.checkStatusOfForeignClaims(both)

	d.lastObservedStatus.Plan.Routes = []*intent.Route{{Prefix: netip.MustParsePrefix("192.168.0.201/32")}}
	d.lastObservedStatus.Plan.BGPVerdicts = plan.NewSortedList(&plan.BGPVerdict{Service: dnsServiceKey, Addresses: []netip.Addr{heldIPv4}, Peers: []string{"tor"}, Reason: names.ReasonAnnounced}, &plan.BGPVerdict{Service: webServiceKey, Addresses: []netip.Addr{heldIPv6}, Reason: names.ReasonNoPeers})
	d.observeBindings(both[:1])
	d.awaitServiceL2StatusLines("one address is given up", dnsServiceL2StatusLine, "default/web on node1 labelled default/web@node1 192.168.0.201")
	d.awaitSpeakerStatus("one is left, and a route", func(s v1alpha1.SpeakerStatusStatus) bool { return s.Held == 1 && s.Routes == 1 })
	const metric = "metallb_speaker_announced ip=192.168.0.201 node=node1 protocol="
	if diff := cmp.Diff([]string{"gantry_speaker_foreign_claims", "gantry_speaker_held_addresses", "gantry_speaker_members", "gantry_speaker_unreachable_nodes", metric + "bgp service=default/dns", metric + "layer2 service=default/dns", metric + "layer2 service=default/web"}, d.announcedMetricLines()); diff != "" {
		t.Errorf("the metrics are (-want +got)\n%s", diff)
	}
	d.observeBindings([]intent.Binding{{Address: heldIPv4, LinkIndexes: []int{3}}})
	d.awaitServiceL2StatusLines("on one link only", strings.Replace(dnsServiceL2StatusLine, " 192", " eth1 192", 1), "default/web on node1 labelled default/web@node1 eth1 192.168.0.201")

	d.lastObservedStatus.RawSocketDenialText = "raw sockets are not permitted"
	d.observeBindings(nil)
	d.observeBindings(nil)
	d.awaitServiceL2StatusLines("nothing is held")
	d.awaitSpeakerStatus("layer 2 does not work", func(s v1alpha1.SpeakerStatusStatus) bool {
		c := meta.FindStatusCondition(s.Conditions, names.ConditionLayer2Usable)
		return s.Held == 0 && c != nil && c.Status == metav1.ConditionFalse && c.Reason == string(names.ReasonRawSocketDenied)
	})
	d.awaitEventCounts("the event about the node is sent once", names.EventAnnounceFailed, map[string]int{
		`Service web: ForeignClaim: another host`: 1, `Service dns: ForeignClaim: another host`: 1,
		`Node node1: RawSocketDenied: node "node1" announces nothing by layer 2: raw sockets are not permitted`: 1,
	})
}

// checkStatusOfDeadSpeaker lets another speaker vanish from the gossip: it is shown as dead, and as
// holding nothing, and everything else that it wrote stays.
func (d *statusWriterHarness) checkStatusOfDeadSpeaker(both []intent.Binding) {
	d.t.Helper()
	o := &v1alpha1.SpeakerStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: otherNode}}
	d.createObject(o)
	o.Status = v1alpha1.SpeakerStatusStatus{Node: otherNode, Held: 7, Version: "v1", Conditions: []metav1.Condition{
		{Type: names.ConditionSpeakerReady, Status: metav1.ConditionTrue, Reason: string(names.ReasonSpeakerRuns), LastTransitionTime: metav1.Now()},
		{Type: names.ConditionLayer2Usable, Status: metav1.ConditionTrue, Reason: string(names.ReasonUsable), LastTransitionTime: metav1.Now()},
	}}
	if err := d.apiClient.Status().Update(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
	d.lastObservedStatus.MemberNames = []string{selfNode}
	d.observeBindings(both)
	d.awaitCheck("the other speaker is dead", func() error {
		if err := d.apiClient.Get(d.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		c := meta.FindStatusCondition(o.Status.Conditions, names.ConditionSpeakerReady)
		if c == nil || c.Status != metav1.ConditionFalse || c.Reason != string(names.ReasonNoSpeaker) || o.Status.Held != 0 || o.Status.Version != "v1" || len(o.Status.Conditions) != 2 {
			return fmt.Errorf("its SpeakerStatus is %+v", o.Status)
		}
		return nil
	})
	if err := d.apiClient.Delete(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

// checkRepairOfObjectsChangedByOthers changes the objects as other nodes and users may do.
func (d *statusWriterHarness) checkRepairOfObjectsChangedByOthers(both []intent.Binding) {
	d.t.Helper()
	t := d.t
	for name, status := range map[string]v1beta1.ServiceL2StatusStatus{
		status.ServiceL2StatusKey{Service: dnsServiceKey, Node: otherNode}.ObjectName(): {Node: otherNode, ServiceNamespace: "default", ServiceName: "dns"},
		"l2-x7f2k": {Node: selfNode, ServiceNamespace: "default", ServiceName: "web"},
		"l2-other": {Node: otherNode, ServiceNamespace: "default", ServiceName: "elsewhere"},
	} {
		o := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: name, Labels: map[string]string{
			names.LabelServiceStatusNode: status.Node, names.LabelServiceName: status.ServiceName, names.LabelServiceNamespace: status.ServiceNamespace,
		}}}
		d.createObject(o)
		o.Status = status
		// removed already
		if err := d.apiClient.Status().Update(t.Context(), o); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
	}
	const elsewhere = "default/elsewhere on node2 labelled default/elsewhere@node2"
	d.awaitServiceL2StatusLines("the entry of a dead node and our second one are removed, another node's entry stays", dnsServiceL2StatusLine, elsewhere, webServiceL2StatusLine)
	mine := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: status.ServiceL2StatusKey{Service: webServiceKey, Node: selfNode}.ObjectName()}}
	if err := d.apiClient.Delete(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	d.awaitServiceL2StatusLines("a deleted entry is written again", dnsServiceL2StatusLine, elsewhere, webServiceL2StatusLine)
	if err := d.apiClient.Delete(t.Context(), &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "l2-other"}}); err != nil {
		t.Fatal(err)
	}
	d.awaitServiceL2StatusLines("the other node's is gone", dnsServiceL2StatusLine, webServiceL2StatusLine)
}

// checkStatusOfForeignClaims plays a foreign host that claims an address.
func (d *statusWriterHarness) checkStatusOfForeignClaims(both []intent.Binding) {
	d.t.Helper()
	claim := elect.Event{Kind: elect.EventForeignHostAnswers, Address: heldIPv4, AnsweringMAC: foreignMAC, Text: "another host"}
	for range 5 {
		d.observeBindings(both, claim)
	}
	const but = " but 192.168.0.201 by 02:00:00:00:00:99"
	d.awaitServiceL2StatusLines("a foreign host is named", dnsServiceL2StatusLine+but, webServiceL2StatusLine+but)
	d.awaitSpeakerStatus("a foreign host is named", func(s v1alpha1.SpeakerStatusStatus) bool {
		c := meta.FindStatusCondition(s.Conditions, names.ConditionHeldAddressesUncontested)
		return c != nil && c.Status == metav1.ConditionFalse && c.Reason == string(names.ReasonForeignClaim) && strings.Contains(c.Message, foreignMAC.String())
	})
	d.awaitEventCounts("the event is sent once", names.EventAnnounceFailed, map[string]int{
		`Service web: ForeignClaim: another host`: 1, `Service dns: ForeignClaim: another host`: 1,
	})
	d.observeBindings(both[1:]) // the address is given up, and taken again
	d.awaitServiceL2StatusLines("no conflict over what is not held", "default/web on node1 labelled default/web@node1 fd00:a8::201")
	d.observeBindings(both)
	d.awaitServiceL2StatusLines("the conflict is over", dnsServiceL2StatusLine, webServiceL2StatusLine)
}
