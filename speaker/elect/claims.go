package elect

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// hash is a claim's part of the digests by which members notice that they know different claims.
func (c Claim) hash() uint64 {
	if c.Released || c.Epoch == 0 {
		return 0
	}
	const prime = 0x9e3779b97f4a7c15
	return mix((weight(c.Address, c.Holder) ^ c.Epoch*prime) + c.Nonce*prime)
}

// beats says whether c is right and d is not: the higher epoch is; then the holder of the higher rendezvous weight, which
// every node computes alike, whatever it knows of the cluster.
func (c Claim) beats(d Claim) bool {
	if c.Epoch != d.Epoch {
		return c.Epoch > d.Epoch
	}
	if c.Holder != d.Holder {
		x, y := weight(c.Address, c.Holder), weight(d.Address, d.Holder)
		return x > y || (x == y && c.Holder < d.Holder)
	}
	if c.Nonce != d.Nonce {
		return c.Nonce > d.Nonce
	}
	return c.Released && !d.Released
}

// bucket is a part of the claims, by address.
type bucket struct {
	addresses map[*address]struct{}
	digest    uint64 // XOR of the hashes
	encoded   []byte // the claims as they travel; nil when they changed
}

// bucketOf says in which bucket an address is, alike on all nodes.
func bucketOf(a netip.Addr) int {
	b := a.As16()
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return int(mix(h) % buckets)
}

func (b *bucket) add(a *address) {
	if b.addresses == nil {
		b.addresses = map[*address]struct{}{}
	}
	b.addresses[a] = struct{}{}
	b.encoded = nil
}

func (b *bucket) remove(a *address) {
	delete(b.addresses, a)
	b.encoded = nil
}

func (b *bucket) change(d uint64) {
	b.digest ^= d
	b.encoded = nil
}

// claims are those of the bucket, in order.
func (b *bucket) claims() []Claim {
	var out []Claim
	for _, a := range sorted(b.addresses) {
		if a.claim.Epoch > 0 {
			out = append(out, a.claim)
		}
	}
	return out
}

// merge takes in a claim that another member told of.
func (m *Machine) merge(from string, c Claim) {
	if c.Epoch == 0 {
		return
	}
	a := m.at(c.Address)
	known := a.claim
	switch {
	case c == known:
	case c.beats(known):
		m.accept(a, c)
	case a.held && m.members[from].Name != "":
		// The other one is behind. If it answers for the address too, the segment has to learn again who is right.
		m.queue(kindClaims, from, known)
		if c.Holder != m.self && m.live(c) {
			m.hold(Announce{a.ip})
		}
	case from == c.Holder && from != "": // it does not know yet that it lost the address
		m.queue(kindClaims, from, known)
	}
}

// accept takes in a claim that is right by its epoch. One that nobody stands for any more, of a holder that is gone or
// gave the address up, does not stop a holder: this one claims again, above it, after a while if it may be wrong about
// who is gone. So does this node when others speak for it wrongly.
func (m *Machine) accept(a *address, c Claim) {
	switch {
	case a.held && (c.Released || c.Holder == m.self):
		m.outdo(a, c)
	case a.held && !m.live(c):
		m.hearsay(a, c)
		return
	case a.held:
		m.stop(a, reasonSuperseded)
		m.record(a, c)
	case c.Holder == m.self && c.Nonce == m.nonce && !c.Released: // given up, and forgotten meanwhile
		c.Released = true
		m.record(a, c)
		m.out.tell = append(m.out.tell, c)
	default:
		m.record(a, c)
	}
	m.evaluate(a)
}

// outdo claims a held address again, above a claim that nobody stands for.
func (m *Machine) outdo(a *address, c Claim) {
	m.forgetRumour(a)
	m.record(a, c)
	m.claim(a, c.Epoch+1)
}

// hearsayTime is how long a claim above this node's, of a holder that seems not to live, is let stand. Where a cut heals the
// claims of the other side arrive before its nodes are members again, which takes some rounds of gossip.
const hearsayTime = 500 * time.Millisecond

// hearsay takes note of such a claim. Whoever made it wins if it turns out to live; until then this node goes on.
func (m *Machine) hearsay(a *address, c Claim) {
	if a.rumour.Epoch == 0 {
		a.rumourSince = m.now
		m.rumours[a] = struct{}{}
		if a.move == nil {
			m.wait(a, m.now.Add(hearsayTime))
		}
	}
	if c.beats(a.rumour) {
		a.rumour = c
	}
	m.resolve(a)
}

// resolve ends a rumour when its holder lives, or its time is over.
func (m *Machine) resolve(a *address) {
	c := a.rumour
	switch {
	case m.live(c):
		m.accept(a, c)
	case m.now.Sub(a.rumourSince) >= hearsayTime || a.move != nil:
		m.outdo(a, c)
	}
}

// overrule ends a rumour that stands in the way.
func (m *Machine) overrule(a *address) {
	if a.rumour.Epoch > 0 {
		m.outdo(a, a.rumour)
	}
}

func (m *Machine) forgetRumour(a *address) {
	if a.rumour.Epoch == 0 {
		return
	}
	a.rumour = Claim{}
	delete(m.rumours, a)
	if a.move == nil {
		m.rest(a)
	}
}

