package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
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
	// config and announcementFinding are nil if the user may not read what they need.
	config              *configurationreader.Configuration
	announcementFinding *announcedcondition.AnnouncementFinding
	// nodesOfAddresses say for each address what each node does with it.
	nodesOfAddresses []nodesOfAddress
	// addressCondition is the controller's; nil if there is none.
	addressCondition *metav1.Condition
	sessions         []v1alpha1.BGPSession

	checks []report.Check
}

// ExplainService says whether a Service works, and why not.
// Without a namespace it finds the Service in any of them.
func (e *Explainer) ExplainService(ctx context.Context, key client.ObjectKey) (*report.Report, error) {
	if key.Namespace == "" {
		namespaces := e.namespacesWithService(ctx, key.Name)
		if len(namespaces) != 1 {
			return e.reportAmbiguousService(key.Name, namespaces), nil
		}
		key.Namespace = namespaces[0]
	}
	c := &serviceDiagnosis{Explainer: e, key: key, service: &corev1.Service{}}
	out := &report.Report{Subject: "service " + c.namespacedName(), Result: report.ResultNotWell}
	found, err := c.readObjects(ctx)
	if err != nil {
		return nil, err
	}
	if absent := e.explainMissingInstallation(ctx); absent.IsSet() {
		out.Reason, out.Answer = absent.Reason, absent.Text
		return e.addMissingRightsAndDocURL(out), nil
	}
	if !found {
		return e.addMissingRightsAndDocURL(e.reportMissingService(ctx, out, key)), nil
	}
	answer, err := c.runChecksAndFindAnswer(ctx)
	if err != nil {
		return nil, err
	}
	out.Result, out.Reason, out.Answer = answer.result, answer.Reason, c.namespacedName()+": "+answer.Text
	out.Checks = c.checks
	if answer.result != report.ResultWell {
		out.Repair = serviceRepair{c}.suggestRepair(answer.cause)
	}
	return e.addMissingRightsAndDocURL(out), nil
}

func (c *serviceDiagnosis) namespacedName() string { return c.key.Namespace + "/" + c.key.Name }

// readObjects reads the Service and all kinds at the same time. It returns false if there is no
// such Service.
func (c *serviceDiagnosis) readObjects(ctx context.Context) (bool, error) {
	read := make(chan error, 1)
	go func() { read <- c.objectReader.Get(ctx, c.key, c.service) }()
	webhooks := objects.ListRequest{List: &admissionv1.ValidatingWebhookConfigurationList{}}
	err := c.objectReader.ListAndCacheKinds(ctx, append(slices.Concat(c.configurationListRequests(), c.statusListRequests(), c.serviceReportListRequests(), rivalListRequests()), webhooks)...)
	errService := <-read
	if err != nil {
		return false, err
	}
	if apierrors.IsNotFound(errService) {
		return false, nil
	}
	if errService != nil && !apierrors.IsForbidden(errService) {
		return false, fmt.Errorf("reading Service %s: %w", c.namespacedName(), errService)
	}
	return errService == nil, nil
}

// serviceReportListRequests are the reports about the Service, and its endpoints.
func (c *serviceDiagnosis) serviceReportListRequests() []objects.ListRequest {
	ofService := fields.OneTermEqualSelector(announcedcondition.ReportsByServiceIndex, c.namespacedName())
	return []objects.ListRequest{
		{List: &v1beta1.ServiceL2StatusList{}, Namespace: c.gantryNamespace, Fields: ofService},
		{List: &v1beta1.ServiceBGPStatusList{}, Namespace: c.gantryNamespace, Fields: ofService},
		{List: &discoveryv1.EndpointSliceList{}, Namespace: c.key.Namespace, Fields: fields.OneTermEqualSelector(announcedcondition.EndpointSlicesByServiceIndex, c.key.Name)},
	}
}

