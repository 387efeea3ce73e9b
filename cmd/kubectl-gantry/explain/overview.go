package explain

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/controller/configurationreader"
)

// overview is what is known of the whole installation.
type overview struct {
	*Explainer
	config   *configurationreader.Configuration // nil without the rights
	pools    []v1beta1.IPAddressPool
	sessions []v1alpha1.BGPSession
	services []corev1.Service // of type LoadBalancer, and of Gantry's class
	gates    []report.Gate
}

// overviewScope says whether an overview has the Services, which may be many.
type overviewScope bool

const withoutServices, withServices overviewScope = false, true

// readOverview reads the whole installation. The explanation is set if there is none.
func (e *Explainer) readOverview(ctx context.Context, scope overviewScope) (*overview, names.Explanation, error) {
	requests := append(e.configurationKinds(), e.stateKinds()...)
	if scope == withServices {
		e.showProgress("reading all Services")
		requests = append(requests, objects.ListRequest{List: &corev1.ServiceList{}}, objects.ListRequest{List: &v1beta1.ServiceL2StatusList{}, Namespace: e.namespace})
	}
	if err := e.objects.ListAll(ctx, requests...); err != nil {
		return nil, names.Explanation{}, err
	}
	if absent := e.explainMissingInstallation(ctx); absent.IsSet() {
		return nil, absent, nil
	}
	o := &overview{Explainer: e}
	var err error
	if _, err = e.readInstallation(ctx); err != nil {
		return nil, names.Explanation{}, err
	}
	var pools v1beta1.IPAddressPoolList
	var sessions v1alpha1.BGPSessionList
	var services corev1.ServiceList
	for list, namespace := range map[client.ObjectList]string{&pools: e.namespace, &sessions: e.namespace, &services: ""} {
		if list == &services && scope == withoutServices {
			continue
		}
		if err := e.objects.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return nil, names.Explanation{}, err
		}
	}
	o.pools, o.sessions = pools.Items, sessions.Items
	for i := range services.Items {
		if s := &services.Items[i]; s.Spec.Type == corev1.ServiceTypeLoadBalancer && readLoadBalancerClass(s) == o.installation.loadBalancerClass {
			o.services = append(o.services, *s)
		}
	}
	if e.mayListEssentialResources() {
		o.config, err = e.readConfiguration(ctx)
	}
	return o, names.Explanation{}, err
}

func readLoadBalancerClass(s *corev1.Service) string {
	if s.Spec.LoadBalancerClass == nil {
		return ""
	}
	return *s.Spec.LoadBalancerClass
}

func (o *overview) addGate(name string, result report.Result, why names.Explanation) {
	o.gates = append(o.gates, report.Gate{Name: name, Result: result, Reason: why.Reason, Text: why.Text})
}

// ExplainInstallation says whether Gantry is well, and what is not, the worst first.
func (e *Explainer) ExplainInstallation(ctx context.Context) (*report.Report, error) {
	out := &report.Report{Subject: "installation", Result: report.NotWell}
	o, absent, err := e.readOverview(ctx, withServices)
	if err != nil {
		return nil, err
	}
	if absent.IsSet() {
		out.Reason, out.Answer = absent.Reason, absent.Text
		return e.complete(out), nil
	}
	o.addControllerGate()
	o.addSpeakerGates(ctx)
	o.addServiceGates()
	o.addSessionGates()
	o.addPoolGates()
	o.addConfigurationGates()
	o.addSurroundingGates(ctx)
	slices.SortStableFunc(o.gates, func(x, y report.Gate) int { return cmp.Compare(severityOf(x.Result), severityOf(y.Result)) })
	out.Gates = o.gates
	o.answer(out)
	return e.complete(out), nil
}

