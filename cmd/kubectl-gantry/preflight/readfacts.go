package preflight

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// Cluster is what was read from the API server.
type Cluster struct {
	Facts
	// addressesByNode are those by which the nodes reach each other.
	addressesByNode map[string]netip.Addr
	// speakerPodSpec is that of the speakers; nil if there are none.
	speakerPodSpec *corev1.PodSpec
}

// ReadCluster reads what objects of the cluster tell.
func ReadCluster(ctx context.Context, from *objects.Reader, gantryNamespace string) (*Cluster, error) {
	out := &Cluster{Facts: Facts{Namespace: gantryNamespace}, addressesByNode: map[string]netip.Addr{}}
	err := from.ListAndCacheKinds(ctx,
		objects.ListRequest{List: &corev1.NodeList{}}, objects.ListRequest{List: &corev1.NamespaceList{}},
		objects.ListRequest{List: &corev1.ServiceList{}}, objects.ListRequest{List: &appsv1.DeploymentList{}}, objects.ListRequest{List: &appsv1.DaemonSetList{}},
		objects.ListRequest{List: &v1alpha1.SpeakerStatusList{}, Namespace: gantryNamespace}, objects.ListRequest{List: &v1beta1.IPAddressPoolList{}, Namespace: gantryNamespace},
		objects.ListRequest{List: &v1beta2.BGPPeerList{}, Namespace: gantryNamespace}, objects.ListRequest{List: &v1beta1.BFDProfileList{}, Namespace: gantryNamespace})
	if err != nil {
		return nil, err
	}
	for _, read := range []func(context.Context, *objects.Reader) error{out.readNodes, out.readNamespace, out.readPrograms, out.readStatusWriters, out.readNeeds} {
		if err := read(ctx, from); err != nil {
			return nil, err
		}
	}
	out.readProxyConfiguration(ctx, from)
	return out, nil
}

// readNodes reads the nodes that can run a speaker, and what their speakers report.
func (c *Cluster) readNodes(ctx context.Context, from *objects.Reader) error {
	var nodes corev1.NodeList
	var speakers v1alpha1.SpeakerStatusList
	if err := from.List(ctx, &nodes); err != nil {
		return err
	}
	if err := from.List(ctx, &speakers, client.InNamespace(c.Namespace)); err != nil {
		return err
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if cmp.Or(n.Labels[corev1.LabelOSStable], "linux") != "linux" {
			continue
		}
		node := Node{Name: n.Name}
		if at := slices.IndexFunc(speakers.Items, func(s v1alpha1.SpeakerStatus) bool { return s.Name == n.Name }); at >= 0 {
			node.Speaker = newSpeaker(&speakers.Items[at].Status)
			node.ClockAhead = clockAheadOfSpeaker(&speakers.Items[at])
		}
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP && !c.addressesByNode[n.Name].IsValid() {
				c.addressesByNode[n.Name] = ip
			}
		}
		c.Nodes = append(c.Nodes, node)
	}
	slices.SortFunc(c.Nodes, func(x, y Node) int { return strings.Compare(x.Name, y.Name) })
	return nil
}

// newSpeaker returns what the checks need of a SpeakerStatus.
func newSpeaker(s *v1alpha1.SpeakerStatusStatus) *Speaker {
	failure := func(condition string) string {
		if c := meta.FindStatusCondition(s.Conditions, condition); c != nil && c.Status == metav1.ConditionFalse {
			return cmp.Or(c.Message, c.Reason)
		}
		return ""
	}
	out := &Speaker{
		IsReady: !s.WasFoundDead(), Unreachable: s.Unreachable, UsableLinks: s.UsableLinks,
		GossipText: failure(names.ConditionGossipComplete), Layer2Text: failure(names.ConditionLayer2Usable), FitText: failure(names.ConditionNodeFit), SteeringText: failure(names.ConditionSteersAroundDeadNodes),
		ForwardingText: failure(names.ConditionKeepsConnections),
	}
	for i := range s.Links {
		l := &s.Links[i]
		link := SpeakerLink{Name: l.Name, Reason: l.Reason, HasIPv6: slices.Contains(l.Families, ipfamily.IPv6.String())}
		for _, text := range l.Subnets {
			if p, err := netip.ParsePrefix(text); err == nil {
				link.Subnets = append(link.Subnets, p)
			}
		}
		out.Links = append(out.Links, link)
	}
	return out
}

// clockAheadOfSpeaker compares the time that a speaker wrote with that at which the API server
// recorded it; nil if either is missing.
func clockAheadOfSpeaker(s *v1alpha1.SpeakerStatus) *time.Duration {
	var recorded time.Time
	for _, f := range s.ManagedFields {
		if f.Time != nil && f.Time.After(recorded) {
			recorded = f.Time.Time
		}
	}
	if recorded.IsZero() || s.Status.LastSeen == nil || s.Status.WasFoundDead() {
		return nil
	}
	ahead := s.Status.LastSeen.Sub(recorded)
	return &ahead
}

