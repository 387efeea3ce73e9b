package explain

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/view"
)

// nodesOfAddress is what the nodes do with one address of a Service.
type nodesOfAddress struct {
	address netip.Addr
	nodes   []advertise.NodeExplanation
}

// explainNodesOfEachAddress asks the decision code of the controller about each address alone.
func explainNodesOfEachAddress(ctx context.Context, c *serviceDiagnosis, explainer *announcedcondition.Explainer) ([]nodesOfAddress, error) {
	if len(c.view.AssignedAddresses) == 1 {
		return []nodesOfAddress{{c.view.AssignedAddresses[0], c.announcementFinding.NodeExplanations}}, nil
	}
	var out []nodesOfAddress
	for _, a := range c.view.AssignedAddresses {
		alone := c.view
		alone.AssignedAddresses = []netip.Addr{a}
		finding, err := explainer.ExplainService(ctx, c.config, &alone)
		if err != nil {
			return nil, err
		}
		out = append(out, nodesOfAddress{a, finding.NodeExplanations})
	}
	return out, nil
}

// addNodeChecks says of each node what it does for each address, by each protocol. Nodes with the
// same fault share a line.
func (c *serviceDiagnosis) addNodeChecks() {
	for i := range c.nodesOfAddresses {
		v := &c.nodesOfAddresses[i]
		suffix := ""
		if len(c.nodesOfAddresses) > 1 {
			suffix = " for " + v.address.String()
		}
		var faults []names.Explanation
		nodesByFault := map[names.Explanation][]string{}
		for j := range v.nodes {
			n := &v.nodes[j]
			if fault := n.Fault(); fault.IsSet() {
				if nodesByFault[fault] == nil {
					faults = append(faults, fault)
				}
				nodesByFault[fault] = append(nodesByFault[fault], n.Node)
				continue
			}
			c.addChecksOfProtocols(n, v.address, suffix)
		}
		for _, fault := range faults {
			c.addCheck("node "+joinFirstElements(nodesByFault[fault], maxListedElements)+suffix, report.ResultNotWell, fault)
		}
	}
}

// addChecksOfProtocols says what a node that announces the address does by layer 2 and by BGP.
func (c *serviceDiagnosis) addChecksOfProtocols(n *advertise.NodeExplanation, a netip.Addr, suffix string) {
	held := c.describeAddressNodeReports(n.Node, a)
	switch {
	case held != "":
		c.addCheck("node "+n.Node+suffix, report.ResultWell, names.Explanation{Text: held})
	case n.IsSelectedByL2Ad && n.Layer2Fault.IsSet():
		c.addWideOnlyCheck("node "+n.Node+suffix+" by layer 2", report.ResultNotWell, n.Layer2Fault)
	case n.IsSelectedByL2Ad:
		c.addWideOnlyCheck("node "+n.Node+suffix, report.ResultWell, names.Explanation{Text: "may answer ARP and NDP on " + c.usableLinksText(n.Node) + "; another node holds the address"})
	}
	switch {
	case n.IsSelectedByBGPAd && n.BGPFault.IsSet():
		c.addWideOnlyCheck("node "+n.Node+suffix+" by BGP", report.ResultNotWell, n.BGPFault)
	case n.IsSelectedByBGPAd:
		c.addWideOnlyCheck("node "+n.Node+suffix+" by BGP", report.ResultWell, names.Explanation{Text: "routes to " + joinFirstElements(n.Peers, maxListedElements)})
	}
}

// usableLinksText names the links that a node may use.
func (c *serviceDiagnosis) usableLinksText(node string) string {
	if s := c.installation.speakerStatusByNode[node]; s != nil {
		return cmp.Or(strings.Join(s.UsableLinks, ", "), "all links")
	}
	return "all links"
}

// describeAddressNodeReports says that the node reports to answer for the address; empty if it does
// not. Older reports do not say for which addresses.
func (c *serviceDiagnosis) describeAddressNodeReports(node string, a netip.Addr) string {
	for i := range c.announcementFinding.Layer2Reports {
		r := &c.announcementFinding.Layer2Reports[i]
		text := view.JoinAddresses(c.view.AssignedAddresses)
		if r.Status.Gantry != nil {
			text = a.String()
		}
		if r.Status.Node != node || r.Status.Gantry != nil && !slices.Contains(r.Status.Gantry.Addresses, a.String()) {
			continue
		}
		var links []string
		for _, l := range r.Status.Interfaces {
			links = append(links, l.Name)
		}
		return fmt.Sprintf("answers for %s on %s since %s", text, cmp.Or(strings.Join(links, ", "), c.usableLinksText(node)), describeTime(&r.CreationTimestamp))
	}
	return ""
}
