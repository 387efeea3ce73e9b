package snapshot

import (
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

func newPeer(name string, age time.Duration, spec v1beta2.BGPPeerSpec) v1beta2.BGPPeer {
	if spec.MyASN == 0 {
		spec.MyASN = 64512
	}
	if spec.PeerASN == 0 && spec.DynamicASN == "" {
		spec.PeerASN = 64513
	}
	if spec.PeerAddress == "" && spec.Interface == "" {
		spec.PeerAddress = "192.0.2.1"
	}
	p := v1beta2.BGPPeer{Spec: spec}
	p.Name, p.Namespace = name, "metallb-system"
	p.CreationTimestamp = metav1.NewTime(time.Unix(1_000_000, 0).Add(-age))
	return p
}

func newBGPAdvertisement(name string, age time.Duration, spec v1beta1.BGPAdvertisementSpec) v1beta1.BGPAdvertisement {
	ad := v1beta1.BGPAdvertisement{Spec: spec}
	ad.Name, ad.Namespace = name, "metallb-system"
	ad.CreationTimestamp = metav1.NewTime(time.Unix(1_000_000, 0).Add(-age))
	return ad
}

func durationOfSeconds(n int) *metav1.Duration {
	return &metav1.Duration{Duration: time.Duration(n) * time.Second}
}

func int32Pointer(n int32) *int32 { return &n }

func selectorForLabel(key, value string) []metav1.LabelSelector {
	return []metav1.LabelSelector{{MatchLabels: map[string]string{key: value}}}
}

// problemReasonsOfKind lists the Reasons of Problems about objects of one kind.
func problemReasonsOfKind(problems []Problem, kind string) []names.Reason {
	var out []names.Reason
	for _, p := range problems {
		if p.Object.Kind == kind {
			out = append(out, p.Reason)
		}
	}
	return out
}

func TestMissingBGPTimersAreDerived(t *testing.T) {
	tests := map[string]struct {
		spec            v1beta2.BGPPeerSpec
		hold, keepalive time.Duration
	}{
		"neither":                       {hold: 90 * time.Second, keepalive: 30 * time.Second},
		"only the hold time":            {spec: v1beta2.BGPPeerSpec{HoldTime: durationOfSeconds(9)}, hold: 9 * time.Second, keepalive: 3 * time.Second},
		"only the keepalive time":       {spec: v1beta2.BGPPeerSpec{KeepaliveTime: durationOfSeconds(5)}, hold: 15 * time.Second, keepalive: 5 * time.Second},
		"both":                          {spec: v1beta2.BGPPeerSpec{HoldTime: durationOfSeconds(30), KeepaliveTime: durationOfSeconds(2)}, hold: 30 * time.Second, keepalive: 2 * time.Second},
		"never":                         {spec: v1beta2.BGPPeerSpec{HoldTime: durationOfSeconds(0), KeepaliveTime: durationOfSeconds(0)}},
		"fractions of a second are cut": {spec: v1beta2.BGPPeerSpec{HoldTime: &metav1.Duration{Duration: 3900 * time.Millisecond}}, hold: 3 * time.Second, keepalive: time.Second},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s, problems := BuildSnapshot(ConfigurationObjects{BGPPeers: []v1beta2.BGPPeer{newPeer("p", 0, tc.spec)}})
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			if p := s.PeerByName("p"); p.HoldTime != tc.hold || p.KeepaliveInterval != tc.keepalive || p.Port != 179 {
				t.Errorf("hold %s, keepalive %s, port %d; want %s, %s, 179", p.HoldTime, p.KeepaliveInterval, p.Port, tc.hold, tc.keepalive)
			}
		})
	}
}

