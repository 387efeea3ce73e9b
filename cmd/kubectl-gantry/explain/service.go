package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/view"
)

// serviceDiagnosis is all that is known of one Service.
type serviceDiagnosis struct {
	*Explainer
	key     client.ObjectKey
	service *corev1.Service
	view    view.Service
	// config and finding are nil if the user may not read what they need.
	config  *configurationreader.Configuration
	finding *announcedcondition.AnnouncementFinding
	// addressCondition is the controller's; nil if there is none.
	addressCondition *metav1.Condition
	sessions         []v1alpha1.BGPSession

	gates []report.Gate
}

// ExplainService says whether a Service works, and why not.
// Without a namespace it finds the Service in any of them.
func (e *Explainer) ExplainService(ctx context.Context, key client.ObjectKey) (*report.Report, error) {
	if key.Namespace == "" {
		namespaces := e.namespacesWithService(ctx, key.Name)
		if len(namespaces) != 1 {
			return e.reportSeveralServices(key.Name, namespaces), nil
		}
		key.Namespace = namespaces[0]
	}
	c := &serviceDiagnosis{Explainer: e, key: key, service: &corev1.Service{}}
	out := &report.Report{Subject: "service " + c.name(), Result: report.NotWell}
	found, err := c.readObjects(ctx)
	if err != nil {
		return nil, err
	}
	if absent := e.explainMissingInstallation(ctx); absent.IsSet() {
		out.Reason, out.Answer = absent.Reason, absent.Text
		return e.complete(out), nil
	}
	if !found {
		return e.complete(e.reportMissingService(ctx, out, key)), nil
	}
	cause, err := c.findCause(ctx)
	if err != nil {
		return nil, err
	}
	out.Result, out.Reason, out.Answer = cause.result, cause.Reason, c.name()+": "+cause.Text
	out.Gates = c.gates
	if cause.result != report.Well {
		out.Repair = c.suggestRepair(cause.Explanation)
	}
	return e.complete(out), nil
}

func (c *serviceDiagnosis) name() string { return c.key.Namespace + "/" + c.key.Name }

// readObjects reads the Service and all kinds at the same time. It returns false if there is no
// such Service.
func (c *serviceDiagnosis) readObjects(ctx context.Context) (bool, error) {
	read := make(chan error, 1)
	go func() { read <- c.objects.Get(ctx, c.key, c.service) }()
	err := c.objects.ListAll(ctx, slices.Concat(c.configurationKinds(), c.stateKinds(), c.reportKinds())...)
	errService := <-read
	if err != nil {
		return false, err
	}
	if apierrors.IsNotFound(errService) {
		return false, nil
	}
	if errService != nil && !apierrors.IsForbidden(errService) {
		return false, fmt.Errorf("reading Service %s: %w", c.name(), errService)
	}
	return errService == nil, nil
}

// reportKinds are the reports about the Service, and its endpoints.
func (c *serviceDiagnosis) reportKinds() []objects.ListRequest {
	ofService := fields.OneTermEqualSelector(announcedcondition.ReportsByServiceIndex, c.name())
	return []objects.ListRequest{
		{List: &v1beta1.ServiceL2StatusList{}, Namespace: c.namespace, Fields: ofService},
		{List: &v1beta1.ServiceBGPStatusList{}, Namespace: c.namespace, Fields: ofService},
		{List: &discoveryv1.EndpointSliceList{}, Namespace: c.key.Namespace, Fields: fields.OneTermEqualSelector(announcedcondition.EndpointSlicesByServiceIndex, c.key.Name)},
	}
}

