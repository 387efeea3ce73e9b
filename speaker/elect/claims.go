package elect

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// digestPart is a claim's part of the digests by which members notice that they know different claims.
func (c Claim) digestPart() uint64 {
	if c.Released || c.Epoch == 0 {
		return 0
	}
	const prime = 0x9e3779b97f4a7c15
	return mixBits((rendezvousWeight(c.Address, c.Holder) ^ c.Epoch*prime) + c.Nonce*prime)
}

// supersedes says whether c is right and d is not: the higher epoch is; then the holder of the higher rendezvous weight, which
// every node computes alike, whatever it knows of the cluster.
func (c Claim) supersedes(d Claim) bool {
	if c.Epoch != d.Epoch {
		return c.Epoch > d.Epoch
	}
	if c.Holder != d.Holder {
		x, y := rendezvousWeight(c.Address, c.Holder), rendezvousWeight(d.Address, d.Holder)
		return x > y || (x == y && c.Holder < d.Holder)
	}
	if c.Nonce != d.Nonce {
		return c.Nonce > d.Nonce
	}
	return c.Released && !d.Released
}

// claimBucket is a part of the claims, by address.
type claimBucket struct {
	addresses     map[*addressState]struct{}
	digest        uint64 // XOR of the hashes
	encodedClaims []byte // the claims as they travel; nil when they changed
}

// bucketIndex says in which bucket an address is, alike on all nodes.
func bucketIndex(a netip.Addr) int {
	b := a.As16()
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return int(mixBits(h) % bucketCount)
}

func (b *claimBucket) addAddress(a *addressState) {
	if b.addresses == nil {
		b.addresses = map[*addressState]struct{}{}
	}
	b.addresses[a] = struct{}{}
	b.encodedClaims = nil
}

func (b *claimBucket) removeAddress(a *addressState) {
	delete(b.addresses, a)
	b.encodedClaims = nil
}

func (b *claimBucket) updateDigest(d uint64) {
	b.digest ^= d
	b.encodedClaims = nil
}

// sortedClaims are those of the bucket, in order.
func (b *claimBucket) sortedClaims() []Claim {
	var out []Claim
	for _, a := range sortedByIP(b.addresses) {
		if a.claim.Epoch > 0 {
			out = append(out, a.claim)
		}
	}
	return out
}

// mergeClaim takes in a claim that another member told of.
func (m *Machine) mergeClaim(from string, c Claim) {
	if c.Epoch == 0 {
		return
	}
	a := m.ensureAddress(c.Address)
	known := a.claim
	switch {
	case c == known:
	case c.supersedes(known):
		m.acceptClaim(a, c)
	case a.held && m.membersByName[from].Name != "":
		// The other one is behind. If it answers for the address too, the segment has to learn again who is right.
		m.queueClaim(kindClaims, from, known)
		if c.Holder != m.self && m.isLiveClaim(c) {
			m.emitAddressEffect(RepeatAnnouncement{a.ip})
		}
	case from == c.Holder && from != "": // it does not know yet that it lost the address
		m.queueClaim(kindClaims, from, known)
	}
}

// acceptClaim takes in a claim that is right by its epoch. One that nobody stands for any more, of a holder that is gone or
// gave the address up, does not stop a holder: this one claims again, above it, after a while if it may be wrong about
// who is gone. So does this node when others speak for it wrongly.
func (m *Machine) acceptClaim(a *addressState, c Claim) {
	switch {
	case a.held && (c.Released || c.Holder == m.self):
		m.claimAbove(a, c)
	case a.held && !m.isLiveClaim(c):
		m.deferOrphanClaim(a, c)
		return
	case a.held:
		m.stopAnswering(a, reasonSuperseded)
		m.recordClaim(a, c)
	case c.Holder == m.self && c.Nonce == m.nonce && !c.Released: // given up, and forgotten meanwhile
		c.Released = true
		m.recordClaim(a, c)
		m.output.claimsToBroadcast = append(m.output.claimsToBroadcast, c)
	default:
		m.recordClaim(a, c)
	}
	m.reconcileAddress(a)
}

