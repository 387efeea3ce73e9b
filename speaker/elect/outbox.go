package elect

import (
	"net/netip"
	"slices"
)

// outbox collects the effects of one step, and the new claims that later beacons repeat. Call
// beginStep before a step and orderedEffects after it.
type outbox struct {
	// HoldAddress, DropAddress and RepeatAnnouncement, in order
	addressEffects    []Effect
	claimsToBroadcast []Claim // claims for all members
	// their addresses: the repetitions start after this step
	addressesOfNewClaims     []*addressState
	claimsByBatch            map[claimBatchKey]*claimBatch
	claimBatchOrder          []claimBatchKey // order of claimsByBatch
	urgentMessages           []SendMessage   // urgent ones
	normalPriorityMessages   []SendMessage   // claims for one member
	bulkMessages             []SendMessage   // claims for all members
	otherEffects             []Effect
	shutdownHandoverFinished bool
	// claimRepeatsLeftByAddress has the new claims, with the number of repetitions that are left.
	claimRepeatsLeftByAddress map[*addressState]int
	// messageFormat is the version of the wire format that all members read.
	messageFormat byte
}

// claimBatchKey is the kind and the receiver of claims that share a message.
type claimBatchKey struct {
	kind     byte
	receiver string
}

// claimBatch are claims that share messages, one for each address.
type claimBatch struct {
	claims         []Claim
	indexByAddress map[netip.Addr]int // in claims
}

// claimRepeatCount is how often a new claim is repeated, with the next beacons. A lost datagram
// must not leave the previous holder answering.
const claimRepeatCount = 2

// maxRepeatedClaimsPerStep bounds how many new claims of one step are repeated. If there are more,
// and a member misses some, it notices this by the digests in beacons.
const maxRepeatedClaimsPerStep = 10 * maxClaimsPerMessage

// beginStep drops the effects of the last step.
func (o *outbox) beginStep() {
	*o = outbox{claimRepeatsLeftByAddress: o.claimRepeatsLeftByAddress, messageFormat: o.messageFormat}
}

// beginMessage returns the header of a message that all members can read.
func (o *outbox) beginMessage(kind byte) []byte { return encodeMessageHeader(o.messageFormat, kind) }

// orderedEffects returns the effects of the step. Changes of what this node answers for come before
// the messages that make another node stop.
func (o *outbox) orderedEffects(members []string) []Effect {
	out := o.addressEffects
	if len(o.addressesOfNewClaims) <= maxRepeatedClaimsPerStep {
		for _, a := range o.addressesOfNewClaims {
			o.claimRepeatsLeftByAddress[a] = claimRepeatCount
		}
	}
	o.sendClaims(o.claimsToBroadcast, members)
	for _, b := range o.claimBatchOrder {
		for chunk := range slices.Chunk(o.claimsByBatch[b].claims, maxClaimsPerMessage) {
			o.queueNormalPriorityMessage(b.receiver, appendClaims(o.beginMessage(b.kind), chunk))
		}
	}
	for _, s := range slices.Concat(o.urgentMessages, o.normalPriorityMessages, o.bulkMessages) {
		out = append(out, s)
	}
	out = append(out, o.otherEffects...)
	if o.shutdownHandoverFinished {
		out = append(out, ShutdownHandoverFinished{})
	}
	return out
}

// broadcastClaim sends the claim to the address to all members, now and with the next beacons.
func (o *outbox) broadcastClaim(a *addressState) {
	o.claimsToBroadcast = append(o.claimsToBroadcast, a.highestKnownClaim)
	o.addressesOfNewClaims = append(o.addressesOfNewClaims, a)
}

// repeatNewClaims sends new claims again.
func (o *outbox) repeatNewClaims(members []string) {
	var again []Claim
	for a, left := range o.claimRepeatsLeftByAddress {
		again = append(again, a.highestKnownClaim)
		if o.claimRepeatsLeftByAddress[a] = left - 1; left <= 1 {
			delete(o.claimRepeatsLeftByAddress, a)
		}
	}
	slices.SortFunc(again, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	o.sendClaims(again, members)
}

func (o *outbox) queueUrgentMessage(to string, payload []byte) {
	o.urgentMessages = append(o.urgentMessages, SendMessage{To: to, Payload: payload, Priority: PriorityUrgent})
}

// queueNormalPriorityMessage sends claims that one member waits for.
func (o *outbox) queueNormalPriorityMessage(to string, payload []byte) {
	o.normalPriorityMessages = append(o.normalPriorityMessages, SendMessage{To: to, Payload: payload, Priority: PriorityNormal})
}

// sendClaims sends claims to the members, one member after the other.
func (o *outbox) sendClaims(claims []Claim, members []string) {
	var payloads [][]byte
	for chunk := range slices.Chunk(claims, maxClaimsPerMessage) {
		payloads = append(payloads, appendClaims(o.beginMessage(kindClaims), chunk))
	}
	for _, n := range members {
		for _, payload := range payloads {
			o.bulkMessages = append(o.bulkMessages, SendMessage{To: n, Payload: payload})
		}
	}
}

// queueClaim adds a claim to the messages for one member. Claims of one step share messages. Of
// several claims to one address only the highest is sent.
func (o *outbox) queueClaim(kind byte, to string, c Claim) {
	b := claimBatchKey{kind, to}
	if o.claimsByBatch == nil {
		o.claimsByBatch = map[claimBatchKey]*claimBatch{}
	}
	batch := o.claimsByBatch[b]
	if batch == nil {
		batch = &claimBatch{indexByAddress: map[netip.Addr]int{}}
		o.claimsByBatch[b] = batch
		o.claimBatchOrder = append(o.claimBatchOrder, b)
	}
	if i, isQueued := batch.indexByAddress[c.Address]; !isQueued {
		batch.indexByAddress[c.Address] = len(batch.claims)
		batch.claims = append(batch.claims, c)
	} else if c.supersedes(batch.claims[i]) {
		batch.claims[i] = c
	}
}

// repeatAnnouncements announces all the addresses again.
func (o *outbox) repeatAnnouncements(held map[*addressState]struct{}) {
	for _, a := range sortedByIP(held) {
		o.emitAddressEffect(RepeatAnnouncement{a.ip})
	}
}

func (o *outbox) emitEffect(e Effect) { o.otherEffects = append(o.otherEffects, e) }

func (o *outbox) emitAddressEffect(e Effect) { o.addressEffects = append(o.addressEffects, e) }
