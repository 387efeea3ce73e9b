package allocate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

func parseAddresses(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// newPool returns an unrestricted pool with these entries, which gives a Service as many addresses
// as it asks for.
func newPool(t testing.TB, name string, entries ...string) *snapshot.Pool {
	t.Helper()
	p := &snapshot.Pool{Name: name, AutoAssign: true, MaxAddressesPerService: 16}
	for _, e := range entries {
		r, err := snapshot.ParseRange(e)
		if err != nil {
			t.Fatal(err)
		}
		p.Ranges = append(p.Ranges, r)
	}
	return p
}

// newService returns a Service with an IPv4 cluster IP, changed by the edits.
func newService(name string, edits ...func(*view.Service)) *view.Service {
	s := &view.Service{
		Key: view.ObjectKey{Namespace: "default", Name: name}, IsLoadBalancer: true, ClusterIPs: parseAddresses("10.96.0.9"),
		PrimaryFamily: ipfamily.IPv4, FamilyPolicy: view.SingleStack, Ports: []view.Port{{Protocol: "TCP", Number: 80}},
	}
	for _, e := range edits {
		e(s)
	}
	return s
}

func withDualStack(policy view.FamilyPolicy) func(*view.Service) {
	return func(s *view.Service) { s.ClusterIPs, s.FamilyPolicy = parseAddresses("10.96.0.9", "fd00::9"), policy }
}

func withRequestedPool(pool string) func(*view.Service) {
	return func(s *view.Service) { s.RequestedPool = pool }
}

func withRequestedAddresses(texts ...string) func(*view.Service) {
	return func(s *view.Service) { s.RequestedAddresses = parseAddresses(texts...) }
}

func withSharingKeyAndPort(key string, port uint16) func(*view.Service) {
	return func(s *view.Service) {
		s.SharingKey, s.Ports = key, []view.Port{{Protocol: "TCP", Number: port}}
	}
}

// newPoolWithoutAutoAssign returns a pool that is used only when a Service names it or its address.
func newPoolWithoutAutoAssign(t *testing.T) *snapshot.Pool {
	p := newPool(t, "reserved", "192.0.2.64/30")
	p.AutoAssign = false
	return p
}

// newPoolWithPriority returns a pool with a priority. It is restricted to the namespace, if there
// is one.
func newPoolWithPriority(t *testing.T, name string, priority int, namespace, entry string) *snapshot.Pool {
	p := newPool(t, name, entry)
	p.ServiceAllocation = &snapshot.ServiceAllocation{Priority: priority}
	if namespace != "" {
		p.ServiceAllocation.Namespaces, p.ServiceAllocation.OnlyListedNamespaces = []string{namespace}, true
	}
	return p
}

type decideCase struct {
	pools                  func(t *testing.T) []*snapshot.Pool
	servicesAssignedBefore []*view.Service // served first, in this order
	service                *view.Service
	wantAddresses          string
	wantReason             names.Reason
	wantText               string
}

var decideCases = map[string]decideCase{
	"the first address of the first entry is given first": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.8/29")} },
		service: newService("s"), wantAddresses: "192.0.2.8", wantReason: names.ReasonAssigned,
	},
	"entries are used in their order, not by size": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{newPool(t, "a", "192.0.2.200-192.0.2.201", "192.0.2.1")}
		},
		service: newService("s"), wantAddresses: "192.0.2.200", wantReason: names.ReasonAssigned,
	},
	"addresses that end in 0 and 255 are passed over where the pool says so": {
		pools: func(t *testing.T) []*snapshot.Pool {
			p := newPool(t, "a", "192.0.2.255-192.0.3.4")
			p.AvoidBuggyIPs = true
			return []*snapshot.Pool{p}
		},
		service: newService("s"), wantAddresses: "192.0.3.1", wantReason: names.ReasonAssigned,
	},
	"without pools the Reason is NoPools": {
		pools:   func(*testing.T) []*snapshot.Pool { return nil },
		service: newService("s"), wantReason: names.ReasonNoPools, wantText: "no IPAddressPool exists",
	},
	"a reserved pool is not used unasked": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPoolWithoutAutoAssign(t)} },
		service: newService("s"), wantReason: names.ReasonNoEligiblePool,
	},
	"a reserved pool is used when named": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPoolWithoutAutoAssign(t)} },
		service: newService("s", withRequestedPool("reserved")), wantAddresses: "192.0.2.64", wantReason: names.ReasonAssigned,
	},
	"a pool that does not exist is named in the answer": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPoolWithoutAutoAssign(t)} },
		service: newService("s", withRequestedPool("nowhere")), wantReason: names.ReasonPoolNotFound, wantText: `"nowhere"`,
	},
	"a restricted pool of a better priority comes before unrestricted ones": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{newPool(t, "a", "192.0.2.1"), newPoolWithPriority(t, "b", 0, "", "192.0.2.2"), newPoolWithPriority(t, "c", 7, "default", "192.0.2.3")}
		},
		service: newService("s"), wantAddresses: "192.0.2.3", wantReason: names.ReasonAssigned,
	},
	"a pool restricted to another namespace is never used": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{newPoolWithPriority(t, "b", 1, "other", "192.0.2.2")}
		},
		service: newService("s", withRequestedPool("b")), wantReason: names.ReasonPoolNotAllowed,
	},
	"an address that is asked for is given, of a reserved pool too": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPoolWithoutAutoAssign(t)} },
		service: newService("s", withRequestedAddresses("192.0.2.66")), wantAddresses: "192.0.2.66", wantReason: names.ReasonAssigned,
	},
	"an address in use is refused with its holder's name": {
		pools:                  func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.1")} },
		servicesAssignedBefore: []*view.Service{newService("first")},
		service:                newService("s", withRequestedAddresses("192.0.2.1")), wantReason: names.ReasonAddressInUse, wantText: "default/first",
	},
	"an address of the wrong family is refused": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "fd00:1::/120")} },
		service: newService("s", withRequestedAddresses("fd00:1::1")), wantReason: names.ReasonFamilyMismatch,
	},
	"Services with one key and other ports share the lowest address": {
		pools:                  func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.1-192.0.2.2")} },
		servicesAssignedBefore: []*view.Service{newService("first", withSharingKeyAndPort("k", 80))},
		service:                newService("s", withSharingKeyAndPort("k", 443)), wantAddresses: "192.0.2.1", wantReason: names.ReasonAssigned,
	},
	"Services with one key and one port do not": {
		pools:                  func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.1-192.0.2.2")} },
		servicesAssignedBefore: []*view.Service{newService("first", withSharingKeyAndPort("k", 80))},
		service:                newService("s", withSharingKeyAndPort("k", 80)), wantAddresses: "192.0.2.2", wantReason: names.ReasonAssigned,
	},
	"both families come from one pool": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{newPool(t, "a", "192.0.2.1"), newPool(t, "b", "192.0.2.9", "fd00:1::1")}
		},
		service: newService("s", withDualStack(view.RequireDualStack)), wantAddresses: "192.0.2.9 fd00:1::1", wantReason: names.ReasonAssigned,
	},
	"one family is enough for PreferDualStack": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.1")} },
		service: newService("s", withDualStack(view.PreferDualStack)), wantAddresses: "192.0.2.1", wantReason: names.ReasonAssigned,
	},
	"one family is not enough for RequireDualStack": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.1")} },
		service: newService("s", withDualStack(view.RequireDualStack)), wantReason: names.ReasonPoolExhausted,
	},
	"a full pool is named": {
		pools:                  func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.1")} },
		servicesAssignedBefore: []*view.Service{newService("first")},
		service:                newService("s"), wantReason: names.ReasonPoolExhausted, wantText: "(a)",
	},
	"a headless Service gets nothing": {
		pools:   func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "a", "192.0.2.1")} },
		service: newService("s", func(s *view.Service) { s.ClusterIPs = nil }), wantReason: names.ReasonNoClusterIP,
	},
}