// claimAbove claims a held address again, above a claim that nobody stands for.
func (m *Machine) claimAbove(a *addressState, c Claim) {
	m.forgetOrphanClaim(a)
	m.recordClaim(a, c)
	m.assertClaim(a, c.Epoch+1)
}

// orphanClaimTimeout is how long a claim above this node's, of a holder that seems not to live, is let stand. Where a cut heals the
// claims of the other side arrive before its nodes are members again, which takes some rounds of gossip.
const orphanClaimTimeout = 500 * time.Millisecond

// deferOrphanClaim takes note of such a claim. Whoever made it wins if it turns out to live; until then this node goes on.
func (m *Machine) deferOrphanClaim(a *addressState, c Claim) {
	if a.orphanClaim.Epoch == 0 {
		a.orphanSince = m.now
		m.orphanAddresses[a] = struct{}{}
		if a.move == nil {
			m.scheduleAddress(a, m.now.Add(orphanClaimTimeout))
		}
	}
	if c.supersedes(a.orphanClaim) {
		a.orphanClaim = c
	}
	m.resolveOrphanClaim(a)
}

// resolveOrphanClaim ends a rumour when its holder lives, or its time is over.
func (m *Machine) resolveOrphanClaim(a *addressState) {
	c := a.orphanClaim
	switch {
	case m.isLiveClaim(c):
		m.acceptClaim(a, c)
	case m.now.Sub(a.orphanSince) >= orphanClaimTimeout || a.move != nil:
		m.claimAbove(a, c)
	}
}

// overruleOrphanClaim ends a rumour that stands in the way.
func (m *Machine) overruleOrphanClaim(a *addressState) {
	if a.orphanClaim.Epoch > 0 {
		m.claimAbove(a, a.orphanClaim)
	}
}

func (m *Machine) forgetOrphanClaim(a *addressState) {
	if a.orphanClaim.Epoch == 0 {
		return
	}
	a.orphanClaim = Claim{}
	delete(m.orphanAddresses, a)
	if a.move == nil {
		m.unscheduleAddress(a)
	}
}

// receiveMessage handles a message. What cannot be read, from a later version say, is ignored.
func (m *Machine) receiveMessage(from string, payload []byte) {
	if _, ok := m.membersByName[from]; !ok || from == m.self {
		return
	}
	kind, r := openMessage(payload)
	switch kind {
	case kindBeacon:
		m.handleBeacon(from, r)
	case kindAck:
		m.handleAck(from, r)
	case kindClaims:
		for _, c := range r.readClaims() {
			m.mergeClaim(from, c)
		}
	case kindSuspect:
		m.handleSuspicion(from, r)
	case kindOffer:
		m.handleOffers(from, r.readClaims())
	case kindRefuse:
		m.handleRefusals(from, r.readClaims())
	case kindSync:
		m.answerSyncRequest(from, r)
	case kindDelta:
		m.mergeDelta(from, r)
	}
}

// mergeRemoteState merges the full state of another member: the full sync of rule 1.
func (m *Machine) mergeRemoteState(payload []byte) {
	kind, r := openMessage(payload)
	if kind != kindClaims {
		return
	}
	claims := r.readClaims()
	if r.err != nil {
		return
	}
	for _, c := range claims {
		m.mergeClaim("", c)
	}
	m.stateSynced = true
}

// restoreClaims takes in what an earlier life of this process knew. It is no news of anybody alive.
func (m *Machine) restoreClaims(claims []Claim) {
	for _, c := range claims {
		if a := m.ensureAddress(c.Address); c.Epoch > 0 && !a.held && c.supersedes(a.claim) {
			m.recordClaim(a, c)
			m.reconcileAddress(a)
		}
	}
}

