package view

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
)

// FromService projects a Service.
func FromService(s *corev1.Service) Service {
	v := Service{
		Key:          Key{Namespace: s.Namespace, Name: s.Name},
		UID:          string(s.UID),
		Labels:       s.Labels,
		LoadBalancer: s.Spec.Type == corev1.ServiceTypeLoadBalancer,
		FamilyPolicy: SingleStack,
		Local:        s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		Selector:     labels.Set(s.Spec.Selector).String(),
		PoolRecorded: s.Annotations[names.AnnotationFromPool],
		Deleting:     s.DeletionTimestamp != nil,
		Created:      s.CreationTimestamp.Unix(),
		Generation:   s.Generation,
	}
	if s.Spec.LoadBalancerClass != nil {
		v.Class = *s.Spec.LoadBalancerClass
	}
	if s.Spec.IPFamilyPolicy != nil {
		v.FamilyPolicy = FamilyPolicy(*s.Spec.IPFamilyPolicy)
	}
	for _, p := range s.Spec.Ports {
		v.Ports = append(v.Ports, Port{Protocol: string(p.Protocol), Number: uint16(p.Port)})
	}
	v.clusterIPs(s)
	v.status(s)
	v.Pool, _ = annotation(s, names.AnnotationPool, names.AnnotationPoolOld)
	v.SharingKey, v.SharingPresent = annotation(s, names.AnnotationSharing, names.AnnotationSharingOld)
	v.request(s)
	return v
}

func (v *Service) clusterIPs(s *corev1.Service) {
	texts := s.Spec.ClusterIPs
	if len(texts) == 0 && s.Spec.ClusterIP != "" {
		texts = []string{s.Spec.ClusterIP}
	}
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil { // "None" of a headless Service is no address
			v.ClusterIPs = append(v.ClusterIPs, a)
		}
	}
	switch {
	case len(s.Spec.IPFamilies) > 0 && s.Spec.IPFamilies[0] == corev1.IPv6Protocol:
		v.PrimaryFamily = IPv6
	case len(s.Spec.IPFamilies) == 0 && len(v.ClusterIPs) > 0:
		v.PrimaryFamily = FamilyOf(v.ClusterIPs[0])
	default:
		v.PrimaryFamily = IPv4
	}
}

func (v *Service) status(s *corev1.Service) {
	for _, in := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil {
			v.StatusMalformed = append(v.StatusMalformed, in.IP+in.Hostname)
			continue
		}
		v.Assigned = append(v.Assigned, a.Unmap())
	}
}

// annotation returns the value under key, or under its older spelling when key itself is absent.
func annotation(s *corev1.Service, key, old string) (string, bool) {
	if v, ok := s.Annotations[key]; ok {
		return v, true
	}
	v, ok := s.Annotations[old]
	return v, ok
}
