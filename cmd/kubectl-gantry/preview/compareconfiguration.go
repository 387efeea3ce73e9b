package preview

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// compareConfigurations says which faults of objects would appear or end, and which BGP sessions
// would start, end or change.
func (p *outcomePair) compareConfigurations() []Effect {
	before, after := p.before.state.Configuration, p.after.state.Configuration
	var out []Effect
	for _, f := range faultsWithout(after.Problems, before.Problems) {
		out = append(out, Effect{Kind: EffectProblemAppears, Subject: f.Object.Kind + " " + f.Object.Name, Condition: names.ConditionValid, Reason: f.Reason, Text: "would have a fault: " + f.Text, IsHarm: !f.IsOnlyAdvice()})
	}
	for _, f := range faultsWithout(before.Problems, after.Problems) {
		out = append(out, Effect{Kind: EffectProblemEnds, Subject: f.Object.Kind + " " + f.Object.Name, Condition: names.ConditionValid, Reason: f.Reason, Text: "would not have this fault any more: " + f.Text})
	}
	return append(out, p.compareSessions()...)
}

// faultsWithout returns the Problems that the others do not have, wherever in their lists they
// are.
func faultsWithout(all, others []snapshot.Problem) []snapshot.Problem {
	known := map[snapshot.ProblemIdentity]bool{}
	for _, f := range others {
		known[f.Identity()] = true
	}
	return slices.DeleteFunc(slices.Clone(all), func(f snapshot.Problem) bool { return known[f.Identity()] })
}

// compareSessions says which nodes would have other sessions with a router.
func (p *outcomePair) compareSessions() []Effect {
	var out []Effect
	before, after := p.before.peersByName(), p.after.peersByName()
	for _, name := range sortedUnion(before, after) {
		was, now := p.before.nodesOfPeer(before[name]), p.after.nodesOfPeer(after[name])
		e := Effect{Subject: "BGPPeer " + name}
		if ended := namesWithout(was, now); len(ended) > 0 {
			e.Kind, e.Nodes, e.Text = EffectSessionEnds, ended, "the session with the router would end on "+joinNames(ended)
			out = append(out, e)
		}
		if started := namesWithout(now, was); len(started) > 0 {
			e.Kind, e.Nodes, e.Text = EffectSessionStarts, started, "a session with the router would start on "+joinNames(started)
			out = append(out, e)
		}
		if both := slices.DeleteFunc(slices.Clone(now), func(n string) bool { return !slices.Contains(was, n) }); len(both) > 0 && !before[name].HasSameSettings(after[name]) {
			e.Kind, e.Nodes, e.Text = EffectSessionChanges, both, "the session with the router would get other settings on "+joinNames(both)+": it may end and start again"
			out = append(out, e)
		}
	}
	return out
}

func (o *outcome) peersByName() map[string]*snapshot.Peer {
	out := map[string]*snapshot.Peer{}
	for _, q := range o.state.Configuration.Snapshot.Peers {
		out[q.Name] = q
	}
	return out
}

// nodesOfPeer returns the nodes that should have a session with the router.
func (o *outcome) nodesOfPeer(q *snapshot.Peer) []string {
	if q == nil || q.FirstProblem != nil {
		return nil
	}
	var out []string
	for _, n := range o.state.Configuration.Nodes {
		if q.SelectsNode(n.Labels) {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return out
}

// maxNamesInText bounds how many names a text has.
const maxNamesInText = 6

func joinNames(all []string) string {
	if len(all) <= maxNamesInText {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:maxNamesInText], ", "), len(all)-maxNamesInText)
}

func namesWithout(all, others []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return slices.Contains(others, n) })
}

// sortedUnion returns the keys of both maps, each once.
func sortedUnion[K comparable, V any](x, y map[K]V) []K {
	all := map[K]bool{}
	for k := range x {
		all[k] = true
	}
	for k := range y {
		all[k] = true
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b K) int {
		ka, isKeyA := any(a).(view.ObjectKey)
		kb, isKeyB := any(b).(view.ObjectKey)
		if isKeyA && isKeyB {
			return ka.Compare(kb)
		}
		return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
}
