package snapshot

import (
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

func TestAddressesThatTheClusterUsesAreReported(t *testing.T) {
	used := func(text, use string) ClusterAddressRange {
		r, err := ParseRange(text)
		if err != nil {
			t.Fatal(err)
		}
		return ClusterAddressRange{r, use}
	}
	cluster := []ClusterAddressRange{
		used("192.0.2.10", "the address of node a"), used("192.0.2.11", "the address of node b"), used("fd00::a", "the address of node a"),
		used("10.244.1.0/24", "a Pod network"), used("10.96.0.0/16", "the Service network"),
	}
	tests := map[string]struct {
		entries, exclude []string
		want             []string // none: no Problem
	}{
		"none":                {entries: []string{"192.0.2.12-192.0.2.99", "10.97.0.0/16", "fd00::b"}},
		"a node":              {entries: []string{"192.0.2.0/24"}, want: []string{"192.0.2.10 is the address of node a, 192.0.2.11 is the address of node b"}},
		"its second family":   {entries: []string{"192.0.2.1", "fd00::/64"}, want: []string{"fd00::a is the address of node a"}},
		"excluded":            {entries: []string{"192.0.2.0/24"}, exclude: []string{"192.0.2.8/29"}},
		"one of two excluded": {entries: []string{"192.0.2.0/24"}, exclude: []string{"192.0.2.10"}, want: []string{"spec.addresses: 192.0.2.11 is the address of node b: clients"}},
		"a part of a network": {entries: []string{"10.244.1.7"}, want: []string{"10.244.1.0/24 is a Pod network", "gantry.exclude"}},
		"around a network":    {entries: []string{"10.0.0.0/8"}, want: []string{"10.96.0.0/16 is the Service network", "10.244.1.0/24 is a Pod network"}},
		"many":                {entries: []string{"1.0.0.0-192.255.255.255"}, want: []string{"10.96.0.0/16", "and 1 more"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := newTestIPAddressPool("p", 0, tc.entries...)
			if len(tc.exclude) > 0 {
				p.Spec.Gantry = &v1beta1.PoolExtension{Exclude: tc.exclude}
			}
			s, problems := BuildSnapshot(ConfigurationObjects{Pools: []v1beta1.IPAddressPool{p, newTestIPAddressPool("q", 0, "203.0.113.0/24")}, ClusterAddresses: cluster})
			if len(s.PoolByName("p").Ranges) != len(tc.entries) {
				t.Errorf("the pool has %v, want all of %v", s.PoolByName("p").Ranges, tc.entries)
			}
			if len(tc.want) == 0 && len(problems) == 0 {
				return
			}
			if len(problems) != 1 || problems[0].Reason != names.ReasonClusterAddress || problems[0].Object.Name != "p" || len(tc.want) == 0 {
				t.Fatalf("the problems are %v, want one with %q", problems, tc.want)
			}
			for _, w := range tc.want {
				if !strings.Contains(problems[0].Text, w) {
					t.Errorf("the text is %q, want %q", problems[0].Text, w)
				}
			}
		})
	}
}
