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
}

// ReportService asks each port of a Service at each of its addresses. If the Service has none, it
// says why, as kubectl gantry explain does.
func ReportService(ctx context.Context, e *explain.Explainer, key client.ObjectKey, ask AskPortFunc) (*report.Report, error) {
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
	out := &report.Report{Subject: "service " + key.String(), Result: report.ResultWell, MissingRights: explained.MissingRights}
	var first *Diagnosis
	answered := 0
	for _, a := range t.addresses {
		for _, p := range t.ports {
			o := ask(ctx, a, p)
			t.addToObservation(&o)
			d := Diagnose(&o)
			check := report.Check{Name: fmt.Sprintf("%s port %s", a, p), Result: d.Result, Text: d.Text}
			if o.NeighbourMAC != "" {
				check.Text += "; the neighbour table has " + o.NeighbourMAC
			}
			if d.Result == report.ResultNotWell {
				check.Reason, check.Text = ReasonOfFailure, fmt.Sprintf("fails at the step %s, which is up to %s: %s", d.Step, d.Blame, d.Text)
			}
			if d.Result == report.ResultWell {
				answered++
			}
			if d.Result == report.ResultNotWell && first == nil {
				first = &d
				out.Answer = fmt.Sprintf("%s: %s %s", key, check.Name, check.Text)
			}
			out.Checks = append(out.Checks, check)
		}
	}
	out.Checks = append(out.Checks, report.Check{Name: "what the cluster says", Result: explained.Result, Reason: explained.Reason, Text: explained.Answer})
	switch {
	case first != nil:
		out.Result, out.Reason, out.Documentation = report.ResultNotWell, ReasonOfFailure, documentationURL
	case answered == 0:
		out.Result, out.Answer = report.ResultUnknown, fmt.Sprintf("%s: no port answers, and none is refused: %s", key, out.Checks[0].Text)
	default:
		out.Answer = fmt.Sprintf("%s: %d of %d ports answer, and none fails", key, answered, len(t.addresses)*len(t.ports))
	}
	return out, nil
}

// documentationURL is the page about the steps.
const documentationURL = "https://github.com/gantry-lb/gantry/blob/main/docs/operator-commands.md#probe"

// readTarget reads what is to be asked, and what the answers are compared with.
func readTarget(ctx context.Context, from *objects.Reader, key client.ObjectKey, gantryNamespace string) (*target, error) {
	var s corev1.Service
	if err := from.Get(ctx, key, &s); err != nil {
		return nil, err
	}
	out := &target{holderByAddress: map[netip.Addr]string{}, macByNode: map[string]string{}}
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
	for i := range speakers.Items {
		deadNodes[speakers.Items[i].Name] = speakers.Items[i].Status.WasFoundDead()
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