func TestPeerWithMissingReferenceIsNotServed(t *testing.T) {
	secret := v1beta2.BGPPeerSpec{PasswordSecret: v1beta2.SecretReference{Name: "key"}}
	tests := map[string]struct {
		spec   v1beta2.BGPPeerSpec
		o      ConfigurationObjects
		reason names.Reason
		served bool
	}{
		"a Secret that is not there":          {spec: secret, reason: names.ReasonUnknownSecret},
		"a Secret without the entry":          {spec: secret, o: ConfigurationObjects{Secrets: []BasicAuthSecret{{Name: "key"}}}, reason: names.ReasonUnknownSecret},
		"a Secret with an empty password":     {spec: secret, o: ConfigurationObjects{Secrets: []BasicAuthSecret{{Name: "key", HasPassword: true}}}, reason: names.ReasonUnknownSecret},
		"a password that is too long":         {spec: secret, o: ConfigurationObjects{Secrets: []BasicAuthSecret{{Name: "key", HasPassword: true, Password: strings.Repeat("x", 81)}}}, reason: names.ReasonUnknownSecret},
		"a Secret with a password":            {spec: secret, o: ConfigurationObjects{Secrets: []BasicAuthSecret{{Name: "key", HasPassword: true, Password: "s"}}}, served: true},
		"a BFDProfile that is not there":      {spec: v1beta2.BGPPeerSpec{BFDProfile: "fast"}, reason: names.ReasonUnknownBFDProfile},
		"a password whose bytes are too many": {spec: v1beta2.BGPPeerSpec{Password: strings.Repeat("é", 41)}, reason: names.ReasonUnknownSecret},
		"a next hop that is no address":       {spec: v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{NextHops: []string{"eth0"}}}, reason: names.ReasonInvalidAddress},
		"a link-local next hop":               {spec: v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{NextHops: []string{"fe80::1"}}}, reason: names.ReasonInvalidAddress},
		"a next hop in two notations":         {spec: v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{NextHops: []string{"::ffff:192.0.2.1"}}}, reason: names.ReasonInvalidAddress},
		"a next hop of many hosts":            {spec: v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{NextHops: []string{"255.255.255.255"}}}, reason: names.ReasonInvalidAddress},
		"two next hops of one family":         {spec: v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{NextHops: []string{"192.0.2.1", "192.0.2.0/24"}}}, reason: names.ReasonInvalidAddress},
		"next hops of both families":          {spec: v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{NextHops: []string{"192.0.2.1", "2001:db8::/64"}}}, served: true},
		"no host's address":                   {spec: v1beta2.BGPPeerSpec{PeerAddress: "0.0.0.0"}, reason: names.ReasonInvalidAddress},
		"an address of many hosts":            {spec: v1beta2.BGPPeerSpec{PeerAddress: "ff02::5"}, reason: names.ReasonInvalidAddress},
		"no host's source address":            {spec: v1beta2.BGPPeerSpec{SourceAddress: "0.0.0.0"}, reason: names.ReasonInvalidAddress},
		"an address of every link":            {spec: v1beta2.BGPPeerSpec{PeerAddress: "fe80::1"}, reason: names.ReasonInvalidAddress},
		"an address of one link":              {spec: v1beta2.BGPPeerSpec{PeerAddress: "fe80::1", VRFName: "eth0"}, served: true},
		"a keepalive beyond the default hold": {spec: v1beta2.BGPPeerSpec{HoldTime: durationOfSeconds(3), KeepaliveTime: durationOfSeconds(4)}, reason: names.ReasonInvalidTimer},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			tc.o.BGPPeers = []v1beta2.BGPPeer{newPeer("p", 0, tc.spec), newPeer("sound", 0, v1beta2.BGPPeerSpec{PeerAddress: "192.0.2.2"})}
			s, problems := BuildSnapshot(tc.o)
			p, sound := s.PeerByName("p"), s.PeerByName("sound")
			if p == nil || sound == nil || sound.FirstProblem != nil || (p.FirstProblem == nil) != tc.served || p.FirstProblem != nil && p.FirstProblem.Reason != tc.reason {
				t.Errorf("the peer is %+v, the sound one %+v", p, sound)
			}
			if got := problemReasonsOfKind(problems, "BGPPeer"); !tc.served && !reflect.DeepEqual(got, []names.Reason{tc.reason}) {
				t.Errorf("the problems are %v, want %s", got, tc.reason)
			}
			// What was served before is served unchanged.
			tc.o.PreviousSnapshot = &Snapshot{Peers: []*Peer{{Name: "p", Password: "old"}}}
			if s, _ := BuildSnapshot(tc.o); !tc.served && (s.PeerByName("p").FirstProblem != nil || s.PeerByName("p").Password != "old") {
				t.Error("the last good state of the peer was lost")
			}
			// A faulty state is no last good state.
			tc.o.PreviousSnapshot = s
			if s, _ := BuildSnapshot(tc.o); (s.PeerByName("p").FirstProblem == nil) != tc.served {
				t.Errorf("after a second Build the peer is %+v", s.PeerByName("p"))
			}
		})
	}
}