// EncodeState encodes every claim, for a full exchange of state. What did not change since the last call is not encoded again.
func (m *Machine) EncodeState() []byte {
	n, size := uint64(0), 0
	for i := range m.claimBuckets {
		p := &m.claimBuckets[i]
		if p.encodedClaims == nil {
			p.encodedClaims = []byte{}
			for _, c := range p.sortedClaims() {
				p.encodedClaims = appendClaim(p.encodedClaims, c)
			}
		}
		size += len(p.encodedClaims)
	}
	for _, a := range m.addressesByIP {
		if a.claim.Epoch > 0 {
			n++
		}
	}
	out := binary.AppendUvarint(append(make([]byte, 0, size+12), messageHeader(kindClaims)...), n)
	for i := range m.claimBuckets {
		out = append(out, m.claimBuckets[i].encodedClaims...)
	}
	return out
}

// ClaimsDigest is another one whenever other claims are known.
func (m *Machine) ClaimsDigest() uint64 { return m.claimsDigest }

// Claims are all claims that are known, sorted by address.
func (m *Machine) Claims() []Claim {
	var out []Claim
	for _, a := range m.addressesByIP {
		if a.claim.Epoch > 0 {
			out = append(out, a.claim)
		}
	}
	slices.SortFunc(out, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	return out
}

// syncRequest is a request to one member for what it knows and this node does not.
type syncRequest struct {
	member          string
	sentAt          time.Time
	receivedBuckets map[uint64]bool // buckets that were answered
}

// requestSync asks a member for the buckets that differ. Both know the same afterwards.
func (m *Machine) requestSync(to string) {
	m.lastSyncID++
	b := binary.AppendUvarint(messageHeader(kindSync), m.lastSyncID)
	for i := range m.claimBuckets {
		b = binary.BigEndian.AppendUint32(b, uint32(m.claimBuckets[i].digest))
	}
	m.syncRequestsByID[m.lastSyncID] = syncRequest{member: to, sentAt: m.now, receivedBuckets: map[uint64]bool{}}
	maps.DeleteFunc(m.syncRequestsByID, func(_ uint64, e syncRequest) bool { return m.now.Sub(e.sentAt) > m.timing.StartupDelay })
	m.sendMessage(to, b)
}

// answerSyncRequest sends every bucket that differs, whole; or, when none does, a delta that says so.
func (m *Machine) answerSyncRequest(to string, r *messageReader) {
	id := r.readUvarint()
	var differ []int
	for i := range m.claimBuckets {
		if r.readUint32() != uint32(m.claimBuckets[i].digest) {
			differ = append(differ, i)
		}
	}
	if r.err != nil {
		return
	}
	prefix := binary.AppendUvarint(binary.AppendUvarint(messageHeader(kindDelta), id), uint64(len(differ)))
	if len(differ) == 0 {
		m.sendMessage(to, prefix)
		return
	}
	for _, i := range differ {
		m.sendMessage(to, appendClaims(binary.AppendUvarint(slices.Clone(prefix), uint64(i)), m.claimBuckets[i].sortedClaims()))
	}
}

// mergeDelta takes in a bucket, and sends back what the other one lacks.
func (m *Machine) mergeDelta(from string, r *messageReader) {
	id, n := r.readUvarint(), r.readUvarint()
	e, ok := m.syncRequestsByID[id]
	if r.err != nil || !ok || e.member != from {
		return
	}
	if n > 0 {
		i := r.readUvarint()
		claims := r.readClaims()
		if r.err != nil || i >= bucketCount {
			return
		}
		theirs := map[netip.Addr]Claim{}
		for _, c := range claims {
			theirs[c.Address] = c
			m.mergeClaim(from, c)
		}
		for _, c := range m.claimBuckets[i].sortedClaims() {
			if t, ok := theirs[c.Address]; !ok || c.supersedes(t) {
				m.queueClaim(kindClaims, from, c)
			}
		}
		e.receivedBuckets[i] = true
	}
	if uint64(len(e.receivedBuckets)) >= n {
		delete(m.syncRequestsByID, id)
		m.lastSyncByMember[from] = m.now
		m.markHeard(from)
		m.declareAlive(from) // whoever says that it is dead, it was asked and answered
		m.finishSync(id, e.sentAt)
	}
}
