package snapshot

import (
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/internal/view"
)

// Reservation is a parsed AddressReservation: addresses that wait for one Service, whether it exists or not.
type Reservation struct {
	Name    string
	Service view.ObjectKey
	// Addresses are those that are named. Without them, and without a Pool, the reservation follows its Service: what
	// it holds is kept for it when it is gone.
	Addresses []netip.Addr
	// Pool is where an address of each family is chosen from, ahead of the Service.
	Pool string
	// KeptAddresses are the addresses in the reservation's status: what it chose or took over before.
	KeptAddresses []netip.Addr
	// ExpiresAt is when the reservation ends; zero is never.
	ExpiresAt time.Time
}

// HasExpired says whether the reservation has ended.
func (r *Reservation) HasExpired(now time.Time) bool {
	return !r.ExpiresAt.IsZero() && !r.ExpiresAt.After(now)
}

// FollowsService says whether the reservation takes over what its Service held.
func (r *Reservation) FollowsService() bool { return len(r.Addresses) == 0 && r.Pool == "" }

// ReservedAddresses returns the addresses that wait for the Service.
func (r *Reservation) ReservedAddresses() []netip.Addr {
	if len(r.Addresses) > 0 {
		return r.Addresses
	}
	return r.KeptAddresses
}
