// Package preview says what an edit of objects would do, before it is made: it lets the decision
// code of the controller decide about the cluster as it is, and about the cluster after the edit,
// and compares the two. It has no rule of its own about what Gantry does. It writes nothing: the
// API server is asked with dry runs, by the rights of the user.
package preview

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// EffectKind says what an Effect is about.
type EffectKind string

// The kinds of effects, in the order in which they are printed.
const (
	// EffectProblemAppears and EffectProblemEnds are about faults of configuration objects.
	EffectProblemAppears EffectKind = "ProblemAppears"
	EffectProblemEnds    EffectKind = "ProblemEnds"
	// EffectPoolLost says that a Service keeps an address that no pool has any more.
	EffectPoolLost EffectKind = "PoolLost"
	// EffectAddressLost, EffectAddressReplaced and EffectAddressGained are about the addresses of a
	// Service.
	EffectAddressLost     EffectKind = "AddressLost"
	EffectAddressReplaced EffectKind = "AddressReplaced"
	EffectAddressGained   EffectKind = "AddressGained"
	// EffectReasonAppears and EffectReasonEnds are about conditions that are not well.
	EffectReasonAppears EffectKind = "ReasonAppears"
	EffectReasonEnds    EffectKind = "ReasonEnds"
	// EffectHolderChanges says that another node answers for an address. Which one is only likely.
	EffectHolderChanges EffectKind = "HolderChanges"
	// EffectSessionStarts, EffectSessionEnds and EffectSessionChanges are about BGP sessions.
	EffectSessionStarts  EffectKind = "SessionStarts"
	EffectSessionEnds    EffectKind = "SessionEnds"
	EffectSessionChanges EffectKind = "SessionChanges"
	// EffectRouteAppears, EffectRouteVanishes and EffectRouteChanges are about the routes that a
	// router gets.
	EffectRouteAppears  EffectKind = "RouteAppears"
	EffectRouteVanishes EffectKind = "RouteVanishes"
	EffectRouteChanges  EffectKind = "RouteChanges"
)

var effectKindOrder = []EffectKind{
	EffectProblemAppears, EffectPoolLost, EffectAddressLost, EffectAddressReplaced, EffectReasonAppears, EffectAddressGained, EffectHolderChanges,
	EffectSessionEnds, EffectSessionChanges, EffectSessionStarts, EffectRouteVanishes, EffectRouteChanges, EffectRouteAppears, EffectReasonEnds, EffectProblemEnds,
}

// Effect is one thing that an edit would change.
type Effect struct {
	Kind EffectKind `json:"kind"`
	// Subject is what changes: "Service default/web", "IPAddressPool office", "BGPPeer tor".
	Subject string `json:"subject"`
	// Condition is the condition of the subject that Reason is about.
	Condition string       `json:"condition,omitempty"`
	Reason    names.Reason `json:"reason,omitempty"`
	Text      string       `json:"text"`
	// Addresses are those that the effect is about, NewAddresses those that replace them.
	Addresses    []string `json:"addresses,omitempty"`
	NewAddresses []string `json:"newAddresses,omitempty"`
	// Nodes are those of a session or route. From and To are the holders of an address.
	Nodes []string `json:"nodes,omitempty"`
	From  string   `json:"from,omitempty"`
	To    string   `json:"to,omitempty"`
	// IsHarm says that clients or operators would notice a fault, or have to follow an address.
	IsHarm bool `json:"isHarm"`
}

// Preview is what an edit would do.
type Preview struct {
	Result  report.Result  `json:"result"`
	Reason  names.Reason   `json:"reason,omitempty"`
	Answer  string         `json:"answer"`
	Objects []EditedObject `json:"objects"`
	Effects []Effect       `json:"effects"`
	// MissingRights are rights that the user lacks.
	MissingRights []string `json:"missingRights,omitempty"`
}

// PreviewEdit says what the edit of the objects would do.
func PreviewEdit(ctx context.Context, e *explain.Explainer, edited []EditedObject) (*Preview, error) {
	out := &Preview{Result: report.ResultUnknown, Objects: edited, Effects: []Effect{}}
	before, absent, err := explain.ReadClusterState(ctx, e)
	if err != nil {
		return nil, err
	}
	out.MissingRights = explain.MissingRightsOf(e)
	if before == nil {
		out.Reason, out.Answer = absent.Reason, absent.Text
		return out, nil
	}
	endpoints, err := before.ExpectEndpoints(ctx, servicesWithOtherPods(edited))
	if err != nil {
		return nil, err
	}
	edits := slices.Concat(objectEdits(edited), endpoints, editsOfSpeakerStatuses(before, edited))
	after, err := before.WithEdits(ctx, edits)
	if err != nil {
		return nil, err
	}
	outcomes, err := decideBeforeAndAfter(ctx, before, after, edited)
	if err != nil {
		return nil, err
	}
	out.Effects = append(out.Effects, outcomes.compareConfigurations()...)
	out.Effects = append(out.Effects, outcomes.compareServices()...)
	out.Effects = append(out.Effects, outcomes.compareHolders()...)
	out.Effects = append(out.Effects, outcomes.compareRoutes()...)
	slices.SortStableFunc(out.Effects, func(x, y Effect) int {
		return cmp.Or(cmp.Compare(slices.Index(effectKindOrder, x.Kind), slices.Index(effectKindOrder, y.Kind)), strings.Compare(x.Subject, y.Subject), strings.Compare(x.Text, y.Text))
	})
	out.setAnswer()
	return out, nil
}