func TestUnsupportedEchoModeIsReportedAndThePeerServed(t *testing.T) {
	yes := true
	profiles := []v1beta1.BFDProfile{{ObjectMeta: metav1.ObjectMeta{Name: "echo"}, Spec: v1beta1.BFDProfileSpec{EchoMode: &yes}}}
	for name, tc := range map[string]struct {
		spec v1beta2.BGPPeerSpec
		want []names.Reason
	}{
		"a router on a link":    {spec: v1beta2.BGPPeerSpec{}},
		"one several hops away": {spec: v1beta2.BGPPeerSpec{EBGPMultiHop: true}, want: []names.Reason{names.ReasonEchoUnsupported}},
		"a link-local one":      {spec: v1beta2.BGPPeerSpec{PeerAddress: "fe80::1", Interface: "eth0"}, want: []names.Reason{names.ReasonEchoUnsupported}},
		"an unnumbered session": {spec: v1beta2.BGPPeerSpec{Interface: "eth0"}, want: []names.Reason{names.ReasonEchoUnsupported}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.spec.BFDProfile = "echo"
			s, problems := BuildSnapshot(ConfigurationObjects{BGPPeers: []v1beta2.BGPPeer{newPeer("p", 0, tc.spec)}, BFDProfiles: profiles})
			if got := problemReasonsOfKind(problems, "BGPPeer"); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("the problems are %v, want %v", problems, tc.want)
			}
			if got := s.PeerByName("p"); got == nil || got.BFD == nil {
				t.Errorf("the peer is %+v, want it with BFD", got)
			}
		})
	}
}

func TestYoungerPeerWithSameSessionIsReported(t *testing.T) {
	tests := map[string]struct {
		younger v1beta2.BGPPeerSpec
		nodes   []NodeLabels
		want    []names.Reason
	}{
		"the same address":  {want: []names.Reason{names.ReasonDuplicatePeer}},
		"another port":      {younger: v1beta2.BGPPeerSpec{PeerPort: 1179}},
		"another source":    {younger: v1beta2.BGPPeerSpec{SourceAddress: "192.0.2.9"}},
		"no node in common": {younger: v1beta2.BGPPeerSpec{NodeSelectors: selectorForLabel("rack", "b")}, nodes: []NodeLabels{{Name: "n", Labels: map[string]string{"rack": "a"}}}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s, problems := BuildSnapshot(ConfigurationObjects{BGPPeers: []v1beta2.BGPPeer{newPeer("younger", 0, tc.younger), newPeer("older", time.Hour, v1beta2.BGPPeerSpec{})}, Nodes: tc.nodes})
			if got := problemReasonsOfKind(problems, "BGPPeer"); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("the problems are %v, want %v", problems, tc.want)
			}
			if len(s.Peers) != 2 || len(s.PeerByName("older").OlderPeersWithSameSession) > 0 {
				t.Errorf("the peers are %+v", s.Peers)
			}
			if got := s.PeerByName("younger").OlderPeersWithSameSession; (len(got) > 0) != (tc.younger.PeerPort == 0 && tc.younger.SourceAddress == "") {
				t.Errorf("the younger is a duplicate of %v", got)
			}
		})
	}
}

