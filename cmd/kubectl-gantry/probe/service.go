package probe

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// AskPortFunc asks one port at one address.
type AskPortFunc func(context.Context, netip.Addr, Port) Observation

// target is what the cluster says of a Service.
type target struct {
	addresses         []netip.Addr
	ports             []Port
	sourceRanges      []netip.Prefix
	hasReadyEndpoints bool
	// holderByAddress has the node that answers for an address, and macByNode an Ethernet address
	// of a node that has only one.
	holderByAddress map[netip.Addr]string
	macByNode       map[string]string
	// nodeByMAC has the Ethernet addresses of all links, also of nodes with several.
	nodeByMAC map[string]string
	// speakerFaultByNode says why a node cannot be asked; "" if its speaker lives. It has all nodes
	// with a speaker. isSpeakerUnknown is set if the user may not read them.
	speakerFaultByNode map[string]string
	isSpeakerUnknown   bool
}

// Questions say whom to ask, and how.
type Questions struct {
	AskPort AskPortFunc
	// FromNode is the node whose speaker is asked too; empty for none.
	FromNode string
	AskNode  AskNodeFunc
}

// ReportService asks each port of a Service at each of its addresses. If the Service has none, it
// says why, as kubectl gantry explain does.
func ReportService(ctx context.Context, e *explain.Explainer, key client.ObjectKey, q Questions) (*report.Report, error) {
	explained, err := e.ExplainService(ctx, key)
	if err != nil {
		return nil, err
	}
	from, gantryNamespace := e.ReaderAndNamespace()
	t, err := readTarget(ctx, from, key, gantryNamespace)
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsForbidden(err):
		return explained, nil
	case err != nil:
		return nil, err
	}
	if len(t.addresses) == 0 || len(t.ports) == 0 {
		return explained, nil
	}
	answers := &answerList{service: key, report: &report.Report{Subject: "service " + key.String(), Result: report.ResultWell, MissingRights: explained.MissingRights}}
	for _, a := range t.addresses {
		var fromNode *NodeObservation
		if q.FromNode != "" {
			if fromNode, err = t.observeFromNode(ctx, q, key, a); err != nil {
				return nil, err
			}
			fromNode.IsAnnounced = explained.Result == report.ResultWell
			answers.addNodeAnswer(fromNode)
		}
		for _, p := range t.ports {
			o := q.AskPort(ctx, a, p)
			t.addToObservation(&o)
			o.FromNode = fromNode
			answers.addPortAnswer(&o)
		}
	}
	answers.addCheck(report.Check{Name: "what the cluster says", Result: explained.Result, Reason: explained.Reason, Text: explained.Answer})
	return answers.summarize(), nil
}

// answerList gathers the answers about a Service.
type answerList struct {
	service client.ObjectKey
	report  *report.Report
	// firstFailure is the first line about what failed; empty if nothing did.
	firstFailure string
	// portCount counts the ports, and answeredPortCount those that answer.
	portCount, answeredPortCount int
	// unaskedNodeText says why the node was not asked; empty if it was.
	unaskedNodeText string
}

func (l *answerList) addCheck(c report.Check) { l.report.Checks = append(l.report.Checks, c) }

// addDiagnosis adds a line for a Diagnosis.
func (l *answerList) addDiagnosis(name string, d *Diagnosis, detail string) {
	check := report.Check{Name: name, Result: d.Result, Text: d.Text + detail}
	if d.Result == report.ResultNotWell {
		check.Reason, check.Text = ReasonOfFailure, fmt.Sprintf("fails at the step %s, which is up to %s: %s%s", d.Step, d.Blame, d.Text, detail)
		if l.firstFailure == "" {
			l.firstFailure = fmt.Sprintf("%s: %s %s", l.service, check.Name, check.Text)
		}
	}
	l.addCheck(check)
}

func (l *answerList) addNodeAnswer(o *NodeObservation) {
	d := DiagnoseNode(o)
	if d.Result == report.ResultUnknown {
		l.unaskedNodeText = d.Text
	}
	l.addDiagnosis(fmt.Sprintf("%s %s from %s", o.Address, neighbourProtocol(o.Address), o.Node), &d, "")
}

func (l *answerList) addPortAnswer(o *Observation) {
	d, detail := Diagnose(o), ""
	if o.NeighbourMAC != "" {
		detail = "; the neighbour table has " + o.NeighbourMAC
	}
	l.portCount++
	if d.Result == report.ResultWell {
		l.answeredPortCount++
	}
	l.addDiagnosis(fmt.Sprintf("%s port %s", o.Address, o.Port), &d, detail)
}

// summarize writes the first line.
func (l *answerList) summarize() *report.Report {
	out := l.report
	ports := fmt.Sprintf("%d of %d ports answer", l.answeredPortCount, l.portCount)
	switch {
	case l.firstFailure != "":
		out.Result, out.Reason, out.Documentation, out.Answer = report.ResultNotWell, ReasonOfFailure, documentationURL, l.firstFailure
	case l.answeredPortCount == 0:
		out.Result, out.Answer = report.ResultUnknown, fmt.Sprintf("%s: no port answers, and none is refused: %s", l.service, l.lastPortText())
	case l.unaskedNodeText != "":
		out.Result, out.Answer = report.ResultUnknown, fmt.Sprintf("%s: %s, and none fails; the node: %s", l.service, ports, l.unaskedNodeText)
	default:
		out.Answer = fmt.Sprintf("%s: %s, and none fails", l.service, ports)
	}
	return out
}

