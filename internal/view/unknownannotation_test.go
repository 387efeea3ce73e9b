package view

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
)

func TestUnknownAnnotationIsNamedWithTheNearestKnownOne(t *testing.T) {
	for key, want := range map[string]string{
		"metallb.io/allow-shared":                 names.AnnotationSharingKey,
		"metallb.io/allow-shared-ips":             names.AnnotationSharingKey,
		"metallb.universe.tf/pool-name":           names.AnnotationRequestedPool,
		"metallb.universe.tf/addresspool":         names.AnnotationRequestedPool,
		"metallb.io/ip-address-pool":              names.AnnotationRequestedPool,
		"metallb.io/loadBalancerIP":               names.AnnotationLoadBalancerIPs,
		"metallb.io/load-balancer-ips":            names.AnnotationLoadBalancerIPs,
		"metallb.io/loadbalancerips":              names.AnnotationLoadBalancerIPs,
		"gantry.dev/address-pool":                 names.AnnotationRequestedPool,
		"gantry.dev/addresses-count":              names.AnnotationAddressesPerFamily,
		"metallb.io/address-count":                names.AnnotationAddressesPerFamily,
		"gantry.dev/release-addresses":            names.AnnotationAddressesToExchange,
		"metalb.io/address-pool":                  names.AnnotationRequestedPool,
		"metallb.oi/allow-shared-ip":              names.AnnotationSharingKey,
		"metallb.universe.ft/address-pool":        names.AnnotationRequestedPool,
		"metal3.io/address-pool":                  "",
		"kubernetes.io/address-pool":              "",
		names.AnnotationRequestedPool:             "",
		names.AnnotationSharingKeyOld:             "",
		names.AnnotationAllocatedFromPool:         "",
		names.AnnotationAllocatedFromSeveralPools: "",
		"example.com/address-pol":                 "",
		"metallb":                                 "",
	} {
		s := &corev1.Service{}
		s.Annotations = map[string]string{key: "x"}
		texts := ExplainUnknownAnnotations(s)
		switch {
		case want == "" && len(texts) > 0:
			t.Errorf("%s is known, or not ours: %q", key, texts)
		case want != "" && (len(texts) != 1 || !strings.Contains(texts[0], key) || !strings.HasSuffix(texts[0], "did you mean "+want+"?")):
			t.Errorf("%s: %q, want %s", key, texts, want)
		}
	}
}

func TestBlanksAroundAnnotationsDoNotCount(t *testing.T) {
	plain, blanks := &corev1.Service{}, &corev1.Service{}
	plain.Annotations = map[string]string{
		names.AnnotationRequestedPool: "d", names.AnnotationSharingKey: "k", names.AnnotationLoadBalancerIPs: "192.0.2.5,fd00::5", names.AnnotationAddressesToExchange: "192.0.2.6", names.AnnotationAddressesPerFamily: "2",
	}
	blanks.Annotations = map[string]string{}
	for key, value := range plain.Annotations {
		blanks.Annotations[key] = " " + strings.ReplaceAll(value, ",", " , ") + "\t"
	}
	v, w := FromService(plain), FromService(blanks)
	if v.InvalidRequestText+w.InvalidRequestText != "" || v.RequestedPool != w.RequestedPool || v.SharingKey != w.SharingKey || !slices.Equal(v.RequestedAddresses, w.RequestedAddresses) ||
		!slices.Equal(v.AddressesToExchange, w.AddressesToExchange) || v.RequestedAddressesPerFamily != w.RequestedAddressesPerFamily || len(v.RequestedAddresses) != 2 {
		t.Errorf("with blanks %+v, without %+v", w, v)
	}
	for key := range blanks.Annotations {
		blanks.Annotations[key] = "  "
	}
	blanks.Spec.LoadBalancerIP = " 192.0.2.7 "
	if w = FromService(blanks); w.InvalidRequestText != "" || w.RequestedPool+w.SharingKey != "" || len(w.RequestedAddresses) != 1 || len(w.AddressesToExchange) > 0 {
		t.Errorf("blanks alone ask for %+v", w)
	}
}

func TestInvalidRequestTextOfAddressAnnotations(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.5,":                       `"192.0.2.5," has a comma too many: remove it`,
		",192.0.2.5":                       "has a comma too many",
		"192.0.2.5,,fd00::1":               "has a comma too many",
		"192.0.2.5 fd00::1":                `"192.0.2.5 fd00::1" is no address`,
		strings.Repeat("x", 1<<17):         "is no address",
		strings.Repeat("192.0.2.1,", 9999): "is listed twice",
	} {
		s := &corev1.Service{}
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: text}
		if v := FromService(s); !strings.Contains(v.InvalidRequestText, want) || len(v.InvalidRequestText) > 500 {
			t.Errorf("%.40q: got a text of %d bytes, %.200q; want %q", text, len(v.InvalidRequestText), v.InvalidRequestText, want)
		}
	}
}
