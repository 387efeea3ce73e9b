package probing

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/facts"
)

var (
	testStartTime           = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	questionAddress         = netip.MustParseAddr("192.0.2.10")
	exampleQuestion         = Question{ID: "q", Address: questionAddress, Pool: "p"}
	noAddressIsHeldByMember = func(netip.Addr) bool { return false }
)

func numberedMAC(n byte) facts.MAC { return facts.MAC{2, 0, 0, 0, 0, n} }

// exampleProbingInputs is the state of one of three nodes on a segment; eth1 is on another segment.
func exampleProbingInputs(self string) ProbingInputs {
	w := ProbingInputs{Self: self, IsHeldByMember: noAddressIsHeldByMember, Links: facts.LinkSet{
		{Index: 2, Name: "eth0", MAC: numberedMAC(1), AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
		{Index: 3, Name: "eth1", MAC: numberedMAC(2), AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
	}}
	for i, n := range []string{"a", "b", "c"} {
		w.Members.Members = append(w.Members.Members, facts.Member{Name: n, LinkMACs: []facts.MAC{numberedMAC(byte(10 + i))}})
	}
	return w
}

// Each of three nodes has its own delay. A closed question is not probed.
func TestNodesProbeOneAfterAnother(t *testing.T) {
	var first []time.Duration
	for _, self := range []string{"a", "b", "c"} {
		var d QuestionQueue
		d.SetQuestions([]Question{exampleQuestion}, exampleProbingInputs(self), testStartTime)
		first = append(first, d.NextDueTime().Sub(testStartTime))
		if probes, _ := d.TakeDueProbesAndNewAnswers(exampleProbingInputs(self), testStartTime.Add(time.Minute)); len(probes) != 1 || !slices.Equal(probes[0].LinkIndexes, []int{2}) {
			t.Errorf("node %s probes %+v, want the link of the subnet", self, probes)
		}
		d.SetQuestions(nil, exampleProbingInputs(self), testStartTime)
		if probes, answers := d.TakeDueProbesAndNewAnswers(exampleProbingInputs(self), testStartTime.Add(time.Hour)); len(probes)+len(answers) > 0 || !d.NextDueTime().IsZero() {
			t.Errorf("a closed question is still probed: %v %v", probes, answers)
		}
	}
	slices.Sort(first)
	if want := []time.Duration{0, time.Second, 2 * time.Second}; !slices.Equal(first, want) {
		t.Errorf("the nodes probe after %v, want %v", first, want)
	}
}

func TestProbeGoesToTheLinksOfTheAddress(t *testing.T) {
	tests := map[string]struct {
		edit func(*ProbingInputs)
		want []int
		far  bool
	}{
		"the link of its subnet": {want: []int{2}},
		"the link that an advertisement names": {edit: func(w *ProbingInputs) {
			w.Snapshot = &snapshot.Snapshot{L2Advertisements: []*snapshot.L2Advertisement{{Pools: []string{"p"}, Interfaces: []string{"eth1"}}}}
		}, want: []int{3}, far: true},
		"every link that an advertisement names, with the subnet or without": {edit: func(w *ProbingInputs) {
			w.Snapshot = &snapshot.Snapshot{L2Advertisements: []*snapshot.L2Advertisement{{Pools: []string{"p"}, Interfaces: []string{"eth0", "eth1"}}}}
		}, want: []int{2, 3}},
		"a link that an advertisement of another pool names": {edit: func(w *ProbingInputs) {
			w.Snapshot = &snapshot.Snapshot{L2Advertisements: []*snapshot.L2Advertisement{{Pools: []string{"o"}, Interfaces: []string{"eth1"}}}}
		}, want: []int{2}},
		"all links if none has the subnet": {edit: func(w *ProbingInputs) { w.Links[0].AddressesWithPrefixLength = nil }, want: []int{2, 3}, far: true},
		"no link that cannot send frames":  {edit: func(w *ProbingInputs) { w.Links[0].CannotSendIPv4 = true }, want: []int{3}, far: true},
		"no link: it is tried again later": {edit: func(w *ProbingInputs) { w.Links = nil }, far: true},
		"not while a member holds it":      {edit: func(w *ProbingInputs) { w.IsHeldByMember = func(netip.Addr) bool { return true } }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := exampleProbingInputs("a")
			w.Members.Members = w.Members.Members[:1]
			if tc.edit != nil {
				tc.edit(&w)
			}
			var d QuestionQueue
			d.SetQuestions([]Question{exampleQuestion}, w, testStartTime)
			if far := d.NextDueTime().Sub(testStartTime) >= nodeOutsideSubnetExtraDelay; far != tc.far {
				t.Errorf("it probes after %s", d.NextDueTime().Sub(testStartTime))
			}
			probes, answers := d.TakeDueProbesAndNewAnswers(w, testStartTime.Add(nodeOutsideSubnetExtraDelay))
			if len(answers) > 0 {
				t.Errorf("it is answered without a probe: %v", answers)
			}
			if len(tc.want) == 0 {
				if len(probes) > 0 || d.NextDueTime().IsZero() {
					t.Errorf("it probes %v, and again at %s", probes, d.NextDueTime())
				}
				return
			}
			if len(probes) != 1 || !slices.Equal(probes[0].LinkIndexes, tc.want) {
				t.Errorf("it probes %+v, want the links %v", probes, tc.want)
			}
		})
	}
}

func TestAnswerFromProbeResults(t *testing.T) {
	foreign, member := numberedMAC(99), numberedMAC(11)
	tests := map[string]struct {
		results []facts.ProbeResult
		want    string // "open" while there is no answer
	}{
		"no answer":                                     {[]facts.ProbeResult{{}}, ""},
		"a foreign host answers":                        {[]facts.ProbeResult{{AnsweringMACs: []facts.MAC{foreign}}}, "02:00:00:00:00:63"},
		"two answer":                                    {[]facts.ProbeResult{{AnsweringMACs: []facts.MAC{foreign, numberedMAC(98)}}}, "02:00:00:00:00:62, 02:00:00:00:00:63"},
		"a foreign host probes it too":                  {[]facts.ProbeResult{{RivalProberMACs: []facts.MAC{foreign}}}, "02:00:00:00:00:63"},
		"another member probes it too":                  {[]facts.ProbeResult{{RivalProberMACs: []facts.MAC{member}}}, ""},
		"the probe was not sent":                        {[]facts.ProbeResult{{NoFrameSent: true}}, "open"},
		"the first probe was not sent":                  {[]facts.ProbeResult{{NoFrameSent: true}, {}}, ""},
		"a member answers once":                         {[]facts.ProbeResult{{AnsweringMACs: []facts.MAC{member}}, {}}, ""},
		"a member answers twice":                        {[]facts.ProbeResult{{AnsweringMACs: []facts.MAC{member}}, {AnsweringMACs: []facts.MAC{member}}}, "open"},
		"a member answers three times":                  {[]facts.ProbeResult{{AnsweringMACs: []facts.MAC{member}}, {AnsweringMACs: []facts.MAC{member}}, {AnsweringMACs: []facts.MAC{member}}}, "02:00:00:00:00:0b"},
		"a member and a foreign host answer":            {[]facts.ProbeResult{{AnsweringMACs: []facts.MAC{member, foreign}}}, "02:00:00:00:00:63"},
		"a foreign host answers, though a link is down": {[]facts.ProbeResult{{NoFrameSent: true, AnsweringMACs: []facts.MAC{foreign}}}, "02:00:00:00:00:63"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := exampleProbingInputs("a")
			var d QuestionQueue
			d.SetQuestions([]Question{exampleQuestion}, w, testStartTime)
			now := testStartTime
			var answers []Answer
			for _, r := range tc.results {
				now = now.Add(time.Minute)
				probes, _ := d.TakeDueProbesAndNewAnswers(w, now)
				if len(probes) != 1 {
					t.Fatalf("it probes %v, want one probe", probes)
				}
				r.ID = probes[0].ID
				d.RecordProbeResult(r, w, now)
				d.RecordProbeResult(r, w, now) // a repeated result counts once
				_, answers = d.TakeDueProbesAndNewAnswers(w, now)
			}
			got := "open"
			if len(answers) == 1 {
				got = answers[0].AnsweringMACs
			}
			if got != tc.want || len(answers) > 1 {
				t.Errorf("the answers are %+v, want %q", answers, tc.want)
			}
			// the API still lists it, since it is slow
			d.SetQuestions([]Question{exampleQuestion}, w, now)
			if probes, _ := d.TakeDueProbesAndNewAnswers(w, now.Add(time.Hour)); (len(probes) > 0) != (tc.want == "open") {
				t.Errorf("it probes again: %v", probes)
			}
		})
	}
}

