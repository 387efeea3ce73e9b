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
	nodes := before.FormerHolders
	if before.Epoch > 0 && isHolderAlive {
		nodes = append([]string{before.Holder}, nodes...)
	}
	return deduplicateFormerHolders(nodes, self)
}

// deduplicateFormerHolders returns each of the nodes once and without the holder, and no more than
// a claim may have.
func deduplicateFormerHolders(nodes []string, holder string) []string {
	var out []string
	for _, n := range nodes {
		if len(out) == maxFormerHolders {
			break
		}
		if n != holder && !slices.Contains(out, n) {
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
		m.claimsVersion.lateFormerHoldersCount++
	}
}
