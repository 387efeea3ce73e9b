package snapshot

import (
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/internal/view"
)

// Reservation is a parsed AddressReservation: it keeps addresses for one Service, whether that
// exists or not.
type Reservation struct {
	Name    string
	Service view.ObjectKey
	// Addresses are the addresses that the object names. Without Addresses and Pool the reservation
	// follows its Service: it keeps what a deleted Service held.
	Addresses []netip.Addr
	// PoolToChooseFrom is the pool from which an address of each family is chosen, before the
	// Service exists.
	PoolToChooseFrom string
	// StatusAddresses are the addresses in the reservation's status, chosen or taken over earlier.
	StatusAddresses []netip.Addr
	// ExpiresAt is when the reservation ends; zero means never.
	ExpiresAt time.Time
}

// HasExpired says whether the reservation has ended.
func (r *Reservation) HasExpired(now time.Time) bool {
	return !r.ExpiresAt.IsZero() && !r.ExpiresAt.After(now)
}

// KeepsAddressesOfDeletedService says whether the reservation takes over what its Service held.
func (r *Reservation) KeepsAddressesOfDeletedService() bool {
	return len(r.Addresses) == 0 && r.PoolToChooseFrom == ""
}

// ReservedAddresses returns the addresses that are kept for the Service.
func (r *Reservation) ReservedAddresses() []netip.Addr {
	if len(r.Addresses) > 0 {
		return r.Addresses
	}
	return r.StatusAddresses
}