func TestBFDProfileOfOlderPeerWinsOnSamePath(t *testing.T) {
	profile := func(name string, interval uint32) v1beta1.BFDProfile {
		return v1beta1.BFDProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1beta1.BFDProfileSpec{TransmitInterval: &interval}}
	}
	for name, tc := range map[string]struct {
		younger v1beta2.BGPPeerSpec
		want    []names.Reason
		runs    time.Duration
	}{
		"another profile":                   {younger: v1beta2.BGPPeerSpec{BFDProfile: "slow"}, want: []names.Reason{names.ReasonConflictingBFD}, runs: 50 * time.Millisecond},
		"a profile with the same values":    {younger: v1beta2.BGPPeerSpec{BFDProfile: "fast too"}, runs: 50 * time.Millisecond},
		"another profile to another router": {younger: v1beta2.BGPPeerSpec{PeerAddress: "192.0.2.2", BFDProfile: "slow"}, runs: 900 * time.Millisecond},
		"from another address":              {younger: v1beta2.BGPPeerSpec{SourceAddress: "192.0.2.9", BFDProfile: "slow"}, runs: 900 * time.Millisecond},
		"no BFD":                            {},
	} {
		t.Run(name, func(t *testing.T) {
			tc.younger.PeerPort = 1179 // a session that the router can tell apart
			s, problems := BuildSnapshot(ConfigurationObjects{
				BGPPeers: []v1beta2.BGPPeer{
					newPeer("a younger", 0, tc.younger), newPeer("older", time.Hour, v1beta2.BGPPeerSpec{BFDProfile: "fast"}),
				},
				BFDProfiles: []v1beta1.BFDProfile{profile("fast", 50), profile("fast too", 50), profile("slow", 900)},
			})
			if got := problemReasonsOfKind(problems, "BGPPeer"); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("the problems are %v, want %v", problems, tc.want)
			}
			if b := s.PeerByName("a younger").BFD; (b == nil) != (tc.runs == 0) || b != nil && b.TransmitInterval != tc.runs {
				t.Errorf("the younger peer has %+v, want packets every %s", b, tc.runs)
			}
			if b := s.PeerByName("older").BFD; b.TransmitInterval != 50*time.Millisecond {
				t.Errorf("the older peer has %+v", b)
			}
		})
	}
}

