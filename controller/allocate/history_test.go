package allocate

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// TestRandomEventsKeepLedgerInvariants creates, edits and deletes Services, pools and reservations,
// lets time pass and restarts the controller. After each step a slow oracle looks at every address
// and checks that no address is held twice, none is taken by the acts of others, none is lost, and
// the next one assigned is the lowest free one.
func TestRandomEventsKeepLedgerInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &randomHistoryTest{T: rt, harness: newLedgerHarness(t)}
		h.setRandomPools("0")
		for range rapid.IntRange(5, 40).Draw(rt, "steps") {
			h.runRandomStep()
			h.checkInvariants()
		}
	})
}

// randomHistoryTest drives a harness at random.
type randomHistoryTest struct {
	*rapid.T
	harness *ledgerHarness
}

func (h *randomHistoryTest) drawOneOf(label string, of ...string) string {
	return rapid.SampledFrom(of).Draw(h.T, label)
}

// possibleRangesByPool are the ranges to which a pool may be edited; they never overlap across
// pools.
var possibleRangesByPool = map[string][][]string{
	"0": {{"192.0.2.0/29"}, {"192.0.2.2-192.0.2.12"}, {"192.0.2.4/30", "fd00:1::/126"}, {"192.0.2.0/28", "fd00:1::/125"}},
	"1": {{"198.51.100.254-198.51.101.3"}, {"fd00:2::-fd00:2::5"}, {"198.51.101.0/29", "fd00:2::/127"}},
}

// setRandomPools replaces the pools by random variants of those that are named.
func (h *randomHistoryTest) setRandomPools(pools ...string) {
	var out []*snapshot.Pool
	for _, name := range pools {
		all := possibleRangesByPool[name]
		p := newPool(h.harness.T, name, all[rapid.IntRange(0, len(all)-1).Draw(h.T, "ranges")]...)
		p.AssignmentOrder = snapshot.AssignmentOrder(h.drawOneOf("order", "", "Lowest", "RoundRobin", "Hash"))
		p.AutoAssign = h.drawOneOf("auto", "yes", "yes", "yes", "no") == "yes"
		p.AvoidBuggyIPs = h.drawOneOf("avoid", "no", "yes") == "yes"
		switch h.drawOneOf("more", "none", "none", "cooldown", "quota", "exclude", "restricted", "others") {
		case "cooldown":
			p.CooldownDelay = time.Minute
		case "quota":
			withQuota(2, map[string]int{"b": 1})(p)
		case "exclude":
			excludingRanges(h.harness.T, "192.0.2.4/31", "198.51.101.1", "fd00:1::2")(p)
		case "restricted":
			restrictedToNamespaces(1, "a")(p)
		case "others":
			restrictedToNamespaces(2, "nobody")(p)
		}
		out = append(out, p)
	}
	h.harness.setPools(out...)
}

// runRandomStep does one thing, and then serves all unrelated Services again: they must keep what
// they have.
func (h *randomHistoryTest) runRandomStep() {
	w := h.harness
	name := h.drawOneOf("service", "a1", "a2", "a3", "a4", "b1", "b2", "b3", "b4")
	before := map[string][]netip.Addr{}
	for n, as := range w.statusAddressesByService {
		before[n] = slices.Clone(as)
	}
	mine := ""
	switch what := h.drawOneOf("what", "serve", "serve", "serve", "edit", "delete", "pools", "restart", "later", "reserve"); what {
	case "serve", "edit":
		mine = name
		h.createOrEditRandomService(name, what == "edit")
	case "delete":
		mine = name
		if w.lastServiceByName[name] != nil {
			w.deleteService(name)
		}
	case "pools":
		h.setRandomPools([][]string{{"0", "1"}, {"0"}, {"1"}, {}}[rapid.IntRange(0, 3).Draw(h.T, "pools")]...)
	case "restart":
		w.restartController()
	case "later":
		w.advanceTime(40 * time.Second)
	case "reserve":
		h.setRandomReservation()
	}
	for _, n := range []string{"a1", "a2", "a3", "a4", "b1", "b2", "b3", "b4"} {
		if n == mine || w.lastServiceByName[n] == nil {
			continue
		}
		from, _ := w.ledger.AssignmentOf(w.lastServiceByName[n].Key)
		w.editServiceAndCarryOutDecision(n)
		for _, a := range before[n] {
			if !slices.Contains(w.statusAddressesByService[n], a) && !h.wantsToExchangeAddress(w.lastServiceByName[n], a, from.PoolOfFirstAddress) {
				h.Fatalf("%s had %v, and has %v without asking", n, before[n], w.statusAddressesByService[n])
			}
		}
	}
}

// wantsToExchangeAddress says whether a Service asks to exchange the address.
func (h *randomHistoryTest) wantsToExchangeAddress(s *view.Service, a netip.Addr, from string) bool {
	return len(s.RequestedAddresses) > 0 && !slices.Contains(s.RequestedAddresses, a) || slices.Contains(s.AddressesToExchange, a) || s.RequestedPool != "" && s.RequestedPool != from
}

