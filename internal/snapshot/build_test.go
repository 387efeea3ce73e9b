package snapshot

import (
	"fmt"
	"math"
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

func TestParseRange(t *testing.T) {
	tests := map[string]struct{ text, want, wantError string }{
		"a CIDR":                            {text: "192.0.2.0/30", want: "192.0.2.0-192.0.2.3"},
		"a CIDR with host bits is masked":   {text: "10.20.30.40/24", want: "10.20.30.0-10.20.30.255"},
		"a range":                           {text: "192.168.0.201-192.168.0.233", want: "192.168.0.201-192.168.0.233"},
		"a range with blanks at its ends":   {text: "192.0.2.1 - 192.0.2.2", want: "192.0.2.1-192.0.2.2"},
		"a single address":                  {text: "192.0.2.7", want: "192.0.2.7-192.0.2.7"},
		"an IPv6 CIDR":                      {text: "fd00::/127", want: "fd00::-fd00::1"},
		"a leading blank is refused":        {text: " 10.0.0.0/8", wantError: `" 10.0.0.0/8" is no CIDR`},
		"an incomplete end is named":        {text: "192.0.2.1-192.0.2", wantError: `the end "192.0.2" is no address`},
		"the wrong order is named":          {text: "192.0.2.9-192.0.2.1", wantError: "write 192.0.2.1-192.0.2.9"},
		"two families are refused":          {text: "1.2.3.4-fe80::1", wantError: "mixes IPv4 and IPv6"},
		"a prefix that is too long":         {text: "10.0.0.0/33", wantError: `"10.0.0.0/33" is no CIDR`},
		"mapped addresses are refused":      {text: "::ffff:10.0.0.1-::ffff:10.0.0.9", wantError: "write 10.0.0.1-10.0.0.9"},
		"an address with a zone is refused": {text: "fe80::1%eth0", wantError: "is no CIDR"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := ParseRange(tc.text)
			if tc.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantError) {
					t.Fatalf("got %v, %v; want an error with %q", r, err, tc.wantError)
				}
				return
			}
			if got := r.First.String() + "-" + r.Last.String(); err != nil || got != tc.want {
				t.Errorf("got %s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

func newTestIPAddressPool(name string, age time.Duration, entries ...string) v1beta1.IPAddressPool {
	p := v1beta1.IPAddressPool{Spec: v1beta1.IPAddressPoolSpec{Addresses: entries}}
	p.Name, p.Namespace, p.Labels = name, "metallb-system", map[string]string{"name": name}
	p.CreationTimestamp = metav1.NewTime(time.Unix(1_000_000, 0).Add(-age))
	return p
}

func newL2Advertisement(name string, spec v1beta1.L2AdvertisementSpec) v1beta1.L2Advertisement {
	ad := v1beta1.L2Advertisement{Spec: spec}
	ad.Name, ad.Namespace = name, "metallb-system"
	return ad
}

func TestFaultyPoolEntryIsSkipped(t *testing.T) {
	s, problems := BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{
		newTestIPAddressPool("young", 0, "192.0.2.4-192.0.2.9", "nonsense", "198.51.100.1"),
		newTestIPAddressPool("old", time.Hour, "192.0.2.0/29"),
	}})
	if n := len(s.PoolByName("young").Ranges); n != 1 {
		t.Errorf("the younger pool has %d entries, want only the sound one", n)
	}
	if len(s.PoolByName("old").Ranges) != 1 {
		t.Error("the older pool lost its entry to a younger one")
	}
	var reasons []names.Reason
	for _, p := range problems {
		reasons = append(reasons, p.Reason)
	}
	if want := []names.Reason{names.ReasonOverlap, names.ReasonInvalidAddress}; !reflect.DeepEqual(reasons, want) {
		t.Fatalf("the problems are %v, want %v", reasons, want)
	}
	if text := problems[0].Text; !strings.Contains(text, `"old"`) || !strings.Contains(text, "overlaps with already defined CIDR") {
		t.Errorf("the overlap is reported as %q", text)
	}
}

// An edit of an older pool by mistake must not take addresses from a younger pool, whose Services
// would then be announced as the older pool says.
func TestEditOfAnOlderPoolTakesNothingFromAYoungerOne(t *testing.T) {
	old, young := newTestIPAddressPool("old", time.Hour, "10.0.1.0/24"), newTestIPAddressPool("young", 0, "10.0.5.0/24")
	before, problems := BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{old, young}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	old.Spec.Addresses, old.Generation = []string{"10.0.0.0/16"}, 2
	check := func(s *Snapshot, problems []Problem, wantOld string) {
		t.Helper()
		if r := s.PoolByName("young").Ranges; len(r) != 1 || r[0].String() != "10.0.5.0/24" {
			t.Errorf("the younger pool has %v", r)
		}
		if r := s.PoolByName("old").Ranges; fmt.Sprint(r) != wantOld {
			t.Errorf("the older pool has %v, want %s", r, wantOld)
		}
		if len(problems) != 1 || problems[0].Object.Name != "old" || problems[0].Reason != names.ReasonOverlap || !strings.Contains(problems[0].Text, `"10.0.5.0/24" of pool "young"`) {
			t.Errorf("the problems are %v", problems)
		}
	}
	s, problems := BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{old, young}, PreviousSnapshot: before})
	check(s, problems, "[10.0.1.0/24]")
	s, problems = BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{old, young}, PreviousSnapshot: s})
	check(s, problems, "[10.0.1.0/24]")

	// A program that starts knows only what the status of the pool says of this edit.
	old.Status.Gantry = &v1beta1.PoolStatusExtension{ObjectStatus: v1beta1.ObjectStatus{Conditions: []metav1.Condition{{
		Type: names.ConditionValid, Status: metav1.ConditionFalse, ObservedGeneration: 2, Reason: string(names.ReasonOverlap), Message: problems[0].Text,
	}}}}
	s, problems = BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{old, young}})
	check(s, problems, "[]")

	// Without the younger pool, the edit takes effect.
	s, problems = BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{old}, PreviousSnapshot: s})
	if r := s.PoolByName("old").Ranges; fmt.Sprint(r) != "[10.0.0.0/16]" || len(problems) > 0 {
		t.Errorf("without the younger pool the older one has %v, and the problems are %v", r, problems)
	}
}

