package probe

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

const holderMAC, otherMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"

// wellObservation is a port that answers, on the segment of this machine.
func wellObservation() Observation {
	return Observation{
		Address: netip.MustParseAddr("192.0.2.10"), Port: Port{Number: 80, Protocol: "TCP", Scheme: "http"}, Outcome: OutcomeAnswered, Detail: "HTTP/1.1 200 OK",
		IsOnLink: true, IsNeighbourKnown: true, NeighbourMAC: holderMAC, HolderMAC: holderMAC, Holder: "node1", HasReadyEndpoints: true, LocalAddress: netip.MustParseAddr("192.0.2.200"),
	}
}

// TestDiagnosisNamesStepAndBlame has the ways in which a question fails.
func TestDiagnosisNamesStepAndBlame(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*Observation)
		result report.Result
		step   Step
		blame  string
		text   string
	}{
		"it answers":           {func(*Observation) {}, report.ResultWell, StepAnswer, "", "HTTP/1.1 200 OK"},
		"it is connected":      {func(o *Observation) { o.Outcome = OutcomeConnected }, report.ResultWell, StepConnection, "", "connected"},
		"another host answers": {func(o *Observation) { o.NeighbourMAC = otherMAC }, report.ResultNotWell, StepNeighbour, "another host", "node1, which holds the address, has " + holderMAC},
		"no route":             {func(o *Observation) { o.Outcome, o.IsOnLink = OutcomeNoRoute, false }, report.ResultNotWell, StepRoute, "this machine", "no route to 192.0.2.10"},
		"no answer to ARP":     {func(o *Observation) { o.Outcome, o.NeighbourMAC = OutcomeHostUnreachable, "" }, report.ResultNotWell, StepNeighbour, "the node that holds the address", "no host answers ARP for 192.0.2.10"},
		"no answer to NDP": {func(o *Observation) {
			o.Outcome, o.NeighbourMAC, o.Address = OutcomeSilent, "", netip.MustParseAddr("2001:db8::1")
		}, report.ResultNotWell, StepNeighbour, "the node that holds the address", "no host answers NDP"},
		"nobody announces": {func(o *Observation) {
			o.Outcome, o.NeighbourMAC, o.HasReadyEndpoints = OutcomeHostUnreachable, "", false
		}, report.ResultNotWell, StepNeighbour, "the Pods", "no Pod behind the port is ready"},
		"a router finds no host": {func(o *Observation) { o.Outcome, o.IsOnLink, o.NeighbourMAC = OutcomeHostUnreachable, false, "" }, report.ResultNotWell, StepNeighbour, "the last router", "no host has 192.0.2.10"},
		"a firewall answers":     {func(o *Observation) { o.Outcome = OutcomeProhibited }, report.ResultNotWell, StepConnection, "a firewall", "forbidden"},
		"no Pods":                {func(o *Observation) { o.Outcome, o.HasReadyEndpoints = OutcomeRefused, false }, report.ResultNotWell, StepConnection, "the Pods", "no Pod behind the port is ready"},
		"Pods do not listen":     {func(o *Observation) { o.Outcome = OutcomeRefused }, report.ResultNotWell, StepConnection, "kube-proxy of the node, or the program", "targetPort"},
		"refused by a stranger":  {func(o *Observation) { o.Outcome, o.NeighbourMAC = OutcomeRefused, otherMAC }, report.ResultNotWell, StepNeighbour, "another host", "it is refused, and the neighbour table has " + otherMAC},
		"source ranges": {func(o *Observation) {
			o.Outcome, o.SourceRanges = OutcomeSilent, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		}, report.ResultNotWell, StepConnection, "the Service", "loadBalancerSourceRanges do not have 192.0.2.200"},
		"silent node":    {func(o *Observation) { o.Outcome = OutcomeSilent }, report.ResultNotWell, StepConnection, "kube-proxy or a firewall of the node", "lets nothing come back"},
		"silent network": {func(o *Observation) { o.Outcome, o.IsOnLink, o.NeighbourMAC = OutcomeSilent, false, "" }, report.ResultNotWell, StepConnection, "the network between", "leads over routers"},
		"silent UDP":     {func(o *Observation) { o.Outcome, o.Port.Protocol = OutcomeSilent, "UDP" }, report.ResultUnknown, StepAnswer, "", "may not answer an empty datagram"},
		"no TLS":         {func(o *Observation) { o.Outcome = OutcomeNoTLS }, report.ResultNotWell, StepAnswer, "the program in the Pods", "speaks no TLS"},
		"closed":         {func(o *Observation) { o.Outcome = OutcomeClosed }, report.ResultNotWell, StepAnswer, "the program in the Pods", "closed without an answer"},
	} {
		o := wellObservation()
		c.edit(&o)
		d := Diagnose(&o)
		if d.Result != c.result || d.Step != c.step || !strings.HasPrefix(d.Blame, c.blame) || (d.Blame == "") != (c.blame == "") || !strings.Contains(d.Text, c.text) {
			t.Errorf("%s: %+v, want %s at %s, %q, %q", name, d, c.result, c.step, c.blame, c.text)
		}
	}
}