// createOrEditRandomService creates a Service, or edits it.
func (h *randomHistoryTest) createOrEditRandomService(name string, edit bool) {
	var edits []func(*view.Service)
	if h.harness.lastServiceByName[name] == nil {
		edits = append(edits, inNamespace(name[:1]), withRequestedAddressesPerFamily(rapid.IntRange(1, 2).Draw(h.T, "count")))
		switch h.drawOneOf("families", "4", "4", "6", "prefer", "require") {
		case "6":
			edits = append(edits, withSingleStackIPv6)
		case "prefer":
			edits = append(edits, withDualStack(view.PreferDualStack))
		case "require":
			edits = append(edits, withDualStack(view.RequireDualStack))
		}
		if k := h.drawOneOf("key", "", "", "k", "m"); k != "" {
			edits = append(edits, withSharingKeyAndPort(k, rapid.SampledFrom([]uint16{80, 443, 8080}).Draw(h.T, "port")))
		}
	}
	if edit {
		switch h.drawOneOf("edit", "address", "pool", "no pool", "release", "release nothing") {
		case "address":
			edits = append(edits, withRequestedAddresses(h.drawOneOf("asked", "192.0.2.5", "192.0.2.6", "198.51.101.1")))
		case "pool":
			edits = append(edits, withRequestedAddresses(), withRequestedPool(h.drawOneOf("pool", "0", "1", "2")))
		case "no pool":
			edits = append(edits, withRequestedAddresses(), withRequestedPool(""))
		case "release":
			held := h.harness.statusAddressesByService[name]
			edits = append(edits, withRequestedAddresses(), func(s *view.Service) { s.AddressesToExchange = held[:min(len(held), 1)] })
		case "release nothing":
			edits = append(edits, withAddressesToRelease())
		}
	}
	h.harness.editServiceAndCarryOutDecision(name, edits...)
}

func (h *randomHistoryTest) setRandomReservation() {
	r := &snapshot.Reservation{Name: "r", Service: view.ObjectKey{Namespace: "a", Name: "a1"}}
	switch h.drawOneOf("reservation", "none", "address", "pool", "follows") {
	case "none":
		h.harness.setReservations()
		return
	case "address":
		r.Addresses = parseAddresses("192.0.2.3", "fd00:2::1")
	case "pool":
		r.PoolToChooseFrom = "0"
	}
	if h.drawOneOf("expires", "no", "yes") == "yes" {
		r.ExpiresAt = h.harness.currentTime.Add(time.Minute)
	}
	h.harness.setReservations(r)
}

// checkInvariants is the oracle.
func (h *randomHistoryTest) checkInvariants() {
	w := h.harness
	w.ledger.UseSnapshot(w.snapshot)
	holders := map[netip.Addr][]*view.Service{}
	for n, as := range w.statusAddressesByService {
		for _, a := range as {
			for _, o := range holders[a] {
				if c := sharingPropertiesOf(w.lastServiceByName[n]).explainConflictWith(sharingPropertiesOf(o)); c.IsSet() {
					h.Fatalf("%s is held by %s and %s, which may not share it (%s)", a, n, o.Key, c.Reason)
				}
			}
			holders[a] = append(holders[a], w.lastServiceByName[n])
		}
	}
	withheld := map[netip.Addr]bool{}
	for _, x := range w.ledger.AllWithheldAddresses() {
		withheld[x.Address] = true
		if x.Reason == names.ReasonProbing && len(holders[x.Address]) == 0 {
			h.Fatalf("%s is withheld for a finished write of %s", x.Address, x.ServiceThatMayHoldIt)
		}
	}
	for _, p := range w.snapshot.Pools {
		var want PoolUsage
		var lowest netip.Addr
		for _, r := range p.Ranges {
			for a := r.First; a.Compare(r.Last) <= 0; a = a.Next() {
				held, free := len(holders[a]) > 0, p.CanAssignAddress(a) && len(holders[a]) == 0 && !withheld[a]
				if free && a.Is4() && !lowest.IsValid() {
					lowest = a
				}
				want.AssignedIPv4 += oneIfTrue(held && a.Is4())
				want.AssignedIPv6 += oneIfTrue(held && a.Is6())
				want.AvailableIPv4 += oneIfTrue(free && a.Is4())
				want.AvailableIPv6 += oneIfTrue(free && a.Is6())
			}
		}
		if got := w.ledger.UsageOfPool(p, w.snapshot); got != want {
			h.Fatalf("pool %s counts %+v, and the oracle %+v", p.Name, got, want)
		}
		h.checkNextAssignedIsLowestFree(p, lowest)
	}
}

func oneIfTrue(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

// checkNextAssignedIsLowestFree checks what a new Service that names the pool would get.
func (h *randomHistoryTest) checkNextAssignedIsLowestFree(p *snapshot.Pool, lowest netip.Addr) {
	s := newService("fresh", inNamespace("z"), withRequestedPool(p.Name))
	d := DecideAssignment(s, h.harness.ledger, h.harness.snapshot)
	switch {
	case !poolAdmits(p, s):
		if d.Reason != names.ReasonPoolNotAllowed {
			h.Fatalf("a Service that pool %s does not admit gets %s", p.Name, d.Reason)
		}
	case !lowest.IsValid():
		if len(d.Addresses) > 0 {
			h.Fatalf("got %v from pool %s, which is full", d.Addresses, p.Name)
		}
	case len(d.Addresses) != 1 || !p.CanAssignAddress(d.Addresses[0]) || len(h.harness.ledger.HoldersOfAddress(d.Addresses[0])) > 0:
		h.Fatalf("pool %s has %s free, and gives %v: %s", p.Name, lowest, d.Addresses, d.Text)
	case (p.AssignmentOrder == "" || p.AssignmentOrder == snapshot.OrderLowest) && d.Addresses[0] != lowest:
		h.Fatalf("pool %s gives %v, and %s is the lowest", p.Name, d.Addresses, lowest)
	}
	if got := fmt.Sprint(DecideAssignment(s, h.harness.ledger, h.harness.snapshot)); got != fmt.Sprint(d) {
		h.Fatalf("two equal decisions differ: %v, %v", d, got)
	}
}
