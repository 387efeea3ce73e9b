package view

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// Limits of what one Service may ask for. A larger number is probably a typing error.
const (
	maxRequestedAddressesPerFamily      = 16
	maxRequestedAddressesOfBothFamilies = 2 * maxRequestedAddressesPerFamily
)

// readAddressRequestAnnotations reads what the Service asks for. InvalidRequestText is the first
// fault; the Service then asks for nothing.
func (v *Service) readAddressRequestAnnotations(s *corev1.Service) {
	v.RequestedAddressesPerFamily, v.InvalidRequestText = readAddressesPerFamilyAnnotation(s)
	if v.InvalidRequestText == "" {
		v.RequestedAddresses, v.InvalidRequestText = readRequestedAddressesOfService(s, v.RequestedAddressesPerFamily)
	}
	if text := strings.TrimSpace(s.Annotations[names.AnnotationAddressesToExchange]); text != "" && v.InvalidRequestText == "" {
		v.AddressesToExchange, v.InvalidRequestText = ParseAddressList("annotation "+names.AnnotationAddressesToExchange, text)
	}
	if v.InvalidRequestText != "" {
		v.RequestedAddresses, v.AddressesToExchange = nil, nil
	}
}

// readAddressesPerFamilyAnnotation reads how many addresses of each family the Service asks for.
// The second result is a sentence when the annotation cannot be read.
func readAddressesPerFamilyAnnotation(s *corev1.Service) (int, string) {
	text := strings.TrimSpace(s.Annotations[names.AnnotationAddressesPerFamily])
	if text == "" {
		return 1, ""
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxRequestedAddressesPerFamily {
		return 1, fmt.Sprintf("annotation %s: %s is no number from 1 to %d", names.AnnotationAddressesPerFamily, names.QuoteShortened(text), maxRequestedAddressesPerFamily)
	}
	return n, ""
}

// readRequestedAddressesOfService reads the addresses that the Service asks for, at most n of each
// family. The second result is a sentence when they cannot be read.
func readRequestedAddressesOfService(s *corev1.Service, n int) ([]netip.Addr, string) {
	list, _ := readAnnotationOrOlderSpelling(s, names.AnnotationLoadBalancerIPs, names.AnnotationLoadBalancerIPsOld)
	field := strings.TrimSpace(s.Spec.LoadBalancerIP)
	switch {
	case list != "" && field != "":
		return nil, fmt.Sprintf("both the annotation %s (%s) and spec.loadBalancerIP (%s) ask for addresses: keep one of them",
			names.AnnotationLoadBalancerIPs, names.QuoteShortened(list), names.QuoteShortened(field))
	case list == "" && field == "":
		return nil, ""
	}
	source, text := "annotation "+names.AnnotationLoadBalancerIPs, list
	if field != "" {
		source, text = "spec.loadBalancerIP", field
	}
	out, fault := ParseAddressList(source, text)
	if fault != "" {
		return nil, fault
	}
	families := map[ipfamily.Family]int{}
	for _, a := range out {
		if families[ipfamily.FamilyOf(a)]++; families[ipfamily.FamilyOf(a)] <= n {
			continue
		}
		if n == 1 {
			return nil, fmt.Sprintf("%s: %s asks for two addresses of one family: write at most one IPv4 and one IPv6 address, or say how many with the annotation %s",
				source, names.QuoteShortened(text), names.AnnotationAddressesPerFamily)
		}
		return nil, fmt.Sprintf("%s: %s asks for more than %d addresses of one family, which is the number in the annotation %s", source, names.QuoteShortened(text), n, names.AnnotationAddressesPerFamily)
	}
	return out, ""
}

// ParseAddressList reads addresses separated by commas; blanks around them are allowed. The second
// result is a sentence that begins with the source when the list cannot be read. An IPv4-mapped
// IPv6 address is returned as IPv4.
func ParseAddressList(source, text string) ([]netip.Addr, string) {
	var out []netip.Addr
	for _, part := range strings.SplitN(text, ",", maxRequestedAddressesOfBothFamilies+1) {
		part = strings.TrimSpace(part)
		a, err := netip.ParseAddr(part)
		switch {
		case len(out) == maxRequestedAddressesOfBothFamilies:
			return nil, fmt.Sprintf("%s: there are more than %d addresses", source, maxRequestedAddressesOfBothFamilies)
		case part == "":
			return nil, fmt.Sprintf("%s: %s has a comma too many: remove it", source, names.QuoteShortened(text))
		case err != nil || a.Zone() != "":
			return nil, fmt.Sprintf("%s: %s is no address: write one IPv4 or IPv6 address, or one of each with a comma between", source, names.QuoteShortened(part))
		case slices.Contains(out, a.Unmap()):
			return nil, fmt.Sprintf("%s: %s is listed twice: remove one", source, a)
		}
		out = append(out, a.Unmap())
	}
	return out, ""
}
