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
	four  = netip.MustParseAddr("192.168.0.201")
	six   = netip.MustParseAddr("fd00:a8::201")
	web   = view.Key{Namespace: "default", Name: "web"}
	dns   = view.Key{Namespace: "default", Name: "dns"}
	epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	host  = facts.MAC{2, 0, 0, 0, 0, 0x99}
	links = facts.LinkSet{{Index: 2, Name: "eth0", MAC: facts.MAC{2, 0, 0, 0, 0, 2}}, {Index: 3, Name: "eth1", MAC: facts.MAC{2, 0, 0, 0, 0, 3}}}
)

// inputs is node "a" with the web Service, of two addresses, and dns, which shares the first.
func inputs(claims ...intent.Claim) Inputs {
	return Inputs{
		Self: "a", Links: links, Members: []string{"a", "b"}, Claims: claims,
		Plan: plan.Plan{Verdicts: plan.NewList(
			&plan.Verdict{Service: web, Addresses: []netip.Addr{six, four}}, &plan.Verdict{Service: dns, Addresses: []netip.Addr{four}},
		)},
	}
}

// picture is one line for each announcement.
func picture(all []Held) string {
	var b strings.Builder
	for _, a := range all {
		fmt.Fprintf(&b, "%s: %v whole=%v on %v\n", a.Service, a.Addresses, a.Whole, a.Interfaces)
	}
	return b.String()
}

