package elect

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// watchers is how many members watch each member.
const watchers = 2

// retractions is how often a member repeats that a node is heard again, in case that the message is lost.
const retractions = 5

// ackEvery is how many beacons to one watcher come between two that it is asked to acknowledge. With a beacon each 50 ms
// that makes 25 packets a second between a node and each of its watchers.
const ackEvery = 4

// watch is what this node knows of the others' liveness by beacons. The members form a ring by name; each sends beacons
// to the next two, so that the cost grows with the nodes and not with their square.
type watch struct {
	seq        uint64
	lastBeacon time.Time
	sent       [16]time.Time // when the last beacons went out, by sequence number
	// to are the members that watch this one, of those that this one watches.
	to, of []string
	heard  map[string]*heard
	// suspects holds, for each silent node, the witnesses and the life they speak of.
	suspects map[string]map[string]uint64
	dead     map[string]uint64 // node -> nonce of the life that ended
	leaving  map[string]bool
	// outside holds, for each silent node, the witnesses for whom a gateway vouched that it is not they who are cut off.
	outside map[string]map[string]bool
	// adopted are the nodes whose watchers are dead and which this one asks in their place.
	adopted []string
	// signs are the last signs of life of silent nodes.
	signs map[string]time.Time
}

// heard is what came from one member.
type heard struct {
	nonce, seq uint64
	at         time.Time
	silent     bool
	// told is when the others last heard of silent from this node; again counts how often they will hear of its end.
	told    time.Time
	again   int
	differs time.Time // since when its digest is not ours; zero when it is
	asked   time.Time
}

func newWatch() watch {
	return watch{
		heard: map[string]*heard{}, suspects: map[string]map[string]uint64{}, dead: map[string]uint64{},
		leaving: map[string]bool{}, outside: map[string]map[string]bool{}, signs: map[string]time.Time{},
	}
}

func (w *watch) isDead(n string, nonce uint64) bool {
	d, ok := w.dead[n]
	return ok && (nonce == 0 || d == nonce)
}

// lastSign is when the node was last heard, zero when nobody said.
func (w *watch) lastSign(n string) time.Time { return w.signs[n] }

// forgive counts every silence from now on: it was this node that did not listen.
func (w *watch) forgive(now time.Time) {
	for _, h := range w.heard {
		h.at = now
	}
}

// prune forgets those that are no members any more, and the deaths of former lives.
func (w *watch) prune(members map[string]facts.Member) {
	for n := range w.heard {
		if _, ok := members[n]; !ok {
			delete(w.heard, n)
			delete(w.suspects, n)
			delete(w.dead, n)
			delete(w.leaving, n)
			delete(w.outside, n)
		}
	}
	for n, by := range w.suspects { // who left cannot take back what it witnessed
		maps.DeleteFunc(by, func(w string, _ uint64) bool { _, ok := members[w]; return !ok })
		maps.DeleteFunc(w.outside[n], func(w string, _ bool) bool { _, ok := members[w]; return !ok })
		if len(by) == 0 {
			delete(w.suspects, n)
			delete(w.dead, n)
			delete(w.outside, n)
		}
	}
	for n, nonce := range w.dead {
		if p, ok := members[n]; !ok || (p.Nonce != 0 && p.Nonce != nonce) {
			delete(w.dead, n)
			delete(w.suspects, n)
		}
	}
}

// closeCircle orders the members by a hash of their names: those of one rack, which may die together, often have names that
// follow each other.
func (m *Machine) closeCircle() {
	m.circle, m.places = slices.Clone(m.ring), make(map[string]int, len(m.ring))
	hash := func(n string) uint64 { return weight(netip.IPv6Unspecified(), n) }
	slices.SortFunc(m.circle, func(x, y string) int { return cmp.Or(cmp.Compare(hash(x), hash(y)), cmp.Compare(x, y)) })
	for i, n := range m.circle {
		m.places[n] = i
	}
}

// after returns the k members that follow n in the circle, without n; a negative k those that come before.
func (m *Machine) after(n string, k int) []string {
	i := m.places[n]
	step, size := 1, len(m.circle)
	if k < 0 {
		step, k = size-1, -k
	}
	var out []string
	for j := 1; j < size && len(out) < k; j++ {
		out = append(out, m.circle[(i+j*step)%size])
	}
	return out
}

