package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// objectDiagnosis is what is known of an object other than a Service.
type objectDiagnosis struct {
	*overview
	kind, name string
	report     *report.Report
	// sessionByCheck has the session that a check is about, and waitingServices are those that ask
	// for the pool and have no address.
	sessionByCheck  map[report.Check]*v1alpha1.BGPSessionStatus
	waitingServices []string
}

// newObjectDiagnosis reads the whole installation for a question about one object. The case is nil
// if the report is complete already: there is no Gantry.
func (e *Explainer) newObjectDiagnosis(ctx context.Context, kind, name string, scope overviewScope) (*objectDiagnosis, *report.Report, error) {
	out := &report.Report{Subject: kind + " " + name, Result: report.ResultNotWell}
	o, absent, err := e.readOverview(ctx, scope)
	if err != nil {
		return nil, nil, err
	}
	if absent.IsSet() {
		out.Reason, out.Answer = absent.Reason, absent.Text
		return nil, e.addMissingRightsAndDocURL(out), nil
	}
	return &objectDiagnosis{overview: o, kind: kind, name: name, report: out, sessionByCheck: map[report.Check]*v1alpha1.BGPSessionStatus{}}, out, nil
}

// reportMissingObject says that there is no such object, and which have near names.
func (c *objectDiagnosis) reportMissingObject(ctx context.Context, known []string) *report.Report {
	c.report.Result = report.ResultUnknown
	c.report.Answer = fmt.Sprintf("there is no %s %s in namespace %s", c.kind, c.name, c.gantryNamespace)
	if c.kind == "Node" {
		c.report.Answer = "there is no Node " + c.name
	}
	switch near := findSimilarNames(c.name, known); {
	case len(near) > 0:
		c.report.Answer += ": did you mean " + strings.Join(near, " or ") + "?"
	case len(known) > 0:
		slices.Sort(known)
		c.report.Answer += ": there are " + joinFirstElements(known, maxListedElements)
	}
	if down := c.explainWebhookRefusal(ctx); down.IsSet() && c.kind != "Node" {
		c.report.Reason, c.report.Answer = down.Reason, c.report.Answer+"; "+down.Text
		c.report.Repair = c.suggestRepairOfTarget(&down.target)
	}
	return c.addMissingRightsAndDocURL(c.report)
}

// finishReport makes the first line: the first check that is not passed, or that all is well.
func (c *objectDiagnosis) finishReport(well string) *report.Report {
	c.report.Checks = c.checks
	prefix := c.name + ": "
	for _, wanted := range []report.Result{report.ResultNotWell, report.ResultUnknown} {
		for _, g := range c.checks {
			if g.Result == wanted {
				c.report.Result, c.report.Reason, c.report.Answer = wanted, g.Reason, prefix+g.Name+": "+g.Text
				c.report.Repair = c.suggestRepair(g)
				return c.addMissingRightsAndDocURL(c.report)
			}
		}
	}
	c.report.Result, c.report.Answer = report.ResultWell, prefix+well
	return c.addMissingRightsAndDocURL(c.report)
}

// addObjectProblemChecks lists the faults of the object itself.
func (c *objectDiagnosis) addObjectProblemChecks() {
	if c.config == nil {
		c.addCheck("object", report.ResultUnknown, names.Explanation{Text: "you may not read all of the configuration"})
		return
	}
	for i := range c.config.Problems {
		if p := &c.config.Problems[i]; p.Object.Kind == c.kind && p.Object.Name == c.name {
			result := report.ResultNotWell
			if p.IsOnlyAdvice() {
				result = report.ResultUnknown
			}
			c.addCheckOfCause("object", result, cause{names.Explanation{Reason: p.Reason, Text: p.Text}, targetOfProblem(p)})
			return
		}
	}
	c.addCheck("object", report.ResultWell, names.Explanation{Text: "it is understood"})
}

