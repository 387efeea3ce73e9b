package explain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// ExplainAddress says who has an address, and whether a Service may get it.
func (e *Explainer) ExplainAddress(ctx context.Context, text string) (*report.Report, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return &report.Report{Subject: "address " + text, Result: report.ResultUnknown, Answer: fmt.Sprintf("%q is no address: write one such as 192.0.2.10", text)}, nil
	}
	address = address.Unmap()
	c, out, err := e.newObjectDiagnosis(ctx, "address", address.String(), withServices)
	if c == nil {
		return out, err
	}
	if c.config == nil {
		c.addObjectProblemChecks()
		return c.finishReport(""), nil
	}
	holders := c.servicesWithAddress(address)
	if err := c.addAnsweringNodes(ctx, address); err != nil {
		return nil, err
	}
	c.addAddressMoveChecks(address.String())
	for node, s := range c.installation.speakerStatusByNode {
		for _, f := range s.Conflicts {
			if f.Address == address.String() {
				c.addCheck("network", report.ResultNotWell, names.NewExplanation(names.ReasonForeignClaim, "a host outside of the cluster (%s) answers for it since %s, as %s sees", f.MAC, describeTime(&f.Since), node))
			}
		}
	}
	if len(holders) > 0 {
		c.addCheck("Services", report.ResultWell, names.Explanation{Text: joinFirstElements(holders, maxListedElements) + " has it"})
		return c.finishReport(joinFirstElements(holders, maxListedElements) + " has it" + c.describePoolOfAddress(address)), nil
	}
	why, err := c.explainRequestForAddress(ctx, address)
	if err != nil {
		return nil, err
	}
	if why.Reason != names.ReasonAssigned && why.Reason != names.ReasonProbing {
		c.addCheck("use", report.ResultNotWell, why)
		return c.finishReport(""), nil
	}
	c.addCheck("use", report.ResultWell, names.Explanation{Text: "a Service may get it" + c.describePoolOfAddress(address)})
	return c.finishReport("no Service has it, and one may get it" + c.describePoolOfAddress(address)), nil
}

// describePoolOfAddress names the pool of an address, as the end of a sentence.
func (c *objectDiagnosis) describePoolOfAddress(a netip.Addr) string {
	if pools := c.config.Snapshot.PoolOfEachAddress("", a); len(pools) == 1 {
		return ", from pool " + pools[0].Name
	}
	return ""
}

// servicesWithAddress returns the Services whose status has the address.
func (c *objectDiagnosis) servicesWithAddress(a netip.Addr) []string {
	var out []string
	for i := range c.gantryServices {
		if v := view.FromService(&c.gantryServices[i]); slices.Contains(v.AssignedAddresses, a) {
			out = append(out, v.Key.String())
		}
	}
	return out
}

// addAnsweringNodes says which nodes answer for the address.
func (c *objectDiagnosis) addAnsweringNodes(ctx context.Context, a netip.Addr) error {
	var reports v1beta1.ServiceL2StatusList
	if err := c.objectReader.List(ctx, &reports, client.InNamespace(c.gantryNamespace)); err != nil {
		return err
	}
	var on []string
	for i := range reports.Items {
		r := &reports.Items[i]
		s := c.installation.speakerStatusByNode[r.Status.Node]
		if r.Status.Gantry == nil || !slices.Contains(r.Status.Gantry.Addresses, a.String()) || slices.Contains(on, r.Status.Node) || s.WasFoundDead() {
			continue
		}
		on = append(on, r.Status.Node)
		if c.isSpeakerSilent(s) {
			c.addCheck("node", report.ResultNotWell, names.NewExplanation(names.ReasonNoSpeaker, "%s answered for it, and its speaker is silent since %s", r.Status.Node, describeTime(s.LastSeen)))
		} else {
			c.addCheck("node", report.ResultWell, names.Explanation{Text: fmt.Sprintf("%s answers for it since %s", r.Status.Node, describeTime(&r.CreationTimestamp))})
		}
	}
	return nil
}

// explainRequestForAddress says whether a new Service that requests the address would get it.
func (c *objectDiagnosis) explainRequestForAddress(ctx context.Context, a netip.Addr) (names.Explanation, error) {
	ledger := allocate.NewLedger()
	ledger.UseSnapshot(c.config.Snapshot)
	if err := c.fillLedger(ctx, ledger, c.installation.loadBalancerClass); err != nil {
		return names.Explanation{}, err
	}
	clusterIP := netip.MustParseAddr("127.0.0.1")
	if ipfamily.FamilyOf(a) == ipfamily.IPv6 {
		clusterIP = netip.IPv6Loopback()
	}
	s := view.Service{Key: view.ObjectKey{Namespace: c.pickNamespaceAdmittedByPool(a)}, IsLoadBalancer: true, ClusterIPs: []netip.Addr{clusterIP}, PrimaryFamily: ipfamily.FamilyOf(a), RequestedAddresses: []netip.Addr{a}}
	d := allocate.DecideAssignment(&s, ledger, c.config.Snapshot)
	d.Text = strings.Replace(d.Text, "the requested ", "", 1)
	return d.Explanation, nil
}

// pickNamespaceAdmittedByPool is a namespace whose Services the pool of the address admits.
func (c *objectDiagnosis) pickNamespaceAdmittedByPool(a netip.Addr) string {
	if pools := c.config.Snapshot.PoolOfEachAddress("", a); len(pools) == 1 && pools[0].ServiceAllocation != nil && len(pools[0].ServiceAllocation.Namespaces) > 0 {
		return pools[0].ServiceAllocation.Namespaces[0]
	}
	return "default"
}
