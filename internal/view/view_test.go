package view

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/gantry-lb/gantry/api/names"
)

func TestRequestedAddresses(t *testing.T) {
	tests := map[string]struct {
		annotations map[string]string
		field       string
		want        []string
		wantFault   string
	}{
		"nothing":                                   {},
		"an address by annotation":                  {annotations: map[string]string{names.AnnotationLoadBalancerIPs: " 192.0.2.1 "}, want: []string{"192.0.2.1"}},
		"one of each family":                        {annotations: map[string]string{names.AnnotationLoadBalancerIPs: "fd00::1, 192.0.2.1"}, want: []string{"fd00::1", "192.0.2.1"}},
		"by the older annotation":                   {annotations: map[string]string{names.AnnotationLoadBalancerIPsOld: "192.0.2.1"}, want: []string{"192.0.2.1"}},
		"the newer one hides the older, even empty": {annotations: map[string]string{names.AnnotationLoadBalancerIPs: "", names.AnnotationLoadBalancerIPsOld: "192.0.2.1"}},
		"by the field":                              {field: "192.0.2.1", want: []string{"192.0.2.1"}},
		"twice is a fault":                          {annotations: map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.1"}, field: "192.0.2.2", wantFault: "keep one of them"},
		"nonsense is quoted":                        {annotations: map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.1,x"}, wantFault: `"x" is no address`},
		"two of a family is a fault":                {annotations: map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.1,192.0.2.2"}, wantFault: "two addresses of one family"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{}
			s.Annotations, s.Spec.LoadBalancerIP = tc.annotations, tc.field
			v := FromService(s)
			var got []string
			for _, a := range v.RequestedAddresses {
				got = append(got, a.String())
			}
			if !reflect.DeepEqual(got, tc.want) || (tc.wantFault == "") != (v.InvalidRequestText == "") || !strings.Contains(v.InvalidRequestText, tc.wantFault) {
				t.Errorf("got %v, fault %q; want %v, a fault with %q", got, v.InvalidRequestText, tc.want, tc.wantFault)
			}
		})
	}
}

func TestHeadlessServicesHaveNoClusterIP(t *testing.T) {
	s := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}}
	if v := FromService(s); len(v.ClusterIPs) != 0 || len(v.ClusterIPFamilies()) != 0 {
		t.Errorf("a headless Service has the cluster IPs %v", v.ClusterIPs)
	}
}

func TestServingNodesOfEndpointSlices(t *testing.T) {
	yes, no := true, false
	node := func(n string) *string { return &n }
	endpoint := func(n string, c discoveryv1.EndpointConditions) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, NodeName: node(n), Conditions: c}
	}
	key := ObjectKey{"default", "s"}
	e := FromEndpointSlices(key, []discoveryv1.EndpointSlice{
		{Endpoints: []discoveryv1.Endpoint{
			endpoint("unknown", discoveryv1.EndpointConditions{}),
			endpoint("ready", discoveryv1.EndpointConditions{Ready: &yes}),
			endpoint("unready", discoveryv1.EndpointConditions{Ready: &no}),
		}},
		{Endpoints: []discoveryv1.Endpoint{
			endpoint("terminating", discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}),
			{NodeName: node("without-address"), Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
		}},
	})
	if want := []string{"ready", "terminating", "unknown"}; !e.AnyServing || !reflect.DeepEqual(e.ServingNodes, want) {
		t.Errorf("endpoints can serve on %v, want %v", e.ServingNodes, want)
	}
	if !e.CanServeOn("ready") || e.CanServeOn("unready") {
		t.Error("the endpoints of single nodes do not agree with the list of nodes")
	}
}