// objectEdits are the edits that the API server would accept, or that only lack a right.
func objectEdits(edited []EditedObject) []objects.ObjectEdit {
	var out []objects.ObjectEdit
	for i := range edited {
		switch o := &edited[i]; {
		case o.Refusal != "" && !o.IsRightMissing:
		case o.after != nil:
			out = append(out, objects.ObjectEdit{Object: o.after})
		case o.before != nil:
			out = append(out, objects.ObjectEdit{Object: o.before, IsDeleted: true})
		}
	}
	return out
}

// setAnswer makes the first line.
func (p *Preview) setAnswer() {
	refused, harms := 0, map[EffectKind]int{}
	for i := range p.Objects {
		if p.Objects[i].Refusal != "" {
			refused++
		}
	}
	for _, e := range p.Effects {
		if e.IsHarm {
			harms[e.Kind]++
		}
	}
	var parts []string
	add := func(n int, one, several string) {
		switch {
		case n == 1:
			parts = append(parts, "1 "+one)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %s", n, several))
		}
	}
	add(refused, "object would be refused", "objects would be refused")
	add(harms[EffectProblemAppears], "object would have a fault", "objects would have a fault")
	add(harms[EffectPoolLost], "Service would keep an address that no pool has", "Services would keep addresses that no pool has")
	add(harms[EffectAddressLost], "Service would lose an address", "Services would lose addresses")
	add(harms[EffectAddressReplaced], "Service would get another address", "Services would get other addresses")
	add(harms[EffectReasonAppears], "condition would be no longer well", "conditions would be no longer well")
	p.Result = report.ResultWell
	switch {
	case len(parts) > 0:
		p.Result, p.Answer = report.ResultNotWell, strings.Join(parts, "; ")
	case len(p.Effects) == 0:
		p.Answer = "the edit would change nothing that Gantry does"
	default:
		p.Answer = fmt.Sprintf("the edit would harm nothing; it has %d effects", len(p.Effects))
		if len(p.Effects) == 1 {
			p.Answer = "the edit would harm nothing; it has 1 effect"
		}
	}
}

// DetailScope says how much a Report of a Preview has.
type DetailScope string

// The scopes of details.
const (
	WithoutFieldChanges DetailScope = "WithoutFieldChanges"
	WithFieldChanges    DetailScope = "WithFieldChanges"
)

// maxEffectsOfKind bounds how many effects of one kind a Report has.
const maxEffectsOfKind = 20

// NewReport returns the Preview for people.
func (p *Preview) NewReport(scope DetailScope) *report.Report {
	out := &report.Report{Subject: "edit", Result: p.Result, Reason: p.Reason, Answer: p.Answer, MissingRights: p.MissingRights}
	for i := range p.Objects {
		o := &p.Objects[i]
		c := report.Check{Name: o.Object, Result: report.ResultWell, Text: string(o.Action)}
		if o.Note != "" {
			c.Text += ": " + o.Note
		}
		if o.Refusal != "" {
			c.Result, c.Text = report.ResultNotWell, "refused by the API server: "+o.Refusal
		}
		if o.IsRightMissing {
			c.Text += "; the rest assumes that somebody with this right makes the edit"
		}
		out.Checks = append(out.Checks, c)
		for _, f := range o.Changes {
			if scope == WithFieldChanges {
				out.Checks = append(out.Checks, report.Check{Name: "  " + o.Object, Result: report.ResultWell, Text: f.String()})
			}
		}
	}
	count := map[EffectKind]int{}
	for _, e := range p.Effects {
		if count[e.Kind]++; count[e.Kind] > maxEffectsOfKind {
			continue
		}
		c := report.Check{Name: e.Subject, Result: report.ResultWell, Reason: e.Reason, Text: e.Text}
		if e.IsHarm {
			c.Result = report.ResultNotWell
		}
		out.Checks = append(out.Checks, c)
	}
	for _, kind := range effectKindOrder {
		if more := count[kind] - maxEffectsOfKind; more > 0 {
			out.Checks = append(out.Checks, report.Check{Name: "more", Result: report.ResultUnknown, Text: fmt.Sprintf("%d more effects of the kind %s: see -o json", more, kind)})
		}
	}
	return out
}
