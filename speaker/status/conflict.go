package status

import (
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// AddressConflict is the claim of a foreign host to an address that this node holds.
type AddressConflict struct {
	Address     netip.Addr
	ForeignMAC  facts.MAC
	FirstSeenAt time.Time
}

func (c AddressConflict) toAPI() v1beta1.AddressConflict {
	return v1beta1.AddressConflict{Address: c.Address.String(), MAC: c.ForeignMAC.String(), Since: metav1.NewTime(c.FirstSeenAt.Truncate(time.Second).UTC())}
}

const (
	// silentForeignHostTimeout is how long a host is silent before its claim counts as withdrawn.
	// Hosts renew their neighbour entries more often than that.
	silentForeignHostTimeout = time.Minute
	// conflictsPerAddressLimit bounds the claims that are listed, so that a forger
	// does not fill the status.
	conflictsPerAddressLimit = 16
)

// Conflicts has the present claims. The zero value has none.
type Conflicts struct {
	openConflicts []conflictWithLastSeen // by address, then time
}

type conflictWithLastSeen struct {
	AddressConflict
	lastSeenAt time.Time
}

// RecordConflict adds a claim and says whether it is new.
func (c *Conflicts) RecordConflict(a netip.Addr, mac facts.MAC, now time.Time) (isNew bool) {
	of := 0
	for i := range c.openConflicts {
		k := &c.openConflicts[i]
		if k.Address != a {
			continue
		}
		if of++; k.ForeignMAC == mac {
			k.lastSeenAt = now
			return false
		}
	}
	if of >= conflictsPerAddressLimit {
		return false
	}
	c.openConflicts = append(c.openConflicts, conflictWithLastSeen{AddressConflict{a, mac, now}, now})
	slices.SortStableFunc(c.openConflicts, func(x, y conflictWithLastSeen) int { return x.Address.Compare(y.Address) })
	return true
}

// ForgetExpired removes the claims that are over, and says whether there was one.
func (c *Conflicts) ForgetExpired(now time.Time) bool {
	n := len(c.openConflicts)
	c.openConflicts = slices.DeleteFunc(c.openConflicts, func(k conflictWithLastSeen) bool { return now.Sub(k.lastSeenAt) >= silentForeignHostTimeout })
	return len(c.openConflicts) < n
}

// ForgetOtherAddresses removes the claims to addresses that this node does not hold.
func (c *Conflicts) ForgetOtherAddresses(held map[netip.Addr]bool) {
	c.openConflicts = slices.DeleteFunc(c.openConflicts, func(k conflictWithLastSeen) bool { return !held[k.Address] })
}

// OfAddress returns the claims to an address, the oldest first.
func (c *Conflicts) OfAddress(a netip.Addr) []AddressConflict {
	if c == nil {
		return nil
	}
	var out []AddressConflict
	for _, k := range c.openConflicts {
		if k.Address == a {
			out = append(out, k.AddressConflict)
		}
	}
	return out
}

// All returns every claim, sorted by address.
func (c *Conflicts) All() []AddressConflict {
	if c == nil {
		return nil
	}
	out := make([]AddressConflict, 0, len(c.openConflicts))
	for _, k := range c.openConflicts {
		out = append(out, k.AddressConflict)
	}
	return out
}
