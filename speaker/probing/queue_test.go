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
	epoch       = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	address     = netip.MustParseAddr("192.0.2.10")
	question    = Question{ID: "q", Address: address, Pool: "p"}
	nobodyHolds = func(netip.Addr) bool { return false }
)

func numberedMAC(n byte) facts.MAC { return facts.MAC{2, 0, 0, 0, 0, n} }

// exampleState is node a's of three nodes on one segment; eth1 leads elsewhere.
func exampleState(self string) State {
	w := State{Self: self, IsHeld: nobodyHolds, Links: facts.LinkSet{
		{Index: 2, Name: "eth0", MAC: numberedMAC(1), Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
		{Index: 3, Name: "eth1", MAC: numberedMAC(2), Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
	}}
	for i, n := range []string{"a", "b", "c"} {
		w.Members.Members = append(w.Members.Members, facts.Member{Name: n, MACs: []facts.MAC{numberedMAC(byte(10 + i))}})
	}
	return w
}

// TestNodesProbeOneAfterAnother: of three nodes each has a turn of its own, and who has answered is passed over.
func TestNodesProbeOneAfterAnother(t *testing.T) {
	var first []time.Duration
	for _, self := range []string{"a", "b", "c"} {
		var d Queue
		d.SetQuestions([]Question{question}, exampleState(self), epoch)
		first = append(first, d.NextDue().Sub(epoch))
		if asks, _ := d.Advance(exampleState(self), epoch.Add(time.Minute)); len(asks) != 1 || !slices.Equal(asks[0].Links, []int{2}) {
			t.Errorf("node %s asks %+v, want the link of the subnet", self, asks)
		}
		d.SetQuestions(nil, exampleState(self), epoch)
		if asks, answers := d.Advance(exampleState(self), epoch.Add(time.Hour)); len(asks)+len(answers) > 0 || !d.NextDue().IsZero() {
			t.Errorf("a question that is closed goes on: %v %v", asks, answers)
		}
	}
	slices.Sort(first)
	if want := []time.Duration{0, time.Second, 2 * time.Second}; !slices.Equal(first, want) {
		t.Errorf("the nodes ask after %v, want %v", first, want)
	}
}

func TestProbeGoesToTheLinksOfTheAddress(t *testing.T) {
	tests := map[string]struct {
		edit func(*State)
		want []int
		far  bool
	}{
		"the link of its subnet": {want: []int{2}},
		"the link that is named": {edit: func(w *State) {
			w.Snapshot = &snapshot.Snapshot{L2Advertisements: []*snapshot.L2Advertisement{{Pools: []string{"p"}, Interfaces: []string{"eth1"}}}}
		}, want: []int{3}, far: true},
		"a name that is for another pool": {edit: func(w *State) {
			w.Snapshot = &snapshot.Snapshot{L2Advertisements: []*snapshot.L2Advertisement{{Pools: []string{"o"}, Interfaces: []string{"eth1"}}}}
		}, want: []int{2}},
		"all where none has the subnet":      {edit: func(w *State) { w.Links[0].Prefixes = nil }, want: []int{2, 3}, far: true},
		"not where frames cannot be sent":    {edit: func(w *State) { w.Links[0].NoIPv4 = true }, want: []int{3}, far: true},
		"nowhere without links, until later": {edit: func(w *State) { w.Links = nil }, far: true},
		"not while a node answers for it":    {edit: func(w *State) { w.IsHeld = func(netip.Addr) bool { return true } }},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := exampleState("a")
			w.Members.Members = w.Members.Members[:1]
			if tc.edit != nil {
				tc.edit(&w)
			}
			var d Queue
			d.SetQuestions([]Question{question}, w, epoch)
			if far := d.NextDue().Sub(epoch) >= offSubnetDelay; far != tc.far {
				t.Errorf("it asks after %s", d.NextDue().Sub(epoch))
			}
			asks, answers := d.Advance(w, epoch.Add(offSubnetDelay))
			if len(answers) > 0 {
				t.Errorf("it is answered unasked: %v", answers)
			}
			if len(tc.want) == 0 {
				if len(asks) > 0 || d.NextDue().IsZero() {
					t.Errorf("it asks %v, and again at %s", asks, d.NextDue())
				}
				return
			}
			if len(asks) != 1 || !slices.Equal(asks[0].Links, tc.want) {
				t.Errorf("it asks %+v, want the links %v", asks, tc.want)
			}
		})
	}
}