// adopt finds the nodes whose watchers are all dead and which this node watches in their place: it is among the next living
// ones. They do not know it, and are asked.
func (m *Machine) adopt() {
	w := &m.watch
	w.adopted = nil
	if len(w.dead) < watchers {
		return
	}
	for _, n := range m.circle {
		if n == m.self || !m.alive(n) || slices.ContainsFunc(m.after(n, watchers), m.alive) {
			continue
		}
		living := slices.DeleteFunc(m.after(n, len(m.circle)), func(o string) bool { return !m.alive(o) })
		if !slices.Contains(living[:min(len(living), watchers)], m.self) {
			continue
		}
		w.adopted = append(w.adopted, n)
		if w.heard[n] == nil || w.heard[n].nonce != m.members[n].Nonce {
			w.heard[n] = &heard{nonce: m.members[n].Nonce}
		}
		if !slices.Contains(w.of, n) { // it had no reason to say anything until now
			w.heard[n].at = m.now
		}
	}
}

// examine asks the adopted nodes for what they know, which any living node answers.
func (m *Machine) examine() {
	for _, n := range m.watch.adopted {
		if h := m.watch.heard[n]; h != nil && m.now.Sub(h.asked) >= m.timing.Beacon {
			h.asked = m.now
			m.sync(n)
		}
	}
}

// stirs takes in that a node answered.
func (m *Machine) stirs(n string) {
	h := m.watch.heard[n]
	if h == nil {
		return
	}
	h.at = m.now
	if h.silent {
		h.silent, h.told, h.again = false, m.now, retractions
		m.tellSuspicion(n, h)
	}
}

// beacons sends this node's beacon to its watchers when it is due.
func (m *Machine) beacons() {
	if len(m.ring) < 2 || m.now.Sub(m.watch.lastBeacon) < m.timing.Beacon {
		return
	}
	m.watch.lastBeacon = m.now
	m.echo()
	m.beaconTo(m.watch.to)
}

func (m *Machine) beaconTo(names []string) {
	w := &m.watch
	w.seq++
	w.sent[w.seq%uint64(len(w.sent))] = m.now
	for i, n := range names {
		var flags byte
		if m.leaving {
			flags |= flagLeaving
		}
		if (w.seq+uint64(i)*ackEvery/watchers)%ackEvery == 0 {
			flags |= flagAck
		}
		b := binary.AppendUvarint(header(kindBeacon), m.nonce)
		b = binary.AppendUvarint(b, w.seq)
		b = binary.AppendUvarint(b, m.digest)
		m.send(n, append(b, flags))
	}
}

// heard takes in a beacon.
func (m *Machine) heard(from string, r *reader) {
	nonce, seq, digest, flags := r.uint(), r.uint(), r.uint(), r.byte()
	if r.err != nil {
		return
	}
	w := &m.watch
	h := w.heard[from]
	if h == nil || h.nonce != nonce {
		h = &heard{nonce: nonce}
		w.heard[from] = h
	}
	if seq <= h.seq { // late, or played back
		return
	}
	h.seq = seq
	w.leaving[from] = flags&flagLeaving != 0
	m.stirs(from)
	if _, ok := w.dead[from]; ok && len(w.suspects[from]) == 0 {
		m.revive(from)
	}
	if flags&flagAck != 0 {
		b := binary.AppendUvarint(header(kindAck), nonce)
		b = binary.AppendUvarint(b, seq)
		m.send(from, binary.AppendUvarint(b, m.digest))
	}
	m.compare(from, h, digest)
}

// acknowledged takes in that a watcher heard a beacon. When that was long ago, and it knows other claims, this node first
// learns which.
func (m *Machine) acknowledged(from string, r *reader) {
	nonce, seq, digest := r.uint(), r.uint(), r.uint()
	w := &m.watch
	if r.err != nil || nonce != m.nonce || seq > w.seq || w.seq-seq >= uint64(len(w.sent)) {
		return
	}
	sent := w.sent[seq%uint64(len(w.sent))]
	if digest != m.digest && sent.Sub(m.fence.confirmed) >= m.timing.Silence {
		if h := w.heard[from]; h == nil || m.now.Sub(h.asked) >= m.timing.Recheck {
			m.sync(from)
		}
		return
	}
	m.fence.confirm(sent)
}

// compare asks for the claims of a member that keeps knowing others than we do: a message was lost.
func (m *Machine) compare(from string, h *heard, digest uint64) {
	if digest == m.digest {
		h.differs = time.Time{}
		return
	}
	if h.differs.IsZero() {
		h.differs = m.now
	}
	if m.now.Sub(h.differs) >= 2*m.timing.Beacon && m.now.Sub(h.asked) >= m.timing.Silence {
		h.asked = m.now
		m.sync(from)
	}
}

