package allocate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// poolDoesNotAdmitServiceFormat is the text for a pool that does not admit the Service.
const poolDoesNotAdmitServiceFormat = "pool %q does not admit this Service: ask for another pool or address, or add the Service's namespace or labels to the pool's serviceAllocation"

// findPoolOfRequestedAddress returns the pool of a requested address, or why the Service cannot
// have it. For an address that the Service already holds, only its pool is checked.
func (d *decider) findPoolOfRequestedAddress(a netip.Addr) (*poolEntry, names.Explanation) {
	at := addressFromNetip(a)
	src := d.currentPoolIndex.poolEntryThatCanAssign(at)
	if src == nil {
		outer := d.currentPoolIndex.poolEntryCovering(at)
		if outer != nil && outer.pool.IsAddressRetired(a) {
			return nil, names.NewExplanation(names.ReasonAddressRetired, "pool %q retires the requested %s: ask for another address", outer.pool.Name, a)
		}
		if outer != nil {
			return nil, names.NewExplanation(names.ReasonAddressNotInPool, "pool %q excludes the requested %s, by gantry.exclude or avoidBuggyIPs: ask for another address", outer.pool.Name, a)
		}
		return nil, names.NewExplanation(names.ReasonAddressNotInPool, "no pool contains the requested %s: ask for an address of a pool%s, or add it to one", a, d.currentPoolIndex.shortNamespacePhraseForPools())
	}
	if d.service.RequestedPool != "" && d.service.RequestedPool != src.pool.Name {
		return nil, names.NewExplanation(names.ReasonInvalidRequest, "the requested %s belongs to pool %q, but the annotation %s asks for pool %s: remove one of the two",
			a, src.pool.Name, names.AnnotationRequestedPool, names.QuoteShortened(d.service.RequestedPool))
	}
	if !poolAdmits(src.pool, d.service) {
		return nil, names.NewExplanation(names.ReasonPoolNotAllowed, poolDoesNotAdmitServiceFormat, src.pool.Name)
	}
	if slices.Contains(d.stillHoldableAssignmentBefore.Addresses, a) {
		return src, names.Explanation{}
	}
	if c := d.ledger.explainNewSharingConflict(at, d.service.Key, d.sharing); c.IsSet() {
		return nil, names.NewExplanation(c.Reason, "the requested %s %s: ask for another address, or %s", a, c.Text, c.advice)
	}
	if w, blocked := d.ledger.entryWithholdingAddress(at, d.service.Key); blocked && !d.ledger.isAddressHeld(at) {
		return nil, names.NewExplanation(w.Reason, "the requested %s %s", a, w.describeReasonTo(textReader{d.service.Key.Namespace, d.ledger.tellsNamesOfAllNamespaces}))
	}
	if limit := src.pool.LimitPerService(); d.countRequestedOfFamily(at.family()) > limit {
		return nil, d.explainServiceLimit(src)
	}
	if !d.isWithinQuota(src.forFamily(at.family()), at) {
		return nil, names.NewExplanation(names.ReasonQuotaExceeded, "namespace %s has reached its quota of pool %q: raise the quota or release addresses", d.service.Key.Namespace, src.pool.Name)
	}
	return src, names.Explanation{}
}

// explainSharingConflict says why the Service may not hold the address together with its holders,
// and returns zero when it may. If several holders conflict, it names the first one by name, so
// that every controller gives the same answer. It shows neither the name nor the key of a Service
// in another namespace: with the key, anybody could share the address.
func (l *Ledger) explainSharingConflict(a address, k view.ObjectKey, sh *sharingProperties) sharingConflict {
	var first *assignmentRecord
	var conflict sharingConflict
	var room [1]int32
	for _, id := range l.holderTable.recordIDsHoldingAddress(a, &room) {
		r := l.recordAt(id)
		if r.service == k || (first != nil && first.service.Compare(r.service) < 0) {
			continue
		}
		if found := sh.explainConflictWith(r.sharing); found.IsSet() {
			first, conflict = r, found
		}
	}
	if first == nil {
		return sharingConflict{}
	}
	if conflict.Reason == names.ReasonSharingKeyDiffers && first.service.Namespace != k.Namespace {
		conflict.Text = "its sharing key differs"
	}
	conflict.Text = fmt.Sprintf("is held by %s and cannot be shared: %s", textReader{k.Namespace, l.tellsNamesOfAllNamespaces}.nameService(first.service), conflict.Text)
	return conflict
}