func TestAggregateWiderThanPoolIsReported(t *testing.T) {
	tests := map[string]struct {
		entry string
		spec  v1beta1.BGPAdvertisementSpec
		want  string // in the Problem; empty for none
		// isServed is set if the pool is covered all the same.
		isServed bool
	}{
		"as long as the entry":           {entry: "1.1.1.0/28", spec: v1beta1.BGPAdvertisementSpec{AggregationLength: int32Pointer(28)}},
		"shorter than the entry":         {entry: "1.1.1.0/28", spec: v1beta1.BGPAdvertisementSpec{AggregationLength: int32Pointer(26)}, want: "invalid aggregation length 26: prefix 28 in this pool is more specific than the aggregation length for addresses 1.1.1.0/28"},
		"a range counts by its widest":   {entry: "3.3.3.2-3.3.3.254", spec: v1beta1.BGPAdvertisementSpec{AggregationLength: int32Pointer(26)}, want: "the prefix 3.3.3.0/26 also contains addresses beside the range 3.3.3.2-3.3.3.254", isServed: true},
		"a range of whole aggregates":    {entry: "3.3.3.64-3.3.3.191", spec: v1beta1.BGPAdvertisementSpec{AggregationLength: int32Pointer(26)}},
		"shorter than a range's widest":  {entry: "3.3.3.2-3.3.3.254", spec: v1beta1.BGPAdvertisementSpec{AggregationLength: int32Pointer(25)}, want: "invalid aggregation length 25: prefix 26"},
		"IPv6 beyond a range":            {entry: "2001:db8::40-2001:db8::ff", spec: v1beta1.BGPAdvertisementSpec{AggregationLengthV6: int32Pointer(121)}, want: "spec.aggregationLengthV6: the prefix 2001:db8::/121 also contains addresses beside", isServed: true},
		"IPv6":                           {entry: "2001:db8::/64", spec: v1beta1.BGPAdvertisementSpec{AggregationLengthV6: int32Pointer(48)}, want: "spec.aggregationLengthV6: invalid aggregation length 48: prefix 64"},
		"the length of the other family": {entry: "2001:db8::/64", spec: v1beta1.BGPAdvertisementSpec{AggregationLength: int32Pointer(8)}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s, problems := BuildSnapshot(ConfigurationObjects{
				Pools:             []v1beta1.IPAddressPool{newTestIPAddressPool("p", 0, tc.entry), newTestIPAddressPool("sound", 0, "10.0.0.0/8", "fd00::/8")},
				BGPAdvertisements: []v1beta1.BGPAdvertisement{newBGPAdvertisement("ad", 0, tc.spec)},
			})
			covered := []string{"p", "sound"}
			if tc.want != "" {
				if !tc.isServed {
					covered = []string{"sound"}
				}
				if len(problems) != 1 || problems[0].Reason != names.ReasonAggregationLength || !strings.Contains(problems[0].Text, tc.want) {
					t.Errorf("the problems are %v, want %q", problems, tc.want)
				}
			} else if len(problems) > 0 {
				t.Error(problems)
			}
			if got := s.BGPAdvertisements[0].Pools; !reflect.DeepEqual(got, covered) {
				t.Errorf("it covers %v, want %v", got, covered)
			}
		})
	}
}

func TestConflictingLocalPrefIsReported(t *testing.T) {
	tests := map[string]struct {
		younger v1beta1.BGPAdvertisementSpec
		clash   bool
	}{
		"another localPref":  {younger: v1beta1.BGPAdvertisementSpec{LocalPref: 200}, clash: true},
		"the same localPref": {younger: v1beta1.BGPAdvertisementSpec{LocalPref: 100}},
		"other prefixes":     {younger: v1beta1.BGPAdvertisementSpec{LocalPref: 200, AggregationLength: int32Pointer(24)}},
		"other peers":        {younger: v1beta1.BGPAdvertisementSpec{LocalPref: 200, Peers: []string{"b"}}},
		"other nodes":        {younger: v1beta1.BGPAdvertisementSpec{LocalPref: 200, NodeSelectors: selectorForLabel("rack", "b")}},
		"only some Services": {younger: v1beta1.BGPAdvertisementSpec{LocalPref: 200, ServiceSelectors: selectorForLabel("app", "x")}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s, problems := BuildSnapshot(ConfigurationObjects{
				Pools:    []v1beta1.IPAddressPool{newTestIPAddressPool("p", 0, "192.0.2.0/24")},
				BGPPeers: []v1beta2.BGPPeer{newPeer("a", 0, v1beta2.BGPPeerSpec{}), newPeer("b", 0, v1beta2.BGPPeerSpec{PeerAddress: "192.0.2.2"})},
				Nodes:    []NodeLabels{{Name: "n", Labels: map[string]string{"rack": "a"}}},
				BGPAdvertisements: []v1beta1.BGPAdvertisement{
					newBGPAdvertisement("younger", 0, tc.younger),
					newBGPAdvertisement("older", time.Hour, v1beta1.BGPAdvertisementSpec{LocalPref: 100, Peers: []string{"a"}}),
				},
			})
			if got := problemReasonsOfKind(problems, "BGPAdvertisement"); (len(got) > 0) != tc.clash || tc.clash && got[0] != names.ReasonConflictingAdvertisements {
				t.Errorf("the problems are %v", problems)
			}
			if n := len(s.bgpAdvertisementByName("younger").Pools); (n == 0) != tc.clash || len(s.bgpAdvertisementByName("older").Pools) != 1 {
				t.Errorf("the younger covers %d pools, the older %d", n, len(s.bgpAdvertisementByName("older").Pools))
			}
		})
	}
}

