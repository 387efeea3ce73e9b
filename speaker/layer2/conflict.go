package layer2

import (
	"maps"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// addressAndForeignMAC is a host that claims a held address.
type addressAndForeignMAC struct {
	address netip.Addr
	mac     facts.MAC
}

const (
	// conflictReportInterval bounds how often the claim of one host to one address is reported.
	conflictReportInterval = time.Second
	// maxRememberedConflicts bounds how many claiming hosts are remembered, so that forged frames
	// do not exhaust the memory.
	maxRememberedConflicts = 4096
	// defendInterval is DEFEND_INTERVAL of RFC 5227 section 1.1. An address is defended no more
	// often, so that two hosts that both keep it do not flood the segment. The engine never gives
	// the address up, which is choice (c) of section 2.4.
	defendInterval = 10 * time.Second
)

// conflictLimiter decides which claims of other hosts to held addresses are reported, and when an
// address is defended. It reads no clock. Call forgetAddress when an address is no longer held. The
// zero value is not usable.
type conflictLimiter struct {
	reportedAt map[addressAndForeignMAC]time.Time
	// oldReportsDeletedAt is when old entries were last deleted from reportedAt.
	oldReportsDeletedAt time.Time
	defendedAt          map[netip.Addr]time.Time
}

func newConflictLimiter() *conflictLimiter {
	return &conflictLimiter{reportedAt: map[addressAndForeignMAC]time.Time{}, defendedAt: map[netip.Addr]time.Time{}}
}

// conflictReportOutcome is what happens to a claim of another host.
type conflictReportOutcome uint8

const (
	conflictRecentlyReported conflictReportOutcome = iota // it was reported a short time ago
	conflictDueForReport                                  // it has to be reported
	conflictReportDropped                                 // too many hosts claim addresses
)

// admitReport decides whether a claim is reported now.
func (c *conflictLimiter) admitReport(k addressAndForeignMAC, now time.Time) conflictReportOutcome {
	last, known := c.reportedAt[k]
	if known && now.Sub(last) < conflictReportInterval {
		return conflictRecentlyReported
	}
	if !known && len(c.reportedAt) >= maxRememberedConflicts {
		// a flood must not cause a scan for each frame
		if now.Sub(c.oldReportsDeletedAt) < conflictReportInterval {
			return conflictReportDropped
		}
		c.oldReportsDeletedAt = now
		maps.DeleteFunc(c.reportedAt, func(_ addressAndForeignMAC, t time.Time) bool { return now.Sub(t) >= conflictReportInterval })
		if len(c.reportedAt) >= maxRememberedConflicts {
			return conflictReportDropped
		}
	}
	c.reportedAt[k] = now
	return conflictDueForReport
}

// admitDefence reports whether the address is defended now.
func (c *conflictLimiter) admitDefence(a netip.Addr, now time.Time) bool {
	if last, ok := c.defendedAt[a]; ok && now.Sub(last) < defendInterval {
		return false
	}
	c.defendedAt[a] = now
	return true
}

// forgetAddress forgets when the address was defended.
func (c *conflictLimiter) forgetAddress(a netip.Addr) { delete(c.defendedAt, a) }

// reportConflict reports a frame whose sender claims a held address.
func (e *Engine) reportConflict(f ARPOrNDPFrame, link int) {
	switch e.conflictLimiter.admitReport(addressAndForeignMAC{f.SenderIP, f.SenderMAC}, e.now()) {
	case conflictReportDropped:
		e.droppedReportAndFrameCount.Add(1)
	case conflictDueForReport:
		e.reports.PutDroppingOldest(facts.Conflict{Address: f.SenderIP, ForeignMAC: f.SenderMAC, LinkIndex: link})
	}
}

// countAndDefendConflict counts the claim of another host and announces the address.
func (e *Engine) countAndDefendConflict(a netip.Addr) {
	h, held := e.heldAddressByIP[a]
	if !held || h.isUnannounced {
		return
	}
	h.counters.conflicts.Add(1)
	if !e.conflictLimiter.admitDefence(a, e.now()) {
		return
	}
	for _, l := range h.linkIndexes {
		e.sendAnnouncement(AddressOnLink{a, l})
	}
}