// watchOthers notices the silence of those whose beacons this node is to get.
func (m *Machine) watchOthers() {
	w := &m.watch
	m.examine()
	for _, n := range slices.Concat(w.of, w.adopted) {
		h := w.heard[n]
		if h == nil {
			continue
		}
		if !h.silent && m.now.Sub(h.at) >= m.timing.Silence {
			h.silent = true
			h.told = time.Time{}
		}
		if (!h.silent && h.again == 0) || m.now.Sub(h.told) < 2*m.timing.Beacon {
			continue
		}
		h.told = m.now // datagrams get lost: say it again
		m.tellSuspicion(n, h)
		switch {
		case !h.silent:
			h.again--
		case !w.vouches(n, m.self): // it may be this node that is cut off
			m.ask(question{node: n})
		}
	}
}

// nextSilence is when a member that is watched will have been silent for too long.
func (m *Machine) nextSilence() time.Time {
	var next time.Time
	for _, n := range m.watch.of {
		if h := m.watch.heard[n]; h != nil && !h.silent {
			if t := h.at.Add(m.timing.Silence); next.IsZero() || t.Before(next) {
				next = t
			}
		}
	}
	return next
}

// tellSuspicion tells every member that a node fell silent, or is heard again.
func (m *Machine) tellSuspicion(n string, h *heard) {
	if h.silent {
		m.watch.signs[n] = h.at
	}
	m.witness(n, m.self, h.nonce, h.silent)
	b := appendString(header(kindSuspect), n)
	b = binary.AppendUvarint(b, h.nonce)
	b = append(b, m.watch.testimony(n, m.self, h))
	b = binary.AppendUvarint(b, uint64(m.now.Sub(h.at).Milliseconds()))
	for _, o := range m.others {
		if o != n {
			m.send(o, b)
		}
	}
}

// suspected takes in what another member witnessed.
func (m *Machine) suspected(from string, r *reader) {
	n, nonce, said, age := r.string(), r.uint(), r.byte(), r.uint()
	silent := said != stirring
	p, ok := m.members[n]
	if !ok || r.err != nil || n == m.self || (p.Nonce != 0 && p.Nonce != nonce) { // of a former life
		return
	}
	if _, known := m.watch.signs[n]; silent && !known && age < 60_000 {
		m.watch.signs[n] = m.now.Add(-time.Duration(age) * time.Millisecond)
	}
	if said == silentOutside {
		m.watch.vouch(n, from)
	}
	m.witness(n, from, nonce, silent)
}

func (m *Machine) witness(n, by string, nonce uint64, silent bool) {
	w := &m.watch
	if !silent {
		delete(w.suspects[n], by)
		delete(w.outside[n], by)
		if len(w.suspects[n]) == 0 {
			m.revive(n)
		}
		return
	}
	if w.suspects[n] == nil {
		w.suspects[n] = map[string]uint64{}
	}
	w.suspects[n][by] = nonce
	m.judge(n)
}

// revive takes back that a node is dead.
func (m *Machine) revive(n string) {
	w := &m.watch
	_, was := w.dead[n]
	delete(w.suspects, n)
	delete(w.dead, n)
	delete(w.outside, n)
	delete(w.signs, n)
	if was {
		m.adopt()
		m.review(n)
	}
}

// review evaluates what a node holds: it died, or came to life.
func (m *Machine) review(n string) {
	for _, a := range sorted(m.holders[n]) {
		m.evaluate(a)
	}
}

// judge decides whether a silent node is dead: two witnesses agree about one life of it; or there is one, a gateway answers
// it, and no second watcher lives who still hears the node.
func (m *Machine) judge(n string) {
	w := &m.watch
	by := w.suspects[n]
	votes := map[uint64]int{}
	for _, nonce := range by {
		votes[nonce]++
	}
	for _, witness := range slices.Sorted(maps.Keys(by)) {
		nonce := by[witness]
		if votes[nonce] < watchers && !(w.vouches(n, witness) && m.alone(n, witness)) {
			continue
		}
		if !w.isDead(n, nonce) {
			w.dead[n] = nonce
			m.adopt()
			m.review(n)
		}
		return
	}
}

// alone says that no watcher of the node but the witness lives and hears it.
func (m *Machine) alone(n, witness string) bool {
	w := &m.watch
	return !slices.ContainsFunc(m.after(n, watchers), func(o string) bool {
		_, silent := w.suspects[n][o]
		return o != witness && !silent && len(w.suspects[o]) == 0 && m.alive(o)
	})
}

// What a suspicion says of the node.
const (
	stirring      = 0 // it is heard again
	silentHere    = 1
	silentOutside = 2 // and a gateway answers the witness
)

func (w *watch) testimony(n, by string, h *heard) byte {
	switch {
	case !h.silent:
		return stirring
	case w.vouches(n, by):
		return silentOutside
	}
	return silentHere
}

func (w *watch) vouches(n, by string) bool { return w.outside[n][by] }

func (w *watch) vouch(n, by string) {
	if w.outside[n] == nil {
		w.outside[n] = map[string]bool{}
	}
	w.outside[n][by] = true
}