// formatCount is a number with its noun.
func formatCount(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if strings.HasSuffix(noun, "s") {
		return fmt.Sprintf("%d %ses", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func severityOf(r report.Result) int {
	return slices.Index([]report.Result{report.NotWell, report.Unknown, report.Well}, r)
}

// answer makes the first line of the gates, which are sorted.
func (o *overview) answer(out *report.Report) {
	faults := 0
	for _, g := range o.gates {
		if g.Result == report.NotWell {
			faults++
		}
	}
	first := o.gates[0]
	switch {
	case faults == 1:
		out.Reason, out.Answer = first.Reason, fmt.Sprintf("Gantry is not well: %s: %s", first.Name, first.Text)
	case faults > 1:
		out.Reason, out.Answer = first.Reason, fmt.Sprintf("Gantry is not well, for %d causes; first %s: %s", faults, first.Name, first.Text)
	case first.Result == report.Unknown:
		out.Result, out.Answer = report.Unknown, "nothing wrong is seen, but you may not see everything"
	default:
		out.Result, out.Answer = report.Well, fmt.Sprintf("Gantry is well: %s, %s, %s", formatCount(len(o.installation.speakers), "speaker"), formatCount(len(o.pools), "pool"), formatCount(len(o.services), "announced Service"))
	}
}

func (o *overview) addControllerGate() {
	switch f := o.installation.controllerFault; {
	case f.IsSet():
		o.addGate("controller", report.NotWell, f)
	case o.installation.leader == nil:
		o.addGate("controller", report.Unknown, names.Explanation{Text: "you may not see whether one leads"})
	default:
		o.addGate("controller", report.Well, names.Explanation{Text: "Pod " + findLeaderPod(o.installation) + " leads"})
	}
}

// addSurroundingGates says what is wrong outside of Gantry.
func (o *overview) addSurroundingGates(ctx context.Context) {
	for _, g := range []struct {
		name string
		why  names.Explanation
	}{
		{"API server", o.explainSlowAPIServer()},
		{"webhook", o.explainWebhooks(ctx)},
		{"other controllers", o.installation.explainMetalLB()},
		{"other controllers", o.explainSecondInstallation(ctx)},
		{"kube-proxy", o.explainStrictARP(ctx)},
	} {
		if g.why.IsSet() {
			o.addGate(g.name, report.NotWell, g.why)
		}
	}
}

// addSpeakerGates says what is wrong with speakers. Speakers with the same fault share a line.
func (o *overview) addSpeakerGates(ctx context.Context) {
	if o.objects.LacksRightTo("speakerstatuses.gantry.dev") {
		o.addGate("speakers", report.Unknown, names.Explanation{Text: "you may not read their SpeakerStatuses"})
		return
	}
	nodesByFault := map[names.Explanation][]string{}
	for _, node := range slices.Sorted(maps.Keys(o.installation.speakers)) {
		for _, fault := range o.faultsOfSpeaker(node) {
			nodesByFault[fault] = append(nodesByFault[fault], node)
		}
	}
	if d := o.installation.speaker; d != nil && d.Status.NumberReady < d.Status.DesiredNumberScheduled {
		o.addGate("speakers", report.NotWell, names.Explanation{Reason: names.ReasonNoSpeaker, Text: o.explainSpeakers(ctx)})
	} else if len(o.installation.speakers) == 0 {
		o.addGate("speakers", report.NotWell, names.Explanation{Reason: names.ReasonNoSpeaker, Text: "no speaker has ever run: " + o.explainSpeakers(ctx)})
	}
	faults := slices.SortedFunc(maps.Keys(nodesByFault), func(x, y names.Explanation) int {
		return strings.Compare(string(x.Reason)+x.Text, string(y.Reason)+y.Text)
	})
	for _, f := range faults {
		o.addGate("speaker of "+joinFirstElements(nodesByFault[f], maxListedElements), report.NotWell, f)
	}
	if len(faults) == 0 && len(o.installation.speakers) > 0 {
		o.addGate("speakers", report.Well, names.Explanation{Text: fmt.Sprintf("%d run", len(o.installation.speakers))})
	}
}

// faultsOfSpeaker returns what is wrong with a speaker and its node.
func (o *overview) faultsOfSpeaker(node string) []names.Explanation {
	s := o.installation.speakers[node]
	var out []names.Explanation
	if f := announcedcondition.ExplainSpeaker(s); f.IsSet() {
		return append(out, f)
	}
	if s.LastSeen != nil && o.now().Sub(s.LastSeen.Time) > silentSpeakerTimeout {
		return append(out, names.Explain(names.ReasonNoSpeaker, "it is silent since %s", describeTime(s.LastSeen)))
	}
	for _, kind := range []string{names.ConditionFit, names.ConditionLayer2Usable, names.ConditionGossip, names.ConditionUncontested} {
		if c := meta.FindStatusCondition(s.Conditions, kind); c != nil && c.Status == metav1.ConditionFalse {
			out = append(out, names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message})
		}
	}
	return out
}

// conditionOfService returns the condition that says best how the Service is: the one that is not
// True, or else that it is announced.
func conditionOfService(s *corev1.Service) *metav1.Condition {
	assigned := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	if len(s.Status.LoadBalancer.Ingress) == 0 || assigned != nil && assigned.Status != metav1.ConditionTrue {
		return assigned
	}
	return meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced)
}

// addServiceGates counts the Services that are not announced, by Reason.
func (o *overview) addServiceGates() {
	if o.objects.LacksRightTo("services") {
		o.addGate("Services", report.Unknown, names.Explanation{Text: "you may not list them"})
		return
	}
	servicesByReason := map[names.Reason][]string{}
	for i := range o.services {
		s := &o.services[i]
		c := conditionOfService(s)
		reason := names.Reason("")
		switch {
		case c == nil && len(s.Status.LoadBalancer.Ingress) == 0:
			reason = names.ReasonNoController
		case c != nil && (c.Status != metav1.ConditionTrue || c.Reason == string(names.ReasonForeignClaim)):
			reason = names.Reason(c.Reason)
		default:
			continue
		}
		servicesByReason[reason] = append(servicesByReason[reason], s.Namespace+"/"+s.Name)
	}
	for _, r := range slices.Sorted(maps.Keys(servicesByReason)) {
		all := servicesByReason[r]
		o.addGate("Services", report.NotWell, names.Explain(r, "%s not announced: %s: kubectl gantry explain service %s", formatCount(len(all), "Service"), joinFirstElements(all, maxListedElements), all[0]))
	}
	if len(servicesByReason) == 0 {
		o.addGate("Services", report.Well, names.Explanation{Text: formatCount(len(o.services), "Service") + " of type LoadBalancer, all announced"})
	}
}

// addSessionGates says which BGP sessions are not established, or lack routes or BFD.
func (o *overview) addSessionGates() {
	established := 0
	for i := range o.sessions {
		s := &o.sessions[i].Status
		fault := faultOfSession(s)
		if !fault.IsSet() {
			established++
			continue
		}
		o.addGate(fmt.Sprintf("session of %s with %s", s.Node, s.Peer), report.NotWell, fault)
	}
	if established > 0 {
		o.addGate("sessions", report.Well, names.Explanation{Text: fmt.Sprintf("%d of %d are well", established, len(o.sessions))})
	}
}

// faultOfSession returns what is wrong with a session.
func faultOfSession(s *v1alpha1.BGPSessionStatus) names.Explanation {
	for _, kind := range []string{names.ConditionEstablished, names.ConditionRoutesAnnounced, names.ConditionPathWatched} {
		if c := meta.FindStatusCondition(s.Conditions, kind); c != nil && c.Status == metav1.ConditionFalse {
			return names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
		}
	}
	return names.Explanation{}
}

// addPoolGates says which pools are full.
func (o *overview) addPoolGates() {
	if o.objects.LacksRightTo("ipaddresspools.metallb.io") {
		o.addGate("pools", report.Unknown, names.Explanation{Text: "you may not list them"})
		return
	}
	if len(o.pools) == 0 {
		o.addGate("pools", report.NotWell, names.Explain(names.ReasonNoPools, "there is no IPAddressPool in namespace %s: no Service gets an address", o.namespace))
		return
	}
	full := 0
	for i := range o.pools {
		s := &o.pools[i].Status
		if used := s.AssignedIPv4 + s.AssignedIPv6; used > 0 && s.AvailableIPv4+s.AvailableIPv6 == 0 {
			full++
			o.addGate("pool "+o.pools[i].Name, report.NotWell, names.Explain(names.ReasonPoolExhausted, "it is full: all of its %d addresses are in use", used))
		}
	}
	if full == 0 {
		o.addGate("pools", report.Well, names.Explanation{Text: formatCount(len(o.pools), "pool") + " with free addresses"})
	}
}

// addConfigurationGates lists the faults of the configuration.
func (o *overview) addConfigurationGates() {
	if o.config == nil {
		o.addGate("configuration", report.Unknown, names.Explanation{Text: "you may not read all of it"})
		return
	}
	for _, p := range o.config.Problems {
		if !p.IsOnlyAdvice() {
			o.addGate(p.Object.Kind+" "+p.Object.Name, report.NotWell, names.Explanation{Reason: p.Reason, Text: p.Text})
		}
	}
	if len(o.config.Problems) == 0 {
		o.addGate("configuration", report.Well, names.Explanation{Text: "every object is understood"})
	}
}