// receive handles a message. What cannot be read, from a later version say, is ignored.
func (m *Machine) receive(from string, payload []byte) {
	if _, ok := m.members[from]; !ok || from == m.self {
		return
	}
	kind, r := open(payload)
	switch kind {
	case kindBeacon:
		m.heard(from, r)
	case kindAck:
		m.acknowledged(from, r)
	case kindClaims:
		for _, c := range r.claims() {
			m.merge(from, c)
		}
	case kindSuspect:
		m.suspected(from, r)
	case kindOffer:
		m.offered(from, r.claims())
	case kindRefuse:
		m.refused(from, r.claims())
	case kindSync:
		m.answerSync(from, r)
	case kindDelta:
		m.delta(from, r)
	}
}

// receiveState merges the full state of another member: the full sync of rule 1.
func (m *Machine) receiveState(payload []byte) {
	kind, r := open(payload)
	if kind != kindClaims {
		return
	}
	claims := r.claims()
	if r.err != nil {
		return
	}
	for _, c := range claims {
		m.merge("", c)
	}
	m.synced = true
}

// restore takes in what an earlier life of this process knew. It is no news of anybody alive.
func (m *Machine) restore(claims []Claim) {
	for _, c := range claims {
		if a := m.at(c.Address); c.Epoch > 0 && !a.held && c.beats(a.claim) {
			m.record(a, c)
			m.evaluate(a)
		}
	}
}

// State encodes every claim, for a full exchange of state. What did not change since the last call is not encoded again.
func (m *Machine) State() []byte {
	n, size := uint64(0), 0
	for i := range m.parts {
		p := &m.parts[i]
		if p.encoded == nil {
			p.encoded = []byte{}
			for _, c := range p.claims() {
				p.encoded = appendClaim(p.encoded, c)
			}
		}
		size += len(p.encoded)
	}
	for _, a := range m.addresses {
		if a.claim.Epoch > 0 {
			n++
		}
	}
	out := binary.AppendUvarint(append(make([]byte, 0, size+12), header(kindClaims)...), n)
	for i := range m.parts {
		out = append(out, m.parts[i].encoded...)
	}
	return out
}

// Digest is another one whenever other claims are known.
func (m *Machine) Digest() uint64 { return m.digest }

// Claims are all claims that are known, sorted by address.
func (m *Machine) Claims() []Claim {
	var out []Claim
	for _, a := range m.addresses {
		if a.claim.Epoch > 0 {
			out = append(out, a.claim)
		}
	}
	slices.SortFunc(out, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	return out
}

// exchange is a request to one member for what it knows and this node does not.
type exchange struct {
	to   string
	sent time.Time
	got  map[uint64]bool // buckets that were answered
}

// sync asks a member for the buckets that differ. Both know the same afterwards.
func (m *Machine) sync(to string) {
	m.requests++
	b := binary.AppendUvarint(header(kindSync), m.requests)
	for i := range m.parts {
		b = binary.BigEndian.AppendUint32(b, uint32(m.parts[i].digest))
	}
	m.exchanges[m.requests] = exchange{to: to, sent: m.now, got: map[uint64]bool{}}
	maps.DeleteFunc(m.exchanges, func(_ uint64, e exchange) bool { return m.now.Sub(e.sent) > m.timing.Settle })
	m.send(to, b)
}

// answerSync sends every bucket that differs, whole; or, when none does, a delta that says so.
func (m *Machine) answerSync(to string, r *reader) {
	id := r.uint()
	var differ []int
	for i := range m.parts {
		if r.uint32() != uint32(m.parts[i].digest) {
			differ = append(differ, i)
		}
	}
	if r.err != nil {
		return
	}
	prefix := binary.AppendUvarint(binary.AppendUvarint(header(kindDelta), id), uint64(len(differ)))
	if len(differ) == 0 {
		m.send(to, prefix)
		return
	}
	for _, i := range differ {
		m.send(to, appendClaims(binary.AppendUvarint(slices.Clone(prefix), uint64(i)), m.parts[i].claims()))
	}
}

// delta takes in a bucket, and sends back what the other one lacks.
func (m *Machine) delta(from string, r *reader) {
	id, n := r.uint(), r.uint()
	e, ok := m.exchanges[id]
	if r.err != nil || !ok || e.to != from {
		return
	}
	if n > 0 {
		i := r.uint()
		claims := r.claims()
		if r.err != nil || i >= buckets {
			return
		}
		theirs := map[netip.Addr]Claim{}
		for _, c := range claims {
			theirs[c.Address] = c
			m.merge(from, c)
		}
		for _, c := range m.parts[i].claims() {
			if t, ok := theirs[c.Address]; !ok || c.beats(t) {
				m.queue(kindClaims, from, c)
			}
		}
		e.got[i] = true
	}
	if uint64(len(e.got)) >= n {
		delete(m.exchanges, id)
		m.told[from] = m.now
		m.stirs(from)
		m.revive(from) // whoever says that it is dead, it was asked and answered
		m.vouched(id, e.sent)
	}
}
