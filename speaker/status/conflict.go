package status

import (
	"net/netip"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// Conflict is the claim of a foreign host to an address that this node holds.
type Conflict struct {
	Address netip.Addr
	MAC     facts.MAC
	Since   time.Time
}

func (c Conflict) object() v1beta1.AddressConflict {
	return v1beta1.AddressConflict{Address: c.Address.String(), MAC: c.MAC.String(), Since: metav1.NewTime(c.Since.Truncate(time.Second).UTC())}
}

const (
	// conflictOver is how long a host is silent before its claim counts as withdrawn: longer than the time after which
	// hosts ask for what they want to reach.
	conflictOver = time.Minute
	// conflictsLimit bounds how many are told apart, so that a forger does not fill the status.
	conflictsLimit = 16
)

// Conflicts turns single claims into what is the case. The zero value has none.
type Conflicts struct {
	open []conflict // by address, then time
}

type conflict struct {
	Conflict
	last time.Time
}

// Note takes in a claim. It says whether that is news.
func (c *Conflicts) Note(a netip.Addr, mac facts.MAC, now time.Time) (isNew bool) {
	of := 0
	for i := range c.open {
		k := &c.open[i]
		if k.Address != a {
			continue
		}
		if of++; k.MAC == mac {
			k.last = now
			return false
		}
	}
	if of >= conflictsLimit {
		return false
	}
	c.open = append(c.open, conflict{Conflict{a, mac, now}, now})
	slices.SortStableFunc(c.open, func(x, y conflict) int { return x.Address.Compare(y.Address) })
	return true
}

// Expire forgets the claims that are over, and says whether there was one.
func (c *Conflicts) Expire(now time.Time) bool {
	n := len(c.open)
	c.open = slices.DeleteFunc(c.open, func(k conflict) bool { return now.Sub(k.last) >= conflictOver })
	return len(c.open) < n
}

// Keep forgets the claims to addresses that this node does not hold.
func (c *Conflicts) Keep(held map[netip.Addr]bool) {
	c.open = slices.DeleteFunc(c.open, func(k conflict) bool { return !held[k.Address] })
}

// Of returns the claims to an address, the oldest first.
func (c *Conflicts) Of(a netip.Addr) []Conflict {
	if c == nil {
		return nil
	}
	var out []Conflict
	for _, k := range c.open {
		if k.Address == a {
			out = append(out, k.Conflict)
		}
	}
	return out
}

// All returns every claim, by address.
func (c *Conflicts) All() []Conflict {
	if c == nil {
		return nil
	}
	out := make([]Conflict, 0, len(c.open))
	for _, k := range c.open {
		out = append(out, k.Conflict)
	}
	return out
}
