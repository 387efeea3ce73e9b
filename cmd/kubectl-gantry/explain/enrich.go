package explain

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// readPoolUsageAndLedger returns what the pools have left. All Services are listed only if the
// controller has not decided about this one: otherwise its condition says what the Ledger would.
func (c *serviceDiagnosis) readPoolUsageAndLedger(ctx context.Context) (*allocate.Ledger, map[string]poolUsage, error) {
	ledger := allocate.NewLedger()
	ledger.UseSnapshot(c.config.Snapshot)
	usages := map[string]poolUsage{}
	var pools v1beta1.IPAddressPoolList
	if err := c.objectReader.List(ctx, &pools, client.InNamespace(c.gantryNamespace)); err != nil {
		return nil, nil, err
	}
	for i := range pools.Items {
		s := &pools.Items[i].Status
		usages[pools.Items[i].Name] = poolUsage{len(usageOfEachFamily(s)) > 0, addSaturating(s.AssignedIPv4, s.AssignedIPv6), s.AvailableIPv4, s.AvailableIPv6}
	}
	if len(c.view.AssignedAddresses) > 0 || c.addressCondition != nil {
		return ledger, usages, nil
	}
	return ledger, usages, c.fillLedger(ctx, ledger, c.installation.loadBalancerClass)
}

// fillLedger records in the Ledger what every Service has, and what is withheld.
func (e *Explainer) fillLedger(ctx context.Context, ledger *allocate.Ledger, class string) error {
	ledger.AdvanceTime(e.now())
	e.showProgress("reading all Services")
	if err := e.objectReader.ListAndCacheKinds(ctx, objects.ListRequest{List: &corev1.ServiceList{}}); err != nil {
		return err
	}
	ledger.TellNamesOfAllNamespaces() // who calls this may list them
	var all corev1.ServiceList        // from memory
	if err := e.objectReader.List(ctx, &all); err != nil {
		return err
	}
	for i := range all.Items {
		v := view.FromService(&all.Items[i])
		if v.IsLoadBalancer && v.LoadBalancerClass == class && len(v.AssignedAddresses) > 0 {
			ledger.CommitAssignment(&v, v.AssignedAddresses, v.RecordedPool)
		}
	}
	withheld, err := e.readWithheldAddresses(ctx)
	for _, w := range withheld {
		if a, err := netip.ParseAddr(w.Address); err == nil {
			ledger.WithholdAddress(allocate.WithheldAddress{
				Address: a, Reason: names.Reason(w.Reason), ServiceThatMayHoldIt: view.ObjectKey{Namespace: w.Namespace, Name: w.Name},
				WithheldUntil: w.Until.Time, ReservationOrForeignHost: w.By,
			})
		}
	}
	return err
}

// readWithheldAddresses returns the addresses that no Service gets for a while.
func (e *Explainer) readWithheldAddresses(ctx context.Context) ([]v1alpha1.WithheldAddress, error) {
	var ledger v1alpha1.AddressLedger
	if err := e.objectReader.Get(ctx, client.ObjectKey{Namespace: e.gantryNamespace, Name: names.WithheldAddressesLedger}, &ledger); err != nil {
		return nil, client.IgnoreNotFound(ignoreForbidden(err))
	}
	return ledger.Spec.Withheld, nil
}

// addressDecisionTimeout is how long a controller may take for a new Service before that is a
// fault.
const addressDecisionTimeout = 10 * time.Second

