package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// addPoolChecks says of each pool whether it can serve the Service.
func (c *serviceDiagnosis) addPoolChecks(ctx context.Context) error {
	if c.config == nil {
		c.addCheck("pools", report.ResultUnknown, names.Explanation{Text: "you may not read them"})
		return nil
	}
	ledger, usages, err := c.readPoolUsageAndLedger(ctx)
	if err != nil {
		return err
	}
	for _, p := range allocate.ExplainPools(&c.view, ledger, c.config.Snapshot) {
		name, why, u := "pool "+p.Pool.Name, p.Explanation, usages[p.Pool.Name]
		switch {
		case p.Pool.Name == c.view.RecordedPool && len(c.view.AssignedAddresses) > 0:
			c.addCheck(name, report.ResultWell, names.Explanation{Text: "gave " + view.JoinAddresses(c.view.AssignedAddresses) + u.assignedAndFreeText()})
		case why.IsSet():
			c.addWideOnlyCheck(name, report.ResultNotWell, why)
		case !u.hasFreeAddressFor(&c.view):
			c.addCheck(name, report.ResultNotWell, names.Explanation{Reason: names.ReasonPoolExhausted, Text: "has no free address of a needed family" + u.assignedAndFreeText()})
		case isConditionAboutPool(c.addressCondition, &c.view, p.Pool):
			c.addWideOnlyCheck(name, report.ResultNotWell, names.Explanation{Reason: names.Reason(c.addressCondition.Reason), Text: c.addressCondition.Message})
		case !p.IsCandidate && c.view.RequestedPool != "":
			c.addWideOnlyCheck(name, report.ResultWell, names.Explanation{Text: "is not the pool that the Service names" + u.assignedAndFreeText()})
		case !p.IsCandidate:
			c.addWideOnlyCheck(name, report.ResultNotWell, names.Explanation{Reason: names.ReasonNoEligiblePool, Text: "has autoAssign false: only Services that name it get its addresses" + u.assignedAndFreeText()})
		default:
			c.addWideOnlyCheck(name, report.ResultWell, names.Explanation{Text: "is open to the Service" + u.assignedAndFreeText()})
		}
	}
	return nil
}

// isConditionAboutPool reports whether the controller says why this pool gave the Service nothing.
// The other Services, which are often the cause, are not read once there is a condition.
func isConditionAboutPool(a *metav1.Condition, v *view.Service, p *snapshot.Pool) bool {
	if a == nil || a.Status == metav1.ConditionTrue || len(v.AssignedAddresses) > 0 {
		return false
	}
	return isPoolNamedIn(a.Message, p.Name) || slices.ContainsFunc(v.RequestedAddresses, p.CoversAddress)
}

// isPoolNamedIn reports whether the text of a condition names the pool: in quotes, or in the list
// of the pools that are open to the Service.
func isPoolNamedIn(text, pool string) bool {
	_, list, _ := strings.Cut(text, "open to this Service (")
	list, _, _ = strings.Cut(list, ")")
	list, _, _ = strings.Cut(list, " and ")
	return strings.Contains(text, strconv.Quote(pool)) || slices.Contains(strings.Split(list, ", "), pool)
}

// poolUsage is what the status of a pool says.
type poolUsage struct {
	isKnown                            bool
	assigned, availableV4, availableV6 int64
}

func (u poolUsage) assignedAndFreeText() string {
	if !u.isKnown {
		return ""
	}
	return fmt.Sprintf(" (%d in use, %d free)", u.assigned, addSaturating(u.availableV4, u.availableV6))
}

// hasFreeAddressFor reports whether a family that the Service needs is free, as far as is known: of
// a Service that requires both, each one.
func (u poolUsage) hasFreeAddressFor(v *view.Service) bool {
	if !u.isKnown || v.SharingKey != "" {
		return true
	}
	free := 0
	for _, a := range v.ClusterIPs {
		if a.Is4() && u.availableV4 > 0 || !a.Is4() && u.availableV6 > 0 {
			free++
		}
	}
	if v.FamilyPolicy == view.RequireDualStack {
		return free == len(v.ClusterIPs)
	}
	return free > 0 || len(v.ClusterIPs) == 0
}

