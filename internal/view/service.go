package view

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	v.Requested, v.RequestFault = requested(s)
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
		v.Assigned = append(v.Assigned, a)
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

// requested reads the addresses that the Service asks for. The second result is a sentence when they cannot be read.
func requested(s *corev1.Service) ([]netip.Addr, string) {
	list, _ := annotation(s, names.AnnotationLoadBalancerIPs, names.AnnotationLoadBalancerIPsOld)
	field := s.Spec.LoadBalancerIP
	switch {
	case list != "" && field != "":
		return nil, fmt.Sprintf("both the annotation %s (%q) and spec.loadBalancerIP (%q) ask for addresses: keep one of them",
			names.AnnotationLoadBalancerIPs, list, field)
	case list == "" && field == "":
		return nil, ""
	}
	source, text := "annotation "+names.AnnotationLoadBalancerIPs, list
	if field != "" {
		source, text = "spec.loadBalancerIP", field
	}
	var out []netip.Addr
	for _, part := range strings.Split(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil || a.Zone() != "" {
			return nil, fmt.Sprintf("%s: %q is no address: write one IPv4 or IPv6 address, or one of each with a comma between",
				source, strings.TrimSpace(part))
		}
		if slices.ContainsFunc(out, func(o netip.Addr) bool { return FamilyOf(o) == FamilyOf(a) }) {
			return nil, fmt.Sprintf("%s: %q asks for two addresses of one family: write at most one IPv4 and one IPv6 address",
				source, text)
		}
		out = append(out, a)
	}
	return out, ""
}
