package probe

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

const thirdMAC = "02:00:00:00:00:03"

// wellNodeObservation is node2, which hears node1.
func wellNodeObservation() NodeObservation {
	return NodeObservation{
		NodeAnswer: NodeAnswer{Outcome: NodeOutcomeAnswered, MACs: []string{holderMAC}}, Node: "node2", Address: netip.MustParseAddr("192.0.2.10"), Holder: "node1",
		NodeByMAC: map[string]string{holderMAC: "node1", otherMAC: "node2"}, HasReadyEndpoints: true, IsAnnounced: true,
	}
}

func makeSilent(o *NodeObservation) { o.Outcome, o.MACs = NodeOutcomeSilent, nil }

// TestDiagnosisOfNodeNamesStepAndBlame has what a node can hear.
func TestDiagnosisOfNodeNamesStepAndBlame(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*NodeObservation)
		result report.Result
		step   Step
		blame  string
		text   string
	}{
		"the holder answers":                                  {func(*NodeObservation) {}, report.ResultWell, StepNeighbour, "", "node1 answers ARP with " + holderMAC},
		"the node is the holder":                              {func(o *NodeObservation) { makeSilent(o); o.Holder = "node2" }, report.ResultWell, StepNeighbour, "", "node2 holds the address itself"},
		"the holder hears another":                            {func(o *NodeObservation) { o.Holder, o.MACs = "node2", []string{holderMAC} }, report.ResultNotWell, StepNeighbour, "another host", holderMAC + " of node node1 answers ARP, and node2 holds the address"},
		"the holder hears its other link":                     {func(o *NodeObservation) { o.Holder, o.MACs = "node2", []string{otherMAC} }, report.ResultWell, StepNeighbour, "", "node2 holds the address itself"},
		"the holder hears its other link and another host":    {func(o *NodeObservation) { o.Holder, o.MACs = "node2", []string{otherMAC, thirdMAC} }, report.ResultNotWell, StepNeighbour, "another host", thirdMAC + " answers ARP, and node2 holds the address"},
		"the address is on a node that does not hold it":      {func(o *NodeObservation) { o.MACs = []string{otherMAC} }, report.ResultNotWell, StepNeighbour, "another host", otherMAC + " of node node2 answers ARP, and node1 holds the address"},
		"a stranger answers too":                              {func(o *NodeObservation) { o.MACs = append(o.MACs, thirdMAC) }, report.ResultNotWell, StepNeighbour, "another host", thirdMAC + " answers ARP, and node1 holds the address"},
		"a stranger answers for an address that nobody holds": {func(o *NodeObservation) { o.Holder, o.MACs = "", []string{thirdMAC} }, report.ResultNotWell, StepNeighbour, "another host", "no node holds the address"},
		"the holder's Ethernet address is not known":          {func(o *NodeObservation) { o.NodeByMAC = nil }, report.ResultUnknown, StepNeighbour, "", "is not known"},
		"the holder is silent":                                {makeSilent, report.ResultNotWell, StepNeighbour, "node1, which holds the address, or the network between it and node2", "no host answers ARP"},
		"the holder is silent by NDP":                         {func(o *NodeObservation) { makeSilent(o); o.Address = netip.MustParseAddr("2001:db8::1") }, report.ResultNotWell, StepNeighbour, "node1", "no host answers NDP"},
		"no Pods":                                             {func(o *NodeObservation) { makeSilent(o); o.Holder, o.HasReadyEndpoints = "", false }, report.ResultNotWell, StepNeighbour, "the Pods", "no Pod of the Service is ready"},
		"BGP only":                                            {func(o *NodeObservation) { makeSilent(o); o.Holder = "" }, report.ResultWell, StepNeighbour, "", "only routers learn"},
		"nobody announces":                                    {func(o *NodeObservation) { makeSilent(o); o.Holder, o.IsAnnounced = "", false }, report.ResultNotWell, StepNeighbour, "the configuration", "no node holds the address"},
		"no link":                                             {func(o *NodeObservation) { o.Outcome, o.MACs = NodeOutcomeNotSent, nil }, report.ResultNotWell, StepLink, "node node2", "no link"},
		"no speaker": {func(o *NodeObservation) {
			o.NodeAnswer = NodeAnswer{Outcome: NodeOutcomeNoSpeaker, Detail: "its speaker is dead"}
		}, report.ResultNotWell, StepSpeaker, "the speaker of node2", "its speaker is dead"},
		"a speaker of an older version": {func(o *NodeObservation) {
			o.NodeAnswer = NodeAnswer{Outcome: NodeOutcomeOldSpeaker, Detail: "the speaker of node3 answered in its place"}
		}, report.ResultUnknown, StepSpeaker, "", "the speaker of node3 answered in its place: update the speakers first"},
		"no right": {func(o *NodeObservation) {
			o.NodeAnswer = NodeAnswer{Outcome: NodeOutcomeNotAsked, Detail: "you have no right"}
		}, report.ResultUnknown, StepSpeaker, "", "not asked: you have no right"},
	} {
		o := wellNodeObservation()
		c.edit(&o)
		d := DiagnoseNode(&o)
		if d.Result != c.result || d.Step != c.step || !strings.HasPrefix(d.Blame, c.blame) || (d.Blame == "") != (c.blame == "") || !strings.Contains(d.Text, c.text) {
			t.Errorf("%s: %+v, want %s at %s, %q, %q", name, d, c.result, c.step, c.blame, c.text)
		}
	}
}

// TestSilentNeighbourIsComparedWithNode asks from a machine on which no host answers ARP.
func TestSilentNeighbourIsComparedWithNode(t *testing.T) {
	silent := wellNodeObservation()
	makeSilent(&silent)
	hearing := wellNodeObservation()
	for name, c := range map[string]struct {
		fromNode *NodeObservation
		blame    string
	}{
		"no node was asked":           {nil, "the node that holds the address, or the network between"},
		"the node hears nobody":       {&silent, "the node that holds the address"},
		"the node hears the holder":   {&hearing, "this machine, or the network between it and node2"},
		"the node could not be asked": {&NodeObservation{NodeAnswer: NodeAnswer{Outcome: NodeOutcomeNotAsked}, Node: "node2", Holder: "node1"}, "the node that holds the address, or the network between"},
	} {
		o := wellObservation()
		o.Outcome, o.NeighbourMAC, o.FromNode = OutcomeHostUnreachable, "", c.fromNode
		if d := Diagnose(&o); d.Step != StepNeighbour || d.Blame != c.blame {
			t.Errorf("%s: %+v, want that it is up to %s", name, d, c.blame)
		}
	}
}