// explainUndecidedService says what a Service without any decision would get.
func (c *serviceDiagnosis) explainUndecidedService(ctx context.Context) (serviceAnswer, error) {
	age := c.now().Sub(c.service.CreationTimestamp.Time).Round(time.Second)
	if c.config == nil {
		return newAnswerWithResult(report.ResultUnknown, names.NewExplanation("", "no address: no controller has decided yet, %s after the Service was created", age)), nil
	}
	ledger := allocate.NewLedger()
	ledger.UseSnapshot(c.config.Snapshot)
	if err := c.fillLedger(ctx, ledger, c.installation.loadBalancerClass); err != nil {
		return serviceAnswer{}, err
	}
	d := allocate.DecideAssignment(&c.view, ledger, c.config.Snapshot)
	if len(d.Addresses) == 0 {
		if unknown := describeUnheededRequests(c); len(unknown) > 0 && canMisspeltAnnotationCause(d.Reason) {
			return newNotWellAnswer(names.ReasonUnknownAnnotation, "no address: %s (%s: %s)", unknown[0], d.Reason, d.Text), nil
		}
		why := c.enrichAddressReason(ctx, d.Explanation)
		return newAnswerOfCause(why, "no address: %s", why.Text), nil
	}
	if age < addressDecisionTimeout {
		return newAnswerWithResult(report.ResultUnknown, names.NewExplanation("", "no address yet: the Service is new, and should get %s", view.JoinAddresses(d.Addresses))), nil
	}
	if foreign := describeForeignHostNames(c); foreign != "" {
		return newNotWellAnswer(names.ReasonOtherController, "no address from Gantry: %s: let only one serve it, by spec.loadBalancerClass for example", foreign), nil
	}
	return newNotWellAnswer(names.ReasonNoController, "no address after %s: it should get %s, and the controller does not write it: look at the log of %s", age, view.JoinAddresses(d.Addresses), findLeaderPod(c.installation)), nil
}

// enrichAddressReason adds what the controller does not see: near names, pools in other namespaces,
// counts.
func (c *serviceDiagnosis) enrichAddressReason(ctx context.Context, why names.Explanation) cause {
	switch why.Reason {
	case names.ReasonPoolNotFound, names.ReasonNoPools:
		return c.enrichMissingPool(ctx, why)
	case names.ReasonPoolExhausted:
		return c.enrichWithPoolUsage(ctx, why)
	case names.ReasonNoEligiblePool:
		if c.config != nil {
			why.Text += describePoolRefusals(c.config.Snapshot.Pools, c.key.Namespace)
		}
	case names.ReasonPoolNotAllowed:
		if p := findOnlyPoolOfService(c); p != nil {
			why.Text += describeAdmittedServices(p, c.key.Namespace)
		}
	}
	return cause{Explanation: why}
}

func (c *serviceDiagnosis) enrichMissingPool(ctx context.Context, why names.Explanation) cause {
	var everywhere v1beta1.IPAddressPoolList
	if err := c.objectReader.List(ctx, &everywhere); err == nil {
		for i := range everywhere.Items {
			p := &everywhere.Items[i]
			if p.Namespace != c.gantryNamespace && (why.Reason == names.ReasonNoPools || p.Name == c.view.RequestedPool) {
				return cause{Explanation: names.NewExplanation(names.ReasonPoolElsewhere, "IPAddressPool %s is in namespace %s, and only those in %s count: create it there", p.Name, p.Namespace, c.gantryNamespace)}
			}
		}
	}
	if c.config == nil || why.Reason == names.ReasonNoPools {
		return c.enrichWithWebhookRefusal(ctx, why)
	}
	var known []string
	for _, p := range c.config.Snapshot.Pools {
		known = append(known, p.Name)
	}
	if near := findSimilarNames(c.view.RequestedPool, known); len(near) > 0 {
		why.Text += "; did you mean " + strings.Join(near, " or ") + "?"
		return cause{Explanation: why}
	}
	return c.enrichWithWebhookRefusal(ctx, why)
}

// enrichWithWebhookRefusal adds to the absence of an object that the API server refuses to create
// it.
func (c *serviceDiagnosis) enrichWithWebhookRefusal(ctx context.Context, why names.Explanation) cause {
	down := c.explainWebhookRefusal(ctx)
	if !down.IsSet() {
		return cause{Explanation: why}
	}
	return cause{names.NewExplanation(down.Reason, "%s; and %s", why.Text, down.Text), down.target}
}

// enrichWithPoolUsage adds how full the pools are that the Service may use.
func (c *serviceDiagnosis) enrichWithPoolUsage(ctx context.Context, why names.Explanation) cause {
	var pools v1beta1.IPAddressPoolList
	if c.config == nil || c.objectReader.List(ctx, &pools, client.InNamespace(c.gantryNamespace)) != nil {
		return cause{Explanation: why}
	}
	var full []string
	candidates := namesOfPoolsToUse(c)
	for i := range pools.Items {
		p := &pools.Items[i]
		if !slices.Contains(candidates, p.Name) {
			continue
		}
		if parsed := c.config.Snapshot.PoolByName(p.Name); parsed != nil {
			if fault := explainPoolThatCannotGive(c, parsed, &p.Status); fault.IsSet() {
				return cause{names.NewExplanation(fault.Reason, "no pool has a free address, and %s", fault.Text), fault.target}
			}
		}
		full = append(full, p.Name+" has "+describePoolUseByFamily(&p.Status, c.view.ClusterIPs)+describeAddressesKeptBack(ctx, c, p.Name))
	}
	if len(full) > 0 {
		why.Text += " (" + joinFirstElements(full, maxListedElements) + ")"
	}
	return cause{Explanation: why}
}

