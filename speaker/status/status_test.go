package status

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
)

var (
	heldIPv4      = netip.MustParseAddr("192.168.0.201")
	heldIPv6      = netip.MustParseAddr("fd00:a8::201")
	webServiceKey = view.ObjectKey{Namespace: "default", Name: "web"}
	dnsServiceKey = view.ObjectKey{Namespace: "default", Name: "dns"}
	testStartTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	foreignMAC    = facts.MAC{2, 0, 0, 0, 0, 0x99}
	exampleLinks  = facts.LinkSet{{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, 2}}, {Index: 3, Name: "eth1", MAC: facts.MAC{2, 0, 0, 0, 0, 3}}}
)

// exampleInputs is node "a" with the Service web, which has two addresses, and the Service dns,
// which shares the first.
func exampleInputs(bindings ...intent.Binding) StatusInputs {
	return StatusInputs{
		Self: "a", UsableLinks: exampleLinks, GossipFaults: GossipFaults{UnreachableNodes: []string{"b"}}, HeldBindings: bindings,
		Plan: plan.Plan{Layer2Verdicts: plan.NewSortedList(
			&plan.Layer2Verdict{Service: webServiceKey, Addresses: []netip.Addr{heldIPv6, heldIPv4}}, &plan.Layer2Verdict{Service: dnsServiceKey, Addresses: []netip.Addr{heldIPv4}},
		)},
	}
}

// formatHeldServices returns a line for each Service.
func formatHeldServices(all []HeldService) string {
	var b strings.Builder
	for _, a := range all {
		fmt.Fprintf(&b, "%s: %v whole=%v on %v\n", a.Service, a.Addresses, a.HoldsAllAddresses, a.InterfaceNamesOrEmptyForAll)
	}
	return b.String()
}

