package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// annotationsMistakenForLabels are annotations that people write as labels.
var annotationsMistakenForLabels = []string{
	names.AnnotationRequestedPool, names.AnnotationRequestedPoolOld, names.AnnotationLoadBalancerIPs, names.AnnotationLoadBalancerIPsOld, names.AnnotationSharingKey, names.AnnotationSharingKeyOld,
	names.AnnotationAddressesPerFamily, names.AnnotationAddressesToExchange, names.AnnotationRequestedHolder,
}

// findRequestInLabel returns the first label of the Service that only an annotation could be; "" if
// there is none.
func findRequestInLabel(c *serviceDiagnosis) string {
	for _, key := range annotationsMistakenForLabels {
		_, isLabel := c.service.Labels[key]
		if _, isAnnotation := c.service.Annotations[key]; isLabel && !isAnnotation {
			return key
		}
	}
	return ""
}

// describeUnheededRequests returns a sentence for each request of the Service that nothing reads:
// in a misspelt annotation, or in a label.
func describeUnheededRequests(c *serviceDiagnosis) []string {
	out := view.ExplainUnknownAnnotations(c.service)
	if key := findRequestInLabel(c); key != "" {
		out = append(out, fmt.Sprintf("the label %s of the Service has no effect: make it an annotation", key))
	}
	return out
}

// explainRequestedHolder says that the Service asks for a node that cannot hold its addresses.
func explainRequestedHolder(c *serviceDiagnosis) names.Explanation {
	wanted := c.view.RequestedHolder
	on := c.answeringNodes()
	if wanted == "" || len(on) == 0 || slices.Contains(on, wanted) {
		return names.Explanation{}
	}
	known := namesOf(c.config.Nodes, func(n snapshot.NodeLabels) string { return n.Name })
	if !slices.Contains(known, wanted) {
		text := ""
		if near := findSimilarNames(wanted, known); len(near) > 0 {
			text = "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return names.NewExplanation(names.ReasonHolderUnavailable, "there is no node %s: correct the annotation %s%s", shortenAnnotationValue(wanted), names.AnnotationRequestedHolder, text)
	}
	for i := range c.announcementFinding.NodeExplanations {
		n := &c.announcementFinding.NodeExplanations[i]
		if fault := cmp.Or(n.Layer2Fault, n.Fault()); n.Node == wanted && fault.IsSet() {
			return names.NewExplanation(names.ReasonHolderUnavailable, "%s, which the annotation %s names, cannot hold it: %s", wanted, names.AnnotationRequestedHolder, fault.Text)
		}
	}
	return names.Explanation{}
}

// maxShownAnnotationBytes bounds how much of an annotation is shown: it may have 256 KiB.
const maxShownAnnotationBytes = 100

// shortenAnnotationValue returns a value as it is if it is short, and its start in quotes if not.
func shortenAnnotationValue(value string) string {
	if len(value) > maxShownAnnotationBytes {
		return names.QuoteShortened(value)
	}
	return value
}

// explainHolderWithoutRight names a node that answers although it should not: by
// externalTrafficPolicy Local without an endpoint, for example. Its speaker should have stopped
// within seconds.
func explainHolderWithoutRight(c *serviceDiagnosis) names.Explanation {
	on := c.answeringNodes()
	for i := range c.announcementFinding.NodeExplanations {
		n := &c.announcementFinding.NodeExplanations[i]
		switch fault := n.Fault(); {
		case !slices.Contains(on, n.Node):
		case fault.Reason == names.ReasonNoLocalEndpoints:
			return names.NewExplanation(fault.Reason, "%s answers for it and should not: externalTrafficPolicy is Local, and %s: look at the log of its speaker", n.Node, fault.Text)
		case fault.Reason == names.ReasonNodeExcluded, fault.Reason == names.ReasonNoAdvertisement:
			return names.NewExplanation(fault.Reason, "%s answers for it and should not: %s: look at the log of its speaker", n.Node, fault.Text)
		}
	}
	return names.Explanation{}
}

// describeForeignHostNames says that the status of the Service has host names, which Gantry never
// writes; "" if it has none.
func describeForeignHostNames(c *serviceDiagnosis) string {
	if len(c.view.NonAddressIngressEntries) == 0 {
		return ""
	}
	return fmt.Sprintf("its status has %s, which another program wrote", joinFirstElements(c.view.NonAddressIngressEntries, maxListedElements))
}
