package reconcile

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// CompactService is what the cache keeps of a Service: what its View is made of, and what an event names. A speaker writes no
// Service.
func CompactService(o any) (any, error) {
	s, ok := o.(*corev1.Service)
	if !ok {
		return o, nil
	}
	c := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: view.Share(s.Namespace), Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion, Generation: s.Generation,
			CreationTimestamp: s.CreationTimestamp, DeletionTimestamp: s.DeletionTimestamp,
		},
		Spec: corev1.ServiceSpec{Type: s.Spec.Type, LoadBalancerClass: s.Spec.LoadBalancerClass},
	}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return c, nil
	}
	c.Labels, c.Annotations = maps.Clone(s.Labels), maps.Clone(s.Annotations)
	delete(c.Annotations, corev1.LastAppliedConfigAnnotation)
	if from, ok := c.Annotations[names.AnnotationFromPool]; ok {
		c.Annotations[names.AnnotationFromPool] = view.Share(from)
	}
	c.Spec.ClusterIP, c.Spec.ClusterIPs = s.Spec.ClusterIP, s.Spec.ClusterIPs
	c.Spec.LoadBalancerIP, c.Spec.IPFamilies, c.Spec.IPFamilyPolicy = s.Spec.LoadBalancerIP, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy
	c.Spec.ExternalTrafficPolicy, c.Spec.Selector = s.Spec.ExternalTrafficPolicy, s.Spec.Selector
	for _, p := range s.Spec.Ports {
		c.Spec.Ports = append(c.Spec.Ports, corev1.ServicePort{Protocol: corev1.Protocol(view.Share(string(p.Protocol))), Port: p.Port})
	}
	c.Status.LoadBalancer = s.Status.LoadBalancer
	return c, nil
}

// CompactSlice is what the cache keeps of an EndpointSlice: to which Service it belongs, and of each endpoint where it is and
// whether it serves.
func CompactSlice(o any) (any, error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return o, nil
	}
	c := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: view.Share(s.Namespace), Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion,
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]},
		},
		AddressType: s.AddressType,
	}
	for _, e := range s.Endpoints {
		kept := discoveryv1.Endpoint{Addresses: slices.Clone(e.Addresses[:min(1, len(e.Addresses))]), Conditions: e.Conditions}
		if e.NodeName != nil {
			n := view.Share(*e.NodeName)
			kept.NodeName = &n
		}
		c.Endpoints = append(c.Endpoints, kept)
	}
	return c, nil
}
