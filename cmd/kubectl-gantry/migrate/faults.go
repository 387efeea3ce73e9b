package migrate

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// reportFaults says what Gantry will not do as the objects say.
func (f *Findings) reportFaults() []string {
	_, faults := f.readAsGantry()
	return faults
}

// readAsGantry reads the configuration as Gantry will, with what it finds wrong.
func (f *Findings) readAsGantry() (parsed *snapshot.Snapshot, faults []string) {
	o := snapshot.ConfigurationObjects{Namespace: f.Namespace}
	for _, k := range configurationKinds {
		items := f.Configuration[k]
		for i := range items {
			if err := addConfigurationObject(&o, k, &items[i]); err != nil {
				faults = append(faults, fmt.Sprintf("%s %s: %v", k.Kind, items[i].GetName(), err))
			}
		}
	}
	for i := range f.namespaces {
		o.Namespaces = append(o.Namespaces, snapshot.NamespaceLabels{Name: f.namespaces[i].GetName(), Labels: f.namespaces[i].GetLabels()})
	}
	for i := range f.nodes {
		o.Nodes = append(o.Nodes, snapshot.NodeLabels{Name: f.nodes[i].GetName(), Labels: f.nodes[i].GetLabels()})
	}
	for i := range o.BGPPeers { // the Secrets are MetalLB's too, and few users may read them
		if name := o.BGPPeers[i].Spec.PasswordSecret.Name; name != "" {
			o.Secrets = append(o.Secrets, snapshot.BasicAuthSecret{Name: name, Password: "unknown", HasPassword: true})
		}
	}
	parsed, problems := snapshot.BuildSnapshot(o)
	for _, p := range problems {
		faults = append(faults, fmt.Sprintf("%s %s: %s (%s)", p.Object.Kind, p.Object.Name, p.Text, p.Reason))
	}
	return parsed, faults
}

// addConfigurationObject adds an object to those of its kind.
func addConfigurationObject(o *snapshot.ConfigurationObjects, k ObjectKind, from *unstructured.Unstructured) error {
	switch k {
	case poolKind:
		return appendDecoded(&o.Pools, from)
	case l2AdvKind:
		return appendDecoded(&o.L2Advertisements, from)
	case bgpAdvKind:
		return appendDecoded(&o.BGPAdvertisements, from)
	case peerKind:
		return appendDecoded(&o.BGPPeers, from)
	case bfdProfileKind:
		return appendDecoded(&o.BFDProfiles, from)
	}
	return appendDecoded(&o.Communities, from)
}

// appendDecoded appends an object in its own type.
func appendDecoded[T v1beta1.IPAddressPool | v1beta1.L2Advertisement | v1beta1.BGPAdvertisement | v1beta2.BGPPeer | v1beta1.BFDProfile | v1beta1.Community](list *[]T, from *unstructured.Unstructured) error {
	var o T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(from.Object, &o); err != nil {
		return err
	}
	*list = append(*list, o)
	return nil
}

// listWithoutCounterpart says what MetalLB does in the cluster, and Gantry does not.
func (f *Findings) listWithoutCounterpart() []string {
	out := f.reportFaults()
	if len(f.OldPools) > 0 {
		out = append(out, "AddressPool "+strings.Join(f.OldPools, ", ")+": Gantry reads IPAddressPools only: create an IPAddressPool with the same addresses, and an L2Advertisement or a BGPAdvertisement for it")
	}
	if len(f.FRRConfigurations) > 0 {
		out = append(out, "FRRConfiguration "+joinKeys(f.FRRConfigurations)+": Gantry reads none. FRR-K8s may stay for it, if none of its neighbors is a BGPPeer")
	}
	if f.HasFRRExtras && f.BGPMode == bgpModeFRR {
		out = append(out, "ConfigMap "+f.Namespace+"/"+frrExtras+": it has lines for the configuration of FRR, and Gantry speaks BGP itself: look in docs/bgp.md for a field that means the same")
	}
	for _, v := range f.translateReleaseValues() {
		out = append(out, "value "+v.Path+" of the chart: "+v.Text)
	}
	return out
}