// reportMissingService says that the Service cannot be read, and which Services have near names.
func (e *Explainer) reportMissingService(ctx context.Context, out *report.Report, key client.ObjectKey) *report.Report {
	out.Result = report.Unknown
	if e.objects.LacksRightTo("services") {
		out.Answer = fmt.Sprintf("you have no right to get services in namespace %s", key.Namespace)
		return out
	}
	out.Answer = fmt.Sprintf("there is no Service %s", key)
	if absent := e.explainMissingNamespace(ctx, key.Namespace); absent != "" {
		out.Answer += ": " + absent
		return out
	}
	var all corev1.ServiceList
	if err := e.objects.List(ctx, &all, client.InNamespace(key.Namespace)); err != nil {
		return out
	}
	var known []string
	for i := range all.Items {
		known = append(known, all.Items[i].Name)
	}
	if near := findSimilarNames(key.Name, known); len(near) > 0 {
		out.Answer += ": did you mean " + strings.Join(near, " or ") + "?"
		return out
	}
	if elsewhere := e.namespacesWithService(ctx, key.Name); len(elsewhere) > 0 {
		out.Answer += fmt.Sprintf(": namespace %s has one of that name", elsewhere[0])
	}
	return out
}

// namespacesWithService returns the namespaces that have a Service of the name.
func (e *Explainer) namespacesWithService(ctx context.Context, name string) []string {
	var all corev1.ServiceList
	if err := e.objects.List(ctx, &all, client.MatchingFields{"metadata.name": name}); err != nil {
		return nil
	}
	return namesOf(all.Items, func(s corev1.Service) string { return s.Namespace })
}

// reportSeveralServices says that no namespace or several ones have a Service of the name.
func (e *Explainer) reportSeveralServices(name string, namespaces []string) *report.Report {
	out := &report.Report{Subject: "service " + name, Result: report.Unknown}
	switch {
	case e.objects.LacksRightTo("services"):
		out.Answer = "you have no right to list services in all namespaces: name one with -n"
	case len(namespaces) == 0:
		out.Answer = fmt.Sprintf("no namespace has a Service %s", name)
	default:
		out.Answer = fmt.Sprintf("the namespaces %s have a Service %s: name one with -n", joinFirstElements(namespaces, maxListedElements), name)
	}
	return e.complete(out)
}

// explainMissingNamespace says that there is no such namespace; "" if there is one, or if the user
// may not list them.
func (e *Explainer) explainMissingNamespace(ctx context.Context, name string) string {
	all := newMetadataList("NamespaceList")
	if err := e.objects.List(ctx, all); err != nil || len(all.Items) == 0 {
		return ""
	}
	var known []string
	for i := range all.Items {
		known = append(known, all.Items[i].Name)
	}
	if slices.Contains(known, name) {
		return ""
	}
	text := "there is no namespace " + name
	if near := findSimilarNames(name, known); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return text
}

// cause is the answer: the first gate that is not passed, in the order of a person who repairs.
type cause struct {
	names.Explanation
	result report.Result
}

func notWell(reason names.Reason, format string, args ...any) cause {
	return cause{names.Explain(reason, format, args...), report.NotWell}
}

// findCause passes all gates, and returns the answer.
func (c *serviceDiagnosis) findCause(ctx context.Context) (cause, error) {
	var err error
	c.view = view.FromService(c.service)
	c.addressCondition = meta.FindStatusCondition(c.service.Status.Conditions, names.ConditionAddressAssigned)
	if _, err = c.readInstallation(ctx); err != nil {
		return cause{}, err
	}
	if other := c.explainOtherOwner(); other.IsSet() {
		return cause{other, report.NotWell}, nil
	}
	if err := c.runControllerRules(ctx); err != nil {
		return cause{}, err
	}
	c.addRequestGates()
	if err := c.addPoolGates(ctx); err != nil {
		return cause{}, err
	}
	c.addAddressGate()
	c.addAnnouncementGates()
	c.addClientGate()
	c.addRouteGatesFromSpeakers(ctx)
	c.addInstallationGates()
	if rival := c.explainOtherWriter(); rival.IsSet() {
		c.addGate("other controllers", report.NotWell, rival)
		return cause{rival, report.NotWell}, nil
	}
	if len(c.view.AssignedAddresses) == 0 {
		return c.explainNoAddress(ctx)
	}
	return c.explainAnnouncement(ctx)
}

