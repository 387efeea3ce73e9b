package v1beta1_test

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// TestCRDValidationRules applies objects to a real API server, since the rules are expressions that
// only it evaluates. All tables use one server, because it takes seconds to start.
func TestCRDValidationRules(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1beta1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1beta2.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(apiserver.StartUntilTestEnds(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("addresses", func(t *testing.T) { testMalformedPoolAddressesAreRefused(t, c) })
	t.Run("what is accepted can be read", func(t *testing.T) { testValidPoolAddressesAreAcceptedAndParsed(t, c) })
	t.Run("advertisements", func(t *testing.T) { testInvalidL2AdvertisementsAreRefused(t, c) })
	t.Run("defaults and limits", func(t *testing.T) { testPoolDefaultsAreSetAndLimitsEnforced(t, c) })
	t.Run("what only Gantry offers", func(t *testing.T) { testInvalidPoolExtensionsAreRefused(t, c) })
	t.Run("peers", func(t *testing.T) { testInvalidBGPPeerExtensionsAreRefused(t, c) })
	t.Run("what only Gantry offers for BGP", func(t *testing.T) { testInvalidBGPAdvertisementExtensionsAreRefused(t, c) })
	t.Run("reservations", func(t *testing.T) { testInvalidReservationsAreRefused(t, c) })
	t.Run("large objects", func(t *testing.T) { testLargeObjectsAreAccepted(t, c) })
	t.Run("status", func(t *testing.T) { testStatusIsWrittenOnlyBySubresource(t, c) })
}

func newPool(entries ...string) *v1beta1.IPAddressPool {
	p := &v1beta1.IPAddressPool{Spec: v1beta1.IPAddressPoolSpec{Addresses: entries}}
	p.Namespace, p.GenerateName = names.DefaultNamespace, "pool-"
	return p
}

func newL2Advertisement(spec v1beta1.L2AdvertisementSpec) *v1beta1.L2Advertisement {
	a := &v1beta1.L2Advertisement{Spec: spec}
	a.Namespace, a.GenerateName = names.DefaultNamespace, "ad-"
	return a
}

// checkCreationIsRefusedWithTexts checks that the object is refused with each of the texts.
func checkCreationIsRefusedWithTexts(t *testing.T, c client.Client, o client.Object, want ...string) {
	t.Helper()
	err := c.Create(context.Background(), o)
	if err == nil {
		t.Fatalf("it was accepted, want a refusal with %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("it was refused with %v, want %q in it", err, w)
		}
	}
	for _, w := range []string{"type conversion error", "no such key", "failed rule"} {
		if strings.Contains(err.Error(), w) {
			t.Errorf("it was refused with %v, which is a rule instead of a sentence", err)
		}
	}
}

func testMalformedPoolAddressesAreRefused(t *testing.T, c client.Client) {
	const form, mixed = "is no CIDR, range or address: write 192.0.2.0/24", "mixes IPv4 and IPv6: write an entry for each family"
	cases := map[string]struct {
		entries []string
		want    []string // nil: accepted
	}{
		"a range with four octets on one side": {[]string{"192.168.0.201-192.168.0"}, []string{"'192.168.0.201-192.168.0'", form}},
		"a range of three ends":                {[]string{"192.0.2.1-192.0.2.2-192.0.2.3"}, []string{"'192.0.2.1-192.0.2.2-192.0.2.3'", form}},
		"a range without an end":               {[]string{"192.0.2.1-"}, []string{"'192.0.2.1-'", form}},
		"a range of CIDRs":                     {[]string{"192.0.2.0/28-192.0.2.16/28"}, []string{form}},
		"a blank before a CIDR":                {[]string{" 10.0.0.0/8"}, []string{"' 10.0.0.0/8'", form, "without blanks"}},
		"a blank after an address":             {[]string{"10.0.0.1 "}, []string{"'10.0.0.1 '", form}},
		"a mask that is too long for IPv4":     {[]string{"10.0.0.0/33"}, []string{"'10.0.0.0/33'", form}},
		"a mask that is too long for IPv6":     {[]string{"2001:db8::/129"}, []string{"'2001:db8::/129'", form}},
		"a mask in dotted form":                {[]string{"10.0.0.0/255.0.0.0"}, []string{form}},
		"an empty mask":                        {[]string{"10.0.0.0/"}, []string{"'10.0.0.0/'", form}},
		"a mask with a sign":                   {[]string{"10.0.0.0/+8"}, []string{form}},
		"a mask with a leading zero":           {[]string{"10.0.0.0/08"}, []string{"'10.0.0.0/08'", form}},
		"an octet above 255":                   {[]string{"256.0.0.1"}, []string{"'256.0.0.1'", form}},
		"an octet with a leading zero":         {[]string{"192.0.2.010"}, []string{form}},
		"an address with a zone":               {[]string{"fe80::1%eth0"}, []string{form}},
		"a word":                               {[]string{"everything"}, []string{"'everything'", form}},
		"an empty entry":                       {[]string{""}, []string{"'' is no CIDR"}},
		"a range of both families":             {[]string{"192.0.2.1-2001:db8::1"}, []string{"'192.0.2.1-2001:db8::1'", mixed}},
		"a bad entry after a good one":         {[]string{"192.0.2.0/24", "nonsense"}, []string{"spec.addresses[1]", "'nonsense'"}},
		"no entry":                             {[]string{}, []string{"addresses is empty: write at least one"}},
		"no list":                              {nil, []string{"spec.addresses"}},
		"an entry that is far too long":        {[]string{strings.Repeat("1", 97)}, []string{"spec.addresses[0]", "96"}},
		"a line break after a CIDR":            {[]string{"10.0.0.0/24\n"}, []string{"the entry " + form}},
		"a text that would break a message":    {[]string{`1"2'3\4`}, []string{form}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) { checkCreationIsRefusedWithTexts(t, c, newPool(tc.entries...), tc.want...) })
	}
}

// validAddressEntryByCaseName are entries that the API server must accept. It cannot check the
// order of a range's ends.
var validAddressEntryByCaseName = map[string]string{
	"a CIDR":                         "192.0.2.0/24",
	"a CIDR with host bits":          "10.20.30.40/24",
	"a CIDR of one address":          "192.0.2.1/32",
	"all of IPv4":                    "0.0.0.0/0",
	"an IPv6 CIDR":                   "2001:db8::/64",
	"an IPv6 CIDR with host bits":    "2001:db8::1/64",
	"a range":                        "192.168.0.201-192.168.0.233",
	"a range of one address":         "192.0.2.1-192.0.2.1",
	"a range with blanks around it":  " 192.0.2.1 - 192.0.2.9 ",
	"an IPv6 range":                  "2001:db8::1-2001:db8::ff",
	"an IPv4 address":                "192.0.2.1",
	"an IPv6 address":                "2001:db8::1",
	"an IPv6 address in capitals":    "2001:DB8::A",
	"an IPv6 address, written whole": "2001:0db8:0000:0000:0000:0000:0000:0001",
}

// testValidPoolAddressesAreAcceptedAndParsed also checks that the rules and the parser agree: the
// controller can read what the API server accepts.
func testValidPoolAddressesAreAcceptedAndParsed(t *testing.T, c client.Client) {
	for name, entry := range validAddressEntryByCaseName {
		t.Run(name, func(t *testing.T) {
			p := newPool(entry)
			if err := c.Create(context.Background(), p); err != nil {
				t.Fatal(err)
			}
			s, problems := snapshot.BuildSnapshot(snapshot.ConfigurationObjects{Pools: []v1beta1.IPAddressPool{*p}})
			if len(problems) > 0 || len(s.Pools) != 1 {
				t.Errorf("%q is accepted, but the controller says %v", entry, problems)
			}
		})
	}
	t.Run("a range that ends before it starts is let in, and the controller says so", func(t *testing.T) {
		p := newPool("192.0.2.9-192.0.2.1")
		if err := c.Create(context.Background(), p); err != nil {
			t.Fatal(err)
		}
		_, problems := snapshot.BuildSnapshot(snapshot.ConfigurationObjects{Pools: []v1beta1.IPAddressPool{*p}})
		if len(problems) != 1 || problems[0].Reason != names.ReasonInvalidAddress || !strings.Contains(problems[0].Text, "192.0.2.9-192.0.2.1") {
			t.Errorf("the problems are %v, want one that quotes the range", problems)
		}
	})
}

func testInvalidL2AdvertisementsAreRefused(t *testing.T, c client.Client) {
	weight := func(w int32) v1beta1.L2AdvertisementSpec {
		return v1beta1.L2AdvertisementSpec{PreferredNodeSelectors: []v1beta1.WeightedNodeSelector{{Weight: w}}}
	}
	for name, spec := range map[string]v1beta1.L2AdvertisementSpec{
		"everything left out": {},
		"the smallest weight": weight(1),
		"the largest weight":  weight(100),
		"every field": {
			IPAddressPools: []string{"first-pool"}, Interfaces: []string{"eth0"},
			IPAddressPoolSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}},
			NodeSelectors:          []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}},
			ServiceSelectors:       []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.Create(context.Background(), newL2Advertisement(spec)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a weight of nothing", func(t *testing.T) {
		checkCreationIsRefusedWithTexts(t, c, newL2Advertisement(weight(0)), "spec.preferredNodeSelectors[0].weight", "greater than or equal to 1")
	})
	t.Run("a weight above 100", func(t *testing.T) {
		checkCreationIsRefusedWithTexts(t, c, newL2Advertisement(weight(101)), "spec.preferredNodeSelectors[0].weight", "less than or equal to 100")
	})
}

