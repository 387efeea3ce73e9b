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
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/reconcile"
	"github.com/gantry-lb/gantry/speaker/status"
	"github.com/gantry-lb/gantry/test/apiserver"
)

const self, other = "node1", "node2"

var (
	four    = netip.MustParseAddr("192.168.0.201")
	six     = netip.MustParseAddr("fd00:a8::201")
	web     = view.Key{Namespace: "default", Name: "web"}
	dns     = view.Key{Namespace: "default", Name: "dns"}
	rogue   = facts.MAC{2, 0, 0, 0, 0, 0x99}
	allOf   = []int{2, 3}
	twoEths = facts.LinkSet{{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, 2}}, {Index: 3, Name: "eth1", MAC: facts.MAC{2, 0, 0, 0, 0, 3}}}
)

// desk is a StatusWriter at a real API server.
type desk struct {
	t      *testing.T
	api    client.Client
	writer *reconcile.StatusWriter
	metric *prometheus.Registry
	state  agent.Status // as last observed
}

func newDesk(t *testing.T) *desk {
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
	d := &desk{t: t, metric: prometheus.NewRegistry()}
	if d.api, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	d.writer = &reconcile.StatusWriter{
		Client: mgr.GetClient(), Cache: mgr.GetCache(), Events: mgr.GetEventRecorder(names.SpeakerEvents), Log: log,
		Skipped:   func() []facts.SkippedLink { return []facts.SkippedLink{{Name: "storage0", Why: facts.SkippedExcluded}} },
		Announced: reconcile.NewAnnounced(self), Self: self, Namespace: names.Namespace, Version: "v1.2.3", Service: reference(t, d.api),
	}
	d.writer.Init()
	d.metric.MustRegister(d.writer.Announced)
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
	d.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: self}})
	for _, k := range []view.Key{web, dns} {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}}
		s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
		d.create(s)
	}
	d.state = agent.Status{Links: twoEths, Members: []string{self, other}}
	d.state.Plan.Verdicts = plan.NewList(&plan.Verdict{Service: dns, Addresses: []netip.Addr{four}}, &plan.Verdict{Service: web, Addresses: []netip.Addr{four, six}})
	return d
}

// reference finds what events name.
func reference(t *testing.T, api client.Reader) func(view.Key) *corev1.Service {
	return func(k view.Key) *corev1.Service {
		s := &corev1.Service{}
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: k.Namespace, Name: k.Name}, s); err != nil {
			return nil
		}
		return s
	}
}