func TestDecideAssignmentOfNewService(t *testing.T) {
	for name, tc := range decideCases {
		t.Run(name, func(t *testing.T) {
			snap := &snapshot.Snapshot{Pools: tc.pools(t)}
			l := NewLedger()
			for _, s := range tc.servicesAssignedBefore {
				d := DecideAssignment(s, l, snap)
				l.CommitAssignment(s, d.Addresses, d.PoolOfFirstAddress)
			}
			d := DecideAssignment(tc.service, l, snap)
			if got := strings.ReplaceAll(view.JoinAddresses(d.Addresses), ",", ""); got != tc.wantAddresses || d.Reason != tc.wantReason || !strings.Contains(d.Text, tc.wantText) {
				t.Errorf("got %q, %s: %s; want %q, %s with %q", got, d.Reason, d.Text, tc.wantAddresses, tc.wantReason, tc.wantText)
			}
		})
	}
}

func TestAssignedAddressStays(t *testing.T) {
	before := &snapshot.Snapshot{Pools: []*snapshot.Pool{newPool(t, "a", "192.0.2.1-192.0.2.9")}}
	tests := map[string]struct {
		after      *snapshot.Snapshot
		edit       func(*view.Service)
		want       string
		wantReason names.Reason
	}{
		"when its pool shrinks":                       {after: &snapshot.Snapshot{Pools: []*snapshot.Pool{newPool(t, "a", "192.0.2.8-192.0.2.9")}}, want: "192.0.2.1", wantReason: names.ReasonAddressNotInPool},
		"when all pools are gone":                     {after: &snapshot.Snapshot{}, want: "192.0.2.1", wantReason: names.ReasonAddressNotInPool},
		"when its pool is renamed":                    {after: &snapshot.Snapshot{Pools: []*snapshot.Pool{newPool(t, "b", "192.0.2.0/24")}}, want: "192.0.2.1", wantReason: names.ReasonAssigned},
		"when a better pool appears":                  {after: &snapshot.Snapshot{Pools: []*snapshot.Pool{newPool(t, "Z", "198.51.100.0/24"), newPool(t, "a", "192.0.2.0/24")}}, want: "192.0.2.1", wantReason: names.ReasonAssigned},
		"when its Service asks for what is not there": {after: before, edit: withRequestedAddresses("203.0.113.1"), want: "192.0.2.1", wantReason: names.ReasonAddressNotInPool},
		"when its Service's annotation is malformed":  {after: before, edit: func(s *view.Service) { s.InvalidRequestText = "no address" }, want: "192.0.2.1", wantReason: names.ReasonInvalidRequest},
		"until its Service asks for another":          {after: before, edit: withRequestedAddresses("192.0.2.5"), want: "192.0.2.5", wantReason: names.ReasonAssigned},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			l, s := NewLedger(), newService("s")
			d := DecideAssignment(s, l, before)
			l.CommitAssignment(s, d.Addresses, d.PoolOfFirstAddress)
			if tc.edit != nil {
				tc.edit(s)
			}
			d = DecideAssignment(s, l, tc.after)
			if view.JoinAddresses(d.Addresses) != tc.want || d.Reason != tc.wantReason {
				t.Errorf("got %s, %s: %s; want %s, %s", view.JoinAddresses(d.Addresses), d.Reason, d.Text, tc.want, tc.wantReason)
			}
		})
	}
}

