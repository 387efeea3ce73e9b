package v1beta1_test

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// poolWithExtension returns a pool with this under spec.gantry.
func poolWithExtension(e v1beta1.PoolExtension) *v1beta1.IPAddressPool {
	p := newPool("192.0.2.0/24")
	p.Spec.Gantry = &e
	return p
}

func testInvalidPoolExtensionsAreRefused(t *testing.T, c client.Client) {
	ten, less := int32(10), int32(-1)
	duration := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	var many []string
	for range 1024 {
		many = append(many, "2001:0db8:0000:0000:0000:0000:0000:0001-2001:0db8:0000:0000:0000:0000:0000:ffff")
	}
	for name, tc := range map[string]struct {
		in   v1beta1.PoolExtension
		want []string // nil: accepted
	}{
		"nothing": {},
		"everything": {in: v1beta1.PoolExtension{
			Exclude: []string{"192.0.2.0/30", "192.0.2.9 - 192.0.2.12", "192.0.2.255"}, Order: "Hash", Cooldown: duration(5 * time.Minute), MaxPerService: 16, Sharing: "Namespace",
			Quota:  &v1beta1.PoolQuota{PerNamespace: &ten, Namespaces: []v1beta1.NamespaceQuota{{Namespace: "a", Addresses: 0}}},
			Probe:  &v1beta1.PoolAcquireProbe{Quarantine: duration(time.Hour)},
			Retire: &v1beta1.PoolRetirement{Addresses: []string{"192.0.2.16/28", "192.0.2.40-192.0.2.50"}, ServicesPerMinute: 10},
		}},
		"the whole pool is retired": {in: v1beta1.PoolExtension{Retire: &v1beta1.PoolRetirement{}}},
		"a retired name":            {in: v1beta1.PoolExtension{Retire: &v1beta1.PoolRetirement{Addresses: []string{"all"}}}, want: []string{"'all' is no CIDR"}},
		"too many in a minute":      {in: v1beta1.PoolExtension{Retire: &v1beta1.PoolRetirement{ServicesPerMinute: 6001}}, want: []string{"spec.gantry.retire.servicesPerMinute"}},
		"the longest list":          {in: v1beta1.PoolExtension{Exclude: many}},
		"a quarantine of no time":   {in: v1beta1.PoolExtension{Probe: &v1beta1.PoolAcquireProbe{Quarantine: duration(0)}}, want: []string{"quarantine is between 1s and 8760h"}},
		"a list that is too long":   {in: v1beta1.PoolExtension{Exclude: append(many, "192.0.2.1")}, want: []string{"spec.gantry.exclude", "1024"}},
		"an exclusion that is none": {in: v1beta1.PoolExtension{Exclude: []string{"gateway"}}, want: []string{"'gateway' is no CIDR"}},
		"too many for a Service":    {in: v1beta1.PoolExtension{MaxPerService: 17}, want: []string{"spec.gantry.maxPerService"}},
		"another kind of sharing":   {in: v1beta1.PoolExtension{Sharing: "Node"}, want: []string{"spec.gantry.sharing", "Namespace"}},
		"another order":             {in: v1beta1.PoolExtension{Order: "Random"}, want: []string{"spec.gantry.order", "RoundRobin"}},
		"a cool-down below zero":    {in: v1beta1.PoolExtension{Cooldown: duration(-time.Second)}, want: []string{"cooldown is between 0s and 8760h"}},
		"a quota below zero":        {in: v1beta1.PoolExtension{Quota: &v1beta1.PoolQuota{PerNamespace: &less}}, want: []string{"spec.gantry.quota.perNamespace"}},
		"a namespace named twice": {
			in:   v1beta1.PoolExtension{Quota: &v1beta1.PoolQuota{Namespaces: []v1beta1.NamespaceQuota{{Namespace: "a"}, {Namespace: "a"}}}},
			want: []string{"spec.gantry.quota.namespaces", "Duplicate"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.want != nil {
				checkCreationIsRefusedWithTexts(t, c, poolWithExtension(tc.in), tc.want...)
				return
			}
			p := poolWithExtension(tc.in)
			if err := c.Create(context.Background(), p); err != nil {
				t.Fatal(err)
			}
			if _, problems := snapshot.BuildSnapshot(snapshot.ConfigurationObjects{Pools: []v1beta1.IPAddressPool{*p}}); len(problems) > 0 {
				t.Errorf("it is accepted, but the controller says %v", problems)
			}
		})
	}
}

func testInvalidReservationsAreRefused(t *testing.T, c client.Client) {
	in := func(edit func(*v1alpha1.AddressReservationSpec)) *v1alpha1.AddressReservation {
		r := &v1alpha1.AddressReservation{Spec: v1alpha1.AddressReservationSpec{Service: v1alpha1.ServiceReference{Namespace: "shop", Name: "web"}}}
		r.Namespace, r.GenerateName = names.DefaultNamespace, "r-"
		edit(&r.Spec)
		return r
	}
	for name, tc := range map[string]struct {
		edit func(*v1alpha1.AddressReservationSpec)
		want []string
	}{
		"what the Service has": {edit: func(*v1alpha1.AddressReservationSpec) {}},
		"two addresses":        {edit: func(s *v1alpha1.AddressReservationSpec) { s.Addresses = []string{"192.0.2.1", "2001:db8::1"} }},
		"one of a pool, until a time": {edit: func(s *v1alpha1.AddressReservationSpec) {
			s.Pool, s.Expires = "first-pool", &metav1.Time{Time: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
		}},
		"a CIDR":           {edit: func(s *v1alpha1.AddressReservationSpec) { s.Addresses = []string{"192.0.2.0/24"} }, want: []string{"'192.0.2.0/24' is no address"}},
		"addresses twice":  {edit: func(s *v1alpha1.AddressReservationSpec) { s.Addresses = []string{"192.0.2.1", "192.0.2.1"} }, want: []string{"Duplicate"}},
		"a pool beside it": {edit: func(s *v1alpha1.AddressReservationSpec) { s.Addresses, s.Pool = []string{"192.0.2.1"}, "a" }, want: []string{"name addresses or a pool, not both"}},
		"no Service":       {edit: func(s *v1alpha1.AddressReservationSpec) { s.Service.Name = "" }, want: []string{"spec.service.name"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.want != nil {
				checkCreationIsRefusedWithTexts(t, c, in(tc.edit), tc.want...)
				return
			}
			if err := c.Create(context.Background(), in(tc.edit)); err != nil {
				t.Fatal(err)
			}
		})
	}
}