func (d *desk) create(o client.Object) {
	d.t.Helper()
	if err := d.api.Create(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

// observe has the writer see the claims, and notes that are said once.
func (d *desk) observe(claims []intent.Claim, notes ...elect.Note) {
	d.state.Claims, d.state.Held = claims, nil
	for _, c := range claims {
		d.state.Held = append(d.state.Held, c.Address)
	}
	s := d.state
	s.Notes = notes
	d.writer.Observe(s)
}

// await calls check until it returns nil.
func (d *desk) await(what string, check func() error) {
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

// entries is a line for each ServiceL2Status, sorted.
func (d *desk) entries() (lines []string, versions map[string]string, err error) {
	var list v1beta1.ServiceL2StatusList
	if err := d.api.List(d.t.Context(), &list, client.InNamespace(names.Namespace)); err != nil {
		return nil, nil, err
	}
	versions = map[string]string{}
	for _, o := range list.Items {
		s := o.Status
		line := fmt.Sprintf("%s on %s labelled %s/%s@%s", s.ServiceNamespace+"/"+s.ServiceName, s.Node,
			o.Labels[names.LabelServiceNamespace], o.Labels[names.LabelServiceName], o.Labels[names.LabelNode])
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

func (d *desk) wantEntries(what string, want ...string) {
	d.t.Helper()
	d.await(what, func() error {
		got, _, err := d.entries()
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			err = fmt.Errorf("the entries are (-want +got)\n%s", diff)
		}
		return err
	})
}

// wantSpeaker waits until the node's SpeakerStatus is as check wants it.
func (d *desk) wantSpeaker(what string, check func(s v1alpha1.SpeakerStatusStatus) bool) {
	d.t.Helper()
	d.await(what, func() error {
		var s v1alpha1.SpeakerStatus
		err := d.api.Get(d.t.Context(), client.ObjectKey{Namespace: names.Namespace, Name: self}, &s)
		if err == nil && !check(s.Status) {
			err = fmt.Errorf("the SpeakerStatus is %+v", s.Status)
		}
		return err
	})
}

// events are how often each sentence was said under a reason.
func (d *desk) events(reason string) (map[string]int, error) {
	var list eventsv1.EventList
	if err := d.api.List(d.t.Context(), &list); err != nil {
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

func (d *desk) wantEvents(what, reason string, want map[string]int) {
	d.t.Helper()
	d.await(what, func() error {
		got, err := d.events(reason)
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			err = fmt.Errorf("the events %s are (-want +got)\n%s", reason, diff)
		}
		return err
	})
}

// metrics is a line for each announced address, sorted.
func (d *desk) metrics() (lines []string) {
	d.t.Helper()
	all, err := d.metric.Gather()
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
	dnsEntry = "default/dns on node1 labelled default/dns@node1 192.168.0.201"
	webEntry = "default/web on node1 labelled default/web@node1 192.168.0.201 fd00:a8::201"
)

// What a speaker says of itself follows what it holds, and is written when it changes and at no other time.
func TestWhatASpeakerSaysOfItself(t *testing.T) {
	d := newDesk(t)
	both := []intent.Claim{{Address: four, Links: allOf}, {Address: six, Links: allOf}}
	d.observe(both, elect.Note{Kind: elect.NoteTaken, Address: six, Reason: names.ReasonUnheld, Text: "taken"})
	d.wantEntries("two addresses are held", dnsEntry, webEntry)
	d.wantEvents("one of them was taken now", names.EventNodeAssigned,
		map[string]int{`Service web: announcing from node "node1" with protocol "layer2": taken`: 1})
	d.wantSpeaker("the speaker is described", func(s v1alpha1.SpeakerStatusStatus) bool {
		return s.Node == self && s.Version == "v1.2.3" && s.Held == 2 && slices.Equal(s.Members, []string{self, other}) && len(s.Links) == 3 &&
			s.Links[2].Name == "storage0" && s.Links[2].Reason == string(names.ReasonLinkExcluded) &&
			meta.IsStatusConditionTrue(s.Conditions, names.ConditionLayer2Usable) && meta.IsStatusConditionTrue(s.Conditions, names.ConditionUncontested)
	})

	_, before, err := d.entries()
	if err != nil {
		t.Fatal(err)
	}
	d.observe(both)
	d.state.Members = []string{self} // the end of what is written for the former
	d.observe(both)
	d.wantSpeaker("a member is gone", func(s v1alpha1.SpeakerStatusStatus) bool { return slices.Equal(s.Members, []string{self}) })
	if _, after, err := d.entries(); err != nil || !cmp.Equal(before, after) {
		t.Errorf("entries are written again without a change: %v, %v (%v)", before, after, err)
	}
	d.wantEvents("nothing new is told", names.EventNodeAssigned,
		map[string]int{`Service web: announcing from node "node1" with protocol "layer2": taken`: 1})

	d.others(both)
	d.conflicts(both)

	d.state.Plan.Routes = []*intent.Route{{Prefix: netip.MustParsePrefix("192.168.0.201/32")}}
	d.state.Plan.BGP = plan.NewList(&plan.BGPVerdict{Service: dns, Addresses: []netip.Addr{four}, Reason: names.ReasonAnnounced}, &plan.BGPVerdict{Service: web, Addresses: []netip.Addr{six}, Reason: names.ReasonNoPeers})
	d.observe(both[:1])
	d.wantEntries("one address is given up", dnsEntry, "default/web on node1 labelled default/web@node1 192.168.0.201")
	d.wantSpeaker("one is left, and a route", func(s v1alpha1.SpeakerStatusStatus) bool { return s.Held == 1 && s.Routes == 1 })
	const metric = "metallb_speaker_announced ip=192.168.0.201 node=node1 protocol="
	if diff := cmp.Diff([]string{metric + "bgp service=default/dns", metric + "layer2 service=default/dns", metric + "layer2 service=default/web"}, d.metrics()); diff != "" {
		t.Errorf("the metrics are (-want +got)\n%s", diff)
	}
	d.observe([]intent.Claim{{Address: four, Links: []int{3}}})
	d.wantEntries("on one link alone", strings.Replace(dnsEntry, " 192", " eth1 192", 1), "default/web on node1 labelled default/web@node1 eth1 192.168.0.201")

	d.state.Denied = "raw sockets are not permitted"
	d.observe(nil)
	d.observe(nil)
	d.wantEntries("nothing is held")
	d.wantSpeaker("layer 2 does not work", func(s v1alpha1.SpeakerStatusStatus) bool {
		c := meta.FindStatusCondition(s.Conditions, names.ConditionLayer2Usable)
		return s.Held == 0 && c != nil && c.Status == metav1.ConditionFalse && c.Reason == string(names.ReasonRawSocketDenied)
	})
	d.wantEvents("the node is told once", names.EventAnnounceFailed, map[string]int{
		`Service web: Conflict: another host`: 1, `Service dns: Conflict: another host`: 1,
		`Node node1: RawSocketDenied: node "node1" announces nothing by layer 2: raw sockets are not permitted`: 1,
	})
}

// others plays what others do to the objects.
func (d *desk) others(both []intent.Claim) {
	d.t.Helper()
	t := d.t
	for name, status := range map[string]v1beta1.ServiceL2StatusStatus{
		status.Entry{Service: dns, Node: other}.Name(): {Node: other, ServiceNamespace: "default", ServiceName: "dns"},
		"l2-x7f2k": {Node: self, ServiceNamespace: "default", ServiceName: "web"},
		"l2-other": {Node: other, ServiceNamespace: "default", ServiceName: "elsewhere"},
	} {
		o := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: name, Labels: map[string]string{
			names.LabelNode: status.Node, names.LabelServiceName: status.ServiceName, names.LabelServiceNamespace: status.ServiceNamespace,
		}}}
		d.create(o)
		o.Status = status
		if err := d.api.Status().Update(t.Context(), o); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // removed already
			t.Fatal(err)
		}
	}
	const elsewhere = "default/elsewhere on node2 labelled default/elsewhere@node2"
	d.wantEntries("a dead node's entry and a second one of ours go, another node's stays", dnsEntry, elsewhere, webEntry)
	mine := &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: status.Entry{Service: web, Node: self}.Name()}}
	if err := d.api.Delete(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	d.wantEntries("an entry that somebody deleted comes back", dnsEntry, elsewhere, webEntry)
	if err := d.api.Delete(t.Context(), &v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Namespace: names.Namespace, Name: "l2-other"}}); err != nil {
		t.Fatal(err)
	}
	d.wantEntries("the other node's is gone", dnsEntry, webEntry)
}

