package snapshot

import (
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/internal/view"
)

// Reservation is a parsed AddressReservation: addresses that wait for one Service, whether it exists or not.
type Reservation struct {
	Name    string
	Service view.Key
	// Addresses are those that are named. Without them, and without a Pool, the reservation follows its Service: what
	// it holds is kept for it when it is gone.
	Addresses []netip.Addr
	// Pool is where an address of each family is chosen from, ahead of the Service.
	Pool string
	// Kept are the addresses in the reservation's status: what it chose or took over before.
	Kept []netip.Addr
	// Expires is when the reservation ends; zero is never.
	Expires time.Time
}

// Over says whether the reservation has ended.
func (r *Reservation) Over(now time.Time) bool { return !r.Expires.IsZero() && !r.Expires.After(now) }

// Follows says whether the reservation takes over what its Service held.
func (r *Reservation) Follows() bool { return len(r.Addresses) == 0 && r.Pool == "" }

// Reserved returns the addresses that wait for the Service.
func (r *Reservation) Reserved() []netip.Addr {
	if len(r.Addresses) > 0 {
		return r.Addresses
	}
	return r.Kept
}