// addAnnouncementChecks says which advertisements, endpoints, nodes and sessions carry the Service.
func (c *serviceDiagnosis) addAnnouncementChecks() {
	if len(c.view.AssignedAddresses) == 0 {
		return
	}
	if c.announcementFinding == nil {
		c.addCheck("announcement", report.ResultUnknown, names.Explanation{Text: "you may not read what the speakers report"})
		return
	}
	c.addAdvertisementCheck()
	e := &c.announcementFinding.Endpoints
	if e.AnyServing {
		var on []string
		for i, n := range e.ServingNodes {
			on = append(on, fmt.Sprintf("%d on %s", e.EndpointCountsOfServingNodes[i], n))
		}
		c.addCheck("endpoints", report.ResultWell, names.Explanation{Text: cmp.Or(joinFirstElements(on, maxListedElements), "serve outside of the nodes")})
	} else {
		c.addCheck("endpoints", report.ResultNotWell, names.NewExplanation(names.ReasonNoEndpoints, "none can serve (selector %s)", cmp.Or(c.view.PodSelector, "empty")))
	}
	c.addNodeChecks()
	c.addSessionChecks()
}

// addAdvertisementCheck names the advertisements that cover the Service.
func (c *serviceDiagnosis) addAdvertisementCheck() {
	svc := advertise.ServiceFromView(&c.view)
	if why := advertise.ExplainUnannouncedService(c.config.Snapshot, &svc, c.config.Nodes); why.IsSet() {
		c.addCheck("advertisements", report.ResultNotWell, why)
		return
	}
	var all []string
	layer2, _ := advertise.L2AdsCoveringService(c.config.Snapshot, &svc)
	for _, ad := range layer2.Ads {
		all = append(all, "L2Advertisement "+ad.Name)
	}
	bgp, _ := advertise.BGPAdsCoveringService(c.config.Snapshot, &svc)
	for _, b := range bgp {
		all = append(all, "BGPAdvertisement "+b.Ad.Name)
	}
	c.addCheck("advertisements", report.ResultWell, names.Explanation{Text: joinFirstElements(all, maxListedElements)})
}

func describeTime(t *metav1.Time) string {
	if t == nil || t.IsZero() {
		return "an unknown time"
	}
	return t.UTC().Format(time.DateTime) + " UTC"
}

// describeHoldersAndSessions names the nodes that answer, as the end of a sentence.
func (c *serviceDiagnosis) describeHoldersAndSessions() string {
	carrying := 0
	for _, s := range c.announcementFinding.Sessions {
		if !s.Fault.IsSet() {
			carrying++
		}
	}
	text := ""
	if on := c.answeringNodes(); len(on) > 0 {
		text += "; " + joinFirstElements(on, maxListedElements) + " answers"
	}
	if carrying > 0 {
		text += fmt.Sprintf("; %d of %d sessions carry it", carrying, len(c.announcementFinding.Sessions))
	}
	return text
}

// addSessionChecks says of each session whether the router has the routes.
func (c *serviceDiagnosis) addSessionChecks() {
	for _, f := range c.announcementFinding.Sessions {
		name := fmt.Sprintf("session of %s with %s", f.Node, f.Peer)
		if f.Fault.IsSet() {
			c.addCheck(name, report.ResultNotWell, f.Fault)
			continue
		}
		s := c.sessionOfNodeAndPeer(f.Node, f.Peer)
		if s == nil {
			continue
		}
		text := fmt.Sprintf("%s has the routes, %d prefixes in all, established since %s", s.Address, s.Prefixes, describeTime(s.Since))
		if s.BFD != "" {
			text += ", BFD " + s.BFD
		}
		c.addWideOnlyCheck(name, report.ResultWell, names.Explanation{Text: text})
	}
}

func (c *serviceDiagnosis) sessionOfNodeAndPeer(node, peer string) *v1alpha1.BGPSessionStatus {
	for i := range c.sessions {
		if s := &c.sessions[i].Status; s.Node == node && s.Peer == peer {
			return s
		}
	}
	return nil
}

