package elect

import "slices"

// outbox collects the effects of one step, and the new claims that later beacons repeat. Call
// beginStep before a step and orderedEffects after it.
type outbox struct {
	addressEffects    []Effect        // HoldAddress, DropAddress and RepeatAnnouncement, in order
	claimsToBroadcast []Claim         // claims for all members
	newlyClaimed      []*addressState // their addresses: the repetitions start after this step
	claimsByBatch     map[claimBatchKey][]Claim
	claimBatchOrder   []claimBatchKey // order of claimsByBatch
	messages          []SendMessage
	otherEffects      []Effect
	handoverFinished  bool
	// claimRepeatsLeft has the new claims, with the number of repetitions that are left.
	claimRepeatsLeft map[*addressState]int
}

// claimBatchKey is the kind and the receiver of claims that share a message.
type claimBatchKey struct {
	kind     byte
	receiver string
}

// claimRepeatCount is how often a new claim is repeated, with the next beacons. A lost datagram
// must not leave the previous holder answering.
const claimRepeatCount = 2

// beginStep drops the effects of the last step.
func (o *outbox) beginStep() { *o = outbox{claimRepeatsLeft: o.claimRepeatsLeft} }

// orderedEffects returns the effects of the step. Changes of what this node answers for come before
// the messages that make another node stop.
func (o *outbox) orderedEffects(members []string) []Effect {
	out := o.addressEffects
	for _, a := range o.newlyClaimed {
		o.claimRepeatsLeft[a] = claimRepeatCount
	}
	o.sendClaims(o.claimsToBroadcast, members)
	for _, b := range o.claimBatchOrder {
		for chunk := range slices.Chunk(o.claimsByBatch[b], claimsPerMessage) {
			o.sendMessage(b.receiver, appendClaims(encodeMessageHeader(b.kind), chunk))
		}
	}
	for _, s := range o.messages {
		out = append(out, s)
	}
	out = append(out, o.otherEffects...)
	if o.handoverFinished {
		out = append(out, HandoverFinished{})
	}
	return out
}

// broadcastClaim sends the claim to the address to all members, now and with the next beacons.
func (o *outbox) broadcastClaim(a *addressState) {
	o.claimsToBroadcast = append(o.claimsToBroadcast, a.highestKnownClaim)
	o.newlyClaimed = append(o.newlyClaimed, a)
}

// repeatNewClaims sends new claims again.
func (o *outbox) repeatNewClaims(members []string) {
	var again []Claim
	for a, left := range o.claimRepeatsLeft {
		again = append(again, a.highestKnownClaim)
		if o.claimRepeatsLeft[a] = left - 1; left <= 1 {
			delete(o.claimRepeatsLeft, a)
		}
	}
	slices.SortFunc(again, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	o.sendClaims(again, members)
}

func (o *outbox) sendMessage(to string, payload []byte) {
	o.messages = append(o.messages, SendMessage{To: to, Payload: payload})
}

// sendClaims sends claims to the members.
func (o *outbox) sendClaims(claims []Claim, members []string) {
	for chunk := range slices.Chunk(claims, claimsPerMessage) {
		payload := appendClaims(encodeMessageHeader(kindClaims), chunk)
		for _, n := range members {
			o.sendMessage(n, payload)
		}
	}
}

// queueClaim adds a claim to the messages for one member. Claims of one step share messages.
func (o *outbox) queueClaim(kind byte, to string, c Claim) {
	b := claimBatchKey{kind, to}
	if o.claimsByBatch == nil {
		o.claimsByBatch = map[claimBatchKey][]Claim{}
	}
	if len(o.claimsByBatch[b]) == 0 {
		o.claimBatchOrder = append(o.claimBatchOrder, b)
	}
	o.claimsByBatch[b] = append(o.claimsByBatch[b], c)
}

// repeatAnnouncements announces all the addresses again.
func (o *outbox) repeatAnnouncements(held map[*addressState]struct{}) {
	for _, a := range sortedByIP(held) {
		o.emitAddressEffect(RepeatAnnouncement{a.ip})
	}
}

func (o *outbox) emitEffect(e Effect) { o.otherEffects = append(o.otherEffects, e) }

func (o *outbox) emitAddressEffect(e Effect) { o.addressEffects = append(o.addressEffects, e) }