func TestCommunityAliases(t *testing.T) {
	community := func(name string, age time.Duration, aliases ...v1beta1.CommunityAlias) v1beta1.Community {
		c := v1beta1.Community{Spec: v1beta1.CommunitySpec{Communities: aliases}}
		c.Name, c.Namespace, c.CreationTimestamp = name, "metallb-system", metav1.NewTime(time.Unix(1_000_000, 0).Add(-age))
		return c
	}
	o := ConfigurationObjects{
		Communities: []v1beta1.Community{
			community("younger", 0, v1beta1.CommunityAlias{Name: "vpn", Value: "1:1"}),
			community("older", time.Hour, v1beta1.CommunityAlias{Name: "vpn", Value: "64512:7"}, v1beta1.CommunityAlias{Name: "l", Value: "large:1:2:3"}),
		},
		BGPAdvertisements: []v1beta1.BGPAdvertisement{
			newBGPAdvertisement("good", 0, v1beta1.BGPAdvertisementSpec{Communities: []string{"l", "vpn", "65535:65281", "64512:7"}}),
			newBGPAdvertisement("bad", 0, v1beta1.BGPAdvertisementSpec{Communities: []string{"unknown"}}),
		},
	}
	s, problems := BuildSnapshot(o)
	want := []Community{{FirstPart: 64512, SecondPart: 7}, {FirstPart: 65535, SecondPart: 65281}, {Large: true, FirstPart: 1, SecondPart: 2, ThirdPartOfLarge: 3}}
	if got := s.bgpAdvertisementByName("good").Communities; !reflect.DeepEqual(got, want) {
		t.Errorf("the communities are %v, want %v", got, want)
	}
	if s.bgpAdvertisementByName("bad") != nil {
		t.Error("an advertisement whose community is unknown was served without it")
	}
	if got := problemReasonsOfKind(problems, "Community"); !reflect.DeepEqual(got, []names.Reason{names.ReasonDuplicate}) {
		t.Errorf("the problems of the aliases are %v", problems)
	}
	if got := problemReasonsOfKind(problems, "BGPAdvertisement"); !reflect.DeepEqual(got, []names.Reason{names.ReasonUnknownCommunity}) {
		t.Errorf("the problems of the advertisements are %v", problems)
	}
	o.PreviousSnapshot, o.Communities = s, nil
	if s, _ := BuildSnapshot(o); s.bgpAdvertisementByName("good") == nil || !reflect.DeepEqual(s.bgpAdvertisementByName("good").Communities, want) {
		t.Error("the last good state of the advertisement was lost with its aliases")
	}
}

func TestParseCommunity(t *testing.T) {
	for text, want := range map[string]string{
		"0:0": "0:0", "65535:65535": "65535:65535", "large:4294967295:0:1": "large:4294967295:0:1",
		"65536:1": "", "99999999:1": "", "1": "", "1:2:3": "", "larg:1:2:3": "", "large:1:2": "", "large:4294967296:0:1": "", "-1:2": "", "no-export": "", "1:": "", "": "",
	} {
		c, err := ParseCommunity(text)
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "invalid community value") {
				t.Errorf("%q gives %v, %v", text, c, err)
			}
			continue
		}
		if err != nil || c.String() != want {
			t.Errorf("%q gives %v, %v", text, c, err)
		}
	}
}

