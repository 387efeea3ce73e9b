package explain

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// ListingFunc makes one of the tables.
type ListingFunc func(*Explainer, context.Context) (*report.Listing, error)

// newListingWithOverview returns an empty table. If there is no Gantry, its title says so and o is
// nil.
func (e *Explainer) newListingWithOverview(ctx context.Context, scope overviewScope, columns ...string) (*report.Listing, *overview, error) {
	l := &report.Listing{Result: report.ResultWell, Columns: columns}
	o, absent, err := e.readOverview(ctx, scope)
	if err != nil {
		return nil, nil, err
	}
	if absent.IsSet() {
		l.Result, l.Title = report.ResultNotWell, fmt.Sprintf("%s [%s]", absent.Text, absent.Reason)
	}
	for _, m := range e.objectReader.MissingRights() {
		l.MissingRights = append(l.MissingRights, m.String())
		l.Result = report.ResultUnknown
	}
	return l, o, nil
}

// ListPools lists the pools, with their use and the largest free range.
func (e *Explainer) ListPools(ctx context.Context) (*report.Listing, error) {
	l, o, err := e.newListingWithOverview(ctx, withServices, "pool", "use", "in use", "free", "largest free range", "valid", "addresses")
	if err != nil || o == nil {
		return l, err
	}
	l.WideColumnCount = 1
	used := o.listUsedAddresses()
	for i := range o.pools {
		p := &o.pools[i]
		s := &p.Status
		in, free := addSaturating(s.AssignedIPv4, s.AssignedIPv6), addSaturating(s.AvailableIPv4, s.AvailableIPv6)
		fullest := fullestFamily(s)
		valid := "unknown"
		largest := "unknown"
		if o.config != nil {
			valid = o.describeValidity("IPAddressPool", p.Name)
			if parsed := o.config.Snapshot.PoolByName(p.Name); parsed != nil {
				largest = largestFreeRange(parsed, used)
			}
		}
		if valid != "yes" || len(fullFamilies(s)) > 0 {
			l.Result = report.ResultNotWell
		}
		l.Rows = append(l.Rows, []string{p.Name, report.FormatUsageBar(fullest.assigned, addSaturating(fullest.assigned, fullest.available)), strconv.FormatInt(in, 10), strconv.FormatInt(free, 10), largest, valid, strings.Join(p.Spec.Addresses, ",")})
	}
	if len(o.pools) == 0 {
		l.Result, l.Title = report.ResultNotWell, fmt.Sprintf("there is no IPAddressPool in namespace %s [%s]", e.gantryNamespace, names.ReasonNoPools)
	}
	return l, nil
}

// describeValidity is "yes", or the Reason of the first fault of the object.
func (o *overview) describeValidity(kind, name string) string {
	for _, p := range o.config.Problems {
		if p.Object.Kind == kind && p.Object.Name == name {
			return string(p.Reason)
		}
	}
	return "yes"
}