// lastPortText is what is said of the last port. The line after it is about the cluster.
func (l *answerList) lastPortText() string { return l.report.Checks[len(l.report.Checks)-2].Text }

// observeFromNode lets the speaker of the node ask for an address.
func (t *target) observeFromNode(ctx context.Context, q Questions, key client.ObjectKey, a netip.Addr) (*NodeObservation, error) {
	out := &NodeObservation{Node: q.FromNode, Address: a, Holder: t.holderByAddress[a], NodeByMAC: t.nodeByMAC, HasReadyEndpoints: t.hasReadyEndpoints}
	fault, hasSpeaker := t.speakerFaultByNode[q.FromNode]
	switch {
	case !hasSpeaker && !t.isSpeakerUnknown:
		out.Outcome, out.Detail = NodeOutcomeNoSpeaker, "no speaker runs on a node "+q.FromNode
		return out, nil
	case fault != "":
		out.Outcome, out.Detail = NodeOutcomeNoSpeaker, fault
		return out, nil
	}
	answer, err := q.AskNode(ctx, q.FromNode, key, a)
	out.NodeAnswer = answer
	if err == nil && answer.Outcome == NodeOutcomeNoSpeaker {
		t.speakerFaultByNode[q.FromNode] = answer.Detail // the user does not wait again
	}
	return out, err
}

// documentationURL is the page about the steps.
const documentationURL = "https://github.com/gantry-lb/gantry/blob/main/docs/operator-commands.md#probe"

// readTarget reads what is to be asked, and what the answers are compared with.
func readTarget(ctx context.Context, from *objects.Reader, key client.ObjectKey, gantryNamespace string) (*target, error) {
	var s corev1.Service
	if err := from.Get(ctx, key, &s); err != nil {
		return nil, err
	}
	out := &target{holderByAddress: map[netip.Addr]string{}, macByNode: map[string]string{}, nodeByMAC: map[string]string{}, speakerFaultByNode: map[string]string{}}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(in.IP); err == nil {
			out.addresses = append(out.addresses, a)
		}
	}
	for _, text := range s.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			out.sourceRanges = append(out.sourceRanges, p)
		}
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		out.ports = append(out.ports, Port{Number: p.Port, Protocol: string(p.Protocol), Scheme: schemeOf(p)})
	}
	var slicesOfService discoveryv1.EndpointSliceList
	if err := from.List(ctx, &slicesOfService, client.InNamespace(key.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: key.Name}); err != nil {
		return nil, err
	}
	out.hasReadyEndpoints = slices.ContainsFunc(slicesOfService.Items, func(o discoveryv1.EndpointSlice) bool {
		return slices.ContainsFunc(o.Endpoints, func(p discoveryv1.Endpoint) bool { return p.Conditions.Ready == nil || *p.Conditions.Ready })
	})
	return out, out.readHolders(ctx, from, gantryNamespace)
}

// readHolders reads which node answers for which address. Reports of dead nodes are of the time
// before their death.
func (t *target) readHolders(ctx context.Context, from *objects.Reader, gantryNamespace string) error {
	var reports v1beta1.ServiceL2StatusList
	var speakers v1alpha1.SpeakerStatusList
	if err := from.List(ctx, &reports, client.InNamespace(gantryNamespace)); err != nil {
		return err
	}
	if err := from.List(ctx, &speakers, client.InNamespace(gantryNamespace)); err != nil {
		return err
	}
	deadNodes := map[string]bool{}
	t.isSpeakerUnknown = from.LacksRightToRead("speakerstatuses." + v1alpha1.GroupVersion.Group)
	for i := range speakers.Items {
		name := speakers.Items[i].Name
		deadNodes[name], t.speakerFaultByNode[name] = speakers.Items[i].Status.WasFoundDead(), ""
		if deadNodes[name] {
			t.speakerFaultByNode[name] = "its speaker is dead"
		}
	}
	for i := range reports.Items {
		r := &reports.Items[i].Status
		if r.Gantry == nil || deadNodes[r.Node] {
			continue
		}
		for _, text := range r.Gantry.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				t.holderByAddress[a] = r.Node
			}
		}
	}
	for i := range speakers.Items {
		s := &speakers.Items[i].Status
		for j := range s.Links {
			if s.Links[j].MAC != "" {
				t.nodeByMAC[strings.ToLower(s.Links[j].MAC)] = s.Node
			}
			// A node with several links answers on each with its own address: which is not known.
			if s.Links[j].Usable && s.Links[j].MAC != "" && len(s.UsableLinks) == 1 {
				t.macByNode[s.Node] = s.Links[j].MAC
			}
		}
	}
	return nil
}

// addToObservation adds what the cluster says.
func (t *target) addToObservation(o *Observation) {
	o.Holder = t.holderByAddress[o.Address]
	o.HolderMAC = t.macByNode[o.Holder]
	o.HasReadyEndpoints, o.SourceRanges = t.hasReadyEndpoints, t.sourceRanges
}

// schemeOf guesses whether a port speaks HTTP, by what the Service says of it.
func schemeOf(p *corev1.ServicePort) string {
	protocol := ""
	if p.AppProtocol != nil {
		protocol = strings.ToLower(*p.AppProtocol)
	}
	name := strings.ToLower(p.Name)
	switch {
	case p.Protocol != corev1.ProtocolTCP:
		return ""
	case protocol == "https" || protocol == "" && (strings.HasPrefix(name, "https") || p.Port == 443 || p.Port == 8443):
		return "https"
	case protocol == "http" || protocol == "" && (strings.HasPrefix(name, "http") || p.Port == 80 || p.Port == 8080):
		return "http"
	}
	return ""
}
