package view

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// FromService converts a Service.
func FromService(s *corev1.Service) Service {
	v := Service{
		Key:                   ObjectKey{Namespace: s.Namespace, Name: s.Name},
		UID:                   string(s.UID),
		Labels:                s.Labels,
		IsLoadBalancer:        s.Spec.Type == corev1.ServiceTypeLoadBalancer,
		FamilyPolicy:          SingleStack,
		HasLocalTrafficPolicy: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		HealthCheckNodePort:   uint16(s.Spec.HealthCheckNodePort),
		PodSelector:           labels.Set(s.Spec.Selector).String(),
		RecordedPool:          readRecordedPoolOfFirstAddress(s),
		RequestedHolder:       strings.TrimSpace(s.Annotations[names.AnnotationRequestedHolder]),
		CreatedUnixSeconds:    s.CreationTimestamp.Unix(),
		Generation:            s.Generation,
	}
	if s.Spec.LoadBalancerClass != nil {
		v.LoadBalancerClass = *s.Spec.LoadBalancerClass
	}
	if s.Spec.IPFamilyPolicy != nil {
		v.FamilyPolicy = FamilyPolicy(*s.Spec.IPFamilyPolicy)
	}
	for _, p := range s.Spec.Ports {
		v.Ports = append(v.Ports, Port{Protocol: string(p.Protocol), Number: uint16(p.Port)})
	}
	v.readClusterIPs(s)
	v.readAssignedAddressesFromStatus(s)
	v.RequestedPool, _ = readAnnotationOrOlderSpelling(s, names.AnnotationRequestedPool, names.AnnotationRequestedPoolOld)
	v.SharingKey, v.HasSharingAnnotation = readAnnotationOrOlderSpelling(s, names.AnnotationSharingKey, names.AnnotationSharingKeyOld)
	v.readAddressRequestAnnotations(s)
	return v
}

// readRecordedPoolOfFirstAddress returns the pool of the first address. The annotation with the
// same content does not count, because the owner of the Service can edit it.
func readRecordedPoolOfFirstAddress(s *corev1.Service) string {
	c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAllocatedFromPool)
	if c == nil {
		return ""
	}
	pool, _, _ := strings.Cut(c.Message, ",")
	return pool
}

func (v *Service) readClusterIPs(s *corev1.Service) {
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
		v.PrimaryFamily = ipfamily.IPv6
	case len(s.Spec.IPFamilies) == 0 && len(v.ClusterIPs) > 0:
		v.PrimaryFamily = ipfamily.FamilyOf(v.ClusterIPs[0])
	default:
		v.PrimaryFamily = ipfamily.IPv4
	}
}

func (v *Service) readAssignedAddressesFromStatus(s *corev1.Service) {
	for _, in := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil {
			v.NonAddressIngressEntries = append(v.NonAddressIngressEntries, in.IP+in.Hostname)
			continue
		}
		v.AssignedAddresses = append(v.AssignedAddresses, a.Unmap())
	}
}

// readAnnotationOrOlderSpelling returns the value of the annotation without blanks around it, or
// that of its older spelling when it is absent.
func readAnnotationOrOlderSpelling(s *corev1.Service, key, old string) (string, bool) {
	if v, ok := s.Annotations[key]; ok {
		return strings.TrimSpace(v), true
	}
	v, ok := s.Annotations[old]
	return strings.TrimSpace(v), ok
}