// listUsedAddresses are the addresses that Services have, sorted.
func (o *overview) listUsedAddresses() []netip.Addr {
	var out []netip.Addr
	for i := range o.gantryServices {
		v := view.FromService(&o.gantryServices[i])
		out = append(out, v.AssignedAddresses...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// largestFreeRange returns the largest range of the pool between used addresses. Of a range of IPv6
// only the part after the last used address is looked at, if that is the largest.
func largestFreeRange(p *snapshot.Pool, used []netip.Addr) string {
	var best snapshot.Range
	for _, r := range p.AssignableRanges() {
		first := r.First
		at, _ := slices.BinarySearchFunc(used, first, netip.Addr.Compare)
		for _, a := range used[at:] {
			if r.Last.Less(a) {
				break
			}
			if first.Less(a) {
				best = largerRange(best, snapshot.Range{First: first, Last: a.Prev()})
			}
			first = a.Next()
		}
		if first.IsValid() && !r.Last.Less(first) {
			best = largerRange(best, snapshot.Range{First: first, Last: r.Last})
		}
	}
	if !best.First.IsValid() {
		return "none"
	}
	return best.First.String() + "-" + best.Last.String()
}

func largerRange(a, b snapshot.Range) snapshot.Range {
	if !a.First.IsValid() || compareRangeSizes(a, b) < 0 {
		return b
	}
	return a
}

// compareRangeSizes compares how many addresses two ranges have.
func compareRangeSizes(a, b snapshot.Range) int {
	return cmp.Compare(lastMinusFirstAddress(a), lastMinusFirstAddress(b))
}

// lastMinusFirstAddress is how far the ends of a range are apart: one less than its number of
// addresses.
func lastMinusFirstAddress(r snapshot.Range) float64 {
	size := 0.0
	first, last := r.First.As16(), r.Last.As16()
	for i := range first {
		size = size*256 + float64(last[i]) - float64(first[i])
	}
	return size
}

// ListServices lists the Services of type LoadBalancer in a namespace; without one, in all of them.
// A user may have rights in one namespace alone.
func (e *Explainer) ListServices(ctx context.Context, namespace string) (*report.Listing, error) {
	l, o, err := e.newListingWithOverview(ctx, overviewScope{hasServices: true, namespace: namespace}, "namespace", "service", "addresses", "pool", "reason", "says")
	if err != nil || o == nil {
		return l, err
	}
	l.WideColumnCount = 1
	for i := range o.gantryServices {
		s := &o.gantryServices[i]
		v := view.FromService(s)
		reason, text := "none", "no controller has decided about it"
		if c := worstServiceCondition(s); c != nil {
			reason, text = c.Reason, c.Message
			if c.Status != metav1.ConditionTrue {
				l.Result = report.ResultNotWell
			}
		} else {
			l.Result = report.ResultNotWell
		}
		l.Rows = append(l.Rows, []string{s.Namespace, s.Name, cmp.Or(view.JoinAddresses(v.AssignedAddresses), "none"), cmp.Or(v.RecordedPool, "none"), reason, text})
	}
	if len(l.Rows) == 0 {
		l.Title = "there is no Service of type LoadBalancer"
	}
	return l, nil
}

// ListHolders lists which node answers for which address, and how the addresses are spread.
func (e *Explainer) ListHolders(ctx context.Context) (*report.Listing, error) {
	l, o, err := e.newListingWithOverview(ctx, withServices, "node", "address", "service", "links", "since")
	if err != nil || o == nil {
		return l, err
	}
	var reports v1beta1.ServiceL2StatusList
	if err := e.objectReader.List(ctx, &reports, client.InNamespace(e.gantryNamespace)); err != nil {
		return nil, err
	}
	countByNode := map[string]int{}
	for node := range o.installation.speakerStatusByNode {
		countByNode[node] = 0
	}
	silent := map[string]bool{}
	for i := range reports.Items {
		r := &reports.Items[i]
		s := o.installation.speakerStatusByNode[r.Status.Node]
		if s.WasFoundDead() {
			continue // others have taken its addresses over
		}
		if o.isSpeakerSilent(s) {
			silent[r.Status.Node], l.Result = true, report.ResultNotWell
		}
		var addresses, links []string
		if r.Status.Gantry != nil {
			addresses = r.Status.Gantry.Addresses
		}
		for _, n := range r.Status.Interfaces {
			links = append(links, n.Name)
		}
		countByNode[r.Status.Node] += max(len(addresses), 1)
		l.Rows = append(l.Rows, []string{r.Status.Node, cmp.Or(strings.Join(addresses, ","), "all of its addresses"), r.Status.ServiceNamespace + "/" + r.Status.ServiceName, cmp.Or(strings.Join(links, ","), "all"), describeTime(&r.CreationTimestamp)})
	}
	slices.SortFunc(l.Rows, func(x, y []string) int { return slices.Compare(x, y) })
	var spread []string
	for _, node := range slices.Sorted(maps.Keys(countByNode)) {
		text := fmt.Sprintf("%s answers for %d", node, countByNode[node])
		if silent[node] {
			text = fmt.Sprintf("%s answered for %d and is silent since %s", node, countByNode[node], describeTime(o.installation.speakerStatusByNode[node].LastSeen))
		}
		spread = append(spread, text)
	}
	if l.Title = joinFirstElements(spread, maxListedElements); l.Title == "" {
		l.Title = "no speaker has ever run, so that no node answers for an address"
	}
	return l, nil
}

// ListPeers lists the BGP sessions.
func (e *Explainer) ListPeers(ctx context.Context) (*report.Listing, error) {
	l, o, err := e.newListingWithOverview(ctx, withoutServices, "peer", "node", "router", "state", "reason", "sent", "bfd", "since", "says")
	if err != nil || o == nil {
		return l, err
	}
	l.WideColumnCount = 1
	for i := range o.sessions {
		s := &o.sessions[i].Status
		reason, text := "Established", ""
		if f := faultOfSession(s); f.IsSet() {
			reason, text, l.Result = string(f.Reason), f.Text, report.ResultNotWell
		}
		l.Rows = append(l.Rows, []string{s.Peer, s.Node, s.Address, cmp.Or(s.State, "unknown"), reason, strconv.Itoa(int(s.Prefixes)), cmp.Or(s.BFD, "none"), describeTime(s.Since), text})
	}
	slices.SortFunc(l.Rows, func(x, y []string) int { return slices.Compare(x, y) })
	if len(l.Rows) == 0 {
		l.Title = "there is no BGP session"
	}
	return l, nil
}
