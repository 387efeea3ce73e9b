package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// AskerCache remembers who asked for which address lately: who comes to answer for it tells them directly, since there are
// networks that ignore announcements to everybody. It reads no clock. The zero value is not usable.
type AskerCache struct {
	askersByAddress map[netip.Addr][]asker // by the address asked for, the latest last
}

// asker is a host that asked.
type asker struct {
	facts.Neighbour
	linkIndex int
	askedAt   time.Time
}

const (
	// askerTimeout is how long an asker is remembered: hosts renew what they know by asking the holder alone, so that others
	// hear of an asker once.
	askerTimeout = 30 * time.Minute
	// askersPerAddressLimit and askedAddressesLimit bound the memory, so that a flood does not fill it.
	askersPerAddressLimit = 8
	askedAddressesLimit   = 16384
)

// NewAskerCache returns an empty Neighbours.
func NewAskerCache() *AskerCache { return &AskerCache{askersByAddress: map[netip.Addr][]asker{}} }

// RecordRequest notes that a host asked for an address on a link. Of too many the one that asked first is forgotten.
func (n *AskerCache) RecordRequest(a netip.Addr, link int, by facts.Neighbour, now time.Time) {
	known, ok := n.askersByAddress[a]
	if !ok && len(n.askersByAddress) >= askedAddressesLimit {
		for other := range n.askersByAddress { // any: a real one asks again
			delete(n.askersByAddress, other)
			break
		}
	}
	known = slices.DeleteFunc(known, func(k asker) bool { return k.Address == by.Address && k.linkIndex == link })
	if len(known) >= askersPerAddressLimit {
		known = slices.Delete(known, 0, len(known)-askersPerAddressLimit+1)
	}
	n.askersByAddress[a] = append(known, asker{by, link, now})
}

// NoticeTargets returns whom to tell about an address on a link: its routers first, then those who asked, the latest first.
func (n *AskerCache) NoticeTargets(a netip.Addr, l facts.Link, now time.Time) []facts.Neighbour {
	var out []facts.Neighbour
	for _, r := range l.ResolvedGateways {
		if FamilyOf(r.Address) == FamilyOf(a) {
			out = append(out, r)
		}
	}
	for _, k := range slices.Backward(n.askersByAddress[a]) {
		router := slices.ContainsFunc(out, func(r facts.Neighbour) bool { return r.Address == k.Address })
		if k.linkIndex == l.Index && now.Sub(k.askedAt) < askerTimeout && !router {
			out = append(out, k.Neighbour)
		}
	}
	return out
}

// ForgetLink forgets who asked on a link.
func (n *AskerCache) ForgetLink(link int) {
	for a, known := range n.askersByAddress {
		if known = slices.DeleteFunc(known, func(k asker) bool { return k.linkIndex == link }); len(known) == 0 {
			delete(n.askersByAddress, a)
			continue
		}
		n.askersByAddress[a] = known
	}
}

// unicastNotice is something to tell one neighbour.
type unicastNotice struct {
	announcement Announcement
	target       facts.Neighbour
	dueAt        time.Time
}

// secondNoticeDelay is for a frame that was lost, and for hosts with a Linux that ignores a change too soon after another.
const secondNoticeDelay = 1100 * time.Millisecond

// scheduleNotices has those who asked for an address told who answers now, twice.
func (e *Engine) scheduleNotices(a netip.Addr, l facts.Link) {
	now := e.now()
	for _, to := range e.askers.NoticeTargets(a, l, now) {
		n := unicastNotice{announcement: Announcement{a, l.Index}, target: to, dueAt: now}
		e.firstNotices = append(e.firstNotices, n)
		n.dueAt = now.Add(secondNoticeDelay)
		e.repeatedNotices = append(e.repeatedNotices, n)
	}
}

// noticeBatchSize is how many neighbours are told each pace, beside the announcements to everybody.
const noticeBatchSize = 50

// sendDueNotices tells the neighbours what is due, noticeBatchSize of them each pace, and returns when the next is.
func (e *Engine) sendDueNotices(now time.Time) time.Time {
	if now.Before(e.nextNoticeBatchAt) {
		return e.nextNoticeBatchAt
	}
	var next time.Time
	room := noticeBatchSize
	for _, queue := range []*[]unicastNotice{&e.firstNotices, &e.repeatedNotices} { // each in the order of time
		for len(*queue) > 0 && !(*queue)[0].dueAt.After(now) && room > 0 {
			e.sendNotice((*queue)[0])
			*queue = (*queue)[1:]
			room--
		}
		if len(*queue) == 0 {
			*queue = nil // the memory behind it
			continue
		}
		if at := (*queue)[0].dueAt; next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if room == 0 {
		e.nextNoticeBatchAt = now.Add(batchInterval)
		if next.Before(e.nextNoticeBatchAt) && !next.IsZero() {
			next = e.nextNoticeBatchAt
		}
	}
	return next
}

// sendNotice tells one neighbour. For IPv4 it is a question for the neighbour's own address: the answerer takes in who
// asks (RFC 826), whatever it thinks of announcements. For IPv6 it is an advertisement that nobody asked for (RFC 4861
// section 7.2.6).
func (e *Engine) sendNotice(n unicastNotice) {
	p := e.ports[portKey{n.announcement.Link, FamilyOf(n.announcement.Address)}]
	h := e.holdings[n.announcement.Address]
	if p == nil || !slices.Contains(h.links, n.announcement.Link) || e.isPastSendDeadline() {
		return
	}
	f := Frame{
		Destination: n.target.MAC, Source: p.link.MAC, Operation: Request,
		SenderMAC: p.link.MAC, SenderIP: n.announcement.Address, TargetIP: n.target.Address,
	}
	if p.key.family == IPv6 {
		f.Operation, f.TargetMAC, f.Unsolicited = Reply, n.target.MAC, true
	}
	if e.writeFrame(p, f) {
		h.counters.gratuitous.Add(1)
	}
}

// requestFilter tells a reader whether a question is worth remembering: not again so soon, and not too many, so that a flood of
// questions is no work for the engine. It belongs to one reader.
type requestFilter struct {
	recentRequests [1024]recentRequest
	windowStart    time.Time
	windowCount    int
}

type recentRequest struct {
	mac    facts.MAC
	target netip.Addr
	seenAt time.Time
}

const (
	// sameRequestInterval is how long the same question is no news.
	sameRequestInterval = time.Minute
	// requestsPerSecondLimit is how many are passed on in a second.
	requestsPerSecondLimit = 1000
)

// isWorthRecording says whether the question should be remembered.
func (s *requestFilter) isWorthRecording(f Frame, now time.Time) bool {
	b := f.TargetIP.As16()
	slot := &s.recentRequests[(uint(b[15])|uint(b[14])<<8^uint(f.SenderMAC[5])<<2^uint(f.SenderMAC[4])<<5)%uint(len(s.recentRequests))]
	if slot.mac == f.SenderMAC && slot.target == f.TargetIP && now.Sub(slot.seenAt) < sameRequestInterval {
		return false
	}
	if now.Sub(s.windowStart) >= time.Second {
		s.windowStart, s.windowCount = now, 0
	}
	if s.windowCount++; s.windowCount > requestsPerSecondLimit {
		return false
	}
	*slot = recentRequest{f.SenderMAC, f.TargetIP, now}
	return true
}