// faultRulesOfAnnouncedService find what is wrong with a Service all of whose addresses are
// announced, the most urgent first.
var faultRulesOfAnnouncedService = []func(*serviceDiagnosis, context.Context) cause{
	adaptRuleWithoutContext((*serviceDiagnosis).explainUnfitNode),
	adaptRuleWithoutContext((*serviceDiagnosis).explainFaultySession),
	adaptRuleWithoutContext((*serviceDiagnosis).explainAddressNoLongerAllowed),
	adaptRuleWithTarget((*serviceDiagnosis).explainAddressLeftPool),
	explainAddressOfCluster,
	adaptRuleWithoutContext(explainHolderWithoutRight),
	adaptRuleWithoutTarget((*serviceDiagnosis).explainUnservedPort),
	adaptRuleWithoutContext((*serviceDiagnosis).explainMisspelledAnnotation),
	adaptRuleWithoutContext((*serviceDiagnosis).explainSessionWithoutBFD),
	adaptRuleWithoutContext((*serviceDiagnosis).explainFaultyGossip),
	explainMissingFailoverNode,
	adaptRuleWithoutContext((*serviceDiagnosis).explainSlowAPIServer),
	adaptRuleWithTarget((*serviceDiagnosis).explainNoWorkingController),
	adaptRuleWithoutContext(explainRequestedHolder),
	adaptRuleWithTarget((*serviceDiagnosis).explainFaultyObject),
	(*serviceDiagnosis).explainBrokenAdvertisement,
	(*serviceDiagnosis).explainWebhookRefusal,
}

// adaptRuleWithoutContext makes a rule of one that reads nothing more, and whose Reason alone says
// what to do.
func adaptRuleWithoutContext(rule func(*serviceDiagnosis) names.Explanation) func(*serviceDiagnosis, context.Context) cause {
	return func(c *serviceDiagnosis, _ context.Context) cause { return cause{Explanation: rule(c)} }
}

// adaptRuleWithTarget makes a rule of one that reads nothing more.
func adaptRuleWithTarget(rule func(*serviceDiagnosis) cause) func(*serviceDiagnosis, context.Context) cause {
	return func(c *serviceDiagnosis, _ context.Context) cause { return rule(c) }
}

// adaptRuleWithoutTarget makes a rule of one whose Reason alone says what to do.
func adaptRuleWithoutTarget(rule func(*serviceDiagnosis, context.Context) names.Explanation) func(*serviceDiagnosis, context.Context) cause {
	return func(c *serviceDiagnosis, ctx context.Context) cause { return cause{Explanation: rule(c, ctx)} }
}

// explainUnfitNode names a node that announces the Service although something speaks against it:
// kube-proxy or the kubelet on it is silent, and no other node can serve instead.
func (c *serviceDiagnosis) explainUnfitNode() names.Explanation {
	for _, node := range c.announcingNodes() {
		s := c.installation.speakerStatusByNode[node]
		if s == nil {
			continue
		}
		if f := meta.FindStatusCondition(s.Conditions, names.ConditionNodeFit); f != nil && f.Status == metav1.ConditionFalse {
			return names.NewExplanation(names.Reason(f.Reason), "%s, which announces it, is not fit: %s", node, f.Message)
		}
	}
	return names.Explanation{}
}