// describePoolUseByFamily says how many addresses of the families of the cluster IPs are in use.
func describePoolUseByFamily(s *v1beta1.IPAddressPoolStatus, clusterIPs []netip.Addr) string {
	var out []string
	for _, u := range usageOfBothFamilies(s) {
		switch isNeeded := slices.ContainsFunc(clusterIPs, func(a netip.Addr) bool { return ipfamily.FamilyOf(a) == u.family }); {
		case isNeeded && u.total() == 0:
			out = append(out, fmt.Sprintf("no %s addresses", u.family))
		case isNeeded:
			out = append(out, fmt.Sprintf("%d of %d %s addresses in use", u.assigned, u.total(), u.family))
		}
	}
	return strings.Join(out, " and ")
}

// enrichAnnouncementReason adds what the controller does not see: speakers that went silent all at
// once, advertisements in other namespaces.
func (c *serviceDiagnosis) enrichAnnouncementReason(ctx context.Context, explained names.Explanation) cause {
	why := cause{Explanation: explained}
	switch why.Reason {
	case names.ReasonNoSpeaker:
		missing, leftOut := c.explainMissingSpeakers(ctx), explainNodesLeftOut(ctx, c)
		why.target = cmp.Or(leftOut.target, repairTarget{remedy: missing.remedy})
		why.Explanation = c.blameNodesNotReady(ctx, nodesWithoutSpeaker(c.announcementFinding), explained)
		why.Text += "; " + missing.text + leftOut.Text
	case names.ReasonNotAnnounced:
		if silent := c.findSilentSpeakers(ctx); len(silent) > 0 {
			return c.explainSilentSpeakers(ctx, silent)
		}
	case names.ReasonForeignClaim:
		why.Explanation = c.explainForeignAnswer(ctx, explained)
	case names.ReasonNoSession:
		why.Text += c.describeSecretOfOtherType(ctx)
		if fault := explainFaultyPeer(c, why.Text); fault.IsSet() {
			why.Text, why.target = why.Text+"; "+fault.Text, fault.target
		}
	case names.ReasonNoPeers:
		why.Text += describeUnusedPeers(ctx, c)
	case names.ReasonNoLocalEndpoints:
		why.Text += describeEndpointsWithoutNode(ctx, c)
	case names.ReasonNoEndpoints:
		why.Text += c.describeAbsentEndpoints(ctx)
	case names.ReasonNoAdvertisement:
		unused := explainUnusedAdvertisement(ctx, c)
		switch {
		case unused.IsSet() && isCoveredByAdvertisement(c):
			why.Text, why.target = why.Text+"; "+unused.Text, unused.target
		case unused.IsSet():
			why.Text, why.target = fmt.Sprintf("%s; no other L2Advertisement or BGPAdvertisement selects pool %q", unused.Text, c.view.RecordedPool), unused.target
		}
		if down := c.enrichWithWebhookRefusal(ctx, why.Explanation); down.Reason != why.Reason {
			why = down
		}
	}
	if c.installation.controllerFault.IsSet() {
		why.Text += "; " + c.installation.controllerFault.Text
	}
	return why
}

// describeSecretOfOtherType says that the Secret of a BGPPeer exists and is of the wrong type, as
// the end of a sentence. The others list only Secrets of the right type.
func (c *serviceDiagnosis) describeSecretOfOtherType(ctx context.Context) string {
	var peers v1beta2.BGPPeerList
	if err := c.objectReader.List(ctx, &peers, client.InNamespace(c.gantryNamespace)); err != nil {
		return ""
	}
	for _, s := range c.announcementFinding.Sessions {
		at := slices.IndexFunc(peers.Items, func(p v1beta2.BGPPeer) bool { return p.Name == s.Peer })
		if s.Fault.Reason != names.ReasonUnknownSecret || at < 0 {
			continue
		}
		var secret corev1.Secret
		err := c.objectReader.GetFromServer(ctx, client.ObjectKey{Namespace: c.gantryNamespace, Name: peers.Items[at].Spec.PasswordSecret.Name}, &secret)
		if err == nil && secret.Type != corev1.SecretTypeBasicAuth {
			return fmt.Sprintf("; Secret %s exists, and is of type %s: create it again with the type %s", secret.Name, secret.Type, corev1.SecretTypeBasicAuth)
		}
	}
	return ""
}