// explainOtherOwner says that the Service is none of Gantry's.
func (c *serviceDiagnosis) explainOtherOwner() names.Explanation {
	switch deleted := c.service.DeletionTimestamp; {
	case deleted != nil:
		return names.Explanation{Text: fmt.Sprintf("it is being deleted since %s: its finalizers (%s) have to be removed by those who set them", describeTime(deleted), joinFirstElements(c.service.Finalizers, maxListedElements))}
	case !c.view.IsLoadBalancer:
		text := fmt.Sprintf("its type is %s, and only Services of type LoadBalancer get an address: set spec.type", c.service.Spec.Type)
		if len(c.service.Spec.ExternalIPs) > 0 {
			text += "; nobody announces spec.externalIPs"
		}
		return names.Explanation{Reason: names.ReasonNotLoadBalancer, Text: text}
	case c.view.LoadBalancerClass != c.installation.loadBalancerClass && c.addressCondition == nil:
		has := fmt.Sprintf("its loadBalancerClass is %q", c.view.LoadBalancerClass)
		if c.view.LoadBalancerClass == "" {
			has = "it has no loadBalancerClass"
		}
		return names.Explain(names.ReasonNotLoadBalancer, "%s, and Gantry serves %s: another program has to serve it, or create the Service again with the right class",
			has, describeClass(c.installation.loadBalancerClass))
	}
	return names.Explanation{}
}

func describeClass(class string) string {
	if class == "" {
		return "only Services without a class"
	}
	return fmt.Sprintf("only the class %q", class)
}

// runControllerRules asks the decision code of the controller, if the user may read what it
// needs.
func (c *serviceDiagnosis) runControllerRules(ctx context.Context) error {
	if !c.mayListEssentialResources() {
		return nil
	}
	config, err := c.readConfiguration(ctx)
	if err != nil {
		return err
	}
	explainer, err := c.newAnnouncementExplainer(ctx)
	if err != nil {
		return err
	}
	var sessions v1alpha1.BGPSessionList
	if err := c.objects.List(ctx, &sessions, client.InNamespace(c.namespace)); err != nil {
		return err
	}
	c.sessions = sessions.Items
	finding, err := explainer.ExplainService(ctx, config, &c.view)
	if err != nil {
		return err
	}
	// The reports and the endpoints may have been refused meanwhile.
	if c.mayListEssentialResources() {
		c.config, c.finding = config, finding
	}
	return nil
}

func (c *serviceDiagnosis) addGate(name string, result report.Result, why names.Explanation) {
	c.gates = append(c.gates, report.Gate{Name: name, Result: result, Reason: why.Reason, Text: why.Text})
}

func (c *serviceDiagnosis) addDetail(name string, result report.Result, why names.Explanation) {
	c.addGate(name, result, why)
	c.gates[len(c.gates)-1].IsDetail = true
}

// addRequestGates says whether the annotations of the Service can be read.
func (c *serviceDiagnosis) addRequestGates() {
	for _, text := range view.ExplainUnknownAnnotations(c.service) {
		c.addGate("annotations", report.NotWell, names.Explanation{Reason: names.ReasonUnknownAnnotation, Text: text})
	}
	if c.view.InvalidRequestText != "" {
		c.addGate("request", report.NotWell, names.Explanation{Reason: names.ReasonInvalidRequest, Text: c.view.InvalidRequestText})
		return
	}
	var asks []string
	if c.view.RequestedPool != "" {
		asks = append(asks, "pool "+c.view.RequestedPool)
	}
	if len(c.view.RequestedAddresses) > 0 {
		asks = append(asks, view.JoinAddresses(c.view.RequestedAddresses))
	}
	if c.view.SharingKey != "" {
		asks = append(asks, "sharing key "+c.view.SharingKey)
	}
	if len(asks) > 0 {
		c.addGate("request", report.Well, names.Explanation{Text: "asks for " + strings.Join(asks, ", ")})
	}
}

