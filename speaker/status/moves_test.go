package status

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/google/go-cmp/cmp"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
)

func TestRecordMoveStoresFormerAndNewHolder(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 900, time.UTC)
	at := metav1.NewTime(now.Truncate(time.Second))
	web, dns := view.ObjectKey{Namespace: "default", Name: "web"}, view.ObjectKey{Namespace: "default", Name: "dns"}
	four := netip.MustParseAddr("192.0.2.1")
	for name, c := range map[string]struct {
		event    elect.Event
		services []view.ObjectKey
		want     []v1alpha1.AddressMoveBetweenNodes
	}{
		"taken from a dead node": {elect.Event{Kind: elect.EventAddressTaken, Address: four, Reason: names.ReasonHolderGone, FormerHolder: "node2", TakeoverDelay: 212345678 * time.Nanosecond}, []view.ObjectKey{web},
			[]v1alpha1.AddressMoveBetweenNodes{{At: at, Address: "192.0.2.1", Service: "default/web", From: "node2", To: "node1", Cause: "HolderGone", Duration: &metav1.Duration{Duration: 212 * time.Millisecond}}}},
		"the first holder, and two Services": {elect.Event{Kind: elect.EventAddressTaken, Address: four, Reason: names.ReasonUnheld}, []view.ObjectKey{dns, web},
			[]v1alpha1.AddressMoveBetweenNodes{{At: at, Address: "192.0.2.1", Service: "default/dns,default/web", To: "node1", Cause: "Unheld"}}},
		"given up, and nobody takes it": {elect.Event{Kind: elect.EventAddressGivenUp, Address: four, Reason: names.ReasonNobodyServes}, nil,
			[]v1alpha1.AddressMoveBetweenNodes{{At: at, Address: "192.0.2.1", From: "node1", Cause: "NobodyServes"}}},
		"given up for a newer claim": {elect.Event{Kind: elect.EventAddressGivenUp, Address: four, Reason: names.ReasonSuperseded}, []view.ObjectKey{web}, nil},
		"a foreign host":             {elect.Event{Kind: elect.EventForeignHostAnswers, Address: four}, []view.ObjectKey{web}, nil},
	} {
		var m Moves
		m.RecordMove(c.event, "node1", c.services, now)
		if d := cmp.Diff(c.want, m.ListNewestFirst()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestMovesAreBoundedAndContinueEarlierOnes(t *testing.T) {
	var before, m Moves
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	record := func(m *Moves, i int) {
		m.RecordMove(elect.Event{Kind: elect.EventAddressTaken, Address: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i)), Reason: names.ReasonUnheld}, "node1", nil, now)
	}
	for i := range 40 {
		record(&before, i)
	}
	record(&m, 40)
	m.AddEarlierMoves(before.ListNewestFirst())
	record(&m, 41)
	all := m.ListNewestFirst()
	if len(all) != 32 || all[0].Address != "192.0.2.41" || all[1].Address != "192.0.2.40" || all[2].Address != "192.0.2.39" || all[31].Address != "192.0.2.10" {
		t.Errorf("%d moves: %+v", len(all), all)
	}
}