func TestBuild(t *testing.T) {
	both := []int{2, 3}
	tests := map[string]struct {
		claims []intent.Claim
		want   string
	}{
		"nothing held": {nil, ""},
		"every address, on all links": {[]intent.Claim{{Address: four, Links: both}, {Address: six, Links: both}},
			"default/dns: [192.168.0.201] whole=true on []\ndefault/web: [192.168.0.201 fd00:a8::201] whole=true on []\n"},
		"one family, on one link":                 {[]intent.Claim{{Address: six, Links: []int{3}}}, "default/web: [fd00:a8::201] whole=false on [eth1]\n"},
		"an address that no Service has any more": {[]intent.Claim{{Address: netip.MustParseAddr("10.0.0.1"), Links: both}}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, picture(Build(inputs(tt.claims...)))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestDiff(t *testing.T) {
	in := inputs(intent.Claim{Address: four, Links: []int{2, 3}})
	want := Build(in) // web in part, dns whole
	written := func(e Entry, edit func(w *Written)) Written {
		w := Written{Entry: e, Object: e.Name(), Status: Held{Entry: e, Addresses: []netip.Addr{four}}.Object()}
		if edit != nil {
			edit(&w)
		}
		return w
	}
	mine := []Written{written(Entry{web, "a"}, nil), written(Entry{dns, "a"}, nil)}
	old := view.Key{Namespace: "default", Name: "old"}
	tests := map[string]struct {
		have   []Written
		write  []view.Key
		remove []string
	}{
		"nothing is written yet":                         {nil, []view.Key{dns, web}, nil},
		"everything is written":                          {mine, nil, nil},
		"another node holds a part of a Service":         {append(slices.Clone(mine), written(Entry{web, "b"}, nil)), nil, nil},
		"a dead node's entry of a Service we hold whole": {append(slices.Clone(mine), written(Entry{dns, "b"}, nil)), nil, []string{Entry{dns, "b"}.Name()}},
		"another node's Service":                         {append(slices.Clone(mine), written(Entry{old, "b"}, nil)), nil, nil},
		"our entry of a Service we do not hold":          {append(slices.Clone(mine), written(Entry{old, "a"}, nil)), nil, []string{Entry{old, "a"}.Name()}},
		"our entry under a name of other software":       {append(slices.Clone(mine), written(Entry{web, "a"}, func(w *Written) { w.Object = "l2-x7f2k" })), nil, []string{"l2-x7f2k"}},
		"other interfaces": {[]Written{mine[0], written(Entry{dns, "a"}, func(w *Written) {
			w.Status.Interfaces = append(w.Status.Interfaces, Held{Interfaces: []string{"eth7"}}.Object().Interfaces...)
		})},
			[]view.Key{dns}, nil},
		"no status yet": {[]Written{mine[0], written(Entry{dns, "a"}, func(w *Written) { w.Status.Gantry = nil })}, []view.Key{dns}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			write, remove := Diff("a", want, tt.have)
			var keys []view.Key
			for _, a := range write {
				keys = append(keys, a.Service)
			}
			if !slices.Equal(keys, tt.write) || !slices.Equal(remove, tt.remove) {
				t.Errorf("write %v, remove %v; want %v, %v", keys, remove, tt.write, tt.remove)
			}
		})
	}
}

func TestConflicts(t *testing.T) {
	var c Conflicts
	if !c.Note(four, host, epoch) || c.Note(four, host, epoch.Add(time.Second)) {
		t.Error("a claim is news once")
	}
	for i := range 100 {
		c.Note(six, facts.MAC{2, 0xee, byte(i)}, epoch)
	}
	if n := len(c.Of(six)); n != 16 {
		t.Errorf("%d claims of forged hosts are kept, want 16", n)
	}
	if c.Expire(epoch.Add(30 * time.Second)) {
		t.Error("a claim is over too soon")
	}
	if !c.Expire(epoch.Add(60*time.Second)) || len(c.Of(six)) != 0 || len(c.Of(four)) != 1 {
		t.Errorf("after a minute: %v, want the one that went on", c.All())
	}
	in := inputs(intent.Claim{Address: four, Links: []int{2}})
	in.Conflicts = &c
	got := Build(in)[0].Object().Gantry.Conflicts
	if len(got) != 1 || got[0].Address != "192.168.0.201" || got[0].MAC != "02:00:00:00:00:99" || !got[0].Since.Equal(&metav1.Time{Time: epoch}) {
		t.Errorf("the status says %+v", got)
	}
	if k := condition(in, names.ConditionUncontested); k.Status != metav1.ConditionFalse || !strings.Contains(k.Message, "192.168.0.201 by 02:00:00:00:00:99") {
		t.Errorf("the condition is %+v", k)
	}
	c.Keep(map[netip.Addr]bool{six: true})
	if len(c.All()) != 0 || condition(in, names.ConditionUncontested).Status != metav1.ConditionTrue {
		t.Error("a claim to an address that is not held any more is no conflict")
	}
}

func condition(in Inputs, kind string) metav1.Condition {
	for _, c := range Speaker(in).Conditions {
		if c.Type == kind {
			return c
		}
	}
	return metav1.Condition{}
}

func TestSpeaker(t *testing.T) {
	in := inputs(intent.Claim{Address: four, Links: []int{2}})
	in.Links = slices.Clone(links)
	in.Links[1].Without6 = true
	in.Faults = map[int]string{3: "opening NDP socket on \"eth1\": no buffers"}
	in.Skipped = []facts.SkippedLink{
		{Name: "br-port", Why: facts.SkippedMember}, {Name: "eth2", Why: facts.SkippedDown}, {Name: "storage0", Why: facts.SkippedExcluded},
		{Name: "tap0", Why: facts.SkippedNoEthernet}, {Name: "veth1", Why: facts.SkippedUsual}, {Name: "eth0", Why: facts.SkippedDown},
	}
	s := Speaker(in)
	var lines []string
	for _, l := range s.Links {
		lines = append(lines, strings.TrimSpace(fmt.Sprint(l.Name, " ", l.Usable, " ", l.Reason, " ", l.Message)))
	}
	want := []string{"br-port false LinkMember", "eth0 true", "eth1 false PortFailed opening NDP socket on \"eth1\": no buffers", "eth2 false LinkDown", "storage0 false LinkExcluded", "tap0 false LinkNoEthernet"}
	if diff := cmp.Diff(want, lines); diff != "" || s.Held != 1 || !slices.Equal(s.Members, []string{"a", "b"}) {
		t.Errorf("held %d, members %v, links (-want +got)\n%s", s.Held, s.Members, diff)
	}
	if c := condition(in, names.ConditionLayer2Usable); c.Status != metav1.ConditionTrue || c.Reason != string(names.ReasonUsable) {
		t.Errorf("the condition is %+v", c)
	}
	in.Denied = "raw sockets are not permitted"
	if c := condition(in, names.ConditionLayer2Usable); c.Reason != string(names.ReasonRawSocketDenied) || c.Status != metav1.ConditionFalse {
		t.Errorf("denied: the condition is %+v", c)
	}
	if l := Speaker(in).Links[2]; l.Reason != string(names.ReasonRawSocketDenied) {
		t.Errorf("denied: the link is %+v", l)
	}
	in.Denied, in.Links = "", nil
	if c := condition(in, names.ConditionLayer2Usable); c.Reason != string(names.ReasonNoLinks) || c.Status != metav1.ConditionFalse {
		t.Errorf("without links: the condition is %+v", c)
	}
}