// silentSpeakerTimeout is how old the status of a speaker is at least when the speaker is silent. A
// speaker writes it once a minute.
const silentSpeakerTimeout = 150 * time.Second

// findSilentSpeakers are the nodes whose speakers have not written for long, although nobody found
// them dead: there may be nobody left to find out.
func (c *serviceDiagnosis) findSilentSpeakers(ctx context.Context) []string {
	var out []string
	noneReady := c.installation.isNoSpeakerReady() && !c.haveAllSpeakersJustStopped(ctx)
	for node, s := range c.installation.speakerStatusByNode {
		if noneReady || c.isSpeakerSilent(s) {
			out = append(out, node)
		}
	}
	slices.Sort(out)
	return out
}

// isNoSpeakerReady reports whether the DaemonSet of the speakers has Pods, and none of them is
// ready.
func (i *installation) isNoSpeakerReady() bool {
	d := i.speakerDaemonSet
	return d != nil && d.Status.DesiredNumberScheduled > 0 && d.Status.NumberReady == 0
}

// haveAllSpeakersJustStopped reports whether no speaker is ready for so short a time that the
// controller still waits: a rollout does that in a cluster of one node.
func (e *Explainer) haveAllSpeakersJustStopped(ctx context.Context) bool {
	return e.installation.isNoSpeakerReady() && announcedcondition.HaveAllSpeakersJustStopped(ctx, e.objectReader, e.gantryNamespace, e.now())
}

func (c *serviceDiagnosis) explainSilentSpeakers(ctx context.Context, silent []string) cause {
	missing, leftOut := c.explainMissingSpeakers(ctx), explainNodesLeftOut(ctx, c)
	why := names.NewExplanation(names.ReasonNoSpeaker, "the speakers of %s are silent: %s", joinFirstElements(silent, maxListedElements), missing.text+leftOut.Text)
	return cause{c.blameNodesNotReady(ctx, silent, why), cmp.Or(leftOut.target, repairTarget{remedy: missing.remedy})}
}

// explainAllReportersSilent says that all who report to announce the Service are silent.
func (c *serviceDiagnosis) explainAllReportersSilent(ctx context.Context) cause {
	silent := c.findSilentSpeakers(ctx)
	isSilent := func(node string) bool { return slices.Contains(silent, node) }
	for i := range c.announcementFinding.Layer2Reports {
		if !isSilent(c.announcementFinding.Layer2Reports[i].Status.Node) {
			return cause{}
		}
	}
	for _, s := range c.announcementFinding.Sessions {
		if !s.Fault.IsSet() && !isSilent(s.Node) {
			return cause{}
		}
	}
	return c.explainSilentSpeakers(ctx, silent)
}

// isCoveredByAdvertisement reports whether an advertisement selects the Service, whatever nodes it
// selects.
func isCoveredByAdvertisement(c *serviceDiagnosis) bool {
	svc := advertise.ServiceFromView(&c.view)
	layer2, _ := advertise.L2AdsCoveringService(c.config.Snapshot, &svc)
	bgp, _ := advertise.BGPAdsCoveringService(c.config.Snapshot, &svc)
	return len(layer2.Ads)+len(bgp) > 0
}

// advertisementsOfPool returns the advertisements that select the pool, without their namespace.
func advertisementsOfPool(s *snapshot.Snapshot, pool string) []snapshot.ObjectReference {
	var out []snapshot.ObjectReference
	for _, ad := range s.L2Advertisements {
		if slices.Contains(ad.Pools, pool) {
			out = append(out, snapshot.ObjectReference{Kind: "L2Advertisement", Name: ad.Name})
		}
	}
	for _, ad := range s.BGPAdvertisements {
		if slices.Contains(ad.Pools, pool) {
			out = append(out, snapshot.ObjectReference{Kind: "BGPAdvertisement", Name: ad.Name})
		}
	}
	return out
}
