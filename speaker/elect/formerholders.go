package elect

import "slices"

// The former holders of an address are nodes that handed it over. They still have the connections
// that were opened while they held the address, and other nodes can forward packets of these
// connections to them. The claim carries them, so that all nodes know them in the same order, and
// so that a speaker that restarts learns them.

// maxFormerHolders bounds the former holders of a claim. Connections that were opened before that
// many moves are lost.
const maxFormerHolders = 8

// listFormerHolders returns the former holders of an address that self claims after the given
// claim. A holder that did not live any more has lost its connections.
func listFormerHolders(before Claim, self string, isHolderAlive bool) []string {
	var out []string
	if before.Epoch > 0 && isHolderAlive && before.Holder != self {
		out = append(out, before.Holder)
	}
	for _, n := range before.FormerHolders {
		if n != self && !slices.Contains(out, n) && len(out) < maxFormerHolders {
			out = append(out, n)
		}
	}
	return out
}

// addFormerHolders adds former holders to a known claim that came without them: a speaker of an
// earlier version has passed it on.
func addFormerHolders(m *Machine, a *addressState, formerHolders []string) {
	if len(formerHolders) > 0 && len(a.highestKnownClaim.FormerHolders) == 0 {
		a.highestKnownClaim.FormerHolders = formerHolders
		m.claimHashBuckets[claimBucketIndex(a.ip)].encodedClaims = nil
	}
}
