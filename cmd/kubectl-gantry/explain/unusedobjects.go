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

// describeUnusedAdvertisement names an advertisement that its author may have meant for the
// Service, and why it does not count; "" if there is none.
func describeUnusedAdvertisement(ctx context.Context, c *serviceDiagnosis) string {
	return cmp.Or(describeFaultyAdvertisement(c.config.Problems), describeAdvertisementElsewhere(ctx, c), describeAdvertisementOfOthers(c), describeAdvertisementWithoutBGP(ctx, c))
}

// describeAdvertisementElsewhere names an advertisement that does not count, because it is in
// another namespace.
func describeAdvertisementElsewhere(ctx context.Context, c *serviceDiagnosis) string {
	return c.describeObjectElsewhere(ctx, map[string]client.ObjectList{"L2Advertisement": &v1beta1.L2AdvertisementList{}, "BGPAdvertisement": &v1beta1.BGPAdvertisementList{}})
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

// describeAdvertisementOfOthers names an advertisement whose selectors leave the Service or all
// pools out.
func describeAdvertisementOfOthers(c *serviceDiagnosis) string {
	s := c.config.Snapshot
	for _, ad := range s.L2Advertisements {
		if text := describeSelectorsWithoutMatch(c, "L2Advertisement "+ad.Name, ad.Pools, len(ad.ServiceSelectors)); text != "" {
			return text
		}
	}
	for _, ad := range s.BGPAdvertisements {
		if text := describeSelectorsWithoutMatch(c, "BGPAdvertisement "+ad.Name, ad.Pools, len(ad.ServiceSelectors)); text != "" {
			return text
		}
	}
	return ""
}

// describeSelectorsWithoutMatch says which selectors of an advertisement match nothing. It is
// called only if no advertisement covers the Service: one for its pool then leaves it out by
// serviceSelectors.
func describeSelectorsWithoutMatch(c *serviceDiagnosis, ad string, pools []string, serviceSelectorCount int) string {
	switch {
	case len(pools) == 0:
		return fmt.Sprintf("the ipAddressPoolSelectors of %s match no IPAddressPool: correct them, or label the pool", ad)
	case serviceSelectorCount > 0 && slices.Contains(pools, c.view.RecordedPool):
		return fmt.Sprintf("the serviceSelectors of %s do not match the labels of the Service: correct them, or label the Service", ad)
	}
	return ""
}

// describeAdvertisementWithoutBGP names a BGPAdvertisement that nobody reads, since BGP is off.
func describeAdvertisementWithoutBGP(ctx context.Context, c *serviceDiagnosis) string {
	if !c.installation.isWithoutBGP {
		return ""
	}
	var all v1beta1.BGPAdvertisementList
	if err := c.objectReader.List(ctx, &all, client.InNamespace(c.gantryNamespace)); err != nil || len(all.Items) == 0 {
		return ""
	}
	return fmt.Sprintf("%s of Deployment %s), so that BGPAdvertisement %s does not count", bgpDisabledText, c.installation.controllerDeployment.Name, all.Items[0].Name)
}

// bgpDisabledText says why no BGPAdvertisement counts.
const bgpDisabledText = "BGP is turned off (--bgp=disabled"

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

// describeFaultyPeer says what is wrong with the BGPPeer of a session that does not carry the
// Service, as the end of a sentence.
func describeFaultyPeer(c *serviceDiagnosis, known string) string {
	for _, s := range c.announcementFinding.Sessions {
		fault := explainFirstProblem(c.config.Problems, map[string]bool{"BGPPeer " + s.Peer: true})
		if s.Fault.IsSet() && fault.IsSet() && !strings.Contains(known, fault.Text) {
			return "; " + fault.Text
		}
	}
	return ""
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
func (c *serviceDiagnosis) explainBrokenAdvertisement(ctx context.Context) names.Explanation {
	involved := map[string]bool{}
	for _, name := range findBrokenAdvertisements(ctx, c) {
		involved["BGPAdvertisement "+name] = true
	}
	return explainFirstProblem(c.config.Problems, involved)
}