func TestProbeResultsAnswerTheQuestion(t *testing.T) {
	stranger, member := numberedMAC(99), numberedMAC(11)
	tests := map[string]struct {
		results []facts.ProbeResult
		want    string // "open" while nothing is known
	}{
		"silence":                                {[]facts.ProbeResult{{}}, ""},
		"a stranger answers":                     {[]facts.ProbeResult{{Answers: []facts.MAC{stranger}}}, "02:00:00:00:00:63"},
		"two answer":                             {[]facts.ProbeResult{{Answers: []facts.MAC{stranger, numberedMAC(98)}}}, "02:00:00:00:00:62, 02:00:00:00:00:63"},
		"a stranger asks for it too":             {[]facts.ProbeResult{{RivalProbers: []facts.MAC{stranger}}}, "02:00:00:00:00:63"},
		"another node asks for it too":           {[]facts.ProbeResult{{RivalProbers: []facts.MAC{member}}}, ""},
		"it was not asked":                       {[]facts.ProbeResult{{NotSent: true}}, "open"},
		"it was not asked at first":              {[]facts.ProbeResult{{NotSent: true}, {}}, ""},
		"a node still answers for it":            {[]facts.ProbeResult{{Answers: []facts.MAC{member}}, {}}, ""},
		"a node goes on to answer":               {[]facts.ProbeResult{{Answers: []facts.MAC{member}}, {Answers: []facts.MAC{member}}}, "open"},
		"a node has it as its own":               {[]facts.ProbeResult{{Answers: []facts.MAC{member}}, {Answers: []facts.MAC{member}}, {Answers: []facts.MAC{member}}}, "02:00:00:00:00:0b"},
		"a node and a stranger":                  {[]facts.ProbeResult{{Answers: []facts.MAC{member, stranger}}}, "02:00:00:00:00:63"},
		"a stranger, though one link was not up": {[]facts.ProbeResult{{NotSent: true, Answers: []facts.MAC{stranger}}}, "02:00:00:00:00:63"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := exampleState("a")
			var d Queue
			d.SetQuestions([]Question{question}, w, epoch)
			now := epoch
			var answers []Answer
			for _, r := range tc.results {
				now = now.Add(time.Minute)
				asks, _ := d.Advance(w, now)
				if len(asks) != 1 {
					t.Fatalf("it asks %v, want one question", asks)
				}
				r.ID = asks[0].ID
				d.RecordResult(r, w, now)
				d.RecordResult(r, w, now) // a result that comes twice counts once
				_, answers = d.Advance(w, now)
			}
			got := "open"
			if len(answers) == 1 {
				got = answers[0].AnsweredBy
			}
			if got != tc.want || len(answers) > 1 {
				t.Errorf("the answers are %+v, want %q", answers, tc.want)
			}
			d.SetQuestions([]Question{question}, w, now) // it is still listed, for the API is slow
			if asks, _ := d.Advance(w, now.Add(time.Hour)); (len(asks) > 0) != (tc.want == "open") {
				t.Errorf("it asks again: %v", asks)
			}
		})
	}
}

func TestOwnAddressNeedsNoProbe(t *testing.T) {
	w := exampleState("a")
	own := Question{ID: "own", Address: netip.MustParseAddr("192.0.2.1")}
	var d Queue
	d.SetQuestions([]Question{own}, w, epoch)
	asks, answers := d.Advance(w, epoch.Add(time.Minute))
	if len(asks) > 0 || len(answers) != 1 || answers[0].AnsweredBy != numberedMAC(1).String() {
		t.Errorf("it asks %v and answers %v", asks, answers)
	}
}