func TestBuildHeldServices(t *testing.T) {
	both := []int{2, 3}
	tests := map[string]struct {
		bindings []intent.Binding
		want     string
	}{
		"nothing held": {nil, ""},
		"every address, on all links": {[]intent.Binding{{Address: heldIPv4, LinkIndexes: both}, {Address: heldIPv6, LinkIndexes: both}},
			"default/dns: [192.168.0.201] whole=true on []\ndefault/web: [192.168.0.201 fd00:a8::201] whole=true on []\n"},
		"one family, on one link":                 {[]intent.Binding{{Address: heldIPv6, LinkIndexes: []int{3}}}, "default/web: [fd00:a8::201] whole=false on [eth1]\n"},
		"an address that no Service has any more": {[]intent.Binding{{Address: netip.MustParseAddr("10.0.0.1"), LinkIndexes: both}}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, formatHeldServices(BuildHeldServices(exampleInputs(tt.bindings...)))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestDiffOfServiceL2Statuses(t *testing.T) {
	in := exampleInputs(intent.Binding{Address: heldIPv4, LinkIndexes: []int{2, 3}})
	want := BuildHeldServices(in) // web in part, dns completely
	written := func(e ServiceL2StatusKey, edit func(w *ExistingServiceL2Status)) ExistingServiceL2Status {
		w := ExistingServiceL2Status{ServiceL2StatusKey: e, ExistingObjectName: e.ObjectName(), Status: HeldService{ServiceL2StatusKey: e, Addresses: []netip.Addr{heldIPv4}}.ToServiceL2Status()}
		if edit != nil {
			edit(&w)
		}
		return w
	}
	mine := []ExistingServiceL2Status{written(ServiceL2StatusKey{webServiceKey, "a"}, nil), written(ServiceL2StatusKey{dnsServiceKey, "a"}, nil)}
	old := view.ObjectKey{Namespace: "default", Name: "old"}
	tests := map[string]struct {
		have   []ExistingServiceL2Status
		write  []view.ObjectKey
		remove []string
	}{
		"nothing is written yet":                         {nil, []view.ObjectKey{dnsServiceKey, webServiceKey}, nil},
		"everything is written already":                  {mine, nil, nil},
		"another node holds a part of a Service":         {append(slices.Clone(mine), written(ServiceL2StatusKey{webServiceKey, "b"}, func(w *ExistingServiceL2Status) { w.Status.Gantry.Addresses = []string{heldIPv6.String()} })), nil, nil},
		"a dead node's entry of addresses that we hold":  {append(slices.Clone(mine), written(ServiceL2StatusKey{webServiceKey, "b"}, nil)), nil, []string{ServiceL2StatusKey{webServiceKey, "b"}.ObjectName()}},
		"another node's entry without a status yet":      {append(slices.Clone(mine), written(ServiceL2StatusKey{webServiceKey, "b"}, func(w *ExistingServiceL2Status) { w.Status.Gantry.Addresses = nil })), nil, nil},
		"a dead node's entry of a Service we hold whole": {append(slices.Clone(mine), written(ServiceL2StatusKey{dnsServiceKey, "b"}, nil)), nil, []string{ServiceL2StatusKey{dnsServiceKey, "b"}.ObjectName()}},
		"another node's Service":                         {append(slices.Clone(mine), written(ServiceL2StatusKey{old, "b"}, nil)), nil, nil},
		"our entry of a Service we do not hold":          {append(slices.Clone(mine), written(ServiceL2StatusKey{old, "a"}, nil)), nil, []string{ServiceL2StatusKey{old, "a"}.ObjectName()}},
		"our entry under a name of other software":       {append(slices.Clone(mine), written(ServiceL2StatusKey{webServiceKey, "a"}, func(w *ExistingServiceL2Status) { w.ExistingObjectName = "l2-x7f2k" })), nil, []string{"l2-x7f2k"}},
		"other interfaces": {[]ExistingServiceL2Status{mine[0], written(ServiceL2StatusKey{dnsServiceKey, "a"}, func(w *ExistingServiceL2Status) {
			w.Status.Interfaces = append(w.Status.Interfaces, HeldService{InterfaceNamesOrEmptyForAll: []string{"eth7"}}.ToServiceL2Status().Interfaces...)
		})},
			[]view.ObjectKey{dnsServiceKey}, nil},
		"no status yet": {[]ExistingServiceL2Status{mine[0], written(ServiceL2StatusKey{dnsServiceKey, "a"}, func(w *ExistingServiceL2Status) { w.Status.Gantry = nil })}, []view.ObjectKey{dnsServiceKey}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			write, remove := DiffServiceL2Statuses("a", want, tt.have)
			var keys []view.ObjectKey
			for _, a := range write {
				keys = append(keys, a.Service)
			}
			if !slices.Equal(keys, tt.write) || !slices.Equal(remove, tt.remove) {
				t.Errorf("write %v, remove %v; want %v, %v", keys, remove, tt.write, tt.remove)
			}
		})
	}
}

// The network and the broadcast address of a subnet are announced like others, and the status says
// what they are: clients in the subnet cannot connect to them.
func TestNetworkAndBroadcastAddressesAreReported(t *testing.T) {
	for text, want := range map[string]string{
		"192.168.0.0/24 192.168.0.255":   "192.168.0.255 of 192.168.0.0/24",
		"192.168.0.9/24 192.168.0.0":     "192.168.0.0 of 192.168.0.0/24",
		"10.1.2.3/30 10.1.2.3":           "10.1.2.3 of 10.1.2.0/30",
		"192.168.0.9/23 192.168.0.255":   "",
		"192.168.0.9/24 192.168.0.254":   "",
		"192.168.0.9/24 192.168.1.255":   "",
		"10.1.2.2/31 10.1.2.3":           "",
		"10.1.2.3/32 10.1.2.3":           "",
		"fd00::9/64 fd00::":              "",
		"255.255.255.1/24 255.255.255.0": "255.255.255.0 of 255.255.255.0/24",
		"0.0.0.1/0 255.255.255.255":      "255.255.255.255 of 0.0.0.0/0",
	} {
		subnet, address, _ := strings.Cut(text, " ")
		a := netip.MustParseAddr(address)
		in := exampleInputs(intent.Binding{Address: a, LinkIndexes: []int{2, 3}})
		in.UsableLinks = slices.Clone(exampleLinks)
		in.UsableLinks[1].AddressesWithPrefixLength = []netip.Prefix{netip.MustParsePrefix(subnet)}
		in.Plan.Layer2Verdicts = plan.NewSortedList(&plan.Layer2Verdict{Service: webServiceKey, Addresses: []netip.Addr{a}})
		got := ""
		written := BuildHeldServices(in)[0].ToServiceL2Status()
		for _, r := range written.Gantry.ReservedAddresses {
			got += r.Address + " of " + r.Subnet
		}
		if got != want {
			t.Errorf("%s: reported is %q, want %q", text, got, want)
		}
		// An object without the report is written again.
		old := *written.Gantry
		old.ReservedAddresses = nil
		before := written
		before.Gantry = &old
		if same := equalServiceL2Status(before, written); same != (want == "") {
			t.Errorf("%s: the written object counts as equal: %t", text, same)
		}
	}
}

func TestConflictsAreListedUntilHostIsSilent(t *testing.T) {
	var c Conflicts
	if !c.RecordConflict(heldIPv4, foreignMAC, testStartTime) || c.RecordConflict(heldIPv4, foreignMAC, testStartTime.Add(time.Second)) {
		t.Error("a repeated claim counts as new, or a new one does not")
	}
	for i := range 100 {
		c.RecordConflict(heldIPv6, facts.MAC{2, 0xee, byte(i)}, testStartTime)
	}
	if n := len(c.OfAddress(heldIPv6)); n != 16 {
		t.Errorf("%d claims of forged hosts are kept, want 16", n)
	}
	if c.ForgetExpired(testStartTime.Add(30 * time.Second)) {
		t.Error("a claim is over too soon")
	}
	if !c.ForgetExpired(testStartTime.Add(60*time.Second)) || len(c.OfAddress(heldIPv6)) != 0 || len(c.OfAddress(heldIPv4)) != 1 {
		t.Errorf("after a minute: %v, want the one that went on", c.All())
	}
	in := exampleInputs(intent.Binding{Address: heldIPv4, LinkIndexes: []int{2}})
	in.HeldAddressConflicts = &c
	got := BuildHeldServices(in)[0].ToServiceL2Status().Gantry.Conflicts
	if len(got) != 1 || got[0].Address != "192.168.0.201" || got[0].MAC != "02:00:00:00:00:99" || !got[0].Since.Equal(&metav1.Time{Time: testStartTime}) {
		t.Errorf("the status says %+v", got)
	}
	if k := speakerCondition(in, names.ConditionHeldAddressesUncontested); k.Status != metav1.ConditionFalse || !strings.Contains(k.Message, "192.168.0.201 by 02:00:00:00:00:99") {
		t.Errorf("the condition is %+v", k)
	}
	c.ForgetOtherAddresses(map[netip.Addr]bool{heldIPv6: true})
	if len(c.All()) != 0 || speakerCondition(in, names.ConditionHeldAddressesUncontested).Status != metav1.ConditionTrue {
		t.Error("a claim to an address that is not held any more is no conflict")
	}
}

func speakerCondition(in StatusInputs, kind string) metav1.Condition {
	for _, c := range BuildSpeakerStatus(in).Conditions {
		if c.Type == kind {
			return c
		}
	}
	return metav1.Condition{}
}

// TestSpeakerStatusDescribesSubnets checks what tells others for which addresses a node could
// answer.
func TestSpeakerStatusDescribesSubnets(t *testing.T) {
	link := func(index int, name string, addresses ...string) facts.Link {
		l := facts.Link{Index: index, Name: name, MAC: facts.MAC{2, 0, 0, 0, 0, byte(index)}}
		for _, a := range addresses {
			l.AddressesWithPrefixLength = append(l.AddressesWithPrefixLength, netip.MustParsePrefix(a))
		}
		return l
	}
	down := link(4, "eth2", "198.51.100.2/25", "198.51.100.3/25")
	down.IsDown = true
	in := exampleInputs()
	in.UsableLinks = facts.LinkSet{link(2, "eth0", "192.0.2.2/24", "fe80::2/64", "192.0.2.3/32"), link(3, "eth1", "fd00::2/64")}
	in.DownLinks, in.SkippedLinks = facts.LinkSet{down}, []facts.SkippedLink{{Name: "eth2", Reason: facts.SkippedDownOrNoCarrier}}
	describe := func() (lines []string) {
		for _, l := range BuildSpeakerStatus(in).Links {
			lines = append(lines, fmt.Sprint(l.Name, " ", l.Reason, l.Families, l.Subnets))
		}
		return lines
	}
	if diff := cmp.Diff([]string{"eth0 [IPv4 IPv6] [192.0.2.0/24]", "eth1 [IPv4 IPv6] [fd00::/64]", "eth2 LinkDown[IPv4] [198.51.100.0/25]"}, describe()); diff != "" {
		t.Errorf("links (-want +got)\n%s", diff)
	}
	in.UsableLinks, in.DownLinks, in.SkippedLinks = in.UsableLinks[1:], nil, nil
	in.Plan.NodeInternalIPs = []netip.Addr{netip.MustParseAddr("2001:db8::1")}
	if diff := cmp.Diff([]string{"eth1 [IPv6] [fd00::/64]"}, describe()); diff != "" {
		t.Errorf("links of a node without IPv4 (-want +got)\n%s", diff)
	}
}

// TestCutListsSayHowManyAreLeftOut has more Services and conflicts than a SpeakerStatus lists, and
// a host that answers for the first address with many Ethernet addresses.
func TestCutListsSayHowManyAreLeftOut(t *testing.T) {
	in := exampleInputs()
	for i := range maxListEntriesInSpeakerStatus + 3 {
		in.ServicesAwaitingProxy = append(in.ServicesAwaitingProxy, view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("s%04d", i)})
	}
	var conflicts Conflicts
	now := time.Unix(1_700_000_000, 0)
	for i := range conflictsPerAddressLimit {
		conflicts.RecordConflict(netip.MustParseAddr("192.0.2.1"), facts.MAC{2, 0, 0, 0, 0, byte(i)}, now)
	}
	for i := range 40 {
		conflicts.RecordConflict(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), facts.MAC{2, 0, 0, 0, 1, 1}, now)
	}
	in.AcquireConflicts = &conflicts
	s := BuildSpeakerStatus(in)
	if len(s.AwaitingProxy) != maxListEntriesInSpeakerStatus || s.AwaitingProxyOmitted != 3 {
		t.Errorf("%d Services await kube-proxy, and %d are left out, want %d and 3", len(s.AwaitingProxy), s.AwaitingProxyOmitted, maxListEntriesInSpeakerStatus)
	}
	if len(s.Conflicts) != 41 || s.Conflicts[0].MAC != "02:00:00:00:00:00" || s.ConflictsOmitted != 0 {
		t.Errorf("there are %d conflicts (%d are left out), want one for each of 41 addresses: %+v", len(s.Conflicts), s.ConflictsOmitted, s.Conflicts)
	}
	for i := range maxListEntriesInSpeakerStatus {
		conflicts.RecordConflict(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), facts.MAC{2, 0, 0, 0, 1, 1}, now)
	}
	if s := BuildSpeakerStatus(in); s.ConflictsOmitted != 41 {
		t.Errorf("%d conflicts are left out, want 41", s.ConflictsOmitted)
	}
}

