package reconcile

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
)

// reportRequestedNodeFaults sends an event about each Service that asks for a node which cannot
// hold its addresses. Only the holder sends it, once for each cause.
func (w *StatusWriter) reportRequestedNodeFaults(s agent.Status) {
	reported := map[view.ObjectKey]string{}
	for v := range s.Plan.Layer2Verdicts.All() {
		isHeld := func(a netip.Addr) bool {
			_, held := slices.BinarySearchFunc(s.HeldAddresses, a, netip.Addr.Compare)
			return held
		}
		if !v.RequestedHolderFault.IsSet() || !slices.ContainsFunc(v.Addresses, isHeld) {
			continue
		}
		svc := w.options.ServiceReference(v.Service)
		if svc == nil {
			continue // a later Status brings it again
		}
		reported[v.Service] = v.RequestedHolderFault.Text
		if w.reportedRequestedHolderFaults[v.Service] == v.RequestedHolderFault.Text {
			continue
		}
		w.options.Events.Eventf(svc, nil, corev1.EventTypeWarning, names.EventRequestedHolderUnavailable, "Announce "+string(v.RequestedHolderFault.Reason),
			"announcing from node %q instead of the requested one: %s", w.options.Self, v.RequestedHolderFault.Text)
	}
	w.reportedRequestedHolderFaults = reported
}
