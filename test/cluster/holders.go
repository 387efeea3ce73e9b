package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// AwaitServiceAddressCount waits until the Service has n addresses and returns them.
func (s *Cluster) AwaitServiceAddressCount(ctx context.Context, namespace, name string, n int) ([]netip.Addr, error) {
	var out []netip.Addr
	err := AwaitNoError(ctx, fmt.Sprintf("%d addresses of Service %s", n, name), func(ctx context.Context) error {
		svc, err := s.GetService(ctx, namespace, name)
		if err != nil {
			return err
		}
		if len(svc.Status.LoadBalancer.Ingress) != n {
			return fmt.Errorf("it has the addresses %v: %v", svc.Status.LoadBalancer.Ingress, svc.Status.Conditions)
		}
		out = nil
		for _, in := range svc.Status.LoadBalancer.Ingress {
			a, err := netip.ParseAddr(in.IP)
			if err != nil {
				return err
			}
			out = append(out, a)
		}
		return nil
	})
	return out, err
}

// AwaitAnnouncingNodeCount waits until n nodes announce the Service, according to the API, and
// returns them sorted.
func (s *Cluster) AwaitAnnouncingNodeCount(ctx context.Context, service string, n int) ([]string, error) {
	var out []string
	err := AwaitNoError(ctx, fmt.Sprintf("%d holders of Service %s", n, service), func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace), client.MatchingLabels{names.LabelServiceName: service}); err != nil {
			return err
		}
		out = nil
		for _, o := range list.Items {
			out = append(out, o.Status.Node)
		}
		slices.Sort(out)
		if len(out) != n || out[0] == "" {
			return fmt.Errorf("%v announce it", out)
		}
		return nil
	})
	return out, err
}

// SetNodeReadyCondition sets the Ready condition of a node, as its kubelet does.
func (s *Cluster) SetNodeReadyCondition(ctx context.Context, node string, status corev1.ConditionStatus, message string) error {
	return AwaitNoError(ctx, "the condition of "+node, func(ctx context.Context) error {
		var n corev1.Node
		if err := s.API.Get(ctx, client.ObjectKey{Name: node}, &n); err != nil {
			return err
		}
		for i := range n.Status.Conditions {
			if c := &n.Status.Conditions[i]; c.Type == corev1.NodeReady {
				c.Status, c.Reason, c.Message = status, "Lab", message
			}
		}
		return s.API.Status().Update(ctx, &n)
	})
}