// describeClients says that kube-proxy admits only some clients, as the end of a sentence.
func describeClients(s *corev1.Service) string {
	if ranges := s.Spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		return "; only clients of " + joinFirstElements(ranges, maxListedElements) + " are admitted"
	}
	return ""
}

// addClientGate says that kube-proxy admits only some clients.
func (c *serviceDiagnosis) addClientGate() {
	if ranges := c.service.Spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		c.addGate("clients", report.Well, names.Explanation{Text: "only those of " + joinFirstElements(ranges, maxListedElements) + " (spec.loadBalancerSourceRanges)"})
	}
}

// addAddressGate says what the controller decided.
func (c *serviceDiagnosis) addAddressGate() {
	a := c.addressCondition
	switch {
	case a == nil && len(c.view.AssignedAddresses) == 0:
		c.addGate("address", report.NotWell, names.Explanation{Text: "no controller has decided yet"})
	case a == nil:
		c.addGate("address", report.Unknown, names.Explanation{Text: view.JoinAddresses(c.view.AssignedAddresses) + ", from another program or an older version"})
	case a.Status == metav1.ConditionTrue && a.Reason == string(names.ReasonAssigned):
		c.addGate("address", report.Well, names.Explanation{Text: a.Message})
	default:
		c.addGate("address", report.NotWell, names.Explanation{Reason: names.Reason(a.Reason), Text: a.Message})
	}
}

// addInstallationGates says whether the controller works.
func (c *serviceDiagnosis) addInstallationGates() {
	switch f := c.installation.controllerFault; {
	case f.IsSet():
		c.addGate("controller", report.NotWell, f)
	case c.installation.leader == nil:
		c.addGate("controller", report.Unknown, names.Explanation{Text: "you may not see whether one leads"})
	default:
		c.addGate("controller", report.Well, names.Explanation{Text: "Pod " + findLeaderPod(c.installation) + " leads"})
	}
}

// findLeaderPod is the Pod that holds the Lease.
func findLeaderPod(i *installation) string {
	if i.leader == nil || i.leader.Spec.HolderIdentity == nil {
		return ""
	}
	pod, _, _ := strings.Cut(*i.leader.Spec.HolderIdentity, "_")
	return pod
}

// explainNoAddress says why the Service has no address.
func (c *serviceDiagnosis) explainNoAddress(ctx context.Context) (cause, error) {
	unknown := view.ExplainUnknownAnnotations(c.service)
	a := c.addressCondition
	switch slow := c.explainSlowAPIServer(); {
	case slow.IsSet() && (a == nil || c.installation.controllerFault.IsSet()):
		return notWell(slow.Reason, "no address yet: %s", slow.Text), nil
	case c.installation.controllerFault.IsSet() && (a == nil || a.ObservedGeneration < c.service.Generation):
		f := c.installation.controllerFault
		return notWell(f.Reason, "no address yet: %s", f.Text), nil
	case a == nil:
		return c.explainUndecided(ctx)
	case len(unknown) > 0 && mayComeFromAnnotation(names.Reason(a.Reason)):
		return notWell(names.ReasonUnknownAnnotation, "no address: %s (%s: %s)", unknown[0], a.Reason, a.Message), nil
	}
	why := c.enrichAddressReason(ctx, names.Explanation{Reason: names.Reason(a.Reason), Text: a.Message})
	return notWell(why.Reason, "no address: %s", why.Text), nil
}

// mayComeFromAnnotation reports whether a misspelt annotation explains the Reason.
func mayComeFromAnnotation(r names.Reason) bool {
	return slices.Contains([]names.Reason{names.ReasonNoEligiblePool, names.ReasonPoolExhausted, names.ReasonPoolNotAllowed, names.ReasonQuotaExceeded}, r)
}