// ExplainNode says whether a node can announce, and what it announces.
func (e *Explainer) ExplainNode(ctx context.Context, name string) (*report.Report, error) {
	c, out, err := e.newObjectDiagnosis(ctx, "Node", name, withoutServices)
	if c == nil {
		return out, err
	}
	var labels map[string]string
	var known []string
	nodes := newMetadataList("NodeList")
	if err := e.objectReader.List(ctx, nodes); err != nil {
		return nil, err
	}
	for i := range nodes.Items {
		known = append(known, nodes.Items[i].Name)
		if nodes.Items[i].Name == name {
			labels = nodes.Items[i].Labels
		}
	}
	if !slices.Contains(known, name) && len(known) > 0 {
		return c.reportMissingObject(ctx, known), nil
	}
	s := c.installation.speakerStatusByNode[name]
	switch fault := announcedcondition.ExplainSpeakerFault(s); {
	case e.objectReader.LacksRightToRead("speakerstatuses.gantry.dev"):
		c.addCheck("speaker", report.ResultUnknown, names.Explanation{Text: "you may not read its SpeakerStatus"})
	case fault.IsSet() && fault.Reason == names.ReasonNoSpeaker:
		missing := c.explainMissingSpeakers(ctx)
		fault.Text += "; " + missing.text
		c.addCheckOfCause("speaker", report.ResultNotWell, cause{c.blameNodesNotReady(ctx, []string{name}, fault), repairTarget{remedy: missing.remedy}})
	case fault.IsSet():
		c.addCheck("speaker", report.ResultNotWell, fault)
	default:
		for _, f := range c.faultsOfSpeaker(name) {
			c.addCheck("speaker", report.ResultNotWell, f)
		}
		c.addCheck("speaker", report.ResultWell, names.Explanation{Text: fmt.Sprintf("version %s, answers for %d addresses, announces %d routes", cmp.Or(s.Version, "unknown"), s.Held, s.Routes)})
	}
	if view.IsExcludedByLabels(labels) && !c.installation.ignoresExcludeLabel {
		c.addCheck("label", report.ResultNotWell, names.NewExplanation(names.ReasonNodeExcluded, "the node has the label %s: remove it", names.LabelExcludeNode))
	}
	if s != nil {
		c.addLinkChecks(s.UsableLinks, name)
	}
	for i := range c.sessions {
		if b := &c.sessions[i].Status; b.Node == name {
			c.addSessionCheck("session with "+b.Peer, &c.sessions[i].Status)
		}
	}
	return c.finishReport(fmt.Sprintf("its speaker runs, and it can announce on %s", cmp.Or(strings.Join(usableLinksOfNode(c, name), ", "), "no link"))), nil
}

func usableLinksOfNode(c *objectDiagnosis, node string) []string {
	if s := c.installation.speakerStatusByNode[node]; s != nil {
		return s.UsableLinks
	}
	return nil
}

// addLinkChecks says which links of a node are usable.
func (c *objectDiagnosis) addLinkChecks(usable []string, node string) {
	if len(usable) > 0 {
		c.addCheck("links", report.ResultWell, names.Explanation{Text: strings.Join(usable, ", ")})
	}
	for _, l := range c.installation.speakerStatusByNode[node].Links {
		if !l.Usable {
			c.checks = append(c.checks, report.Check{Name: "link " + l.Name, Result: report.ResultWell, Reason: names.Reason(l.Reason), Text: "is not used: " + cmp.Or(l.Message, l.Reason), IsWideOnly: true})
		}
	}
}

// ExplainPool says whether a pool can serve, and how full it is.
func (e *Explainer) ExplainPool(ctx context.Context, name string) (*report.Report, error) {
	c, out, err := e.newObjectDiagnosis(ctx, "IPAddressPool", name, withServices)
	if c == nil {
		return out, err
	}
	var known []string
	var pool *v1beta1.IPAddressPool
	for i := range c.pools {
		known = append(known, c.pools[i].Name)
		if c.pools[i].Name == name {
			pool = &c.pools[i]
		}
	}
	if pool == nil {
		var everywhere v1beta1.IPAddressPoolList
		if err := e.objectReader.List(ctx, &everywhere); err == nil {
			for i := range everywhere.Items {
				if everywhere.Items[i].Name == name {
					out.Repair = kubectlApplyLines("v1beta1", "IPAddressPool", e.gantryNamespace, name, fmt.Sprintf("addresses: [%s]", strings.Join(everywhere.Items[i].Spec.Addresses, ", ")))
					out.Reason, out.Answer = names.ReasonPoolElsewhere, fmt.Sprintf("%s: it is in namespace %s, and only pools in %s count: create it there", name, everywhere.Items[i].Namespace, e.gantryNamespace)
					return e.addMissingRightsAndDocURL(out), nil
				}
			}
		}
		return c.reportMissingObject(ctx, known), nil
	}
	c.addObjectProblemChecks()
	s := &pool.Status
	use := describePoolUse(s)
	full := fullFamilies(s)
	for _, u := range full {
		c.addCheck("addresses", report.ResultNotWell, names.NewExplanation(names.ReasonPoolExhausted, "%s: %s: add a range to spec.addresses", describeFullFamily(s, u), use))
	}
	if len(full) == 0 {
		c.addCheck("addresses", report.ResultWell, names.Explanation{Text: use})
	}
	c.addAdvertisementsOfPool()
	c.addWaitingServices()
	return c.finishReport(use), nil
}

