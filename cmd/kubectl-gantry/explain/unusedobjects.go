package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// explainUnusedAdvertisement names an advertisement that its author may have meant for the Service,
// and why it does not count.
func explainUnusedAdvertisement(ctx context.Context, c *serviceDiagnosis) cause {
	faulty, isMeant := explainFaultyAdvertisement(ctx, c)
	if isMeant {
		return faulty
	}
	return cmp.Or(explainAdvertisementElsewhere(ctx, c), explainAdvertisementOfOthers(c), explainAdvertisementWithoutBGP(ctx, c), faulty)
}

// reasonsOfUncoveredPools are the faults by which an advertisement does not cover a pool that its
// author meant.
var reasonsOfUncoveredPools = []names.Reason{names.ReasonUnknownPool, names.ReasonInvalidSelector, names.ReasonAggregationLength, names.ReasonConflictingAdvertisements, names.ReasonDuplicate}

// explainFaultyAdvertisement names an advertisement that is not read as it is written: the pool of
// the Service may be misspelt there, for example. isMeant reports whether the advertisement seems
// to be meant for this pool. If advertisements name the pool, the others are no cause.
func explainFaultyAdvertisement(ctx context.Context, c *serviceDiagnosis) (faulty cause, isMeant bool) {
	advertising := advertisementsOfPool(c.config.Snapshot, c.view.RecordedPool)
	broken := findBrokenAdvertisements(ctx, c)
	listed := listPoolsOfAdvertisements(ctx, c)
	for i := range c.config.Problems {
		p := &c.config.Problems[i]
		ad := snapshot.ObjectReference{Kind: p.Object.Kind, Name: p.Object.Name}
		isBroken := ad.Kind == "BGPAdvertisement" && slices.Contains(broken, ad.Name)
		if !strings.HasSuffix(ad.Kind, "Advertisement") || p.IsOnlyAdvice() || !isBroken && !slices.Contains(reasonsOfUncoveredPools, p.Reason) {
			continue
		}
		isMeant = isBroken || slices.Contains(advertising, ad) || len(advertising) == 0 && len(findSimilarNames(c.view.RecordedPool, append(listed[ad], ad.Name))) > 0
		why := cause{names.NewExplanation(p.Reason, "%s %s has a fault: %s", ad.Kind, ad.Name, p.Text), targetOfProblem(p)}
		if isMeant {
			return why, true
		}
		if len(advertising) == 0 {
			faulty = cmp.Or(faulty, why)
		}
	}
	return faulty, false
}

// listPoolsOfAdvertisements returns the names in spec.ipAddressPools of each advertisement.
func listPoolsOfAdvertisements(ctx context.Context, c *serviceDiagnosis) map[snapshot.ObjectReference][]string {
	out := map[snapshot.ObjectReference][]string{}
	var layer2 v1beta1.L2AdvertisementList
	var bgp v1beta1.BGPAdvertisementList
	for _, list := range []client.ObjectList{&layer2, &bgp} {
		if err := c.objectReader.List(ctx, list, client.InNamespace(c.gantryNamespace)); err != nil {
			return out
		}
	}
	for i := range layer2.Items {
		out[snapshot.ObjectReference{Kind: "L2Advertisement", Name: layer2.Items[i].Name}] = layer2.Items[i].Spec.IPAddressPools
	}
	for i := range bgp.Items {
		out[snapshot.ObjectReference{Kind: "BGPAdvertisement", Name: bgp.Items[i].Name}] = bgp.Items[i].Spec.IPAddressPools
	}
	return out
}

// explainAdvertisementElsewhere names an advertisement that does not count, because it is in
// another namespace.
func explainAdvertisementElsewhere(ctx context.Context, c *serviceDiagnosis) cause {
	text := c.describeObjectElsewhere(ctx, map[string]client.ObjectList{"L2Advertisement": &v1beta1.L2AdvertisementList{}, "BGPAdvertisement": &v1beta1.BGPAdvertisementList{}})
	return cause{Explanation: names.Explanation{Text: text}}
}

// describeObjectElsewhere names an object of one of the kinds in a namespace that Gantry does not
// read; "" if there is none.
func (e *Explainer) describeObjectElsewhere(ctx context.Context, listByKind map[string]client.ObjectList) string {
	for _, kind := range []string{"L2Advertisement", "BGPAdvertisement", "BGPPeer"} {
		list := listByKind[kind]
		if list == nil {
			continue
		}
		if err := e.objectReader.List(ctx, list); err != nil {
			continue
		}
		found := ""
		_ = meta.EachListItem(list, func(o runtime.Object) error {
			if object, ok := o.(client.Object); ok && found == "" && object.GetNamespace() != e.gantryNamespace {
				found = fmt.Sprintf("%s %s is in namespace %s, where it does not count", kind, object.GetName(), object.GetNamespace())
			}
			return nil
		})
		if found != "" {
			return found
		}
	}
	return ""
}

// explainAdvertisementOfOthers names an advertisement whose selectors leave the Service or all
// pools out.
func explainAdvertisementOfOthers(c *serviceDiagnosis) cause {
	s := c.config.Snapshot
	var first cause
	take := func(kind, name string, pools []string, serviceSelectorCount int) (isMeant bool) {
		why := explainSelectorsWithoutMatch(c, snapshot.ObjectReference{Kind: kind, Name: name}, pools, serviceSelectorCount)
		if isMeant = why.IsSet() && (len(pools) > 0 || len(findSimilarNames(c.view.RecordedPool, []string{name})) > 0); isMeant {
			first = why
		}
		first = cmp.Or(first, why)
		return isMeant
	}
	for _, ad := range s.L2Advertisements {
		if take("L2Advertisement", ad.Name, ad.Pools, len(ad.ServiceSelectors)) {
			return first
		}
	}
	for _, ad := range s.BGPAdvertisements {
		if take("BGPAdvertisement", ad.Name, ad.Pools, len(ad.ServiceSelectors)) {
			return first
		}
	}
	return first
}