// conflicts plays a foreign host that claims an address.
func (d *desk) conflicts(both []intent.Claim) {
	d.t.Helper()
	claim := elect.Note{Kind: elect.NoteConflict, Address: four, MAC: rogue, Text: "another host"}
	for range 5 {
		d.observe(both, claim)
	}
	const but = " but 192.168.0.201 by 02:00:00:00:00:99"
	d.wantEntries("a foreign host is named", dnsEntry+but, webEntry+but)
	d.wantSpeaker("a foreign host is named", func(s v1alpha1.SpeakerStatusStatus) bool {
		c := meta.FindStatusCondition(s.Conditions, names.ConditionUncontested)
		return c != nil && c.Status == metav1.ConditionFalse && c.Reason == string(names.ReasonForeignClaim) && strings.Contains(c.Message, rogue.String())
	})
	d.wantEvents("it is told once", names.EventAnnounceFailed, map[string]int{
		`Service web: Conflict: another host`: 1, `Service dns: Conflict: another host`: 1,
	})
	d.observe(both[1:]) // the address is given up, and taken again
	d.wantEntries("no conflict over what is not held", "default/web on node1 labelled default/web@node1 fd00:a8::201")
	d.observe(both)
	d.wantEntries("the conflict is over", dnsEntry, webEntry)
}