// addAdvertisementsOfPool names the advertisements that select the pool.
func (c *objectDiagnosis) addAdvertisementsOfPool() {
	if c.config == nil {
		return
	}
	var all []string
	for _, ad := range c.config.Snapshot.L2Advertisements {
		if slices.Contains(ad.Pools, c.name) {
			all = append(all, "L2Advertisement "+ad.Name)
		}
	}
	for _, ad := range c.config.Snapshot.BGPAdvertisements {
		if slices.Contains(ad.Pools, c.name) {
			all = append(all, "BGPAdvertisement "+ad.Name)
		}
	}
	if len(all) == 0 {
		c.addCheck("advertisements", report.ResultNotWell, names.NewExplanation(names.ReasonNoAdvertisement, "no L2Advertisement or BGPAdvertisement selects it: create one"))
		return
	}
	c.addCheck("advertisements", report.ResultWell, names.Explanation{Text: joinFirstElements(all, maxListedElements)})
}

// addWaitingServices names the Services that ask for the pool and get no address.
func (c *objectDiagnosis) addWaitingServices() {
	for i := range c.gantryServices {
		s := &c.gantryServices[i]
		v := view.FromService(s)
		if v.RequestedPool == c.name && len(v.AssignedAddresses) == 0 {
			c.waitingServices = append(c.waitingServices, s.Namespace+"/"+s.Name)
		}
	}
	if len(c.waitingServices) > 0 {
		c.addCheck("Services", report.ResultNotWell, names.Explanation{Text: fmt.Sprintf("%d name it and have no address: %s", len(c.waitingServices), joinFirstElements(c.waitingServices, maxListedElements))})
	}
}

// addSessionCheck says how a session is.
func (c *objectDiagnosis) addSessionCheck(name string, s *v1alpha1.BGPSessionStatus) {
	if f := faultOfSession(s); f.IsSet() {
		c.addCheck(name, report.ResultNotWell, f)
		c.sessionByCheck[c.checks[len(c.checks)-1]] = s
		return
	}
	c.addCheck(name, report.ResultWell, names.Explanation{Text: fmt.Sprintf("%s since %s, %d prefixes sent", cmp.Or(s.State, "unknown"), describeTime(s.Since), s.Prefixes)})
}

// ExplainPeer says whether the sessions with a router are established.
func (e *Explainer) ExplainPeer(ctx context.Context, name string) (*report.Report, error) {
	c, out, err := e.newObjectDiagnosis(ctx, "BGPPeer", name, withoutServices)
	if c == nil {
		return out, err
	}
	if c.config == nil {
		c.addObjectProblemChecks()
		return c.finishReport(""), nil
	}
	known := namesOf(c.config.Snapshot.Peers, func(p *snapshot.Peer) string { return p.Name })
	at := slices.Index(known, name)
	if at < 0 {
		return c.reportMissingObject(ctx, known), nil
	}
	c.addObjectProblemChecks()
	peer := c.config.Snapshot.Peers[at]
	if f := peer.FirstProblem; f != nil {
		c.addCheck("session", report.ResultNotWell, names.Explanation{Reason: f.Reason, Text: f.Text})
	}
	sessions := map[string]*v1alpha1.BGPSessionStatus{}
	for i := range c.sessions {
		if s := &c.sessions[i].Status; s.Peer == name {
			sessions[s.Node] = s
		}
	}
	selected := 0
	for _, n := range c.config.Nodes {
		if !peer.SelectsNode(n.Labels) {
			continue
		}
		selected++
		if s := sessions[n.Name]; s != nil {
			c.addSessionCheck("session of "+n.Name, s)
		} else if peer.FirstProblem == nil {
			c.addCheck("session of "+n.Name, report.ResultNotWell, names.NewExplanation(names.ReasonNoSession, "its speaker does not report the session"))
		}
	}
	if selected == 0 {
		c.addCheck("nodes", report.ResultNotWell, names.NewExplanation(names.ReasonNoPeers, "its nodeSelectors match no node: correct them, or label a node"))
	}
	return c.finishReport(fmt.Sprintf("%d of %d sessions are established", len(sessions), selected)), nil
}

