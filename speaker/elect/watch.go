package elect

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// watchers is how many members watch each member.
const watchers = 2

// retractions is how often a member repeats that a node is heard again, in case that the message is lost.
const retractions = 5

// watch is what this node knows of the others' liveness by beacons. The members form a ring by name; each sends beacons
// to the next two, so that the cost grows with the nodes and not with their square.
type watch struct {
	seq        uint64
	lastBeacon time.Time
	heard      map[string]*heard
	// suspects holds, for each silent node, the witnesses and the life they speak of.
	suspects map[string]map[string]uint64
	dead     map[string]uint64 // node -> nonce of the life that ended
	leaving  map[string]bool
	// outside holds the silent nodes about which the gateway vouched that it is not we who are cut off.
	outside map[string]bool
	// told is when a member last sent all its claims because it was asked.
	told map[string]time.Time
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
		leaving: map[string]bool{}, outside: map[string]bool{}, told: map[string]time.Time{},
	}
}

func (w *watch) isDead(n string, nonce uint64) bool {
	d, ok := w.dead[n]
	return ok && (nonce == 0 || d == nonce)
}

func (w *watch) reachable(n string) { w.outside[n] = true }

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
		if len(by) == 0 {
			delete(w.suspects, n)
			delete(w.dead, n)
			delete(w.outside, n)
			delete(w.told, n)
		}
	}
	for n, nonce := range w.dead {
		if p, ok := members[n]; !ok || (p.Nonce != 0 && p.Nonce != nonce) {
			delete(w.dead, n)
			delete(w.suspects, n)
		}
	}
}

// after returns the k members that follow n on the ring, without n.
func (m *Machine) after(n string, k int) []string {
	i, _ := slices.BinarySearch(m.ring, n)
	var out []string
	for j := 1; j < len(m.ring) && len(out) < k; j++ {
		out = append(out, m.ring[(i+j)%len(m.ring)])
	}
	return out
}

// beacons sends this node's beacon to its watchers when it is due.
func (m *Machine) beacons() {
	if len(m.ring) < 2 || m.now.Sub(m.watch.lastBeacon) < m.timing.Beacon {
		return
	}
	m.watch.lastBeacon = m.now
	m.echo()
	m.beaconTo(m.after(m.self, watchers))
}

func (m *Machine) beaconTo(names []string) {
	m.watch.seq++
	b := header(kindBeacon)
	b = binary.AppendUvarint(b, m.nonce)
	b = binary.AppendUvarint(b, m.watch.seq)
	b = binary.AppendUvarint(b, m.digest)
	b = appendBool(b, m.leaving)
	for _, n := range names {
		m.send(n, b)
	}
}

// heard takes in a beacon.
func (m *Machine) heard(from string, r *reader) {
	nonce, seq, digest, leaving := r.uint(), r.uint(), r.uint(), r.byte() == 1
	if r.err != nil {
		return
	}
	h := m.watch.heard[from]
	if h == nil || h.nonce != nonce {
		h = &heard{nonce: nonce}
		m.watch.heard[from] = h
	}
	if seq <= h.seq { // late, or played back
		return
	}
	h.seq, h.at = seq, m.now
	if m.watch.leaving[from] != leaving {
		m.watch.leaving[from] = leaving
		m.evaluateAll()
	}
	if h.silent {
		h.silent, h.told, h.again = false, m.now, retractions
		m.tellSuspicion(from, nonce, false)
	}
	if _, ok := m.watch.dead[from]; ok && len(m.watch.suspects[from]) == 0 {
		delete(m.watch.dead, from)
	}
	m.compare(from, h, digest)
}

// compare asks for all claims of a member that keeps knowing others than we do: a message was lost.
func (m *Machine) compare(from string, h *heard, digest uint64) {
	if digest == m.digest {
		h.differs = time.Time{}
		return
	}
	if h.differs.IsZero() {
		h.differs = m.now
	}
	if m.now.Sub(h.differs) >= m.timing.Silence && m.now.Sub(h.asked) >= m.timing.Settle {
		h.asked = m.now
		m.send(from, header(kindRequest))
		m.answerRequest(from)
	}
}

// watchOthers notices the silence of those whose beacons this node is to get.
func (m *Machine) watchOthers() {
	for _, n := range m.ring {
		h := m.watch.heard[n]
		if h == nil || n == m.self || !slices.Contains(m.after(n, watchers), m.self) {
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
		m.tellSuspicion(n, h.nonce, h.silent)
		switch {
		case !h.silent:
			h.again--
		case !m.watch.outside[n]:
			m.askGateway(n)
		}
	}
}

// askGateway finds out whether it is this node that is cut off.
func (m *Machine) askGateway(about string) {
	m.probeID++
	m.gateways[m.probeID] = about
	m.out.effects = append(m.out.effects, AskGateway{ID: m.probeID, Attempts: m.timing.ProbeAttempts, Interval: m.timing.ProbeInterval})
}

// tellSuspicion tells every member that a node fell silent, or is heard again.
func (m *Machine) tellSuspicion(n string, nonce uint64, silent bool) {
	m.witness(n, m.self, nonce, silent)
	b := appendString(header(kindSuspect), n)
	b = binary.AppendUvarint(b, nonce)
	b = appendBool(b, silent)
	for _, o := range m.others() {
		if o != n {
			m.send(o, b)
		}
	}
}

// suspected takes in what another member witnessed.
func (m *Machine) suspected(from string, r *reader) {
	n, nonce, silent := r.string(), r.uint(), r.byte() == 1
	p, ok := m.members[n]
	if ok && r.err == nil && n != m.self && (p.Nonce == 0 || p.Nonce == nonce) { // not of a former life
		m.witness(n, from, nonce, silent)
	}
}

func (m *Machine) witness(n, by string, nonce uint64, silent bool) {
	if !silent {
		delete(m.watch.suspects[n], by)
		if len(m.watch.suspects[n]) == 0 {
			delete(m.watch.dead, n)
			delete(m.watch.outside, n)
			m.evaluateAll()
		}
		return
	}
	if m.watch.suspects[n] == nil {
		m.watch.suspects[n] = map[string]uint64{}
	}
	m.watch.suspects[n][by] = nonce
	m.judge(n)
}

// judge decides whether a silent node is dead: two witnesses agree; or this node is one and the gateway answers it, and
// there is no second watcher who still hears the node.
func (m *Machine) judge(n string) {
	by := m.watch.suspects[n]
	nonce, own := by[m.self]
	for w, v := range by {
		if !own || w == m.self {
			nonce = v
		}
	}
	second := slices.ContainsFunc(m.after(n, watchers), func(w string) bool {
		_, silent := by[w]
		return w != m.self && !silent && len(m.watch.suspects[w]) == 0 && m.alive(w)
	})
	if len(by) < watchers && !(own && m.watch.outside[n] && !second) {
		return
	}
	if m.watch.isDead(n, nonce) || len(by) == 0 {
		return
	}
	m.watch.dead[n] = nonce
	m.evaluateAll()
}
