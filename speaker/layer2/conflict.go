package layer2

import (
	"maps"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

type foreignKey struct {
	address netip.Addr
	mac     facts.MAC
}

const (
	// foreignInterval bounds how often one host's claim to one address is reported.
	foreignInterval = time.Second
	// foreignLimit bounds how many such hosts are remembered, so that forged ones do not fill the memory.
	foreignLimit = 4096
	// defendInterval is DEFEND_INTERVAL of RFC 5227 section 1.1: an address is defended no more often, so that two hosts
	// that both insist on it do not fill the segment. That it is never given up is choice (c) of section 2.4.
	defendInterval = 10 * time.Second
)

// contradicted reports a frame whose sender speaks for a held address.
func (e *Engine) contradicted(f Frame, link int) {
	k, now := foreignKey{f.SenderIP, f.SenderMAC}, e.now()
	last, known := e.foreign[k]
	if known && now.Sub(last) < foreignInterval {
		return
	}
	if !known && len(e.foreign) >= foreignLimit {
		if now.Sub(e.foreignCleared) < foreignInterval { // or a flood would be work without end
			e.dropped.Add(1)
			return
		}
		e.foreignCleared = now
		maps.DeleteFunc(e.foreign, func(_ foreignKey, t time.Time) bool { return now.Sub(t) >= foreignInterval })
		if len(e.foreign) >= foreignLimit {
			e.dropped.Add(1)
			return
		}
	}
	e.foreign[k] = now
	e.report(facts.ForeignClaim{Address: f.SenderIP, MAC: f.SenderMAC, Link: link})
}

// contest counts a foreign claim and defends the address.
func (e *Engine) contest(a netip.Addr) {
	h, held := e.held[a]
	if !held {
		return
	}
	h.tally.conflicts.Add(1)
	now := e.now()
	if last, ok := e.defended[a]; ok && now.Sub(last) < defendInterval {
		return
	}
	e.defended[a] = now
	for _, l := range h.links {
		e.sendGratuitous(Gratuitous{a, l})
	}
}