func TestBrokenEditKeepsLastGoodStateOfObject(t *testing.T) {
	o := ConfigurationObjects{
		Pools: []v1beta1.IPAddressPool{newTestIPAddressPool("a", time.Hour, "192.0.2.0/28"), newTestIPAddressPool("b", 0, "198.51.100.0/28")},
		L2Advertisements: []v1beta1.L2Advertisement{newL2Advertisement("ad", v1beta1.L2AdvertisementSpec{
			IPAddressPools: []string{"a"}, NodeSelectors: selectorForLabel("rack", "a"),
		})},
	}
	good, problems := BuildSnapshot(o)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	o.PreviousSnapshot = good
	o.Pools = []v1beta1.IPAddressPool{newTestIPAddressPool("a", time.Hour, "192.0.2.9-192.0.2.1"), newTestIPAddressPool("b", 0, "198.51.100.0/24")}
	o.L2Advertisements[0].Spec.NodeSelectors = []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "rack", Operator: "Is"}}}}
	s, problems := BuildSnapshot(o)
	if len(problems) != 2 {
		t.Errorf("the problems are %v, want one of the pool and one of the advertisement", problems)
	}
	if got := s.PoolByName("a").Ranges; !reflect.DeepEqual(got, good.PoolByName("a").Ranges) {
		t.Errorf("the broken pool has %v", got)
	}
	if got := s.PoolByName("b").Ranges[0].String(); got != "198.51.100.0/24" {
		t.Errorf("the sound edit of the other pool gave %s", got)
	}
	if !reflect.DeepEqual(s.L2Advertisements[0], good.L2Advertisements[0]) {
		t.Errorf("the broken advertisement became %+v", s.L2Advertisements[0])
	}
}

func TestTheOrderOfBGPObjectsDoesNotMatter(t *testing.T) {
	o := ConfigurationObjects{
		Pools:    []v1beta1.IPAddressPool{newTestIPAddressPool("a", 0, "192.0.2.0/28"), newTestIPAddressPool("b", 0, "198.51.100.0/24")},
		BGPPeers: []v1beta2.BGPPeer{newPeer("x", 0, v1beta2.BGPPeerSpec{}), newPeer("y", 0, v1beta2.BGPPeerSpec{}), newPeer("z", 0, v1beta2.BGPPeerSpec{BFDProfile: "no"})},
		BGPAdvertisements: []v1beta1.BGPAdvertisement{
			newBGPAdvertisement("one", 0, v1beta1.BGPAdvertisementSpec{LocalPref: 1}), newBGPAdvertisement("two", 0, v1beta1.BGPAdvertisementSpec{LocalPref: 2}),
			newBGPAdvertisement("three", 0, v1beta1.BGPAdvertisementSpec{AggregationLength: int32Pointer(26), Communities: []string{"1:2", "alias"}}),
		},
		Communities: []v1beta1.Community{{Spec: v1beta1.CommunitySpec{Communities: []v1beta1.CommunityAlias{{Name: "alias", Value: "1:3"}}}}},
	}
	wantSnapshot, wantProblems := BuildSnapshot(o)
	for range 20 {
		rand.Shuffle(len(o.BGPPeers), func(i, j int) { o.BGPPeers[i], o.BGPPeers[j] = o.BGPPeers[j], o.BGPPeers[i] })
		rand.Shuffle(len(o.BGPAdvertisements), func(i, j int) {
			o.BGPAdvertisements[i], o.BGPAdvertisements[j] = o.BGPAdvertisements[j], o.BGPAdvertisements[i]
		})
		s, problems := BuildSnapshot(o)
		if !reflect.DeepEqual(problems, wantProblems) || !reflect.DeepEqual(s, wantSnapshot) {
			t.Fatal("another order of the objects gave another result")
		}
	}
}

