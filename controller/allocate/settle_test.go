package allocate

import (
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// settleCase is a state of the Services, and what they have when nothing changes any more.
type settleCase struct {
	pools    func(t *testing.T) []*snapshot.Pool
	services []*view.Service
	// sharingBegins says that the Ledger does not know the sharing keys yet.
	sharingBegins bool
	// want is "name=addresses reason" for each Service, separated by semicolons.
	want string
}

// holding gives a Service the addresses, as its status shows them.
func holding(pool string, texts ...string) func(*view.Service) {
	return func(s *view.Service) { s.AssignedAddresses, s.RecordedPool = parseAddresses(texts...), pool }
}

var settleCases = map[string]settleCase{
	"a Service keeps an address that its pool does not have any more": {
		pools:    func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "office", "192.0.2.2/32")} },
		services: []*view.Service{newService("a", holding("office", "192.0.2.1")), newService("b")},
		want:     "a=192.0.2.1 AddressNotInPool; b=192.0.2.2 Assigned",
	},
	"a Service that waits gets the address that another one gives back": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{newPool(t, "lab", "192.0.2.9/32"), newPool(t, "office", "192.0.2.1/32")}
		},
		services: []*view.Service{
			newService("a", holding("office", "192.0.2.1"), func(s *view.Service) { s.RequestedPool = "lab" }),
			newService("b", func(s *view.Service) { s.RequestedPool = "office" }),
		},
		want: "a=192.0.2.9 Assigned; b=192.0.2.1 Assigned",
	},
	"a given address cools down, and nobody else gets it": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{newPool(t, "lab", "192.0.2.9/32"), editPool(newPool(t, "office", "192.0.2.1/32"), withCooldown(time.Hour))}
		},
		services: []*view.Service{
			newService("a", holding("office", "192.0.2.1"), func(s *view.Service) { s.RequestedPool = "lab" }),
			newService("b", func(s *view.Service) { s.RequestedPool = "office" }),
		},
		want: "a=192.0.2.9 Assigned; b= PoolExhausted",
	},
	"every Service leaves a retired pool as far as others have room": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{newPool(t, "lab", "192.0.2.9/32"), editPool(newPool(t, "office", "192.0.2.0/29"), withWholePoolRetired)}
		},
		services: []*view.Service{newService("a", holding("office", "192.0.2.1")), newService("b", holding("office", "192.0.2.2"))},
		want:     "a=192.0.2.9 Assigned turn; b=192.0.2.2 AddressRetired",
	},
	"a probe comes first, and finds no host": {
		pools: func(t *testing.T) []*snapshot.Pool {
			return []*snapshot.Pool{editPool(newPool(t, "office", "192.0.2.1/32"), withAcquireProbe)}
		},
		services: []*view.Service{newService("a")},
		want:     "a=192.0.2.1 Assigned probe",
	},
	"a Service shares the address of one that is decided about later": {
		pools: func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "office", "192.0.2.1/32")} },
		services: []*view.Service{
			newService("a", func(s *view.Service) { s.SharingKey, s.Ports = "key", []view.Port{{Protocol: "TCP", Number: 81}} }),
			newService("b", holding("office", "192.0.2.1"), func(s *view.Service) { s.SharingKey = "key" }),
		},
		sharingBegins: true,
		want:          "a=192.0.2.1 Assigned; b=192.0.2.1 Assigned",
	},
	"Services that wait are served by name": {
		pools:    func(t *testing.T) []*snapshot.Pool { return []*snapshot.Pool{newPool(t, "office", "192.0.2.1/32")} },
		services: []*view.Service{newService("a"), newService("b")},
		want:     "a=192.0.2.1 Assigned; b= PoolExhausted",
	},
}

func withWholePoolRetired(p *snapshot.Pool) {
	p.Retirement = &snapshot.Retirement{WholePool: true, ServiceReassignInterval: time.Second}
}

func TestSettleAssignments(t *testing.T) {
	for name, tc := range settleCases {
		t.Run(name, func(t *testing.T) {
			l := NewLedger()
			l.AdvanceTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
			snap := &snapshot.Snapshot{Pools: tc.pools(t)}
			l.UseSnapshot(snap)
			var services []view.Service
			for _, s := range tc.services {
				services = append(services, *s)
				before := *s
				if tc.sharingBegins {
					before.SharingKey = ""
				}
				l.CommitAssignment(&before, s.AssignedAddresses, s.RecordedPool)
			}
			settled := SettleAssignments(services, l, snap)
			if got := describeSettled(settled); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			for i := range settled {
				services[i] = settled[i].Service
			}
			for _, s := range SettleAssignments(services, l, snap) {
				if s.WasProbed || s.GaveUpRetired {
					t.Errorf("the settled Services change again: %+v", s)
				}
			}
		})
	}
}

func describeSettled(all []SettledAssignment) string {
	var out []string
	for _, s := range all {
		text := s.Service.Key.Name + "=" + view.JoinAddresses(s.Service.AssignedAddresses) + " " + string(s.LastDecision.Reason)
		if s.GaveUpRetired {
			text += " turn"
		}
		if s.WasProbed {
			text += " probe"
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// TestSettleAssignmentsKeepsWhatIsSettled changes nothing in a cluster where all is well.
func TestSettleAssignmentsKeepsWhatIsSettled(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "office", "192.0.2.0/28"))
	var services []view.Service
	for _, name := range []string{"a", "b", "c"} {
		d := w.editServiceAndCarryOutDecision(name)
		s := *w.lastServiceByName[name]
		s.AssignedAddresses, s.RecordedPool = d.Addresses, d.PoolOfFirstAddress
		services = append(services, s)
	}
	for i, s := range SettleAssignments(services, w.ledger, w.snapshot) {
		if s.LastDecision.Reason != names.ReasonAssigned || view.JoinAddresses(s.Service.AssignedAddresses) != view.JoinAddresses(services[i].AssignedAddresses) {
			t.Errorf("%s has %s, want %s", s.Service.Key, view.JoinAddresses(s.Service.AssignedAddresses), view.JoinAddresses(services[i].AssignedAddresses))
		}
	}
}