// explainAnnouncement says whether the addresses of the Service are announced, and why not.
func (c *serviceDiagnosis) explainAnnouncement(ctx context.Context) (cause, error) {
	has := view.JoinAddresses(c.view.AssignedAddresses)
	if c.finding == nil {
		return c.explainFromConditions(has), nil
	}
	f := c.finding
	if len(f.MissingAddresses) > 0 {
		why := c.enrichAnnouncementReason(ctx, f.Explanation)
		if len(f.AnnouncedAddresses) > 0 {
			return notWell(why.Reason, "%s", why.Text), nil
		}
		return notWell(why.Reason, "%s is not announced: %s", has, why.Text), nil
	}
	if why := c.explainStaleReports(ctx); why.IsSet() {
		return notWell(why.Reason, "%s is not announced: %s", has, why.Text), nil
	}
	if f.Reason != names.ReasonAnnounced {
		if why := c.explainConflict(ctx, f.Explanation); why != f.Explanation {
			return notWell(why.Reason, "%s is announced, but %s", has, why.Text), nil
		}
		return notWell(f.Reason, "%s is %s", has, f.Text), nil
	}
	for _, rule := range faultRulesOfAnnouncedService {
		if why := rule(c, ctx); why.IsSet() {
			return notWell(why.Reason, "%s is announced, but %s", has, why.Text), nil
		}
	}
	return cause{names.Explain(names.ReasonAnnounced, "%s%s is %s%s%s", has, c.describePoolsOfService(), f.Text, c.describeHolders(), describeClients(c.service)), report.Well}, nil
}

// describePoolsOfService names the pool of the addresses.
func (c *serviceDiagnosis) describePoolsOfService() string {
	if c.view.RecordedPool == "" {
		return ""
	}
	return " from pool " + c.view.RecordedPool
}

// explainFromConditions answers with the conditions of the Service alone.
func (c *serviceDiagnosis) explainFromConditions(has string) cause {
	a := meta.FindStatusCondition(c.service.Status.Conditions, names.ConditionAnnounced)
	switch {
	case a == nil:
		return cause{names.Explain("", "%s is its address; whether it is announced is not known: it has no condition %s, and you may not read what the speakers report", has, names.ConditionAnnounced), report.Unknown}
	case a.Status != metav1.ConditionTrue:
		return notWell(names.Reason(a.Reason), "%s is not announced: %s", has, a.Message)
	case a.Reason != string(names.ReasonAnnounced):
		return notWell(names.Reason(a.Reason), "%s is %s", has, a.Message)
	case c.addressCondition != nil && c.addressCondition.Reason != string(names.ReasonAssigned):
		return notWell(names.Reason(c.addressCondition.Reason), "%s is announced, but %s", has, c.addressCondition.Message)
	}
	if unknown := view.ExplainUnknownAnnotations(c.service); len(unknown) > 0 {
		return notWell(names.ReasonUnknownAnnotation, "%s is announced, but %s", has, unknown[0])
	}
	return cause{names.Explain(names.ReasonAnnounced, "%s is %s", has, a.Message), report.Well}
}

// labelsOfReports select the reports about a Service.
func labelsOfReports(key string) map[string]string {
	namespace, name, _ := strings.Cut(key, "/")
	return map[string]string{names.LabelServiceNamespace: namespace, names.LabelServiceName: name}
}

// LabelsByIndex says by which labels the API server selects what the controller's cache finds by
// its indexes.
var LabelsByIndex = objects.LabelsByIndex{
	announcedcondition.ReportsByServiceIndex: labelsOfReports,
	announcedcondition.ReportsByNodeIndex:    func(node string) map[string]string { return map[string]string{names.LabelServiceStatusNode: node} },
	announcedcondition.EndpointSlicesByServiceIndex: func(name string) map[string]string {
		return map[string]string{discoveryv1.LabelServiceName: name}
	},
}