// Ranges that move from one pool to another in one step belong to the pool that lists them now.
func TestRangeMovesBetweenPools(t *testing.T) {
	a, b := newTestIPAddressPool("a", time.Hour, "10.0.1.0/24", "10.0.2.0/24"), newTestIPAddressPool("b", 0, "10.0.3.0/24")
	before, _ := BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{a, b}})
	a.Spec.Addresses, b.Spec.Addresses = []string{"10.0.1.0/24", "10.0.3.0/24"}, []string{"10.0.2.0/24"}
	s, problems := BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{a, b}, PreviousSnapshot: before})
	if got := fmt.Sprint(s.PoolByName("a").Ranges, s.PoolByName("b").Ranges); got != "[10.0.1.0/24 10.0.3.0/24] [10.0.2.0/24]" || len(problems) > 0 {
		t.Errorf("the pools have %s, and the problems are %v", got, problems)
	}
}

func TestPoolsOfL2AdvertisementAreResolved(t *testing.T) {
	selector := func(name string) []metav1.LabelSelector {
		return []metav1.LabelSelector{{MatchLabels: map[string]string{"name": name}}}
	}
	tests := map[string]struct {
		spec        v1beta1.L2AdvertisementSpec
		want        []string
		wantProblem names.Reason
	}{
		"neither names nor selectors means all":      {want: []string{"a", "b"}},
		"a name":                                     {spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"b"}}, want: []string{"b"}},
		"a name and a selector add up":               {spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"b"}, IPAddressPoolSelectors: selector("a")}, want: []string{"a", "b"}},
		"a selector that matches nothing means none": {spec: v1beta1.L2AdvertisementSpec{IPAddressPoolSelectors: selector("z")}},
		"an unknown name is a problem":               {spec: v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"z"}}, wantProblem: names.ReasonUnknownPool},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s, problems := BuildSnapshot(ConfigurationObjects{
				Pools:            []v1beta1.IPAddressPool{newTestIPAddressPool("b", 0, "192.0.2.1"), newTestIPAddressPool("a", 0, "192.0.2.2")},
				L2Advertisements: []v1beta1.L2Advertisement{newL2Advertisement("ad", tc.spec)},
			})
			if !reflect.DeepEqual(s.L2Advertisements[0].Pools, tc.want) {
				t.Errorf("it covers %v, want %v", s.L2Advertisements[0].Pools, tc.want)
			}
			var got names.Reason
			if len(problems) > 0 {
				got = problems[0].Reason
			}
			if got != tc.wantProblem {
				t.Errorf("the problem is %q, want %q", got, tc.wantProblem)
			}
		})
	}
}

