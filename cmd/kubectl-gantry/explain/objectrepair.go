package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// suggestRepair returns the commands that mend what a check of the object found.
func (c *objectDiagnosis) suggestRepair(g report.Check) []string {
	if c.config == nil && c.kind != "Node" || g.Result == report.ResultUnknown && g.Reason == "" {
		return nil // the user may not read what is needed
	}
	edit := func(what string) []string { return []string{kubectlEdit(c.gantryNamespace, c.kind, c.name, what)} }
	if target, hasTarget := c.targetByCheck[g]; hasTarget {
		if lines := c.suggestRepairOfTarget(&target); lines != nil {
			return lines
		}
	}
	switch {
	case c.kind == "IPAddressPool" && g.Reason == names.ReasonPoolExhausted:
		return edit("add a range to spec.addresses")
	case c.kind == "IPAddressPool" && g.Reason == names.ReasonNoAdvertisement:
		return c.suggestAdvertisementOfPool(c.config, c.name)
	case c.kind == "IPAddressPool" && g.Name == "Services":
		return []string{"kubectl gantry explain service " + c.waitingServices[0]}
	case c.kind == "BGPPeer" && g.Name == "nodes":
		return edit("spec.nodeSelectors")
	case c.kind == "BGPPeer" && g.Name == "session":
		return edit("spec")
	case strings.HasSuffix(c.kind, "Advertisement"):
		return edit(cmp.Or(map[string]string{"nodes": "spec.nodeSelectors, spec.interfaces", "peers": "spec.peers", "pools": "spec.ipAddressPools"}[g.Name], "spec"))
	case c.kind == "address":
		return c.suggestRepairOfAddress(g.Reason)
	}
	if lines := c.suggestRepairByReason(g.Reason, c.repairValuesOfCheck(g)); lines != nil {
		return lines
	}
	if c.kind == "Node" {
		return []string{"kubectl describe node " + c.name}
	}
	return []string{fmt.Sprintf("kubectl -n %s describe %s %s", c.gantryNamespace, strings.ToLower(c.kind), c.name)}
}

// repairValuesOfCheck returns what a check names.
func (c *objectDiagnosis) repairValuesOfCheck(g report.Check) *repairValues {
	switch s := c.sessionByCheck[g]; {
	case s != nil:
		return &repairValues{nodes: []string{s.Node}, peer: s.Peer}
	case c.kind == "Node":
		return &repairValues{nodes: []string{c.name}}
	}
	return &repairValues{}
}

// suggestRepairOfAddress returns what to do about an address that no Service can get or use.
func (c *objectDiagnosis) suggestRepairOfAddress(reason names.Reason) []string {
	pool := c.nameOfFirstPool()
	if a, err := netip.ParseAddr(c.name); err == nil {
		if pools := c.config.Snapshot.PoolOfEachAddress("", a); len(pools) == 1 && pools[0] != nil {
			pool = pools[0].Name
		}
	}
	editPool := func(what string) []string {
		return []string{kubectlEdit(c.gantryNamespace, "IPAddressPool", pool, what)}
	}
	switch reason {
	case names.ReasonNoPools, names.ReasonPoolElsewhere:
		return kubectlApplyLines("v1beta1", "IPAddressPool", c.gantryNamespace, "first-pool", fmt.Sprintf("addresses: [%s]", c.rangeOfAddress()))
	case names.ReasonAddressNotInPool:
		return editPool("add " + c.rangeOfAddress() + " to spec.addresses")
	case names.ReasonAddressReserved:
		return []string{fmt.Sprintf("kubectl -n %s get addressreservations", c.gantryNamespace)}
	case names.ReasonQuarantined, names.ReasonCoolingDown:
		return []string{fmt.Sprintf("kubectl -n %s get addressledger %s -o yaml  # until when, and why", c.gantryNamespace, names.WithheldAddressesLedger)}
	case names.ReasonPoolNotAllowed, names.ReasonNoEligiblePool:
		return editPool("spec.serviceAllocation")
	case names.ReasonAddressRetired:
		return editPool("spec.gantry")
	}
	if lines := c.suggestRepairByReason(reason, &repairValues{address: c.name, pool: pool}); lines != nil {
		return lines
	}
	return []string{fmt.Sprintf("kubectl -n %s get ipaddresspool %s -o yaml", c.gantryNamespace, pool)}
}

// rangeOfAddress is the range of a pool that has only the address.
func (c *objectDiagnosis) rangeOfAddress() string { return c.name + "-" + c.name }

// nameOfFirstPool is the name of a pool for an example.
func (c *objectDiagnosis) nameOfFirstPool() string {
	if len(c.pools) == 0 {
		return "POOL"
	}
	return c.pools[0].Name
}