// explainSelectorsWithoutMatch says which selectors of an advertisement match nothing. It is called
// only if no advertisement covers the Service: one for its pool then leaves it out by
// serviceSelectors.
func explainSelectorsWithoutMatch(c *serviceDiagnosis, ad snapshot.ObjectReference, pools []string, serviceSelectorCount int) cause {
	text, field := "", ""
	switch {
	case len(pools) == 0 && !explainFirstProblem(c.config.Problems, map[string]bool{ad.Kind + " " + ad.Name: true}).IsSet():
		field, text = "ipAddressPoolSelectors", "the ipAddressPoolSelectors of %s %s match no IPAddressPool: correct them, or label the pool"
	case serviceSelectorCount > 0 && slices.Contains(pools, c.view.RecordedPool):
		field, text = "serviceSelectors", "the serviceSelectors of %s %s do not match the labels of the Service: correct them, or label the Service"
	default:
		return cause{}
	}
	return cause{names.NewExplanation(names.ReasonNoAdvertisement, text, ad.Kind, ad.Name), repairTarget{kind: ad.Kind, key: client.ObjectKey{Namespace: c.gantryNamespace, Name: ad.Name}, field: "spec." + field}}
}

// explainAdvertisementWithoutBGP names a BGPAdvertisement that nobody reads, since BGP is off.
func explainAdvertisementWithoutBGP(ctx context.Context, c *serviceDiagnosis) cause {
	var all v1beta1.BGPAdvertisementList
	if !c.installation.isWithoutBGP || c.objectReader.List(ctx, &all, client.InNamespace(c.gantryNamespace)) != nil || len(all.Items) == 0 {
		return cause{}
	}
	return cause{names.NewExplanation(names.ReasonNoAdvertisement, "BGP is turned off (--bgp=disabled of Deployment %s), so that BGPAdvertisement %s does not count", c.installation.controllerDeployment.Name, all.Items[0].Name), repairTarget{remedy: remedyEnableBGP}}
}

// describeUnusedPeers names the BGPPeers, and why they do not count, as the end of a sentence: they
// are in another namespace, or on other nodes.
func describeUnusedPeers(ctx context.Context, c *serviceDiagnosis) string {
	if text := c.describeObjectElsewhere(ctx, map[string]client.ObjectList{"BGPPeer": &v1beta2.BGPPeerList{}}); text != "" {
		return "; " + text
	}
	var out []string
	for _, p := range c.config.Snapshot.Peers {
		var on []string
		for _, n := range c.config.Nodes {
			if p.SelectsNode(n.Labels) {
				on = append(on, n.Name)
			}
		}
		switch {
		case len(on) == 0:
			out = append(out, fmt.Sprintf("the nodeSelectors of BGPPeer %s match no node", p.Name))
		case len(on) < len(c.config.Nodes):
			out = append(out, fmt.Sprintf("BGPPeer %s is only for %s", p.Name, joinFirstElements(on, maxListedElements)))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "; " + joinFirstElements(out, maxListedElements)
}

// explainFaultyPeer says what is wrong with the BGPPeer of a session that does not carry the
// Service, if that is not known.
func explainFaultyPeer(c *serviceDiagnosis, known string) cause {
	for _, s := range c.announcementFinding.Sessions {
		fault := explainFirstProblem(c.config.Problems, map[string]bool{"BGPPeer " + s.Peer: true})
		if s.Fault.IsSet() && fault.IsSet() && !strings.Contains(known, fault.Text) {
			return fault
		}
	}
	return cause{}
}

// findBrokenAdvertisements returns the BGPAdvertisements for the pool of the Service that do not
// count for this pool, because of a fault.
func findBrokenAdvertisements(ctx context.Context, c *serviceDiagnosis) []string {
	var all v1beta1.BGPAdvertisementList
	if err := c.objectReader.List(ctx, &all, client.InNamespace(c.gantryNamespace)); err != nil {
		return nil
	}
	var out []string
	for i := range all.Items {
		name, spec := all.Items[i].Name, &all.Items[i].Spec
		isMeant := slices.Contains(spec.IPAddressPools, c.view.RecordedPool) || len(spec.IPAddressPools)+len(spec.IPAddressPoolSelectors) == 0
		counts := slices.ContainsFunc(c.config.Snapshot.BGPAdvertisements, func(a *snapshot.BGPAdvertisement) bool {
			return a.Name == name && slices.Contains(a.Pools, c.view.RecordedPool)
		})
		if isMeant && !counts {
			out = append(out, name)
		}
	}
	return out
}

// explainBrokenAdvertisement says what is wrong with a BGPAdvertisement that should cover the
// Service, and does not.
func (c *serviceDiagnosis) explainBrokenAdvertisement(ctx context.Context) cause {
	involved := map[string]bool{}
	for _, name := range findBrokenAdvertisements(ctx, c) {
		involved["BGPAdvertisement "+name] = true
	}
	return explainFirstProblem(c.config.Problems, involved)
}
