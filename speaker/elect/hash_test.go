package elect

import (
	"net/netip"
	"testing"
)

// TestRendezvousWeightAndBucketNeverChange protects elections during an upgrade: speakers of all
// versions must compute the same hashes.
func TestRendezvousWeightAndBucketNeverChange(t *testing.T) {
	for _, c := range []struct {
		address string
		weight  uint64
		bucket  int
	}{
		{"192.0.2.1", 8495087834714240639, 35},
		{"2001:db8::7", 17339376097315946054, 160},
	} {
		a := netip.MustParseAddr(c.address)
		if got := rendezvousWeight(a, "node-1"); got != c.weight {
			t.Errorf("the weight of node-1 for %s is %d, want %d", a, got, c.weight)
		}
		if got := claimBucketIndex(a); got != c.bucket {
			t.Errorf("the bucket of %s is %d, want %d", a, got, c.bucket)
		}
	}
}