func TestBuildSpeakerStatus(t *testing.T) {
	in := exampleInputs(intent.Binding{Address: heldIPv4, LinkIndexes: []int{2}})
	in.UsableLinks = slices.Clone(exampleLinks)
	in.UsableLinks[1].CannotSendIPv6 = true
	in.SendFaultByLinkIndex = map[int]string{3: "opening NDP socket on \"eth1\": no buffers"}
	in.SkippedLinks = []facts.SkippedLink{
		{Name: "br-port", Reason: facts.SkippedMemberOfMaster}, {Name: "eth2", Reason: facts.SkippedDownOrNoCarrier}, {Name: "storage0", Reason: facts.SkippedExcludedByName},
		{Name: "tap0", Reason: facts.SkippedNotBroadcastEthernet}, {Name: "veth1", Reason: facts.SkippedContainerNetwork}, {Name: "eth0", Reason: facts.SkippedDownOrNoCarrier},
	}
	s := BuildSpeakerStatus(in)
	var lines []string
	for _, l := range s.Links {
		lines = append(lines, strings.TrimSpace(fmt.Sprint(l.Name, " ", l.Usable, " ", l.Reason, " ", l.Message)))
	}
	want := []string{"br-port false LinkMember", "eth0 true", "eth1 false PortFailed opening NDP socket on \"eth1\": no buffers", "eth2 false LinkDown", "storage0 false LinkExcluded", "tap0 false LinkNoEthernet"}
	if diff := cmp.Diff(want, lines); diff != "" || s.Held != 1 || !slices.Equal(s.Unreachable, []string{"b"}) {
		t.Errorf("held %d, unreachable %v, links (-want +got)\n%s", s.Held, s.Unreachable, diff)
	}
	if l := s.Links[0]; l.Families != nil || l.Subnets != nil {
		t.Errorf("a link that is no candidate is described by %+v", l)
	}
	if c := speakerCondition(in, names.ConditionLayer2Usable); c.Status != metav1.ConditionTrue || c.Reason != string(names.ReasonUsable) {
		t.Errorf("the condition is %+v", c)
	}
	in.RawSocketDenialText = "raw sockets are not permitted"
	if c := speakerCondition(in, names.ConditionLayer2Usable); c.Reason != string(names.ReasonRawSocketDenied) || c.Status != metav1.ConditionFalse {
		t.Errorf("denied: the condition is %+v", c)
	}
	if l := BuildSpeakerStatus(in).Links[2]; l.Reason != string(names.ReasonRawSocketDenied) {
		t.Errorf("denied: the link is %+v", l)
	}
	in.RawSocketDenialText, in.UsableLinks = "", nil
	if c := speakerCondition(in, names.ConditionLayer2Usable); c.Reason != string(names.ReasonNoLinks) || c.Status != metav1.ConditionFalse {
		t.Errorf("without links: the condition is %+v", c)
	}
}