// namesOf returns the names of the elements.
func namesOf[T any](all []T, nameOf func(T) string) []string {
	var out []string
	for _, x := range all {
		out = append(out, nameOf(x))
	}
	return out
}

// ExplainAdvertisement says what an advertisement of either kind advertises, and where.
func (e *Explainer) ExplainAdvertisement(ctx context.Context, name string) (*report.Report, error) {
	c, out, err := e.newObjectDiagnosis(ctx, "L2Advertisement", name, withoutServices)
	if c == nil {
		return out, err
	}
	if c.config == nil {
		c.addObjectProblemChecks()
		return c.finishReport(""), nil
	}
	s := c.config.Snapshot
	layer2 := namesOf(s.L2Advertisements, func(a *snapshot.L2Advertisement) string { return a.Name })
	bgp := namesOf(s.BGPAdvertisements, func(a *snapshot.BGPAdvertisement) string { return a.Name })
	var pools []string
	switch i, j := slices.Index(layer2, name), slices.Index(bgp, name); {
	case i >= 0:
		ad := s.L2Advertisements[i]
		pools = ad.Pools
		c.addObjectProblemChecks()
		c.addNodesOfAdvertisement(ad.NodeSelectors, ad.Interfaces)
	case j >= 0:
		c.kind, pools = "BGPAdvertisement", s.BGPAdvertisements[j].Pools
		c.addObjectProblemChecks()
		c.addNodesOfAdvertisement(s.BGPAdvertisements[j].NodeSelectors, nil)
		c.addPeersOfAdvertisement(s.BGPAdvertisements[j])
	default:
		return c.reportMissingObject(ctx, slices.Concat(layer2, bgp)), nil
	}
	if len(pools) == 0 {
		c.addCheck("pools", report.ResultNotWell, names.NewExplanation(names.ReasonUnknownPool, "it selects no IPAddressPool"))
	} else {
		c.addCheck("pools", report.ResultWell, names.Explanation{Text: joinFirstElements(pools, maxListedElements)})
	}
	return c.finishReport(fmt.Sprintf("the %s advertises %s", c.kind, joinFirstElements(pools, maxListedElements))), nil
}

// addNodesOfAdvertisement says on which nodes the advertisement counts, and whether these nodes
// have the interfaces that it names. An advertisement that names no interface counts on all links.
func (c *objectDiagnosis) addNodesOfAdvertisement(selectors []labels.Selector, interfaces []string) {
	var selected, linked []string
	for _, n := range c.config.Nodes {
		if !snapshot.AnySelectorMatches(selectors, labels.Set(n.Labels)) {
			continue
		}
		selected = append(selected, n.Name)
		s := c.installation.speakerStatusByNode[n.Name]
		isUsable := func(name string) bool { return s != nil && slices.Contains(s.UsableLinks, name) }
		if len(interfaces) == 0 || slices.ContainsFunc(interfaces, isUsable) {
			linked = append(linked, n.Name)
		}
	}
	switch {
	case len(selected) == 0:
		c.addCheck("nodes", report.ResultNotWell, names.NewExplanation(names.ReasonNoAdvertisement, "its nodeSelectors match no node: correct them, or label a node"))
	case len(linked) == 0:
		c.addCheck("nodes", report.ResultNotWell, names.NewExplanation(names.ReasonNoLinks, "none of its interfaces (%s) is a usable link of %s: correct spec.interfaces", joinFirstElements(interfaces, maxListedElements), joinFirstElements(selected, maxListedElements)))
	default:
		c.addCheck("nodes", report.ResultWell, names.Explanation{Text: joinFirstElements(linked, maxListedElements)})
	}
}

// addPeersOfAdvertisement says to which routers the advertisement goes.
func (c *objectDiagnosis) addPeersOfAdvertisement(ad *snapshot.BGPAdvertisement) {
	var all []string
	for _, p := range c.config.Snapshot.Peers {
		if len(ad.Peers) == 0 || slices.Contains(ad.Peers, p.Name) {
			all = append(all, p.Name)
		}
	}
	if len(all) == 0 {
		c.addCheck("peers", report.ResultNotWell, names.NewExplanation(names.ReasonNoPeers, "no BGPPeer gets it: create one, or correct spec.peers"))
		return
	}
	c.addCheck("peers", report.ResultWell, names.Explanation{Text: joinFirstElements(all, maxListedElements)})
}
