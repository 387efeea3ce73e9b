package assign

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// CompactService reduces a Service in the cache to what is read and what is written. A write
// contains only differences, so that the API server keeps everything that is left out here. It
// halves the memory for 100,000 Services.
func CompactService(o any) (any, error) {
	s, ok := o.(*corev1.Service)
	if !ok {
		return o, nil
	}
	old := s.ObjectMeta
	s.ObjectMeta = metav1.ObjectMeta{
		Namespace: view.InternString(old.Namespace), Name: old.Name, UID: old.UID, ResourceVersion: old.ResourceVersion, Generation: old.Generation,
		CreationTimestamp: old.CreationTimestamp, DeletionTimestamp: old.DeletionTimestamp,
	}
	for k, v := range old.Annotations {
		if domain, _, _ := strings.Cut(k, "/"); slices.Contains(view.ServiceAnnotationDomains, domain) {
			metav1.SetMetaDataAnnotation(&s.ObjectMeta, view.InternString(k), v)
		}
	}
	spec := s.Spec
	s.Spec = corev1.ServiceSpec{Type: spec.Type, LoadBalancerClass: spec.LoadBalancerClass}
	if spec.Type != corev1.ServiceTypeLoadBalancer {
		return s, nil
	}
	if len(old.Labels) > 0 {
		s.Labels = make(map[string]string, len(old.Labels))
		for k, v := range old.Labels {
			s.Labels[view.InternString(k)] = v
		}
	}
	if from, ok := s.Annotations[names.AnnotationAllocatedFromPool]; ok {
		s.Annotations[names.AnnotationAllocatedFromPool] = view.InternString(from)
	}
	if s.Spec.ClusterIPs = spec.ClusterIPs; len(spec.ClusterIPs) == 0 {
		s.Spec.ClusterIP = spec.ClusterIP
	}
	s.Spec.LoadBalancerIP = spec.LoadBalancerIP
	s.Spec.IPFamilies = spec.IPFamilies
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(view.InternString(string(spec.ExternalTrafficPolicy)))
	// Absent means SingleStack too.
	if p := spec.IPFamilyPolicy; p != nil && *p != corev1.IPFamilyPolicySingleStack {
		s.Spec.IPFamilyPolicy = p
	}
	if v := view.FromService(s); v.HasSharingAnnotation { // other Services cannot share an address
		s.Spec.Selector = maps.Clone(spec.Selector)
		for _, p := range spec.Ports {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Protocol: p.Protocol, Port: p.Port})
		}
	}
	for i := range s.Status.Conditions {
		c := &s.Status.Conditions[i]
		c.Type, c.Status, c.Reason = view.InternString(c.Type), metav1.ConditionStatus(view.InternString(string(c.Status))), view.InternString(c.Reason)
		if c.Type == names.ConditionAllocatedFromPool {
			c.Message = view.InternString(c.Message)
		}
	}
	return s, nil
}