func TestAddressConfiguredOnNodeIsAnsweredWithoutProbe(t *testing.T) {
	w := exampleProbingInputs("a")
	own := Question{ID: "own", Address: netip.MustParseAddr("192.0.2.1")}
	var d QuestionQueue
	d.SetQuestions([]Question{own}, w, testStartTime)
	probes, answers := d.TakeDueProbesAndNewAnswers(w, testStartTime.Add(time.Minute))
	if len(probes) > 0 || len(answers) != 1 || answers[0].AnsweringMACs != numberedMAC(1).String() {
		t.Errorf("it probes %v and answers %v", probes, answers)
	}
}

// TestQuestionLikeNeighbourNeedsOwnAddress: a question without the node's own address is an acquire
// probe (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3), and a host that is about to take the
// address would give it up.
func TestQuestionLikeNeighbourNeedsOwnAddress(t *testing.T) {
	ipv4, ipv6 := netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("fe80::1/64")
	for name, c := range map[string]struct {
		address     string
		first, last []netip.Prefix // the addresses of the links 2 and 3
		want        []int          // none: the answer is that the node could not ask
	}{
		"both links have an address":                  {"203.0.113.10", []netip.Prefix{ipv4}, []netip.Prefix{ipv6, ipv4}, []int{2, 3}},
		"one link has no address":                     {"203.0.113.10", nil, []netip.Prefix{ipv4}, []int{3}},
		"one link has an address of the other family": {"203.0.113.10", []netip.Prefix{ipv4}, []netip.Prefix{ipv6}, []int{2}},
		"no link has an address of the family":        {"203.0.113.10", []netip.Prefix{ipv6}, nil, nil},
		"a link-local address is enough":              {"2001:db8::10", []netip.Prefix{ipv4}, []netip.Prefix{ipv4, ipv6}, []int{3}},
		"no link has an IPv6 address":                 {"2001:db8::10", []netip.Prefix{ipv4}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := exampleProbingInputs("a")
			w.Links[0].AddressesWithPrefixLength, w.Links[1].AddressesWithPrefixLength = c.first, c.last
			q := Question{ID: "q", Address: netip.MustParseAddr(c.address), IsForThisNode: true}
			var d QuestionQueue
			d.SetQuestions([]Question{q}, w, testStartTime)
			probes, answers := d.TakeDueProbesAndNewAnswers(w, testStartTime)
			if len(c.want) == 0 {
				if want := []Answer{{Question: q, IsNotSent: true}}; len(probes) > 0 || !slices.Equal(answers, want) {
					t.Errorf("it probes %+v and answers %+v, want only the answer that it could not ask", probes, answers)
				}
				return
			}
			if len(probes) != 1 || len(answers) > 0 || !slices.Equal(probes[0].LinkIndexes, c.want) {
				t.Errorf("it probes %+v and answers %+v, want one probe on the links %v", probes, answers, c.want)
			}
		})
	}
}