func TestNodeExclusionAndDrainAreRecognized(t *testing.T) {
	tests := map[string]struct {
		edit                           func(*corev1.Node)
		excluded, unavailable, leaving bool
	}{
		"a plain node":   {edit: func(*corev1.Node) {}},
		"a cordoned one": {edit: func(n *corev1.Node) { n.Spec.Unschedulable = true }},
		"the label":      {edit: func(n *corev1.Node) { n.Labels = map[string]string{names.LabelExcludeNode: ""} }, excluded: true},
		"the annotation": {edit: func(n *corev1.Node) { n.Annotations = map[string]string{names.AnnotationDrainNode: ""} }, leaving: true},
		"the taint":      {edit: func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: names.TaintOutOfService}} }, leaving: true},
		"a network that is not there": {edit: func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}}
		}, unavailable: true},
		"a kubelet that shuts down": {edit: func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Message: "node is shutting down"}}
		}, leaving: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			n := &corev1.Node{}
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
			tc.edit(n)
			v := FromNode(n)
			if v.IsExcluded != tc.excluded || v.NetworkUnavailable != tc.unavailable || v.IsLeaving != tc.leaving {
				t.Errorf("got %+v", v)
			}
			if want := []netip.Addr{netip.MustParseAddr("192.0.2.1")}; !reflect.DeepEqual(v.InternalAddresses, want) {
				t.Errorf("its addresses are %v, want %v", v.InternalAddresses, want)
			}
		})
	}
}

func TestAddressesPerFamilyAndExchangeAnnotations(t *testing.T) {
	tests := map[string]struct {
		annotations map[string]string
		count       int
		releasing   []netip.Addr
		wantFault   string
	}{
		"one of each family, when nothing is said": {count: 1},
		"several":                {annotations: map[string]string{names.AnnotationAddressesPerFamily: " 3 "}, count: 3},
		"none is a fault":        {annotations: map[string]string{names.AnnotationAddressesPerFamily: "0"}, count: 1, wantFault: `"0" is no number from 1 to 16`},
		"too many are a fault":   {annotations: map[string]string{names.AnnotationAddressesPerFamily: "17"}, count: 1, wantFault: "from 1 to 16"},
		"a word is a fault":      {annotations: map[string]string{names.AnnotationAddressesPerFamily: "two"}, count: 1, wantFault: `"two"`},
		"addresses to exchange":  {annotations: map[string]string{names.AnnotationAddressesToExchange: "192.0.2.1, ::ffff:192.0.2.2"}, count: 1, releasing: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}},
		"one of them unreadable": {annotations: map[string]string{names.AnnotationAddressesToExchange: "192.0.2.1,"}, count: 1, wantFault: names.AnnotationAddressesToExchange},
		"one of them twice":      {annotations: map[string]string{names.AnnotationAddressesToExchange: "192.0.2.1,192.0.2.1"}, count: 1, wantFault: "twice"},
		"more requested than the number": {
			annotations: map[string]string{names.AnnotationAddressesPerFamily: "2", names.AnnotationLoadBalancerIPs: "192.0.2.1,192.0.2.2,192.0.2.3"}, count: 2, wantFault: "more than 2",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{}
			s.Annotations = tc.annotations
			v := FromService(s)
			if v.RequestedAddressesPerFamily != tc.count || !slices.Equal(v.AddressesToExchange, tc.releasing) {
				t.Errorf("got %d, exchanging %v; want %d, %v", v.RequestedAddressesPerFamily, v.AddressesToExchange, tc.count, tc.releasing)
			}
			if (tc.wantFault == "") != (v.InvalidRequestText == "") || !strings.Contains(v.InvalidRequestText, tc.wantFault) {
				t.Errorf("the fault is %q, want one with %q", v.InvalidRequestText, tc.wantFault)
			}
		})
	}
}

// FuzzParseAddressList checks that the result is canonical, without repetition, and not too long.
func FuzzParseAddressList(f *testing.F) {
	for _, seed := range []string{"", ",", "192.0.2.1", " 192.0.2.1 , 2001:db8::1", "::ffff:192.0.2.1,192.0.2.1", "fe80::1%eth0", "1.2.3.4,x", strings.Repeat("::1,", 40)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, fault := ParseAddressList("list", text)
		if (len(out) == 0) == (fault == "") {
			t.Fatalf("%q gives %v and the fault %q: want one of the two", text, out, fault)
		}
		if len(out) > maxRequestedAddressesOfBothFamilies {
			t.Fatalf("%d addresses are too many", len(out))
		}
		var texts []string
		for _, a := range out {
			if a.Zone() != "" || a.Is4In6() {
				t.Fatalf("%s is not canonical", a)
			}
			texts = append(texts, a.String())
		}
		if again, fault := ParseAddressList("list", strings.Join(texts, ",")); len(out) > 0 && (fault != "" || !slices.Equal(again, out)) {
			t.Fatalf("%v reads back as %v, %s", out, again, fault)
		}
	})
}
