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
}

// newSubject reads the whole installation for a question about one object. The case is nil if the
// report is complete already: there is no Gantry.
func (e *Explainer) newSubject(ctx context.Context, kind, name string, scope overviewScope) (*objectDiagnosis, *report.Report, error) {
	out := &report.Report{Subject: kind + " " + name, Result: report.NotWell}
	o, absent, err := e.readOverview(ctx, scope)
	if err != nil {
		return nil, nil, err
	}
	if absent.IsSet() {
		out.Reason, out.Answer = absent.Reason, absent.Text
		return nil, e.complete(out), nil
	}
	return &objectDiagnosis{o, kind, name, out}, out, nil
}

// reportMissing says that there is no such object, and which have near names.
func (c *objectDiagnosis) reportMissing(ctx context.Context, known []string) *report.Report {
	c.report.Result = report.Unknown
	c.report.Answer = fmt.Sprintf("there is no %s %s in namespace %s", c.kind, c.name, c.namespace)
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
	if down := c.explainWebhooks(ctx); down.IsSet() && c.kind != "Node" {
		c.report.Reason, c.report.Answer = down.Reason, c.report.Answer+"; "+down.Text
	}
	return c.complete(c.report)
}

// finish makes the first line: the first gate that is not passed, or that all is well.
func (c *objectDiagnosis) finish(well string) *report.Report {
	c.report.Gates = c.gates
	prefix := c.name + ": "
	for _, wanted := range []report.Result{report.NotWell, report.Unknown} {
		for _, g := range c.gates {
			if g.Result == wanted {
				c.report.Result, c.report.Reason, c.report.Answer = wanted, g.Reason, prefix+g.Name+": "+g.Text
				return c.complete(c.report)
			}
		}
	}
	c.report.Result, c.report.Answer = report.Well, prefix+well
	return c.complete(c.report)
}

// addObjectGates lists the faults of the object itself.
func (c *objectDiagnosis) addObjectGates() {
	if c.config == nil {
		c.addGate("object", report.Unknown, names.Explanation{Text: "you may not read all of the configuration"})
		return
	}
	for _, p := range c.config.Problems {
		if p.Object.Kind == c.kind && p.Object.Name == c.name {
			result := report.NotWell
			if p.IsOnlyAdvice() {
				result = report.Unknown
			}
			c.addGate("object", result, names.Explanation{Reason: p.Reason, Text: p.Text})
			return
		}
	}
	c.addGate("object", report.Well, names.Explanation{Text: "it is understood"})
}

// ExplainNode says whether a node can announce, and what it announces.
func (e *Explainer) ExplainNode(ctx context.Context, name string) (*report.Report, error) {
	c, out, err := e.newSubject(ctx, "Node", name, withoutServices)
	if c == nil {
		return out, err
	}
	var labels map[string]string
	var known []string
	nodes := newMetadataList("NodeList")
	if err := e.objects.List(ctx, nodes); err != nil {
		return nil, err
	}
	for i := range nodes.Items {
		known = append(known, nodes.Items[i].Name)
		if nodes.Items[i].Name == name {
			labels = nodes.Items[i].Labels
		}
	}
	if !slices.Contains(known, name) && len(known) > 0 {
		return c.reportMissing(ctx, known), nil
	}
	s := c.installation.speakers[name]
	switch fault := announcedcondition.ExplainSpeaker(s); {
	case e.objects.LacksRightTo("speakerstatuses.gantry.dev"):
		c.addGate("speaker", report.Unknown, names.Explanation{Text: "you may not read its SpeakerStatus"})
	case fault.IsSet() && fault.Reason == names.ReasonNoSpeaker:
		fault.Text += "; " + c.explainSpeakers(ctx)
		c.addGate("speaker", report.NotWell, fault)
	case fault.IsSet():
		c.addGate("speaker", report.NotWell, fault)
	default:
		for _, f := range c.faultsOfSpeaker(name) {
			c.addGate("speaker", report.NotWell, f)
		}
		c.addGate("speaker", report.Well, names.Explanation{Text: fmt.Sprintf("version %s, answers for %d addresses, announces %d routes", cmp.Or(s.Version, "unknown"), s.Held, s.Routes)})
	}
	if view.IsExcludedByLabels(labels) {
		c.addGate("label", report.NotWell, names.Explain(names.ReasonNodeExcluded, "the node has the label %s: remove it", names.LabelExcludeNode))
	}
	if s != nil {
		c.addLinkGates(s.UsableLinks, name)
	}
	for i := range c.sessions {
		if b := &c.sessions[i].Status; b.Node == name {
			c.addSessionGate("session with "+b.Peer, &c.sessions[i].Status)
		}
	}
	return c.finish(fmt.Sprintf("its speaker runs, and it can announce on %s", cmp.Or(strings.Join(usableLinksOf(c, name), ", "), "no link"))), nil
}

