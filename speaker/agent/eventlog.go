package agent

import (
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// repeatedConflictLogInterval is the time between two log lines about one host that answers for one
// address.
const repeatedConflictLogInterval = time.Minute

// eventLog logs the events of the election, each with the Services of its address.
type eventLog struct {
	log *slog.Logger
	// servicesByAddress is nil until the present plan is needed.
	servicesByAddress  map[netip.Addr]string
	loggedAtByConflict map[answeringHost]time.Time
	// conflictLineSecondStart is the start of the present second, conflictLinesThisSecond how many
	// lines about conflicts it has.
	conflictLineSecondStart time.Time
	conflictLinesThisSecond int
}

// maxConflictLinesPerSecond bounds the lines about conflicts: a broken host may answer for every
// address, with another Ethernet address in each frame.
const maxConflictLinesPerSecond = 20

// countAndAdmitConflictLine reports whether another line about a conflict may be logged now.
func (l *eventLog) countAndAdmitConflictLine(now time.Time) bool {
	if now.Sub(l.conflictLineSecondStart) >= time.Second {
		l.conflictLineSecondStart, l.conflictLinesThisSecond = now, 0
	}
	l.conflictLinesThisSecond++
	return l.conflictLinesThisSecond <= maxConflictLinesPerSecond
}

// answeringHost is a host that answers for an address.
type answeringHost struct {
	contestedAddress netip.Addr
	mac              facts.MAC
}

// clearServicesByAddress has to be called when there is another plan.
func (l *eventLog) clearServicesByAddress() { l.servicesByAddress = nil }

// logEvent logs an event. A host that keeps answering is logged once a minute.
func (l *eventLog) logEvent(e elect.Event, p *plan.Plan, now time.Time) {
	pairs := []any{"address", e.Address, "service", l.joinServicesOfAddress(e.Address, p), "reason", electionEventReason(e)}
	if e.IsAnswerOfAnotherHost() {
		c := answeringHost{e.Address, e.AnsweringMAC}
		if last, known := l.loggedAtByConflict[c]; known && now.Sub(last) < repeatedConflictLogInterval {
			return
		}
		if !l.countAndAdmitConflictLine(now) {
			return
		}
		l.forgetOldConflicts(now)
		l.loggedAtByConflict[c] = now
		l.log.Warn(e.Text, pairs...)
		return
	}
	if e.FormerHolder != "" {
		pairs = append(pairs, "formerHolder", e.FormerHolder)
	}
	if e.TakeoverDelay > 0 {
		pairs = append(pairs, "duration", e.TakeoverDelay.Round(time.Millisecond))
	}
	l.log.Info(e.Text, pairs...)
}

// logLinkChanges logs which links can no longer be used, and which can be used again. before is nil
// at the start.
func (l *eventLog) logLinkChanges(before, now facts.LinkSet) {
	if before == nil {
		return
	}
	for _, link := range before {
		if _, known := now.FindByIndex(link.Index); !known {
			l.log.Warn("a link is dead: it is down, has no carrier, or was removed; its addresses move to other nodes", "link", link.Name, "reason", names.ReasonLinkDown)
		}
	}
	for _, link := range now {
		if _, known := before.FindByIndex(link.Index); !known {
			l.log.Info("a link can be used", "link", link.Name)
		}
	}
}

// forgetOldConflicts bounds the memory for conflicts that are over.
func (l *eventLog) forgetOldConflicts(now time.Time) {
	if l.loggedAtByConflict == nil {
		l.loggedAtByConflict = map[answeringHost]time.Time{}
	}
	for c, at := range l.loggedAtByConflict {
		if now.Sub(at) >= repeatedConflictLogInterval {
			delete(l.loggedAtByConflict, c)
		}
	}
}

// joinServicesOfAddress returns the Services of an address, separated by commas.
func (l *eventLog) joinServicesOfAddress(a netip.Addr, p *plan.Plan) string {
	if l.servicesByAddress == nil {
		l.servicesByAddress = map[netip.Addr]string{}
		for v := range p.Layer2Verdicts.All() {
			for _, address := range v.Addresses {
				l.servicesByAddress[address] = strings.TrimPrefix(l.servicesByAddress[address]+","+v.Service.String(), ",")
			}
		}
	}
	return l.servicesByAddress[a]
}

// electionEventReason returns the Reason of an event, which is the same in the condition and in
// events.
func electionEventReason(e elect.Event) names.Reason {
	switch e.Kind {
	case elect.EventForeignHostAnswers:
		return names.ReasonForeignClaim
	case elect.EventAnswerWithoutClaim:
		return names.ReasonStrayAnswer
	}
	return e.Reason
}