// answeringNodes returns the nodes that answer for an address by layer 2, sorted.
func (c *serviceDiagnosis) answeringNodes() []string {
	var out []string
	for i := range c.announcementFinding.Layer2Reports {
		out = append(out, c.announcementFinding.Layer2Reports[i].Status.Node)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// announcingNodes returns the nodes that answer for an address or whose session carries the
// Service, sorted.
func (c *serviceDiagnosis) announcingNodes() []string {
	out := c.answeringNodes()
	for i := range c.announcementFinding.Sessions {
		if f := &c.announcementFinding.Sessions[i]; !f.Fault.IsSet() {
			out = append(out, f.Node)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c *serviceDiagnosis) explainFaultySession() names.Explanation {
	faulty := 0
	var first *names.Explanation
	var at string
	for i := range c.announcementFinding.Sessions {
		if f := &c.announcementFinding.Sessions[i]; f.Fault.IsSet() {
			if faulty++; first == nil {
				first, at = &f.Fault, f.Peer+" on "+f.Node
			}
		}
	}
	if first == nil {
		return names.Explanation{}
	}
	return names.NewExplanation(first.Reason, "%d of %d BGP sessions do not carry it: %s: %s", faulty, len(c.announcementFinding.Sessions), at, first.Text)
}

// explainAddressNoLongerAllowed says why the controller would not give this address today.
func (c *serviceDiagnosis) explainAddressNoLongerAllowed() names.Explanation {
	a := c.addressCondition
	if a == nil || a.Reason == string(names.ReasonAssigned) {
		return names.Explanation{}
	}
	return names.Explanation{Reason: names.Reason(a.Reason), Text: a.Message}
}

// explainAddressLeftPool says that the pool was edited, and does not have an address any more that
// the Service keeps.
func (c *serviceDiagnosis) explainAddressLeftPool() cause {
	pool := c.config.Snapshot.PoolByName(c.view.RecordedPool)
	for _, a := range c.view.AssignedAddresses {
		lost := ""
		switch {
		case c.config.Snapshot.PoolOfEachAddress("", a) == nil && pool == nil && c.view.RecordedPool != "":
			lost = fmt.Sprintf("there is no IPAddressPool %s with %s any more", c.view.RecordedPool, a)
		case c.config.Snapshot.PoolOfEachAddress("", a) == nil:
			lost = fmt.Sprintf("IPAddressPool %s does not contain %s any more", c.view.RecordedPool, a)
		case pool != nil && pool.CoversAddress(a) && !pool.CanAssignAddress(a):
			lost = fmt.Sprintf("IPAddressPool %s excludes %s by now", pool.Name, a)
		default:
			continue
		}
		if fault := explainFirstProblem(c.config.Problems, map[string]bool{"IPAddressPool " + c.view.RecordedPool: true}); fault.IsSet() {
			return fault
		}
		return cause{Explanation: names.NewExplanation(names.ReasonAddressNotInPool, "%s, and the Service keeps it: add it to the pool again, or let the Service have another one by the annotation %s=%s", lost, names.AnnotationAddressesToExchange, a)}
	}
	return cause{}
}

func (c *serviceDiagnosis) explainMisspelledAnnotation() names.Explanation {
	unknown := describeUnheededRequests(c)
	if len(unknown) == 0 {
		return names.Explanation{}
	}
	return names.Explanation{Reason: names.ReasonUnknownAnnotation, Text: unknown[0]}
}

// explainSessionWithoutBFD names a session that carries the Service and whose path BFD should watch
// and does not.
func (c *serviceDiagnosis) explainSessionWithoutBFD() names.Explanation {
	for _, f := range c.announcementFinding.Sessions {
		s := c.sessionOfNodeAndPeer(f.Node, f.Peer)
		if s == nil {
			continue
		}
		if watched := meta.FindStatusCondition(s.Conditions, names.ConditionBFDWatchesPath); watched != nil && watched.Status == metav1.ConditionFalse {
			return names.NewExplanation(names.Reason(watched.Reason), "the path to %s from %s is not watched by BFD: %s", f.Peer, f.Node, watched.Message)
		}
	}
	return names.Explanation{}
}

func (c *serviceDiagnosis) explainNoWorkingController() cause {
	f := c.installation.controllerFault
	if !f.IsSet() {
		return f
	}
	return cause{names.NewExplanation(f.Reason, "changes are not carried out: %s", f.Text), f.target}
}

// explainFaultyObject names an object that covers the Service and is not valid.
func (c *serviceDiagnosis) explainFaultyObject() cause {
	svc := advertise.ServiceFromView(&c.view)
	involved := map[string]bool{"IPAddressPool " + c.view.RecordedPool: true}
	layer2, _ := advertise.L2AdsCoveringService(c.config.Snapshot, &svc)
	for _, ad := range layer2.Ads {
		involved["L2Advertisement "+ad.Name] = true
	}
	bgp, _ := advertise.BGPAdsCoveringService(c.config.Snapshot, &svc)
	for _, b := range bgp {
		involved["BGPAdvertisement "+b.Ad.Name] = true
	}
	for _, s := range c.announcementFinding.Sessions {
		involved["BGPPeer "+s.Peer] = true
	}
	return explainFirstProblem(c.config.Problems, involved)
}

// explainFirstProblem says what is wrong with the first of these objects that has a fault.
func explainFirstProblem(problems []snapshot.Problem, involved map[string]bool) cause {
	for i := range problems {
		if p := &problems[i]; involved[p.Object.Kind+" "+p.Object.Name] && !p.IsOnlyAdvice() {
			return cause{names.NewExplanation(p.Reason, "the %s %s has a fault: %s", p.Object.Kind, p.Object.Name, p.Text), targetOfProblem(p)}
		}
	}
	return cause{}
}

// podSelectorText names the Pods of a selector for an advice.
func podSelectorText(s *corev1.Service) string {
	var out []string
	for k, v := range s.Spec.Selector {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