// readNamespace reads which Pods the namespace of Gantry admits.
func (c *Cluster) readNamespace(ctx context.Context, from *objects.Reader) error {
	var all corev1.NamespaceList
	if err := from.List(ctx, &all); err != nil {
		return err
	}
	for i := range all.Items {
		if all.Items[i].Name == c.Namespace {
			c.HasNamespace, c.PodSecurityLevel = true, all.Items[i].Labels[podSecurityLabel]
		}
	}
	return nil
}

// readPrograms finds Gantry's own programs and those of others.
func (c *Cluster) readPrograms(ctx context.Context, from *objects.Reader) error {
	all, err := objects.ListWorkloads(ctx, from)
	if err != nil {
		return err
	}
	for _, w := range all {
		if w.Kind == "DaemonSet" && w.Meta.Namespace == c.Namespace && objects.HasComponentLabels(w.Meta.Labels, names.ComponentSpeaker) {
			c.IsInstalled, c.speakerPodSpec = true, w.PodSpec
			c.Needs.AroundDeadNodes = objects.IsSwitchOfPodSpecOn(w.PodSpec, "around-dead-nodes")
			c.Needs.KeepConnections = objects.IsSwitchOfPodSpecOn(w.PodSpec, "keep-connections")
		}
	}
	class := c.loadBalancerClass()
	for _, w := range all {
		if r, isRival := findRival(workload{strings.ToLower(w.Kind), w.Meta, w.PodSpec}, c.Namespace, class); isRival {
			c.Rivals = append(c.Rivals, r)
		}
	}
	return nil
}

// loadBalancerClass returns the class of the Services that Gantry serves; empty for those without.
func (c *Cluster) loadBalancerClass() string {
	if c.speakerPodSpec == nil {
		return ""
	}
	return objects.ReadFlagOfPodSpec(c.speakerPodSpec, "load-balancer-class")
}

// readStatusWriters finds programs that have no workload to be known by, such as Cilium's LB-IPAM
// or static Pods, by the Services to which they gave addresses.
func (c *Cluster) readStatusWriters(ctx context.Context, from *objects.Reader) error {
	var all corev1.ServiceList
	if err := from.List(ctx, &all); err != nil {
		return err
	}
	ownClass, servicesByManager := c.loadBalancerClass(), map[string][]string{}
	for i := range all.Items {
		s := &all.Items[i]
		other, own := view.OtherStatusWriter(s)
		class := ""
		if s.Spec.LoadBalancerClass != nil {
			class = *s.Spec.LoadBalancerClass
		}
		hasAddress := s.Spec.Type == corev1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) > 0
		if !hasAddress || class != ownClass || other == nil || own != nil || view.IsStatusWriterOfMetalLB(other.Manager) {
			continue
		}
		servicesByManager[other.Manager] = append(servicesByManager[other.Manager], s.Namespace+"/"+s.Name)
	}
	for _, manager := range slices.Sorted(maps.Keys(servicesByManager)) {
		c.StatusWriters = append(c.StatusWriters, StatusWriter{view.DescribeStatusWriter(manager), servicesByManager[manager]})
	}
	return nil
}

// readNeeds finds which parts of Gantry the configuration uses.
func (c *Cluster) readNeeds(ctx context.Context, from *objects.Reader) error {
	var pools v1beta1.IPAddressPoolList
	var peers v1beta2.BGPPeerList
	var profiles v1beta1.BFDProfileList
	for _, list := range []client.ObjectList{&pools, &peers, &profiles} {
		if err := from.List(ctx, list, client.InNamespace(c.Namespace)); err != nil {
			return err
		}
	}
	c.Needs.BGP, c.Needs.BFD = len(peers.Items) > 0, len(profiles.Items) > 0
	for i := range peers.Items {
		c.Needs.Passwords = c.Needs.Passwords || peers.Items[i].Spec.Password != "" || peers.Items[i].Spec.PasswordSecret.Name != ""
	}
	for i := range pools.Items {
		c.Needs.IPv6 = c.Needs.IPv6 || slices.ContainsFunc(pools.Items[i].Spec.Addresses, func(a string) bool { return strings.Contains(a, ":") })
	}
	return nil
}

// readProxyConfiguration reads how kube-proxy is configured, if the user may.
func (c *Cluster) readProxyConfiguration(ctx context.Context, from *objects.Reader) {
	var config corev1.ConfigMap
	if err := from.Get(ctx, explain.ProxyConfigMap, &config); err == nil {
		c.Proxy.Mode, c.Proxy.HasStrictARP = explain.ParseProxyConfiguration(config.Data)
	}
}
