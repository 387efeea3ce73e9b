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
	config         *configurationreader.Configuration // nil without the rights
	pools          []v1beta1.IPAddressPool
	sessions       []v1alpha1.BGPSession
	gantryServices []corev1.Service // of type LoadBalancer, and of Gantry's class
	checks         []report.Check
	// targetByCheck has what to change so that a check is passed.
	targetByCheck map[report.Check]repairTarget
}

// overviewScope says whether an overview has the Services, which may be many, and of which
// namespace; without one, of all.
type overviewScope struct {
	hasServices bool
	namespace   string
}

var withoutServices, withServices = overviewScope{}, overviewScope{hasServices: true}

// readOverview reads the whole installation. The explanation is set if there is none.
func (e *Explainer) readOverview(ctx context.Context, scope overviewScope) (*overview, names.Explanation, error) {
	requests := append(e.configurationListRequests(), e.statusListRequests()...)
	if scope.hasServices {
		e.showProgress("reading all Services")
		requests = append(requests, objects.ListRequest{List: &corev1.ServiceList{}, Namespace: scope.namespace}, objects.ListRequest{List: &v1beta1.ServiceL2StatusList{}, Namespace: e.gantryNamespace})
	}
	if err := e.objectReader.ListAndCacheKinds(ctx, requests...); err != nil {
		return nil, names.Explanation{}, err
	}
	if absent := e.explainMissingInstallation(ctx); absent.IsSet() {
		return nil, absent, nil
	}
	o := &overview{Explainer: e, targetByCheck: map[report.Check]repairTarget{}}
	var err error
	if _, err = e.readInstallation(ctx); err != nil {
		return nil, names.Explanation{}, err
	}
	var pools v1beta1.IPAddressPoolList
	var sessions v1alpha1.BGPSessionList
	var services corev1.ServiceList
	for list, namespace := range map[client.ObjectList]string{&pools: e.gantryNamespace, &sessions: e.gantryNamespace, &services: scope.namespace} {
		if list == &services && !scope.hasServices {
			continue
		}
		if err := e.objectReader.List(ctx, list, client.InNamespace(namespace)); err != nil {
			return nil, names.Explanation{}, err
		}
	}
	o.pools, o.sessions = pools.Items, sessions.Items
	for i := range services.Items {
		if s := &services.Items[i]; s.Spec.Type == corev1.ServiceTypeLoadBalancer && readLoadBalancerClass(s) == o.installation.loadBalancerClass {
			o.gantryServices = append(o.gantryServices, *s)
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

func (o *overview) addCheck(name string, result report.Result, why names.Explanation) {
	o.checks = append(o.checks, report.Check{Name: name, Result: result, Reason: why.Reason, Text: why.Text})
}

func (o *overview) addCheckOfCause(name string, result report.Result, why cause) {
	o.addCheck(name, result, why.Explanation)
	o.targetByCheck[o.checks[len(o.checks)-1]] = why.target
}

// ExplainInstallation says whether Gantry is well, and what is not, the worst first.
func (e *Explainer) ExplainInstallation(ctx context.Context) (*report.Report, error) {
	out := &report.Report{Subject: "installation", Result: report.ResultNotWell}
	o, absent, err := e.readOverview(ctx, withServices)
	if err != nil {
		return nil, err
	}
	if absent.IsSet() {
		out.Reason, out.Answer = absent.Reason, absent.Text
		return e.addMissingRightsAndDocURL(out), nil
	}
	o.addControllerCheck()
	o.addFaultyServiceChecks(withoutAddress)
	o.addSpeakerChecks(ctx)
	o.addServiceChecks()
	o.addSessionChecks()
	o.addPoolChecks()
	o.addConfigurationChecks()
	o.addChecksOutsideGantry(ctx)
	if err := o.addRivalChecks(ctx); err != nil {
		return nil, err
	}
	slices.SortStableFunc(o.checks, func(x, y report.Check) int { return cmp.Compare(severityRank(x.Result), severityRank(y.Result)) })
	out.Checks = o.checks
	o.setAnswer(out)
	return e.addMissingRightsAndDocURL(out), nil
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

func severityRank(r report.Result) int {
	return slices.Index([]report.Result{report.ResultNotWell, report.ResultUnknown, report.ResultWell}, r)
}

// setAnswer makes the first line of the checks, which are sorted.
func (o *overview) setAnswer(out *report.Report) {
	faults := 0
	for _, g := range o.checks {
		if g.Result == report.ResultNotWell {
			faults++
		}
	}
	first := o.checks[0]
	switch {
	case faults == 1:
		out.Reason, out.Answer = first.Reason, fmt.Sprintf("Gantry is not well: %s: %s", first.Name, first.Text)
	case faults > 1:
		out.Reason, out.Answer = first.Reason, fmt.Sprintf("Gantry is not well, for %d causes; first %s: %s", faults, first.Name, first.Text)
	case first.Result == report.ResultUnknown:
		out.Result, out.Answer = report.ResultUnknown, "nothing wrong is seen, but you may not see everything"
	default:
		out.Result, out.Answer = report.ResultWell, fmt.Sprintf("Gantry is well: %s, %s, %s", formatCount(len(o.installation.speakerStatusByNode), "speaker"), formatCount(len(o.pools), "pool"), formatCount(len(o.gantryServices), "announced Service"))
	}
}

func (o *overview) addControllerCheck() {
	switch f := o.installation.controllerFault; {
	case f.IsSet():
		o.addCheckOfCause("controller", report.ResultNotWell, f)
	case o.installation.leaderLease == nil:
		o.addCheck("controller", report.ResultUnknown, names.Explanation{Text: "you may not see whether one leads"})
	default:
		o.addCheck("controller", report.ResultWell, names.Explanation{Text: "Pod " + findLeaderPod(o.installation) + " leads"})
	}
}

// addChecksOutsideGantry says what is wrong outside of Gantry.
func (o *overview) addChecksOutsideGantry(ctx context.Context) {
	for _, g := range []struct {
		name string
		why  names.Explanation
	}{
		{"API server", o.explainSlowAPIServer()},
		{"webhook", o.explainWebhookRefusal(ctx).Explanation},
		{"kube-proxy", o.explainMissingStrictARP(ctx)},
	} {
		if g.why.IsSet() {
			o.addCheck(g.name, report.ResultNotWell, g.why)
		}
	}
}

// addSpeakerChecks says what is wrong with speakers. Speakers with the same fault share a line.
func (o *overview) addSpeakerChecks(ctx context.Context) {
	if o.objectReader.LacksRightToRead("speakerstatuses.gantry.dev") {
		o.addCheck("speakers", report.ResultUnknown, names.Explanation{Text: "you may not read their SpeakerStatuses"})
		return
	}
	nodesByFault := map[names.Explanation][]string{}
	for _, node := range slices.Sorted(maps.Keys(o.installation.speakerStatusByNode)) {
		for _, fault := range o.faultsOfSpeaker(node) {
			nodesByFault[fault] = append(nodesByFault[fault], node)
		}
	}
	if d := o.installation.speakerDaemonSet; d != nil && d.Status.NumberReady < d.Status.DesiredNumberScheduled {
		o.addCheck("speakers", report.ResultNotWell, names.Explanation{Reason: names.ReasonNoSpeaker, Text: o.explainMissingSpeakers(ctx).text})
	} else if len(o.installation.speakerStatusByNode) == 0 {
		o.addCheck("speakers", report.ResultNotWell, names.Explanation{Reason: names.ReasonNoSpeaker, Text: "no speaker has ever run: " + o.explainMissingSpeakers(ctx).text})
	}
	faults := slices.SortedFunc(maps.Keys(nodesByFault), func(x, y names.Explanation) int {
		return strings.Compare(string(x.Reason)+x.Text, string(y.Reason)+y.Text)
	})
	for _, f := range faults {
		nodes := nodesByFault[f]
		if f.Reason == names.ReasonNoSpeaker {
			f = o.blameNodesNotReady(ctx, nodes, f)
		}
		o.addCheck("speaker of "+joinFirstElements(nodes, maxListedElements), report.ResultNotWell, f)
	}
	if len(faults) == 0 && len(o.installation.speakerStatusByNode) > 0 {
		o.addCheck("speakers", report.ResultWell, names.Explanation{Text: fmt.Sprintf("%d run", len(o.installation.speakerStatusByNode))})
	}
}

// faultsOfSpeaker returns what is wrong with a speaker and its node.
func (o *overview) faultsOfSpeaker(node string) []names.Explanation {
	s := o.installation.speakerStatusByNode[node]
	var out []names.Explanation
	if f := announcedcondition.ExplainSpeakerFault(s); f.IsSet() {
		return append(out, f)
	}
	if s.LastSeen != nil && o.now().Sub(s.LastSeen.Time) > silentSpeakerTimeout {
		return append(out, names.NewExplanation(names.ReasonNoSpeaker, "it is silent since %s", describeTime(s.LastSeen)))
	}
	for _, kind := range []string{names.ConditionNodeFit, names.ConditionLayer2Usable, names.ConditionGossipComplete, names.ConditionHeldAddressesUncontested, names.ConditionSteersAroundDeadNodes, names.ConditionKeepsConnections} {
		if c := meta.FindStatusCondition(s.Conditions, kind); c != nil && c.Status == metav1.ConditionFalse {
			out = append(out, names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message})
		}
	}
	return out
}

// worstServiceCondition returns the condition that says what is wrong with the Service: about its
// address if it lacks one, else about its announcement.
func worstServiceCondition(s *corev1.Service) *metav1.Condition {
	assigned := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	if len(s.Status.LoadBalancer.Ingress) == 0 || assigned != nil && assigned.Status != metav1.ConditionTrue {
		return assigned
	}
	return meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced)
}

// addServiceChecks counts the Services that are not announced, by Reason.
func (o *overview) addServiceChecks() {
	if o.objectReader.LacksRightToRead("services") {
		o.addCheck(servicesCheckName, report.ResultUnknown, names.Explanation{Text: "you may not list them"})
		return
	}
	o.addFaultyServiceChecks(withAddress)
	if !slices.ContainsFunc(o.checks, func(g report.Check) bool { return g.Name == servicesCheckName }) {
		o.addCheck(servicesCheckName, report.ResultWell, names.Explanation{Text: formatCount(len(o.gantryServices), "Service") + " of type LoadBalancer, all announced"})
	}
}

// servicesCheckName is the name of the checks that count Services.
const servicesCheckName = "Services"

// servicesToCount says which Services are counted: those that have an address, or those that wait
// for one.
type servicesToCount bool

const withAddress, withoutAddress servicesToCount = true, false

// addFaultyServiceChecks counts the Services that are not announced, by Reason, the most frequent
// one first.
func (o *overview) addFaultyServiceChecks(which servicesToCount) {
	servicesByReason := map[names.Reason][]string{}
	for i := range o.gantryServices {
		s := &o.gantryServices[i]
		if servicesToCount(len(s.Status.LoadBalancer.Ingress) > 0) != which {
			continue
		}
		c := worstServiceCondition(s)
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
	reasons := slices.SortedFunc(maps.Keys(servicesByReason), func(x, y names.Reason) int {
		return cmp.Or(cmp.Compare(len(servicesByReason[y]), len(servicesByReason[x])), cmp.Compare(x, y))
	})
	for _, r := range reasons {
		all := servicesByReason[r]
		o.addCheck(servicesCheckName, report.ResultNotWell, names.NewExplanation(r, "%s not announced: %s: kubectl gantry explain service %s", formatCount(len(all), "Service"), joinFirstElements(all, maxListedElements), all[0]))
	}
}

// addSessionChecks says which BGP sessions are not established, or lack routes or BFD. Sessions
// with the same peer and Reason share a line, with the text of the first.
func (o *overview) addSessionChecks() {
	established := 0
	var groups []*faultySessionGroup
	for i := range o.sessions {
		s := &o.sessions[i].Status
		fault := faultOfSession(s)
		if !fault.IsSet() {
			established++
			continue
		}
		at := slices.IndexFunc(groups, func(g *faultySessionGroup) bool { return g.peer == s.Peer && g.fault.Reason == fault.Reason })
		if at < 0 {
			at = len(groups)
			groups = append(groups, &faultySessionGroup{peer: s.Peer, fault: fault})
		}
		groups[at].nodes = append(groups[at].nodes, s.Node)
	}
	for _, g := range groups {
		o.addCheck(fmt.Sprintf("session of %s with %s", joinFirstElements(g.nodes, maxListedElements), g.peer), report.ResultNotWell, g.fault)
	}
	if established > 0 {
		o.addCheck("sessions", report.ResultWell, names.Explanation{Text: fmt.Sprintf("%d of %d are well", established, len(o.sessions))})
	}
}

// faultySessionGroup has the nodes whose sessions with a peer have the same fault.
type faultySessionGroup struct {
	peer  string
	fault names.Explanation
	nodes []string
}

// faultOfSession returns what is wrong with a session.
func faultOfSession(s *v1alpha1.BGPSessionStatus) names.Explanation {
	for _, kind := range []string{names.ConditionEstablished, names.ConditionRoutesAnnounced, names.ConditionBFDWatchesPath} {
		if c := meta.FindStatusCondition(s.Conditions, kind); c != nil && c.Status == metav1.ConditionFalse {
			return names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
		}
	}
	return names.Explanation{}
}

// addPoolChecks says which pools are full.
func (o *overview) addPoolChecks() {
	if o.objectReader.LacksRightToRead("ipaddresspools.metallb.io") {
		o.addCheck("pools", report.ResultUnknown, names.Explanation{Text: "you may not list them"})
		return
	}
	if len(o.pools) == 0 {
		o.addCheck("pools", report.ResultNotWell, names.NewExplanation(names.ReasonNoPools, "there is no IPAddressPool in namespace %s: no Service gets an address", o.gantryNamespace))
		return
	}
	full := 0
	for i := range o.pools {
		s := &o.pools[i].Status
		for _, u := range fullFamilies(s) {
			full++
			o.addCheck("pool "+o.pools[i].Name, report.ResultNotWell, names.NewExplanation(names.ReasonPoolExhausted, "%s: all of its %d addresses are in use", describeFullFamily(s, u), u.assigned))
		}
	}
	if full == 0 {
		o.addCheck("pools", report.ResultWell, names.Explanation{Text: formatCount(len(o.pools), "pool") + " with free addresses"})
	}
}

// addConfigurationChecks lists the faults of the configuration.
func (o *overview) addConfigurationChecks() {
	if o.config == nil {
		o.addCheck("configuration", report.ResultUnknown, names.Explanation{Text: "you may not read all of it"})
		return
	}
	for _, p := range o.config.Problems {
		if !p.IsOnlyAdvice() {
			o.addCheck(p.Object.Kind+" "+p.Object.Name, report.ResultNotWell, names.Explanation{Reason: p.Reason, Text: p.Text})
		}
	}
	if len(o.config.Problems) == 0 {
		o.addCheck("configuration", report.ResultWell, names.Explanation{Text: "every object is understood"})
	}
}