// TestPasswordWithLineBreakIsReported checks that the usual slip of writing a Secret is named,
// since the router would only stay silent.
func TestPasswordWithLineBreakIsReported(t *testing.T) {
	secrets := []BasicAuthSecret{{Name: "key", HasPassword: true, Password: "s3cret\n"}}
	for name, tc := range map[string]struct {
		spec v1beta2.BGPPeerSpec
		want string
	}{
		"inline":      {v1beta2.BGPPeerSpec{Password: "s3cret\r\n"}, "spec.password: it ends with a line break"},
		"in a Secret": {v1beta2.BGPPeerSpec{PasswordSecret: v1beta2.SecretReference{Name: "key"}}, `the password in Secret "key" ends with a line break`},
		"without":     {v1beta2.BGPPeerSpec{Password: "s3cret"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, problems := BuildSnapshot(ConfigurationObjects{BGPPeers: []v1beta2.BGPPeer{newPeer("p", 0, tc.spec)}, Secrets: secrets})
			if s.PeerByName("p").FirstProblem != nil {
				t.Error("the peer is not served")
			}
			if tc.want == "" && len(problems) > 0 || tc.want != "" && (len(problems) != 1 || !strings.Contains(problems[0].Text, tc.want)) {
				t.Errorf("the problems are %v, want %q", problems, tc.want)
			}
			for _, p := range problems {
				if strings.Contains(p.Text, "s3cret") {
					t.Error("the text has the password")
				}
			}
		})
	}
}

// TestBGPPeerGantryFieldWithoutEffectIsReported checks fields that need another field.
func TestBGPPeerGantryFieldWithoutEffectIsReported(t *testing.T) {
	for name, tc := range map[string]struct {
		spec v1beta2.BGPPeerSpec
		want string // in the Problem; empty for none
	}{
		"a next hop of a family that the session lacks": {
			v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{NextHops: []string{"192.0.2.0/24", "2001:db8::/64"}}},
			"spec.gantry.nextHops: 2001:db8::/64 has no effect, since the session carries no IPv6 routes",
		},
		"the same at an IPv6 router": {
			v1beta2.BGPPeerSpec{PeerAddress: "2001:db8::1", Gantry: &v1beta2.PeerExtension{NextHops: []string{"192.0.2.7"}}},
			"spec.gantry.nextHops: 192.0.2.7/32 has no effect, since the session carries no IPv4 routes",
		},
		"both families": {v1beta2.BGPPeerSpec{DualStackAddressFamily: true, Gantry: &v1beta2.PeerExtension{NextHops: []string{"192.0.2.7", "2001:db8::7"}}}, ""},
		"a restart time without graceful restart": {
			v1beta2.BGPPeerSpec{Gantry: &v1beta2.PeerExtension{RestartTime: durationOfSeconds(60)}},
			"spec.gantry.restartTime: it has no effect without enableGracefulRestart",
		},
		"a restart time with it": {v1beta2.BGPPeerSpec{EnableGracefulRestart: true, Gantry: &v1beta2.PeerExtension{RestartTime: durationOfSeconds(60)}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, problems := BuildSnapshot(ConfigurationObjects{BGPPeers: []v1beta2.BGPPeer{newPeer("p", 0, tc.spec)}})
			if p := s.PeerByName("p"); p.FirstProblem != nil {
				t.Errorf("the peer is not served: %v", p.FirstProblem)
			}
			if tc.want == "" && len(problems) > 0 || tc.want != "" && (len(problems) != 1 || !strings.Contains(problems[0].Text, tc.want)) {
				t.Errorf("the problems are %v, want %q", problems, tc.want)
			}
		})
	}
}

func TestGantryFieldsOfBGPPeerAreParsed(t *testing.T) {
	extension := &v1beta2.PeerExtension{DrainDelay: durationOfSeconds(0), RestartTime: durationOfSeconds(300), BFDStrict: true, NextHops: []string{"192.0.2.0/24"}}
	s, problems := BuildSnapshot(ConfigurationObjects{BGPPeers: []v1beta2.BGPPeer{newPeer("p", 0, v1beta2.BGPPeerSpec{EnableGracefulRestart: true, Gantry: extension})}})
	p := s.PeerByName("p")
	if !p.HasDrainDelay || p.DrainDelay != 0 || p.RestartTime != 300*time.Second || !p.BFDStrict || p.NextHopIPv4.String() != "192.0.2.0/24" {
		t.Errorf("the peer is %+v", p)
	}
	if len(problems) != 1 || !strings.Contains(problems[0].Text, "no effect without bfdProfile") {
		t.Errorf("the problems are %v", problems)
	}
}
