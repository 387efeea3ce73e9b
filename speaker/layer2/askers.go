package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// AskerCache remembers which hosts asked for which address. A node that becomes the holder of an
// address sends these hosts a unicast notice, because some networks suppress broadcast
// announcements. It reads no clock. The zero value is not usable.
type AskerCache struct {
	askersByAddress map[netip.Addr][]asker // by the requested address, the latest last
}

// asker is a host that asked for an address.
type asker struct {
	facts.LinkNeighbour
	linkIndex int
	askedAt   time.Time
}

const (
	// askerRetentionTimeout is how long an asker is remembered. A host that renews its entry asks
	// only the holder, so that other nodes see its broadcast request once.
	askerRetentionTimeout = 30 * time.Minute
	// askerPatienceTimeout is how long a host waits for an answer: Linux asks three times, once a
	// second.
	askerPatienceTimeout = 3 * time.Second
	// These two limits bound the memory, so that a flood of requests does not exhaust it.
	askersPerAddressLimit = 8
	askedAddressesLimit   = 16384
)

// NewAskerCache returns an empty AskerCache.
func NewAskerCache() *AskerCache { return &AskerCache{askersByAddress: map[netip.Addr][]asker{}} }

// RecordRequest stores that a host asked for an address on a link. If there are too many hosts, it
// deletes the one that asked first.
func (n *AskerCache) RecordRequest(a netip.Addr, link int, by facts.LinkNeighbour, now time.Time) {
	known, ok := n.askersByAddress[a]
	if !ok && len(n.askersByAddress) >= askedAddressesLimit {
		for other := range n.askersByAddress { // any one: a real host asks again
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

// GatewaysAndAskersToNotify returns the hosts that get a notice about an address on a link: first
// the link's gateways, then the hosts that asked, the latest first.
func (n *AskerCache) GatewaysAndAskersToNotify(a netip.Addr, l facts.Link, now time.Time) []facts.LinkNeighbour {
	var out []facts.LinkNeighbour
	for _, r := range l.GatewaysWithKnownMAC {
		if ipfamily.FamilyOf(r.Address) == ipfamily.FamilyOf(a) {
			out = append(out, r)
		}
	}
	for _, k := range slices.Backward(n.askersByAddress[a]) {
		router := slices.ContainsFunc(out, func(r facts.LinkNeighbour) bool { return r.Address == k.Address })
		if k.linkIndex == l.Index && now.Sub(k.askedAt) < askerRetentionTimeout && !router {
			out = append(out, k.LinkNeighbour)
		}
	}
	return out
}

// WaitingAskers returns the hosts that asked for an address on a link so recently that they wait
// for an answer, the latest first.
func (n *AskerCache) WaitingAskers(a netip.Addr, link int, now time.Time) []facts.LinkNeighbour {
	var out []facts.LinkNeighbour
	for _, k := range slices.Backward(n.askersByAddress[a]) {
		if k.linkIndex == link && now.Sub(k.askedAt) < askerPatienceTimeout {
			out = append(out, k.LinkNeighbour)
		}
	}
	return out
}

// ForgetLink deletes the requests that came on a link.
func (n *AskerCache) ForgetLink(link int) {
	for a, known := range n.askersByAddress {
		if known = slices.DeleteFunc(known, func(k asker) bool { return k.linkIndex == link }); len(known) == 0 {
			delete(n.askersByAddress, a)
			continue
		}
		n.askersByAddress[a] = known
	}
}

// scheduleNotices schedules two notices to each host that asked for an address.
func (e *Engine) scheduleNotices(a netip.Addr, l facts.Link) {
	now := e.now()
	e.unicastNotices.scheduleNotices(AddressOnLink{a, l.Index}, e.askers.GatewaysAndAskersToNotify(a, l, now), now)
}

// scheduleNoticesToWaitingAskers schedules notices to the hosts that wait for an answer.
func (e *Engine) scheduleNoticesToWaitingAskers(a netip.Addr, l facts.Link) {
	now := e.now()
	e.unicastNotices.scheduleNotices(AddressOnLink{a, l.Index}, e.askers.WaitingAskers(a, l.Index, now), now)
}

// sendDueNotices sends the notices that are due, and returns when the next one is due.
func (e *Engine) sendDueNotices(now time.Time) time.Time {
	due, next := e.unicastNotices.TakeDue(now)
	for _, n := range due {
		e.sendNotice(n)
	}
	return next
}

// sendNotice sends one notice. For IPv4 it is a request for the neighbour's own address: the
// receiver of a request learns the sender's Ethernet address (RFC 826), even if it ignores
// announcements. For IPv6 it is an unsolicited Neighbor Advertisement (RFC 4861 section 7.2.6).
func (e *Engine) sendNotice(n unicastNotice) {
	p := e.ports[portKey{n.addressOnLink.LinkIndex, ipfamily.FamilyOf(n.addressOnLink.Address)}]
	h := e.heldAddressByIP[n.addressOnLink.Address]
	if p == nil || !slices.Contains(h.linkIndexes, n.addressOnLink.LinkIndex) || !e.maySendFor(n.addressOnLink.Address) {
		return
	}
	f := ARPOrNDPFrame{
		EthernetDestination: n.target.MAC, EthernetSource: p.link.MAC, Operation: Request,
		SenderMAC: p.link.MAC, SenderIP: n.addressOnLink.Address, TargetIP: n.target.Address,
	}
	if p.key.family == ipfamily.IPv6 {
		f.Operation, f.TargetMAC, f.Unsolicited = Reply, n.target.MAC, true
	}
	if e.writeFrame(p, f) {
		h.counters.announcementsSent.Add(1)
	}
}

// askerRequestFilter decides which requests a reader passes on to the AskerCache. It drops
// repetitions and limits the rate, so that a flood of requests costs the engine no
// time. Each reader has its own.
type askerRequestFilter struct {
	recentRequests   [1024]recentRequest
	windowStart      time.Time
	requestsInWindow int
}

type recentRequest struct {
	mac              facts.MAC
	requestedAddress netip.Addr
	seenAt           time.Time
}

const (
	// repeatedRequestDropTimeout is how long a repeated request is dropped.
	repeatedRequestDropTimeout = time.Minute
	// recordedRequestsPerSecondLimit is how many requests are passed on per second.
	recordedRequestsPerSecondLimit = 1000
)

// shouldPassToAskerCache says whether the request is passed on.
func (s *askerRequestFilter) shouldPassToAskerCache(f ARPOrNDPFrame, now time.Time) bool {
	b := f.TargetIP.As16()
	slot := &s.recentRequests[(uint(b[15])|uint(b[14])<<8^uint(f.SenderMAC[5])<<2^uint(f.SenderMAC[4])<<5)%uint(len(s.recentRequests))]
	if slot.mac == f.SenderMAC && slot.requestedAddress == f.TargetIP && now.Sub(slot.seenAt) < repeatedRequestDropTimeout {
		return false
	}
	if now.Sub(s.windowStart) >= time.Second {
		s.windowStart, s.requestsInWindow = now, 0
	}
	if s.requestsInWindow++; s.requestsInWindow > recordedRequestsPerSecondLimit {
		return false
	}
	*slot = recentRequest{f.SenderMAC, f.TargetIP, now}
	return true
}