// reportMissingService says that the Service cannot be read, and which Services have near names.
func (e *Explainer) reportMissingService(ctx context.Context, out *report.Report, key client.ObjectKey) *report.Report {
	out.Result = report.ResultUnknown
	if e.objectReader.LacksRightToRead("services") {
		out.Answer = fmt.Sprintf("you have no right to get services in namespace %s", key.Namespace)
		return out
	}
	out.Answer = fmt.Sprintf("there is no Service %s", key)
	if absent := e.explainMissingNamespace(ctx, key.Namespace); absent != "" {
		out.Answer += ": " + absent
		return out
	}
	var all corev1.ServiceList
	if err := e.objectReader.List(ctx, &all, client.InNamespace(key.Namespace)); err != nil {
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
	if err := e.objectReader.List(ctx, &all, client.MatchingFields{"metadata.name": name}); err != nil {
		return nil
	}
	return namesOf(all.Items, func(s corev1.Service) string { return s.Namespace })
}

// reportAmbiguousService says that no namespace or several ones have a Service of the name.
func (e *Explainer) reportAmbiguousService(name string, namespaces []string) *report.Report {
	out := &report.Report{Subject: "service " + name, Result: report.ResultUnknown}
	switch {
	case e.objectReader.LacksRightToRead("services"):
		out.Answer = "you have no right to list services in all namespaces: name one with -n"
	case len(namespaces) == 0:
		out.Answer = fmt.Sprintf("no namespace has a Service %s", name)
	default:
		out.Answer = fmt.Sprintf("the namespaces %s have a Service %s: name one with -n", joinFirstElements(namespaces, maxListedElements), name)
	}
	return e.addMissingRightsAndDocURL(out)
}

// explainMissingNamespace says that there is no such namespace; "" if there is one, or if the user
// may not list them.
func (e *Explainer) explainMissingNamespace(ctx context.Context, name string) string {
	all := newMetadataList("NamespaceList")
	if err := e.objectReader.List(ctx, all); err != nil || len(all.Items) == 0 {
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

// serviceAnswer is the answer: the first check that is not passed, in the order of a person who
// repairs.
type serviceAnswer struct {
	cause
	result report.Result
}

func newNotWellAnswer(reason names.Reason, format string, args ...any) serviceAnswer {
	return newAnswerOfCause(cause{Explanation: names.Explanation{Reason: reason}}, format, args...)
}

// newAnswerOfCause returns the answer for a cause, with another text.
func newAnswerOfCause(why cause, format string, args ...any) serviceAnswer {
	return serviceAnswer{cause{names.NewExplanation(why.Reason, format, args...), why.target}, report.ResultNotWell}
}

func newAnswerWithResult(result report.Result, why names.Explanation) serviceAnswer {
	return serviceAnswer{cause{Explanation: why}, result}
}

// runChecksAndFindAnswer passes all checks, and returns the answer.
func (c *serviceDiagnosis) runChecksAndFindAnswer(ctx context.Context) (serviceAnswer, error) {
	var err error
	c.view = view.FromService(c.service)
	c.addressCondition = meta.FindStatusCondition(c.service.Status.Conditions, names.ConditionAddressAssigned)
	if _, err = c.readInstallation(ctx); err != nil {
		return serviceAnswer{}, err
	}
	if other := c.explainNotGantryService(); other.IsSet() {
		return newAnswerWithResult(report.ResultNotWell, other), nil
	}
	if err := c.runControllerRules(ctx); err != nil {
		return serviceAnswer{}, err
	}
	c.addAnnotationRequestChecks()
	if err := c.addPoolChecks(ctx); err != nil {
		return serviceAnswer{}, err
	}
	c.addAllocationChecks()
	c.addAddressCheck()
	c.addAnnouncementChecks()
	c.addAllowedClientsNote()
	c.addRouteChecksFromSpeakers(ctx)
	c.addControllerCheck()
	if rival, err := c.addRivalCheck(ctx); err != nil || rival.IsSet() {
		return serviceAnswer{rival, report.ResultNotWell}, err
	}
	if len(c.view.AssignedAddresses) == 0 {
		return c.explainNoAddress(ctx)
	}
	return c.explainAnnouncement(ctx)
}

// explainNotGantryService says that the Service is none of Gantry's.
func (c *serviceDiagnosis) explainNotGantryService() names.Explanation {
	switch deleted := c.service.DeletionTimestamp; {
	case deleted != nil:
		return names.Explanation{Text: fmt.Sprintf("it is being deleted since %s: its finalizers (%s) have to be removed by those who set them", describeTime(deleted), joinFirstElements(c.service.Finalizers, maxListedElements))}
	case !c.view.IsLoadBalancer:
		text := fmt.Sprintf("its type is %s, and only Services of type LoadBalancer get an address: set spec.type", c.service.Spec.Type)
		if c.service.Spec.ClusterIP == corev1.ClusterIPNone {
			text += ", and create the Service again: it is headless (clusterIP None)"
		}
		if len(c.service.Spec.ExternalIPs) > 0 {
			text += "; nobody announces spec.externalIPs"
		}
		return names.Explanation{Reason: names.ReasonNotLoadBalancer, Text: text}
	case c.view.LoadBalancerClass != c.installation.loadBalancerClass && c.addressCondition == nil:
		has := fmt.Sprintf("its loadBalancerClass is %q", c.view.LoadBalancerClass)
		if c.view.LoadBalancerClass == "" {
			has = "it has no loadBalancerClass"
		}
		return names.NewExplanation(names.ReasonNotLoadBalancer, "%s, and Gantry serves %s: another program has to serve it, or create the Service again with the right class",
			has, describeServedClass(c.installation.loadBalancerClass))
	}
	return names.Explanation{}
}

func describeServedClass(class string) string {
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
	if err := c.objectReader.List(ctx, &sessions, client.InNamespace(c.gantryNamespace)); err != nil {
		return err
	}
	c.sessions = sessions.Items
	finding, err := explainer.ExplainService(ctx, config, &c.view)
	if err != nil {
		return err
	}
	// The reports and the endpoints may have been refused meanwhile.
	if !c.mayListEssentialResources() {
		return nil
	}
	c.config, c.announcementFinding = config, finding
	c.nodesOfAddresses, err = explainNodesOfEachAddress(ctx, c, explainer)
	return err
}

func (c *serviceDiagnosis) addCheck(name string, result report.Result, why names.Explanation) {
	c.checks = append(c.checks, report.Check{Name: name, Result: result, Reason: why.Reason, Text: why.Text})
}

func (c *serviceDiagnosis) addWideOnlyCheck(name string, result report.Result, why names.Explanation) {
	c.addCheck(name, result, why)
	c.checks[len(c.checks)-1].IsWideOnly = true
}

// addAnnotationRequestChecks says whether the annotations of the Service can be read.
func (c *serviceDiagnosis) addAnnotationRequestChecks() {
	for _, text := range describeUnheededRequests(c) {
		c.addCheck("annotations", report.ResultNotWell, names.Explanation{Reason: names.ReasonUnknownAnnotation, Text: text})
	}
	if c.view.InvalidRequestText != "" {
		c.addCheck("request", report.ResultNotWell, names.Explanation{Reason: names.ReasonInvalidRequest, Text: c.view.InvalidRequestText})
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
		c.addCheck("request", report.ResultWell, names.Explanation{Text: "asks for " + strings.Join(asks, ", ")})
	}
}

// describeAdmittedClients says that kube-proxy admits only some clients, as the end of a sentence.
func describeAdmittedClients(s *corev1.Service) string {
	if ranges := s.Spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		return "; only clients of " + joinFirstElements(ranges, maxListedElements) + " are admitted"
	}
	return ""
}

// addAllowedClientsNote says that kube-proxy admits only some clients.
func (c *serviceDiagnosis) addAllowedClientsNote() {
	if ranges := c.service.Spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		c.addCheck("clients", report.ResultWell, names.Explanation{Text: "only those of " + joinFirstElements(ranges, maxListedElements) + " (spec.loadBalancerSourceRanges)"})
	}
}

// addAddressCheck says what the controller decided.
func (c *serviceDiagnosis) addAddressCheck() {
	a := c.addressCondition
	switch {
	case a == nil && len(c.view.AssignedAddresses) == 0:
		c.addCheck("address", report.ResultNotWell, names.Explanation{Text: "no controller has decided yet"})
	case a == nil:
		c.addCheck("address", report.ResultUnknown, names.Explanation{Text: view.JoinAddresses(c.view.AssignedAddresses) + ", from another program or an older version"})
	case a.Status == metav1.ConditionTrue && a.Reason == string(names.ReasonAssigned):
		c.addCheck("address", report.ResultWell, names.Explanation{Text: a.Message})
	default:
		c.addCheck("address", report.ResultNotWell, names.Explanation{Reason: names.Reason(a.Reason), Text: a.Message})
	}
}

// addControllerCheck says whether the controller works.
func (c *serviceDiagnosis) addControllerCheck() {
	switch f := c.installation.controllerFault; {
	case f.IsSet():
		c.addCheck("controller", report.ResultNotWell, f.Explanation)
	case c.installation.leaderLease == nil:
		c.addCheck("controller", report.ResultUnknown, names.Explanation{Text: "you may not see whether one leads"})
	default:
		c.addCheck("controller", report.ResultWell, names.Explanation{Text: "Pod " + findLeaderPod(c.installation) + " leads"})
	}
}

// findLeaderPod is the Pod that holds the Lease.
func findLeaderPod(i *installation) string {
	if i.leaderLease == nil || i.leaderLease.Spec.HolderIdentity == nil {
		return ""
	}
	pod, _, _ := strings.Cut(*i.leaderLease.Spec.HolderIdentity, "_")
	return pod
}

// explainNoAddress says why the Service has no address.
func (c *serviceDiagnosis) explainNoAddress(ctx context.Context) (serviceAnswer, error) {
	unknown := describeUnheededRequests(c)
	a := c.addressCondition
	switch slow := c.explainSlowAPIServer(); {
	case slow.IsSet() && (a == nil || c.installation.controllerFault.IsSet()):
		return newNotWellAnswer(slow.Reason, "no address yet: %s", slow.Text), nil
	case c.installation.controllerFault.IsSet():
		f := c.installation.controllerFault
		return newAnswerOfCause(f, "no address yet: %s%s", f.Text, describeLastCondition(a)), nil
	case a == nil:
		return c.explainUndecidedService(ctx)
	case len(unknown) > 0 && canMisspeltAnnotationCause(names.Reason(a.Reason)):
		return newNotWellAnswer(names.ReasonUnknownAnnotation, "no address: %s (%s: %s)", unknown[0], a.Reason, a.Message), nil
	}
	why := c.enrichAddressReason(ctx, names.Explanation{Reason: names.Reason(a.Reason), Text: a.Message})
	return newAnswerOfCause(why, "no address: %s", why.Text), nil
}

// describeLastCondition says what a controller wrote before it stopped, as the end of a sentence.
// The cause may be gone meanwhile.
func describeLastCondition(a *metav1.Condition) string {
	if a == nil {
		return ""
	}
	return fmt.Sprintf("; before it stopped, it wrote: %s (%s)", a.Message, a.Reason)
}

// canMisspeltAnnotationCause reports whether a misspelt annotation explains the Reason.
func canMisspeltAnnotationCause(r names.Reason) bool {
	return slices.Contains([]names.Reason{names.ReasonNoEligiblePool, names.ReasonPoolExhausted, names.ReasonPoolNotAllowed, names.ReasonQuotaExceeded}, r)
}

// explainAnnouncement says whether the addresses of the Service are announced, and why not.
func (c *serviceDiagnosis) explainAnnouncement(ctx context.Context) (serviceAnswer, error) {
	has := view.JoinAddresses(c.view.AssignedAddresses)
	if c.announcementFinding == nil {
		return c.explainFromConditions(has), nil
	}
	f := c.announcementFinding
	if len(f.MissingAddresses) > 0 && c.haveAllSpeakersJustStopped(ctx) && meta.FindStatusCondition(c.service.Status.Conditions, names.ConditionAnnounced) != nil {
		return c.explainFromConditions(has), nil
	}
	if len(f.MissingAddresses) > 0 {
		why := c.enrichAnnouncementReason(ctx, f.Explanation)
		if len(f.AnnouncedAddresses) > 0 {
			return newAnswerOfCause(why, "%s", why.Text), nil
		}
		return newAnswerOfCause(why, "%s is not announced: %s", has, why.Text), nil
	}
	if why := c.explainAllReportersSilent(ctx); why.IsSet() {
		return newAnswerOfCause(why, "%s is not announced: %s", has, why.Text), nil
	}
	if f.Reason != names.ReasonAnnounced {
		if why := c.explainForeignAnswer(ctx, f.Explanation); why != f.Explanation {
			return newNotWellAnswer(why.Reason, "%s is announced, but %s", has, why.Text), nil
		}
		return newNotWellAnswer(f.Reason, "%s is %s", has, f.Text), nil
	}
	for _, rule := range faultRulesOfAnnouncedService {
		if why := rule(c, ctx); why.IsSet() {
			return newAnswerOfCause(why, "%s is announced, but %s", has, why.Text), nil
		}
	}
	return newAnswerWithResult(report.ResultWell, names.NewExplanation(names.ReasonAnnounced, "%s%s is %s%s%s%s", has, c.describePoolsOfService(), f.Text, c.describeHoldersAndSessions(), describeUncoveredNodes(c), describeAdmittedClients(c.service)+describeAddressesOutsideSubnets(c))), nil
}

// describePoolsOfService names the pool of the addresses.
func (c *serviceDiagnosis) describePoolsOfService() string {
	if c.view.RecordedPool == "" {
		return ""
	}
	return " from pool " + c.view.RecordedPool
}

// explainFromConditions answers with the conditions of the Service alone.
func (c *serviceDiagnosis) explainFromConditions(has string) serviceAnswer {
	a := meta.FindStatusCondition(c.service.Status.Conditions, names.ConditionAnnounced)
	switch {
	case a == nil:
		return newAnswerWithResult(report.ResultUnknown, names.NewExplanation("", "%s is its address; whether it is announced is not known: it has no condition %s, and you may not read what the speakers report", has, names.ConditionAnnounced))
	case a.Status != metav1.ConditionTrue:
		return newNotWellAnswer(names.Reason(a.Reason), "%s is not announced: %s", has, a.Message)
	case a.Reason != string(names.ReasonAnnounced):
		return newNotWellAnswer(names.Reason(a.Reason), "%s is %s", has, a.Message)
	case c.addressCondition != nil && c.addressCondition.Reason != string(names.ReasonAssigned):
		return newNotWellAnswer(names.Reason(c.addressCondition.Reason), "%s is announced, but %s", has, c.addressCondition.Message)
	}
	if unknown := describeUnheededRequests(c); len(unknown) > 0 {
		return newNotWellAnswer(names.ReasonUnknownAnnotation, "%s is announced, but %s", has, unknown[0])
	}
	return newAnswerWithResult(report.ResultWell, names.NewExplanation(names.ReasonAnnounced, "%s is %s", has, a.Message))
}

// labelsOfServiceReports select the reports about a Service.
func labelsOfServiceReports(key string) map[string]string {
	namespace, name, _ := strings.Cut(key, "/")
	return map[string]string{names.LabelServiceNamespace: namespace, names.LabelServiceName: name}
}

// LabelsFuncByIndex says by which labels the API server selects what the controller's cache finds
// by its indexes.
var LabelsFuncByIndex = objects.LabelsFuncByIndex{
	announcedcondition.ReportsByServiceIndex: labelsOfServiceReports,
	announcedcondition.ReportsByNodeIndex:    func(node string) map[string]string { return map[string]string{names.LabelServiceStatusNode: node} },
	announcedcondition.EndpointSlicesByServiceIndex: func(name string) map[string]string {
		return map[string]string{discoveryv1.LabelServiceName: name}
	},
}
