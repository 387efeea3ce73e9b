package explain

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// rememberedAddressMoves returns the moves that the speakers remember, the newest first.
// unknownBefore is the time before which moves were forgotten; nil if none were.
func (i *installation) rememberedAddressMoves() (newestFirst []v1alpha1.AddressMoveBetweenNodes, unknownBefore *metav1.Time) {
	for _, node := range slices.Sorted(maps.Keys(i.speakerStatusByNode)) {
		moves := i.speakerStatusByNode[node].Moves
		newestFirst = append(newestFirst, moves...)
		if len(moves) < v1alpha1.MaxMovesInSpeakerStatus {
			continue
		}
		if oldest := &moves[len(moves)-1].At; unknownBefore == nil || unknownBefore.Before(oldest) {
			unknownBefore = oldest
		}
	}
	slices.SortStableFunc(newestFirst, func(x, y v1alpha1.AddressMoveBetweenNodes) int { return y.At.Compare(x.At.Time) })
	return newestFirst, unknownBefore
}

// ListMoves lists which address moved from which node to which, the newest first.
func (e *Explainer) ListMoves(ctx context.Context) (*report.Listing, error) {
	l, o, err := e.newListingWithOverview(ctx, withoutServices, "at", "address", "service", "from", "to", "cause", "nobody answered for")
	if err != nil || o == nil {
		return l, err
	}
	all, unknownBefore := e.installation.rememberedAddressMoves()
	for _, m := range all {
		l.Rows = append(l.Rows, []string{describeTime(&m.At), m.Address, cmp.Or(m.Service, "none"), cmp.Or(m.From, "none"), cmp.Or(m.To, "none"), m.Cause, describeDuration(m.Duration)})
	}
	switch {
	case unknownBefore != nil:
		l.Title = fmt.Sprintf("each speaker remembers its last %d moves: of those before %s some are unknown", v1alpha1.MaxMovesInSpeakerStatus, describeTime(unknownBefore))
	case len(all) == 0:
		l.Title = "no speaker remembers that an address moved"
	}
	return l, nil
}

func describeDuration(d *metav1.Duration) string {
	if d == nil {
		return "unknown"
	}
	return d.Duration.String()
}

// maxListedMovesOfAddress is how many moves an explanation of an address has.
const maxListedMovesOfAddress = 3

// addAddressMoveChecks says how an address came to where it is.
func (c *objectDiagnosis) addAddressMoveChecks(address string) {
	all, unknownBefore := c.installation.rememberedAddressMoves()
	count := 0
	for _, m := range all {
		if m.Address != address {
			continue
		}
		if count++; count > maxListedMovesOfAddress {
			return
		}
		c.addCheck("move", report.ResultWell, names.Explanation{Text: describeMove(&m)})
	}
	switch {
	case unknownBefore != nil && count < maxListedMovesOfAddress:
		c.addCheck("move", report.ResultWell, names.Explanation{Text: fmt.Sprintf("earlier ones are unknown: each speaker remembers its last %d", v1alpha1.MaxMovesInSpeakerStatus)})
	case count == 0:
		c.addCheck("move", report.ResultWell, names.Explanation{Text: "none is known"})
	}
}

func describeMove(m *v1alpha1.AddressMoveBetweenNodes) string {
	var text strings.Builder
	switch {
	case m.From == "":
		fmt.Fprintf(&text, "%s took it", m.To)
	case m.To == "":
		fmt.Fprintf(&text, "%s gave it up, and no node took it", m.From)
	default:
		fmt.Fprintf(&text, "from %s to %s", m.From, m.To)
	}
	fmt.Fprintf(&text, " at %s, %s", describeTime(&m.At), m.Cause)
	if m.Duration != nil {
		fmt.Fprintf(&text, ", after nobody had answered for %s", m.Duration.Duration)
	}
	return text.String()
}