func usableLinksOf(c *objectDiagnosis, node string) []string {
	if s := c.installation.speakers[node]; s != nil {
		return s.UsableLinks
	}
	return nil
}

// addLinkGates says which links of a node are usable.
func (c *objectDiagnosis) addLinkGates(usable []string, node string) {
	if len(usable) > 0 {
		c.addGate("links", report.Well, names.Explanation{Text: strings.Join(usable, ", ")})
	}
	for _, l := range c.installation.speakers[node].Links {
		if !l.Usable {
			c.gates = append(c.gates, report.Gate{Name: "link " + l.Name, Result: report.Well, Reason: names.Reason(l.Reason), Text: "is not used: " + cmp.Or(l.Message, l.Reason), IsDetail: true})
		}
	}
}

// ExplainPool says whether a pool can serve, and how full it is.
func (e *Explainer) ExplainPool(ctx context.Context, name string) (*report.Report, error) {
	c, out, err := e.newSubject(ctx, "IPAddressPool", name, withServices)
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
		if err := e.objects.List(ctx, &everywhere); err == nil {
			for i := range everywhere.Items {
				if everywhere.Items[i].Name == name {
					out.Reason, out.Answer = names.ReasonPoolElsewhere, fmt.Sprintf("%s: it is in namespace %s, and only pools in %s count: create it there", name, everywhere.Items[i].Namespace, e.namespace)
					return e.complete(out), nil
				}
			}
		}
		return c.reportMissing(ctx, known), nil
	}
	c.addObjectGates()
	s := &pool.Status
	in, free := s.AssignedIPv4+s.AssignedIPv6, s.AvailableIPv4+s.AvailableIPv6
	use := fmt.Sprintf("%s in use, %d free", formatCount(int(in), "address"), free)
	if in > 0 && free == 0 {
		c.addGate("addresses", report.NotWell, names.Explain(names.ReasonPoolExhausted, "it is full: %s: add a range to spec.addresses", use))
	} else {
		c.addGate("addresses", report.Well, names.Explanation{Text: use})
	}
	c.addAdvertisersOfPool()
	c.addWaitingServices()
	return c.finish(use), nil
}

// addAdvertisersOfPool names the advertisements that select the pool.
func (c *objectDiagnosis) addAdvertisersOfPool() {
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
		c.addGate("advertisements", report.NotWell, names.Explain(names.ReasonNoAdvertisement, "no L2Advertisement or BGPAdvertisement selects it: create one"))
		return
	}
	c.addGate("advertisements", report.Well, names.Explanation{Text: joinFirstElements(all, maxListedElements)})
}

// addWaitingServices names the Services that ask for the pool and get no address.
func (c *objectDiagnosis) addWaitingServices() {
	var waiting []string
	for i := range c.services {
		s := &c.services[i]
		v := view.FromService(s)
		if v.RequestedPool == c.name && len(v.AssignedAddresses) == 0 {
			waiting = append(waiting, s.Namespace+"/"+s.Name)
		}
	}
	if len(waiting) > 0 {
		c.addGate("Services", report.NotWell, names.Explanation{Text: fmt.Sprintf("%d name it and have no address: %s", len(waiting), joinFirstElements(waiting, maxListedElements))})
	}
}

// addSessionGate says how a session is.
func (c *objectDiagnosis) addSessionGate(name string, s *v1alpha1.BGPSessionStatus) {
	if f := faultOfSession(s); f.IsSet() {
		c.addGate(name, report.NotWell, f)
		return
	}
	c.addGate(name, report.Well, names.Explanation{Text: fmt.Sprintf("%s since %s, %d prefixes sent", cmp.Or(s.State, "unknown"), describeTime(s.Since), s.Prefixes)})
}

