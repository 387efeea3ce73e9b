package elect

import (
	"fmt"
	"slices"
)

// hash is a claim's part of the digest by which members notice that they know different claims.
func (c Claim) hash() uint64 {
	if c.Released || !c.Address.IsValid() {
		return 0
	}
	const prime = 0x9e3779b97f4a7c15
	return (weight(c.Address, c.Holder) ^ c.Epoch*prime) + c.Nonce*prime
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

// record puts a claim in the place of the former.
func (m *Machine) record(c Claim) {
	m.digest ^= m.claims[c.Address].hash() ^ c.hash()
	m.claims[c.Address] = c
}

// merge takes in a claim that another member told of.
func (m *Machine) merge(from string, c Claim) {
	known, ok := m.claims[c.Address]
	_, held := m.mine[c.Address]
	switch {
	case !ok || c.beats(known):
		m.record(c)
		if held {
			m.stop(c.Address, fmt.Sprintf("node %s holds it, by a later claim", c.Holder))
		}
		m.evaluate(c.Address)
	case held && known.beats(c) && m.members[from].Name != "":
		// The other one is behind. If it answers for the address too, the segment has to learn again who is right.
		m.sendClaims(from, []Claim{known})
		if c.Holder != m.self && !c.Released && m.live(c) {
			m.out.announce = append(m.out.announce, c.Address)
		}
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
	case kindClaims:
		answer := r.byte() == 1
		for _, c := range r.claims() {
			m.merge(from, c)
		}
		if answer && r.err == nil {
			m.watch.told[from] = m.now
			m.unfence()
		}
	case kindSuspect:
		m.suspected(from, r)
	case kindOffer:
		m.offered(from, r.claims())
	case kindRefuse:
		m.refused(from, r.claims())
	case kindRequest:
		m.answerRequest(from)
	}
}

// receiveState merges the full state of another member: the full sync of rule 1.
func (m *Machine) receiveState(payload []byte) {
	kind, r := open(payload)
	if kind != kindClaims {
		return
	}
	r.byte()
	claims := r.claims()
	if r.err != nil {
		return
	}
	for _, c := range claims {
		m.merge("", c)
	}
	m.synced = true
	m.unfence()
}

// State encodes every claim, for a full exchange of state.
func (m *Machine) State() []byte {
	return appendClaims(appendBool(header(kindClaims), true), m.sorted())
}

func (m *Machine) sorted() []Claim {
	out := make([]Claim, 0, len(m.claims))
	for _, c := range m.claims {
		out = append(out, c)
	}
	slices.SortFunc(out, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	return out
}

// answerRequest sends every claim. An empty list is sent too: it says that there is nothing to know.
func (m *Machine) answerRequest(to string) {
	all := m.sorted()
	if len(all) == 0 {
		m.send(to, appendClaims(appendBool(header(kindClaims), true), nil))
		return
	}
	for chunk := range slices.Chunk(all, claimsPerMessage) {
		m.send(to, appendClaims(appendBool(header(kindClaims), true), chunk))
	}
}

func (m *Machine) sendClaims(to string, claims []Claim) {
	m.send(to, appendClaims(appendBool(header(kindClaims), false), claims))
}