// TestRandomAssignmentsKeepLedgerConsistent serves and releases Services at random. After each step
// it checks that no two Services hold an address that they may not share, and that released
// addresses are assigned again, the lowest first.
func TestRandomAssignmentsKeepLedgerConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &snapshot.Pool{Name: "a", AutoAssign: true, Ranges: []snapshot.Range{{First: netip.MustParseAddr("192.0.2.250"), Last: netip.MustParseAddr("192.0.3.9")}}}
		p.AvoidBuggyIPs = rapid.Bool().Draw(t, "avoid")
		snap := &snapshot.Snapshot{Pools: []*snapshot.Pool{p}}
		l := NewLedger()
		live := map[string]*view.Service{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			name := fmt.Sprintf("s%d", rapid.IntRange(0, 25).Draw(t, "service"))
			if live[name] != nil && rapid.Bool().Draw(t, "release") {
				l.ReleaseService(live[name].Key)
				delete(live, name)
				continue
			}
			s := newService(name)
			if k := rapid.SampledFrom([]string{"", "k", "m"}).Draw(t, "key"); k != "" {
				withSharingKeyAndPort(k, rapid.SampledFrom([]uint16{80, 443}).Draw(t, "port"))(s)
			}
			if live[name] == nil {
				live[name] = s
			}
			d := DecideAssignment(live[name], l, snap)
			l.CommitAssignment(live[name], d.Addresses, d.PoolOfFirstAddress)
		}
		for i, held := range l.holderTable.addressBySlot {
			if l.holderTable.encodedHoldersBySlot[i] == 0 {
				continue
			}
			a := held.toNetip()
			keys := l.HoldersOfAddress(a)
			if !p.CanAssignAddress(a) {
				t.Fatalf("%s is held and not of the pool", a)
			}
			for i, k := range keys {
				for _, o := range keys[i+1:] {
					if sharingPropertiesOf(live[k.Name]).explainConflictWith(sharingPropertiesOf(live[o.Name])).IsSet() {
						t.Fatalf("%s is held by %s and %s, which may not share it", a, k, o)
					}
				}
			}
		}
		fresh := newService("fresh")
		d := DecideAssignment(fresh, l, snap)
		for a := p.Ranges[0].First; a.Compare(p.Ranges[0].Last) <= 0; a = a.Next() {
			if len(l.HoldersOfAddress(a)) == 0 && p.CanAssignAddress(a) {
				if !slices.Equal(d.Addresses, []netip.Addr{a}) {
					t.Fatalf("got %v, want the lowest free address %s", d.Addresses, a)
				}
				return
			}
		}
		if len(d.Addresses) > 0 {
			t.Fatalf("got %v from a full pool", d.Addresses)
		}
	})
}

func TestServiceSelectorsRestrictAPool(t *testing.T) {
	p := newPool(t, "a", "192.0.2.1")
	p.ServiceAllocation = &snapshot.ServiceAllocation{ServiceSelectors: []labels.Selector{labels.SelectorFromSet(labels.Set{"tier": "web"})}}
	snap := &snapshot.Snapshot{Pools: []*snapshot.Pool{p}}
	if d := DecideAssignment(newService("s"), NewLedger(), snap); d.Reason != names.ReasonNoEligiblePool {
		t.Errorf("a Service that no selector matches got %s", d.Reason)
	}
	web := newService("s", func(s *view.Service) { s.Labels = map[string]string{"tier": "web"} })
	if d := DecideAssignment(web, NewLedger(), snap); d.Reason != names.ReasonAssigned {
		t.Errorf("a Service that a selector matches got %s: %s", d.Reason, d.Text)
	}
}