// explainNewSharingConflict says why the Service may not share an address that it does not hold
// yet. Beyond explainSharingConflict, the pool can keep namespaces apart. That comes first: the
// Service must not learn what the holders in other namespaces do.
func (l *Ledger) explainNewSharingConflict(a address, k view.ObjectKey, sh *sharingProperties) sharingConflict {
	if st := l.currentPoolIndex.familyPoolCovering(a); st != nil && st.pool.SharesOnlyWithinNamespace {
		var room [1]int32
		for _, id := range l.holderTable.recordIDsHoldingAddress(a, &room) {
			if holder := l.recordAt(id).service; holder.Namespace != k.Namespace {
				why := names.NewExplanation(names.ReasonAddressInUse, "is held by %s and cannot be shared: only Services of one namespace share an address of pool %q", textReader{k.Namespace, l.tellsNamesOfAllNamespaces}.nameService(holder), st.pool.Name)
				return sharingConflict{why, "set gantry.sharing of the pool"}
			}
		}
	}
	return l.explainSharingConflict(a, k, sh)
}

// TellNamesOfAllNamespaces makes explanations name the Services of other namespaces: the reader of
// the explanations may read these Services.
func (l *Ledger) TellNamesOfAllNamespaces() { l.tellsNamesOfAllNamespaces = true }

// textReader is for whom a text is: for the users of one namespace, who learn no names of another
// one, or for somebody who may read all namespaces.
type textReader struct {
	namespace            string
	mayReadAllNamespaces bool
}

func (r textReader) mayReadNamesOf(namespace string) bool {
	return r.mayReadAllNamespaces || namespace == r.namespace
}

// nameService names a Service in a text.
func (r textReader) nameService(k view.ObjectKey) string {
	if !r.mayReadNamesOf(k.Namespace) {
		return "another namespace's Service"
	}
	return "Service " + k.String()
}

// describeReasonTo says why the address cannot be assigned, as the end of a sentence.
func (w WithheldAddress) describeReasonTo(r textReader) string {
	until := ""
	if !w.WithheldUntil.IsZero() {
		until = " until " + w.WithheldUntil.UTC().Format(time.RFC3339)
	}
	service := r.nameService(w.ServiceThatMayHoldIt)
	switch w.Reason {
	case names.ReasonAddressReserved:
		if r.mayReadNamesOf(w.ServiceThatMayHoldIt.Namespace) {
			return fmt.Sprintf("is reserved for %s by AddressReservation %q%s", service, w.ReservationOrForeignHost, until)
		}
		return fmt.Sprintf("is reserved for %s%s", service, until)
	case names.ReasonQuarantined:
		return fmt.Sprintf("is in quarantine%s: host %s answered for it on the segment", until, w.ReservationOrForeignHost)
	case names.ReasonAddressInUse:
		return fmt.Sprintf("is still in the status of %s, which the controller is about to write", service)
	case names.ReasonProbing:
		return fmt.Sprintf("is about to be given to %s", service)
	}
	return fmt.Sprintf("was released by %s and cools down%s", service, until)
}

// decideToKeepAssignment leaves the Service with what it has, and says why it does not get what it
// asks for.
func (d *decider) decideToKeepAssignment(why names.Explanation) Decision {
	d.pickedAddresses, d.keptAddresses = nil, d.stillHoldableAssignmentBefore.Addresses
	// Addresses beyond its count come from an exchange that was not written.
	if d.service.InvalidRequestText == "" {
		d.dropSurplusAddresses()
		d.stillHoldableAssignmentBefore.Addresses = d.keptAddresses
	}
	out := Decision{Addresses: d.stillHoldableAssignmentBefore.Addresses, Explanation: why, DecideAgainWhenAddressesFree: true}
	if len(d.stillHoldableAssignmentBefore.Addresses) > 0 {
		out.Text += fmt.Sprintf("; the Service keeps %s", view.JoinAddresses(d.stillHoldableAssignmentBefore.Addresses))
		out.PoolOfFirstAddress, out.PoolsOfAllAddressesIfSeveral, _ = d.describePoolsOfAddresses(out.Addresses)
	}
	return out
}

