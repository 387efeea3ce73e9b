package layer2

import (
	"maps"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

type conflictKey struct {
	address netip.Addr
	mac     facts.MAC
}

const (
	// conflictReportInterval bounds how often the claim of one host to one address is reported.
	conflictReportInterval = time.Second
	// conflictHostsLimit bounds how many claiming hosts are remembered, so that forged frames do
	// not exhaust the memory.
	conflictHostsLimit = 4096
	// defendInterval is DEFEND_INTERVAL of RFC 5227 section 1.1. An address is defended no more
	// often, so that two hosts that both keep it do not flood the segment. The engine never gives
	// the address up, which is choice (c) of section 2.4.
	defendInterval = 10 * time.Second
)

// reportConflict reports a frame whose sender claims a held address.
func (e *Engine) reportConflict(f Frame, link int) {
	k, now := conflictKey{f.SenderIP, f.SenderMAC}, e.now()
	last, known := e.conflictReportedAt[k]
	if known && now.Sub(last) < conflictReportInterval {
		return
	}
	if !known && len(e.conflictReportedAt) >= conflictHostsLimit {
		// a flood must not cause a scan for each frame
		if now.Sub(e.oldConflictsDeletedAt) < conflictReportInterval {
			e.droppedEventCount.Add(1)
			return
		}
		e.oldConflictsDeletedAt = now
		maps.DeleteFunc(e.conflictReportedAt, func(_ conflictKey, t time.Time) bool { return now.Sub(t) >= conflictReportInterval })
		if len(e.conflictReportedAt) >= conflictHostsLimit {
			e.droppedEventCount.Add(1)
			return
		}
	}
	e.conflictReportedAt[k] = now
	e.reports.Put(facts.Conflict{Address: f.SenderIP, MAC: f.SenderMAC, LinkIndex: link})
}

// announceDefence counts the claim of another host and announces the address.
func (e *Engine) announceDefence(a netip.Addr) {
	h, held := e.holdingByAddress[a]
	if !held {
		return
	}
	h.counters.conflicts.Add(1)
	now := e.now()
	if last, ok := e.defendedAt[a]; ok && now.Sub(last) < defendInterval {
		return
	}
	e.defendedAt[a] = now
	for _, l := range h.links {
		e.sendAnnouncement(Announcement{a, l})
	}
}