func testPoolDefaultsAreSetAndLimitsEnforced(t *testing.T, c client.Client) {
	p := newPool("192.0.2.0/24")
	if err := c.Create(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	if p.Spec.AutoAssign == nil || !*p.Spec.AutoAssign || p.Spec.AvoidBuggyIPs || p.Spec.AllocateTo != nil {
		t.Errorf("a pool without settings has %+v, want only autoAssign", p.Spec)
	}
	var many []string
	for range 10_240 {
		many = append(many, "2001:0db8:0000:0000:0000:0000:0000:0001-2001:0db8:0000:0000:0000:0000:0000:ffff")
	}
	// The API server aborts rules whose evaluation costs too much; the longest list must stay below
	// that limit.
	if err := c.Create(context.Background(), newPool(many...)); err != nil {
		t.Errorf("the longest list is refused: %v", err)
	}
	checkCreationIsRefusedWithTexts(t, c, newPool(append(many, "192.0.2.1")...), "spec.addresses", "10240")
}

// testStatusIsWrittenOnlyBySubresource checks that the counters are written only through the status
// subresource.
func testStatusIsWrittenOnlyBySubresource(t *testing.T, c client.Client) {
	ctx := context.Background()
	p := newPool("192.0.2.0/24")
	p.Status.AssignedIPv4 = 7
	if err := c.Create(ctx, p); err != nil {
		t.Fatal(err)
	}
	if p.Status.AssignedIPv4 != 0 {
		t.Errorf("a status came in with the object: %+v", p.Status)
	}
	p.Status.AssignedIPv4 = 3
	p.Status.Gantry = &v1beta1.PoolStatusExtension{ObjectStatus: v1beta1.ObjectStatus{Conditions: []metav1.Condition{{
		Type: names.ConditionValid, Status: metav1.ConditionTrue, Reason: string(names.ReasonValid), LastTransitionTime: metav1.Now(),
	}}}}
	if err := c.Status().Update(ctx, p); err != nil {
		t.Fatal(err)
	}
	var got v1beta1.IPAddressPool
	if err := c.Get(ctx, client.ObjectKeyFromObject(p), &got); err != nil {
		t.Fatal(err)
	}
	if got.Status.AssignedIPv4 != 3 || got.Status.Gantry == nil || len(got.Status.Gantry.Conditions) != 1 {
		t.Errorf("the status reads back as %+v", got.Status)
	}
}