// ExplainPeer says whether the sessions with a router are established.
func (e *Explainer) ExplainPeer(ctx context.Context, name string) (*report.Report, error) {
	c, out, err := e.newSubject(ctx, "BGPPeer", name, withoutServices)
	if c == nil {
		return out, err
	}
	if c.config == nil {
		c.addObjectGates()
		return c.finish(""), nil
	}
	known := namesOf(c.config.Snapshot.Peers, func(p *snapshot.Peer) string { return p.Name })
	at := slices.Index(known, name)
	if at < 0 {
		return c.reportMissing(ctx, known), nil
	}
	c.addObjectGates()
	peer := c.config.Snapshot.Peers[at]
	if f := peer.FirstFault; f != nil {
		c.addGate("session", report.NotWell, names.Explanation{Reason: f.Reason, Text: f.Text})
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
			c.addSessionGate("session of "+n.Name, s)
		} else if peer.FirstFault == nil {
			c.addGate("session of "+n.Name, report.NotWell, names.Explain(names.ReasonNoSession, "its speaker does not report the session"))
		}
	}
	if selected == 0 {
		c.addGate("nodes", report.NotWell, names.Explain(names.ReasonNoPeers, "its nodeSelectors match no node: correct them, or label a node"))
	}
	return c.finish(fmt.Sprintf("%d of %d sessions are established", len(sessions), selected)), nil
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
	c, out, err := e.newSubject(ctx, "L2Advertisement", name, withoutServices)
	if c == nil {
		return out, err
	}
	if c.config == nil {
		c.addObjectGates()
		return c.finish(""), nil
	}
	s := c.config.Snapshot
	layer2 := namesOf(s.L2Advertisements, func(a *snapshot.L2Advertisement) string { return a.Name })
	bgp := namesOf(s.BGPAdvertisements, func(a *snapshot.BGPAdvertisement) string { return a.Name })
	var pools []string
	switch i, j := slices.Index(layer2, name), slices.Index(bgp, name); {
	case i >= 0:
		ad := s.L2Advertisements[i]
		pools = ad.Pools
		c.addObjectGates()
		c.addNodesOfAdvertisement(ad.NodeSelectors, ad.Interfaces)
	case j >= 0:
		c.kind, pools = "BGPAdvertisement", s.BGPAdvertisements[j].Pools
		c.addObjectGates()
		c.addNodesOfAdvertisement(s.BGPAdvertisements[j].NodeSelectors, nil)
		c.addPeersOfAdvertisement(s.BGPAdvertisements[j])
	default:
		return c.reportMissing(ctx, slices.Concat(layer2, bgp)), nil
	}
	if len(pools) == 0 {
		c.addGate("pools", report.NotWell, names.Explain(names.ReasonUnknownPool, "it selects no IPAddressPool"))
	} else {
		c.addGate("pools", report.Well, names.Explanation{Text: joinFirstElements(pools, maxListedElements)})
	}
	return c.finish(fmt.Sprintf("the %s advertises %s", c.kind, joinFirstElements(pools, maxListedElements))), nil
}

// addNodesOfAdvertisement says on which nodes the advertisement counts, and whether they have its
// interfaces. Without any interface it counts on all links.
func (c *objectDiagnosis) addNodesOfAdvertisement(selectors []labels.Selector, interfaces []string) {
	var selected, linked []string
	for _, n := range c.config.Nodes {
		if !snapshot.AnySelectorMatches(selectors, labels.Set(n.Labels)) {
			continue
		}
		selected = append(selected, n.Name)
		s := c.installation.speakers[n.Name]
		isUsable := func(name string) bool { return s != nil && slices.Contains(s.UsableLinks, name) }
		if len(interfaces) == 0 || slices.ContainsFunc(interfaces, isUsable) {
			linked = append(linked, n.Name)
		}
	}
	switch {
	case len(selected) == 0:
		c.addGate("nodes", report.NotWell, names.Explain(names.ReasonNoAdvertisement, "its nodeSelectors match no node: correct them, or label a node"))
	case len(linked) == 0:
		c.addGate("nodes", report.NotWell, names.Explain(names.ReasonNoLinks, "none of its interfaces (%s) is a usable link of %s: correct spec.interfaces", joinFirstElements(interfaces, maxListedElements), joinFirstElements(selected, maxListedElements)))
	default:
		c.addGate("nodes", report.Well, names.Explanation{Text: joinFirstElements(linked, maxListedElements)})
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
		c.addGate("peers", report.NotWell, names.Explain(names.ReasonNoPeers, "no BGPPeer gets it: create one, or correct spec.peers"))
		return
	}
	c.addGate("peers", report.Well, names.Explanation{Text: joinFirstElements(all, maxListedElements)})
}