func TestTheOrderOfObjectsDoesNotMatter(t *testing.T) {
	o := ConfigurationObjects{
		Pools: []v1beta1.IPAddressPool{
			newTestIPAddressPool("a", 0, "192.0.2.0/28", "x"), newTestIPAddressPool("b", time.Minute, "192.0.2.8/29"), newTestIPAddressPool("c", 0, "192.0.2.12", "198.51.100.0/24"),
		},
		L2Advertisements: []v1beta1.L2Advertisement{newL2Advertisement("one", v1beta1.L2AdvertisementSpec{}), newL2Advertisement("two", v1beta1.L2AdvertisementSpec{IPAddressPools: []string{"no", "c"}})},
	}
	wantSnapshot, wantProblems := BuildSnapshot(o)
	for range 20 {
		rand.Shuffle(len(o.Pools), func(i, j int) { o.Pools[i], o.Pools[j] = o.Pools[j], o.Pools[i] })
		rand.Shuffle(len(o.L2Advertisements), func(i, j int) {
			o.L2Advertisements[i], o.L2Advertisements[j] = o.L2Advertisements[j], o.L2Advertisements[i]
		})
		s, problems := BuildSnapshot(o)
		if !reflect.DeepEqual(problems, wantProblems) || !reflect.DeepEqual(s, wantSnapshot) {
			t.Fatal("another order of the objects gave another result")
		}
	}
}

func TestCountAssignableAddresses(t *testing.T) {
	tests := map[string]struct {
		entries    []string
		avoid      bool
		ipv4, ipv6 int64
	}{
		"both families":                     {entries: []string{"192.0.2.0/24", "fd00::/120"}, ipv4: 256, ipv6: 256},
		"avoided addresses are not counted": {entries: []string{"192.0.2.0/23"}, avoid: true, ipv4: 508},
		"at one end":                        {entries: []string{"192.0.2.250-192.0.3.3"}, avoid: true, ipv4: 8},
		"all of IPv4, without those of a special purpose": {entries: []string{"0.0.0.0/0"}, ipv4: 1<<32 - 2<<24 - 1<<28 - 1},
		"loopback addresses inside":                       {entries: []string{"126.0.0.0/7"}, ipv4: 1 << 24},
		"more than fits":                                  {entries: []string{"fd00::/32", "fd01::/120"}, ipv6: math.MaxInt64},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := newTestIPAddressPool("a", 0, tc.entries...)
			p.Spec.AvoidBuggyIPs = tc.avoid
			s, _ := BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{p}})
			if v4, v6 := s.PoolByName("a").CountAssignableAddresses(); v4 != tc.ipv4 || v6 != tc.ipv6 {
				t.Errorf("got %d and %d addresses, want %d and %d", v4, v6, tc.ipv4, tc.ipv6)
			}
		})
	}
}
