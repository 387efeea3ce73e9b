package fitness

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
)

var testStart = time.Unix(1e9, 0)

func TestSilentServiceProxyMakesNodeUnfit(t *testing.T) {
	watched := ServiceProxyOptions{IsHealthCheckUsed: true, ProxySilenceTimeout: 30 * time.Second, NodeBootedAt: testStart.Add(-time.Hour)}
	booted, answered, off := watched, watched, watched
	booted.NodeBootedAt, answered.HasAnsweredThisBoot, off.IsHealthCheckUsed, off.HasAnsweredThisBoot = testStart.Add(-10*time.Second), true, false, true
	for name, tt := range map[string]struct {
		options    ServiceProxyOptions
		answersAt  []time.Duration
		at         time.Duration
		wantReason names.Reason
	}{
		"it never answered since the boot":              {watched, nil, time.Hour, ""},
		"it answers":                                    {watched, []time.Duration{0, time.Second}, 2 * time.Second, ""},
		"it is silent for less than the timeout":        {watched, []time.Duration{0}, 30 * time.Second, ""},
		"it is silent for the timeout":                  {watched, []time.Duration{0}, 31 * time.Second, names.ReasonServiceProxySilent},
		"it answers again":                              {watched, []time.Duration{0, 40 * time.Second}, 41 * time.Second, ""},
		"it answered an earlier speaker, a moment ago":  {answered, nil, 29 * time.Second, ""},
		"it answered an earlier speaker, and never now": {answered, nil, 30 * time.Second, names.ReasonServiceProxySilent},
		"the node has just booted":                      {booted, nil, 49 * time.Second, names.ReasonServiceProxyStarting},
		"the node has just booted, and it answers":      {booted, []time.Duration{time.Second}, 2 * time.Second, ""},
		"the node booted a minute ago":                  {booted, nil, 50 * time.Second, ""},
		"the health check is off":                       {off, nil, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			j := NewJudge(tt.options)
			for at := time.Duration(0); at <= tt.at; at += time.Second {
				if slices.Contains(tt.answersAt, at) {
					j.RecordProxyAnswer()
				} else {
					j.RecordProxySilence(testStart.Add(at))
				}
			}
			if got := j.JudgeFitness(testStart.Add(tt.at)).NodeFault; got != string(tt.wantReason) {
				t.Errorf("the reason is %q, want %q", got, tt.wantReason)
			}
		})
	}
}

func TestLinkWithoutAnswersIsSilent(t *testing.T) {
	link := facts.Link{Index: 3, AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("192.0.2.5/24"), netip.MustParsePrefix("fe80::1/64")}}
	j := NewJudge(ServiceProxyOptions{})
	silentAt := func(at time.Duration) bool {
		return j.JudgeFitness(testStart.Add(at)).IsAddressOnSilentSubnet(netip.MustParseAddr("192.0.2.200"))
	}
	j.RecordUnansweredLinkProbes(link, testStart)
	j.RecordUnansweredLinkProbes(link, testStart.Add(10*time.Second))
	if silentAt(19 * time.Second) {
		t.Error("the link is silent after less than the timeout")
	}
	if !silentAt(20*time.Second) || j.JudgeFitness(testStart.Add(time.Hour)).IsAddressOnSilentSubnet(netip.MustParseAddr("198.51.100.1")) {
		t.Error("the subnet of the link is not silent, or another one is")
	}
	j.RecordLinkAnswer(3)
	if silentAt(2 * time.Hour) {
		t.Error("the link is silent after an answer")
	}
	j.RecordUnansweredLinkProbes(link, testStart.Add(2*time.Hour))
	j.ForgetLinksExcept(nil)
	if silentAt(3 * time.Hour) {
		t.Error("a link without neighbours to probe is silent")
	}
}

// TestProcessPauseDoesNotMakeNodeUnfit: a process that was paused has not asked meanwhile.
func TestProcessPauseDoesNotMakeNodeUnfit(t *testing.T) {
	j := NewJudge(ServiceProxyOptions{IsHealthCheckUsed: true, ProxySilenceTimeout: 30 * time.Second})
	j.RecordProxyAnswer()
	if f := j.JudgeFitness(testStart.Add(time.Hour)); !f.IsFit() {
		t.Errorf("after a pause the node is unfit: %v", f)
	}
}

// TestUnfitMembersTableFollowsNotifierMessages passes the messages of one node to the table of
// another one.
func TestUnfitMembersTableFollowsNotifierMessages(t *testing.T) {
	unfit := facts.Fitness{IsDoubtful: true, NodeFault: string(names.ReasonServiceProxySilent), SilentSubnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}}
	var a FitnessMessageSchedule
	table, members := NewUnfitMembersTable(), []string{"a", "b"}
	sent := 0
	pass := func(from, until time.Duration, f facts.Fitness) map[string]facts.Fitness {
		for at := from; at < until; at += time.Second {
			if m := a.DueMessage(f, testStart.Add(at)); m != nil {
				sent++
				if !IsFitnessMessage(m) {
					t.Fatalf("%x is no message", m)
				}
				table.RecordMessage("a", m, testStart.Add(at))
			}
		}
		return table.UnfitOrDoubtfulMembers(members, testStart.Add(until))
	}
	if got := pass(0, time.Minute, facts.Fitness{}); sent > 0 || len(got) > 0 {
		t.Errorf("a fit node sent %d messages: %v", sent, got)
	}
	if got := pass(time.Minute, 2*time.Minute, unfit); !got["a"].Equal(unfit) || sent > 12 {
		t.Errorf("the table has %v after %d messages", got, sent)
	}
	if got := pass(2*time.Minute, 2*time.Minute+time.Second, facts.Fitness{}); len(got) > 0 {
		t.Errorf("a node that is fit again is in the table: %v", got)
	}
	pass(3*time.Minute, 3*time.Minute+time.Second, unfit)
	if got := table.UnfitOrDoubtfulMembers(members, testStart.Add(3*time.Minute+20*time.Second)); len(got) > 0 {
		t.Errorf("a node that said nothing for 19 s is in the table: %v", got)
	}
	pass(4*time.Minute, 4*time.Minute+6*time.Second, unfit)
	if got := table.UnfitOrDoubtfulMembers([]string{"b"}, testStart.Add(4*time.Minute+7*time.Second)); len(got) > 0 {
		t.Errorf("a node that is no member is in the table: %v", got)
	}
	table.RecordMessage("a", []byte{fitnessMessageFirstByte, 200}, testStart)
	table.RecordMessage("a", []byte{fitnessMessageFirstByte}, testStart)
}