func (d *decider) decideToAssign(addresses []netip.Addr) Decision {
	out := Decision{Addresses: addresses}
	out.Reason = names.ReasonAssigned
	out.PoolOfFirstAddress, out.PoolsOfAllAddressesIfSeveral, out.Text = d.describePoolsOfAddresses(addresses)
	return out
}

// describePoolsOfAddresses returns the pools of the addresses, and a sentence about them. An
// address that no pool covers belongs to the pool that it came from. So does an address that the
// Service got from the pool it names: otherwise a later change of the pools would look like a
// change of the Service.
func (d *decider) describePoolsOfAddresses(addresses []netip.Addr) (pool string, pools []string, text string) {
	room := make([]byte, 0, 96)
	room = append(room, "assigned "...)
	for i, a := range addresses {
		name := d.stillHoldableAssignmentBefore.PoolOfFirstAddress
		if src := d.currentPoolIndex.poolEntryCovering(addressFromNetip(a)); src != nil && !(name != "" && name == d.service.RequestedPool && slices.Contains(d.keptAddresses, a)) {
			name = src.pool.Name
		}
		switch {
		case i == 0:
			pool = name
		case !slices.Contains(pools, name) && (name != pool || pools != nil):
			if pools == nil {
				pools = []string{pool}
			}
			pools = append(pools, name)
		}
		if i > 0 {
			room = append(room, ", "...)
		}
		room = a.AppendTo(room)
	}
	switch {
	case pools != nil:
		room = append(append(room, " from the pools "...), strings.Join(pools, ", ")...)
	default:
		room = append(append(append(room, ` from pool "`...), pool...), '"')
	}
	return pool, pools, string(room)
}

// maxPoolsNamedInText is how many pools a sentence names.
const maxPoolsNamedInText = 8

// joinPoolNames lists the names of pools, sorted, each once, at most maxPoolsNamedInText of them.
func joinPoolNames(from []*poolEntry) string {
	var out []string
	for _, src := range from {
		out = append(out, src.pool.Name)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if n := len(out); n > maxPoolsNamedInText {
		return strings.Join(out[:maxPoolsNamedInText], ", ") + fmt.Sprintf(" and %d more", n-maxPoolsNamedInText)
	}
	return strings.Join(out, ", ")
}

// countRequestedOfFamily counts the addresses of the family that the Service requests.
func (d *decider) countRequestedOfFamily(f ipfamily.Family) int {
	n := 0
	for _, a := range d.service.RequestedAddresses {
		if ipfamily.FamilyOf(a) == f {
			n++
		}
	}
	return n
}

// explainServiceLimit says that the Service has as many addresses as the pool allows for one.
func (d *decider) explainServiceLimit(src *poolEntry) names.Explanation {
	return names.NewExplanation(names.ReasonServiceLimitReached, "pool %q gives a Service at most %d of each family: ask for fewer, or raise gantry.maxPerService of the pool", src.pool.Name, src.pool.LimitPerService())
}

// explainShortage says why pickMissingAddresses did not find all addresses. If a pool would have
// had another one, its limit is the reason.
func (d *decider) explainShortage() names.Explanation {
	if len(d.fullPerServicePools) > 0 {
		return d.explainServiceLimit(d.fullPerServicePools[0])
	}
	if len(d.overQuotaPools) > 0 {
		return names.NewExplanation(names.ReasonQuotaExceeded, "namespace %s has reached its quota in the pools open to this Service (%s): raise the quota or release addresses",
			d.service.Key.Namespace, joinPoolNames(d.overQuotaPools))
	}
	if why := d.explainSharingObstacle(); why.IsSet() {
		return why
	}
	return names.NewExplanation(names.ReasonPoolExhausted, "no free address of the needed family in the pools open to this Service (%s): add addresses or release some",
		joinPoolNames(d.exhaustedPools))
}
