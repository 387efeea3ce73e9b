package status

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
)

// maxServicesOfMove bounds how many Services of a shared address a move names.
const maxServicesOfMove = 4

// Moves are the last addresses that a node took over, or gave up without a successor. The zero
// value has none.
type Moves struct {
	newestFirst []v1alpha1.AddressMoveBetweenNodes
}

// RecordMove adds what an event of the election says about the holder of an address. An address
// that another node takes is recorded by that node.
func (m *Moves) RecordMove(e elect.Event, self string, services []view.ObjectKey, now time.Time) {
	move := v1alpha1.AddressMoveBetweenNodes{Address: e.Address.String(), Cause: string(e.Reason), At: metav1.NewTime(now.Truncate(time.Second).UTC())}
	isWithoutSuccessor := e.Reason == names.ReasonNobodyServes || e.Reason == names.ReasonNoTaker
	switch {
	case e.Kind == elect.EventAddressTaken:
		move.From, move.To = e.FormerHolder, self
	case e.Kind == elect.EventAddressGivenUp && isWithoutSuccessor:
		move.From = self
	default:
		return
	}
	if e.TakeoverDelay > 0 {
		move.Duration = &metav1.Duration{Duration: e.TakeoverDelay.Round(time.Millisecond)}
	}
	var keys []string
	for _, k := range services[:min(len(services), maxServicesOfMove)] {
		keys = append(keys, k.String())
	}
	move.Service = strings.Join(keys, ",")
	m.newestFirst = limitMoves(append([]v1alpha1.AddressMoveBetweenNodes{move}, m.newestFirst...))
}

// AddEarlierMoves adds moves from before the start of the speaker.
func (m *Moves) AddEarlierMoves(newestFirst []v1alpha1.AddressMoveBetweenNodes) {
	m.newestFirst = limitMoves(append(m.newestFirst[:len(m.newestFirst):len(m.newestFirst)], newestFirst...))
}

// ListNewestFirst returns the moves. Nobody may change them.
func (m *Moves) ListNewestFirst() []v1alpha1.AddressMoveBetweenNodes { return m.newestFirst }

func limitMoves(all []v1alpha1.AddressMoveBetweenNodes) []v1alpha1.AddressMoveBetweenNodes {
	return all[:min(len(all), v1alpha1.MaxMovesInSpeakerStatus)]
}
