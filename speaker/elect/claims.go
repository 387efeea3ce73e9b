package elect

import (
	"encoding/binary"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// digestContribution is what the claim adds to the digests. Two members compare digests to find out
// whether they know the same claims.
func (c Claim) digestContribution() uint64 {
	if c.Released || c.Epoch == 0 {
		return 0
	}
	const prime = 0x9e3779b97f4a7c15
	return finalizeSplitMix64((rendezvousWeight(c.Address, c.Holder) ^ c.Epoch*prime) + c.Nonce*prime)
}

// supersedes reports whether c wins over d. The higher epoch wins. In the same epoch the holder
// with the higher rendezvous weight wins, which all nodes compute alike whatever they know of the
// cluster.
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

// isSameAs reports whether both are the same claim. A speaker of an earlier version leaves
// WithoutGateway and FormerHolders out when it passes a claim on.
func (c Claim) isSameAs(d Claim) bool {
	return c.Address == d.Address && c.Holder == d.Holder && c.Nonce == d.Nonce && c.Epoch == d.Epoch && c.Released == d.Released
}

// claimBucket is one part of the addresses, selected by a hash of the address.
type claimBucket struct {
	addresses     map[*addressState]struct{}
	digest        uint64 // XOR of the claims' digest parts
	encodedClaims []byte // the encoded claims; nil after a change
	// encodedFormerHolders are the former holders of these claims, encoded with them.
	encodedFormerHolders []byte
}

// claimHashBuckets are all known claims. Two members compare the digests of the buckets and
// exchange only those that differ.
type claimHashBuckets [claimBucketCount]claimBucket

// claimBucketIndex returns the bucket of the address. It is the same on all nodes.
func claimBucketIndex(a netip.Addr) int {
	h := fnv.New64a()
	b := a.As16()
	h.Write(b[:])
	return int(finalizeSplitMix64(h.Sum64()) % claimBucketCount)
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

// sortedClaims returns the claims of the bucket, sorted by address.
func (b *claimBucket) sortedClaims() []Claim {
	var out []Claim
	for _, a := range sortedByIP(b.addresses) {
		if a.highestKnownClaim.Epoch > 0 {
			out = append(out, a.highestKnownClaim)
		}
	}
	return out
}

// mergeReceivedClaim processes a claim that another member sent. An empty from means that the claim
// came with a full state.
func (m *Machine) mergeReceivedClaim(from string, c Claim) {
	if c.Epoch == 0 {
		return
	}
	a := m.ensureAddressState(c.Address)
	known := a.highestKnownClaim
	switch {
	case c.isSameAs(known):
		addFormerHolders(m, a, c.FormerHolders)
	case c.supersedes(known):
		m.handleSupersedingClaim(a, c)
	case a.isHeldBySelf && m.membersByName[from].Name != "":
		// The sender is behind. If it answers for the address too, hosts on the segment have to
		// learn the right holder again.
		m.outbox.queueClaim(kindClaims, from, known)
		// A holder with a gateway keeps the address against a claim without one. So this node does
		// not win back hosts that the other one is about to win.
		mayLose := known.WithoutGateway && !c.WithoutGateway
		if c.Holder != m.self && m.isLiveClaim(c) && !mayLose {
			m.outbox.emitAddressEffect(RepeatAnnouncement{a.ip})
		}
	case from == c.Holder && from != "": // it does not know yet that it lost the address
		m.outbox.queueClaim(kindClaims, from, known)
	}
}

// handleSupersedingClaim processes a claim that supersedes the known one. A holder stops when the
// new holder is alive. A released claim does not stop it, nor does a claim in its own name that it
// did not make: it claims the address again, with a higher epoch. When the new holder is not a live
// member, it first waits, since the member list may be out of date.
func (m *Machine) handleSupersedingClaim(a *addressState, c Claim) {
	switch {
	case a.isHeldBySelf && (c.Released || c.Holder == m.self):
		m.claimAgainWithHigherEpoch(a, c)
	case a.isHeldBySelf && !m.isLiveClaim(c):
		m.deferOrphanClaim(a, c)
		return
	case a.isHeldBySelf && isContestable(m, a, c):
		contestAddress(m, a, c)
		return
	case a.isHeldBySelf:
		yieldToClaim(m, a, c)
		return
	case c.Holder == m.self && c.Nonce == m.runNonce && !c.Released:
		// released by this node, then forgotten
		c.Released, c.WithoutGateway = true, false
		m.recordClaim(a, c)
		m.outbox.broadcastClaim(a)
	default:
		m.recordClaim(a, c)
	}
	m.reconcileAddress(a)
}

// yieldToClaim gives the address up to the node with the higher claim.
func yieldToClaim(m *Machine, a *addressState, c Claim) {
	m.stopAnswering(a, reasonSuperseded)
	m.recordClaim(a, c)
	m.reconcileAddress(a)
}

// claimAgainWithHigherEpoch claims a held address again, above a claim that is not binding.
func (m *Machine) claimAgainWithHigherEpoch(a *addressState, c Claim) {
	a.forgetOrphanClaim(m.addressesWithOrphanClaim, &m.scheduledAddresses)
	m.recordClaim(a, c)
	m.claimAddress(a, c.Epoch+1)
}

// orphanClaimHolderTimeout is how long this node waits for the holder of an orphan claim to become
// a member. When a partition heals, the claims of the other side arrive before its nodes are
// members again, which takes some rounds of gossip.
const orphanClaimHolderTimeout = 500 * time.Millisecond

// deferOrphanClaim keeps an orphan claim until its holder is alive or the timeout has passed. This
// node answers meanwhile.
func (m *Machine) deferOrphanClaim(a *addressState, c Claim) {
	if a.orphanClaim.Epoch == 0 {
		a.orphanSince = m.now
		m.addressesWithOrphanClaim[a] = struct{}{}
		if a.move == nil {
			m.scheduledAddresses.scheduleAddress(a, m.now.Add(orphanClaimHolderTimeout))
		}
	}
	if c.supersedes(a.orphanClaim) {
		a.orphanClaim = c
	}
	m.resolveOrphanClaim(a)
}

// resolveOrphanClaim accepts an orphan claim if its holder is alive, and claims above it after the
// timeout.
func (m *Machine) resolveOrphanClaim(a *addressState) {
	c := a.orphanClaim
	switch {
	case m.isLiveClaim(c):
		m.handleSupersedingClaim(a, c)
	case m.now.Sub(a.orphanSince) >= orphanClaimHolderTimeout || a.move != nil:
		m.claimAgainWithHigherEpoch(a, c)
	}
}

// overruleOrphanClaim claims above an orphan claim without waiting, because the address is about to
// move.
func (m *Machine) overruleOrphanClaim(a *addressState) {
	if a.orphanClaim.Epoch > 0 {
		m.claimAgainWithHigherEpoch(a, a.orphanClaim)
	}
}

// receiveMessage processes a message. It ignores what it cannot read, such as a message of a later
// version.
func (m *Machine) receiveMessage(from string, payload []byte) {
	if _, ok := m.membersByName[from]; !ok || from == m.self {
		return
	}
	kind, r := parseMessageHeader(payload)
	m.liveness.lastMessageReceivedAt = m.now
	switch kind {
	case kindBeacon:
		m.performLivenessActions(m.liveness.handleBeacon(from, r, m.stepContext(), &m.outbox))
	case kindBeaconAck:
		sent, outcome := m.liveness.handleBeaconAck(from, r, m.stepContext(), m.lease.lastAnsweredMessageSentAt)
		m.performLivenessActions(outcome)
		m.lease.recordConfirmation(sent)
	case kindClaims:
		for _, c := range r.readClaims() {
			m.mergeReceivedClaim(from, c)
		}
	case kindSuspicion:
		m.performLivenessActions(m.liveness.handleWitnessReport(from, r, m.stepContext()))
	case kindOffer:
		m.handleOffers(from, r.readClaims())
	case kindRefusal:
		m.handleRefusals(from, r.readClaims())
	case kindSyncRequest:
		m.claimHashBuckets.answerSyncRequest(from, r, &m.outbox)
	case kindSyncDelta:
		m.mergeSyncDelta(from, r)
	}
}

// mergeRemoteState merges the full state of another member: the full exchange of rule 1.
func (m *Machine) mergeRemoteState(payload []byte) {
	kind, r := parseMessageHeader(payload)
	if kind != kindClaims {
		return
	}
	claims := r.readClaims()
	if r.err != nil {
		return
	}
	for _, c := range claims {
		m.mergeReceivedClaim("", c)
	}
	m.fullStateReceived = true
}

// restoreClaims records the claims of the checkpoint. They say nothing about which members are
// alive.
func (m *Machine) restoreClaims(claims []Claim) {
	for _, c := range claims {
		c.FormerHolders = deduplicateFormerHolders(c.FormerHolders, c.Holder)
		if a := m.ensureAddressState(c.Address); c.Epoch > 0 && !a.isHeldBySelf && c.supersedes(a.highestKnownClaim) {
			m.recordClaim(a, c)
			m.reconcileAddress(a)
		}
	}
}

// EncodeAllClaims encodes all claims for a full exchange of state. Only buckets that changed since
// the last call are encoded again.
func (m *Machine) EncodeAllClaims() []byte {
	claimCount := uint64(0)
	for _, a := range m.addressesByIP {
		if a.highestKnownClaim.Epoch > 0 {
			claimCount++
		}
	}
	return m.claimHashBuckets.encodeClaims(claimCount)
}

// encodeClaims encodes the claims of all buckets, of which there are claimCount, as one message. A
// node that joins gets it before its version is known here, so it has the oldest version.
func (t *claimHashBuckets) encodeClaims(claimCount uint64) []byte {
	size := 0
	for i := range t {
		p := &t[i]
		if p.encodedClaims == nil {
			p.encodedClaims, p.encodedFormerHolders = []byte{}, nil
			for _, c := range p.sortedClaims() {
				p.encodedClaims = appendClaim(p.encodedClaims, c)
				p.encodedFormerHolders = appendFormerHolders(p.encodedFormerHolders, c)
			}
		}
		size += len(p.encodedClaims) + len(p.encodedFormerHolders)
	}
	out := binary.AppendUvarint(append(make([]byte, 0, size+12), encodeMessageHeader(oldestMessageFormat, kindClaims)...), claimCount)
	for i := range t {
		out = append(out, t[i].encodedClaims...)
	}
	for i := range t {
		out = append(out, t[i].encodedFormerHolders...)
	}
	return out
}

// ClaimsVersion is a value to compare: it changes whenever the known claims change.
type ClaimsVersion struct {
	digest                 uint64 // XOR of the buckets' digests
	lateFormerHoldersCount uint64 // how often addFormerHolders changed a claim
}

// ClaimsVersion returns the version of the claims that this node knows now, with their former
// holders.
func (m *Machine) ClaimsVersion() ClaimsVersion { return m.claimsVersion }

// KnownClaims returns all known claims, sorted by address.
func (m *Machine) KnownClaims() []Claim {
	var out []Claim
	for _, a := range m.addressesByIP {
		if a.highestKnownClaim.Epoch > 0 {
			out = append(out, a.highestKnownClaim)
		}
	}
	slices.SortFunc(out, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	return out
}

// syncRequest is a request to one member for the claims that this node does not know.
type syncRequest struct {
	member          string
	sentAt          time.Time
	receivedBuckets map[uint64]bool // buckets that arrived
}

// syncRequests are the requests without a full answer. One that is older than its timeout counts as
// lost.
type syncRequests struct {
	lastID         uint64
	requestsByID   map[uint64]syncRequest
	lastIDByMember map[string]uint64
	// lastSentAtByMember is when the last request to each member was sent.
	lastSentAtByMember map[string]time.Time
}

func newSyncRequests() syncRequests {
	return syncRequests{requestsByID: map[uint64]syncRequest{}, lastIDByMember: map[string]uint64{}, lastSentAtByMember: map[string]time.Time{}}
}

// hasRecentRequest reports whether a request to the member with at least the given ID is so recent
// that another one adds nothing: its answer has all claims of the member. One conflict about each
// of a thousand addresses must not cost a thousand answers.
func (s *syncRequests) hasRecentRequest(member string, firstValidID uint64, f stepContext) bool {
	id, known := s.lastIDByMember[member]
	if !known || id < firstValidID {
		return false
	}
	age := f.now.Sub(s.lastSentAtByMember[member])
	_, unanswered := s.requestsByID[id]
	return age < f.timing.BeaconInterval || unanswered && age < f.timing.ReachabilityProbeInterval+f.extraDelayForOwnLateness()
}

// beginRequest returns the ID of a new request to a member.
func (s *syncRequests) beginRequest(member string, now time.Time, timeout time.Duration) uint64 {
	s.lastID++
	s.lastIDByMember[member], s.lastSentAtByMember[member] = s.lastID, now
	s.requestsByID[s.lastID] = syncRequest{member: member, sentAt: now, receivedBuckets: map[uint64]bool{}}
	maps.DeleteFunc(s.requestsByID, func(_ uint64, r syncRequest) bool { return now.Sub(r.sentAt) > timeout })
	return s.lastID
}

// nextRequestID is the ID that the next request will have.
func (s *syncRequests) nextRequestID() uint64 { return s.lastID + 1 }

// requestSync asks a member for all buckets that differ. Afterwards both members know the same
// claims.
func (s *syncRequests) requestSync(to string, claims *claimHashBuckets, f stepContext, out *outbox) {
	id := s.beginRequest(to, f.now, f.timing.StartupWithoutMembersDelay)
	b := binary.AppendUvarint(out.beginMessage(kindSyncRequest), id)
	for i := range claims {
		b = binary.BigEndian.AppendUint32(b, uint32(claims[i].digest))
	}
	out.queueUrgentMessage(to, b)
}

// requestSync asks a member for the claims that this node does not know, unless it has just done
// so.
func (m *Machine) requestSync(to string) {
	if m.syncRequests.hasRecentRequest(to, m.lease.firstValidSyncID, m.stepContext()) {
		return
	}
	m.syncRequests.requestSync(to, &m.claimHashBuckets, m.stepContext(), &m.outbox)
}

// answerSyncRequest sends each bucket that differs as a whole. If none differs, it sends one empty
// delta.
func (t *claimHashBuckets) answerSyncRequest(to string, r *messageReader, out *outbox) {
	id := r.readUvarint()
	var differ []int
	for i := range t {
		if r.readUint32() != uint32(t[i].digest) {
			differ = append(differ, i)
		}
	}
	if r.err != nil {
		return
	}
	prefix := binary.AppendUvarint(binary.AppendUvarint(out.beginMessage(kindSyncDelta), id), uint64(len(differ)))
	if len(differ) == 0 {
		out.queueNormalPriorityMessage(to, prefix)
		return
	}
	for _, i := range differ {
		b := binary.AppendUvarint(slices.Clone(prefix), uint64(i))
		out.queueNormalPriorityMessage(to, appendClaims(b, t[i].sortedClaims()))
	}
}

// mergeSyncDelta processes a bucket of another member and sends back the claims that the member
// lacks.
func (m *Machine) mergeSyncDelta(from string, r *messageReader) {
	id, n := r.readUvarint(), r.readUvarint()
	e, ok := m.syncRequests.requestsByID[id]
	if r.err != nil || !ok || e.member != from {
		return
	}
	if n > 0 {
		i := r.readUvarint()
		claims := r.readClaims()
		if r.err != nil || i >= claimBucketCount {
			return
		}
		theirs := map[netip.Addr]Claim{}
		for _, c := range claims {
			theirs[c.Address] = c
			m.mergeReceivedClaim(from, c)
		}
		for _, c := range m.claimHashBuckets[i].sortedClaims() {
			if t, ok := theirs[c.Address]; !ok || c.supersedes(t) {
				m.outbox.queueClaim(kindClaims, from, c)
			}
		}
		e.receivedBuckets[i] = true
	}
	if uint64(len(e.receivedBuckets)) >= n {
		delete(m.syncRequests.requestsByID, id)
		m.lastSyncAnswerAtByMember[from] = m.now
		m.performLivenessActions(m.liveness.recordSyncAnswer(from, m.stepContext(), &m.outbox))
		m.fullStateReceived = true
		if m.lease.recordFinishedSync(id, e.sentAt, m.now) {
			m.outbox.repeatAnnouncements(m.addressesHeldBySelf)
		}
	}
}