// TestQuestionForThisNodeIsAskedAtOnce has an operator who wants to know what this node hears.
func TestQuestionForThisNodeIsAskedAtOnce(t *testing.T) {
	member, foreign := numberedMAC(11), numberedMAC(99)
	for name, c := range map[string]struct {
		edit   func(*ProbingInputs)
		result facts.ProbeResult
		want   Answer // without the question
	}{
		"the holder answers":            {result: facts.ProbeResult{AnsweringMACs: []facts.MAC{member}}, want: Answer{AnsweringMACs: member.String()}},
		"the holder and a host answer":  {result: facts.ProbeResult{AnsweringMACs: []facts.MAC{member, foreign}}, want: Answer{AnsweringMACs: member.String() + ", " + foreign.String()}},
		"no host answers":               {},
		"a host only probes for it too": {result: facts.ProbeResult{RivalProberMACs: []facts.MAC{foreign}}},
		"no frame could be sent":        {result: facts.ProbeResult{NoFrameSent: true}, want: Answer{IsNotSent: true}},
		"the node has no link":          {edit: func(w *ProbingInputs) { w.Links = nil }, want: Answer{IsNotSent: true}},
	} {
		t.Run(name, func(t *testing.T) {
			w := exampleProbingInputs("c")
			w.IsHeldByMember = func(netip.Addr) bool { return true }
			if c.edit != nil {
				c.edit(&w)
			}
			q := exampleQuestion
			q.IsForThisNode = true
			var d QuestionQueue
			d.SetQuestions([]Question{q}, w, testStartTime)
			probes, answers := d.TakeDueProbesAndNewAnswers(w, testStartTime)
			if len(w.Links) > 0 {
				if len(probes) != 1 || !probes[0].IsLikeNeighbour {
					t.Fatalf("it probes %+v, want one question at once, as a client asks", probes)
				}
				c.result.ID = probes[0].ID
				d.RecordProbeResult(c.result, w, testStartTime)
				_, answers = d.TakeDueProbesAndNewAnswers(w, testStartTime)
			}
			c.want.Question = q
			if want := []Answer{c.want}; !slices.Equal(answers, want) {
				t.Errorf("the answers are %+v, want %+v", answers, want)
			}
		})
	}
}
