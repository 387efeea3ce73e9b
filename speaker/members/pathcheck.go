package members

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// Gossip may be blocked between two members although both take part in it: a third member passes
// everything on, or only one of TCP and UDP is blocked. So each member checks one other member a
// second, in turn, by a datagram that the other one answers and by a TCP connection. This costs the
// same in a cluster of any size.
const (
	pathCheckInterval = time.Second
	// pathFaultDelay is how long a check of one protocol fails before the path counts as blocked:
	// several datagrams in a row are lost.
	pathFaultDelay = 3 * time.Second
	// silentMemberFaultDelay is the same for a member that does not answer at all: it may be dead.
	// Within this time the gossip finds that out, and removes the member.
	silentMemberFaultDelay = 15 * time.Second
	// maxExtraChecksOfFaultyMembers is how many members with a fault are checked in addition, each
	// second.
	maxExtraChecksOfFaultyMembers = 4
)

// The version of direct messages follows the Ethernet addresses in the metadata of a member. From
// pathCheckVersion on, the member answers checks.
const pathCheckVersion = 1

// directMessageVersionOf returns the version that a member publishes, 0 without one.
func directMessageVersionOf(n *memberlist.Node) byte {
	if b := n.Meta; len(b) > nonceSize && (len(b)-nonceSize)%macSizedGroupBytes == 1 {
		return b[len(b)-1]
	}
	return 0
}

// PathFault is a member with which gossip is blocked, although it is a member.
type PathFault struct {
	NodeName string
	// UDPBlocked and TCPBlocked say what is blocked, in at least one direction.
	UDPBlocked, TCPBlocked bool
}

// The kinds of datagrams about paths. They follow a zero byte, like the address in a greeting,
// which begins with neither.
const (
	kindPathCheck       = 1
	kindPathCheckAnswer = 2
)

// The flags of a check say what its sender finds blocked.
const (
	flagUDPBlocked = 1 << iota
	flagTCPBlocked
)

// pathMessage is a datagram about the path to another member.
type pathMessage struct {
	kind, flags byte
	sequence    uint64
	sender      string
}

func (p *pathMessage) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{0, p.kind, p.flags}, p.sequence)
	return append(b, p.sender...)
}

// decodePathMessage decodes a datagram without its first byte.
func decodePathMessage(b []byte) (pathMessage, bool) {
	if len(b) < 10 || b[0] != kindPathCheck && b[0] != kindPathCheckAnswer {
		return pathMessage{}, false
	}
	return pathMessage{kind: b[0], flags: b[1], sequence: binary.BigEndian.Uint64(b[2:]), sender: string(b[10:])}, true
}

// pathCheckRecord is what the checks of one member found.
type pathCheckRecord struct {
	awaitedSequence uint64 // of the check without an answer yet; 0 without one
	// udpFailedSince and tcpFailedSince are zero while the last check succeeded.
	// blockedFlagsFromMember are what the other member finds blocked, until memberReportValidUntil.
	udpFailedSince, tcpFailedSince time.Time
	blockedFlagsFromMember         byte
	memberReportValidUntil         time.Time
}

// hasLastCheckFailed reports whether the last check of a protocol failed.
func (r *pathCheckRecord) hasLastCheckFailed() bool {
	return !r.udpFailedSince.IsZero() || !r.tcpFailedSince.IsZero()
}

// blockedProtocolFlags returns what this node finds blocked.
func (r *pathCheckRecord) blockedProtocolFlags(now time.Time) (flags byte) {
	isSilent := !r.udpFailedSince.IsZero() && !r.tcpFailedSince.IsZero()
	hasLasted := func(since time.Time) bool {
		delay := pathFaultDelay
		if isSilent {
			delay = silentMemberFaultDelay
		}
		return !since.IsZero() && now.Sub(since) >= delay
	}
	if hasLasted(r.udpFailedSince) {
		flags |= flagUDPBlocked
	}
	if hasLasted(r.tcpFailedSince) {
		flags |= flagTCPBlocked
	}
	return flags
}

// pathChecks has the checks of all members. One goroutine owns it.
type pathChecks struct {
	recordByName      map[string]*pathCheckRecord
	lastSequence      uint64
	lastCheckedMember string
}

// chooseMembersToCheck returns the members to check now, of these sorted names: the next one in
// turn, and some with a fault.
func (c *pathChecks) chooseMembersToCheck(names []string) []string {
	if len(names) == 0 {
		return nil
	}
	i, _ := slices.BinarySearch(names, c.lastCheckedMember+"\x00")
	next := names[i%len(names)]
	c.lastCheckedMember = next
	out := []string{next}
	for _, n := range names {
		if r := c.recordByName[n]; n != next && r != nil && r.hasLastCheckFailed() && len(out) <= maxExtraChecksOfFaultyMembers {
			out = append(out, n)
		}
	}
	return out
}

// beginCheck records that a check is sent, and that the one before had no answer if it had none.
func (c *pathChecks) beginCheck(name string, now time.Time) pathMessage {
	r := c.recordByName[name]
	if r == nil {
		r = &pathCheckRecord{}
		c.recordByName[name] = r
	}
	if r.awaitedSequence != 0 && r.udpFailedSince.IsZero() {
		r.udpFailedSince = now
	}
	c.lastSequence++
	r.awaitedSequence = c.lastSequence
	return pathMessage{kind: kindPathCheck, flags: r.blockedProtocolFlags(now), sequence: c.lastSequence}
}

// recordPathMessage takes a check or an answer of another member.
func (c *pathChecks) recordPathMessage(p pathMessage, memberCount int, now time.Time) {
	r := c.recordByName[p.sender]
	switch {
	case r == nil:
	case p.kind == kindPathCheckAnswer && p.sequence == r.awaitedSequence:
		r.awaitedSequence, r.udpFailedSince = 0, time.Time{}
	case p.kind == kindPathCheck:
		// The other member checks this one again after all the others.
		r.blockedFlagsFromMember, r.memberReportValidUntil = p.flags, now.Add(time.Duration(memberCount+2)*2*pathCheckInterval)
	}
}

// recordTCPResult takes the outcome of a TCP connection.
func (c *pathChecks) recordTCPResult(name string, succeeded bool, now time.Time) {
	switch r := c.recordByName[name]; {
	case r == nil:
	case succeeded:
		r.tcpFailedSince = time.Time{}
	case r.tcpFailedSince.IsZero():
		r.tcpFailedSince = now
	}
}

// listFaults returns the faults, sorted by name. It forgets members that are gone.
func (c *pathChecks) listFaults(names []string, now time.Time) []PathFault {
	var out []PathFault
	for name, r := range c.recordByName {
		if !slices.Contains(names, name) {
			delete(c.recordByName, name)
			continue
		}
		flags := r.blockedProtocolFlags(now)
		if now.Before(r.memberReportValidUntil) {
			flags |= r.blockedFlagsFromMember
		}
		if flags != 0 {
			out = append(out, PathFault{NodeName: name, UDPBlocked: flags&flagUDPBlocked != 0, TCPBlocked: flags&flagTCPBlocked != 0})
		}
	}
	slices.SortFunc(out, func(x, y PathFault) int { return strings.Compare(x.NodeName, y.NodeName) })
	return out
}

// tcpCheckResult is the outcome of a TCP connection to a member.
type tcpCheckResult struct {
	name      string
	succeeded bool
}

// PathFaults returns the members with which gossip is blocked, sorted.
func (m *Members) PathFaults() []PathFault { return *m.pathFaults.Load() }

// checkPathsForever checks the paths to the other members until ctx ends.
func (m *Members) checkPathsForever(ctx context.Context) {
	checks := pathChecks{recordByName: map[string]*pathCheckRecord{}}
	connections := make(chan tcpCheckResult, 2*maxExtraChecksOfFaultyMembers)
	t := time.NewTicker(pathCheckInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-m.receivedPathMessages.C():
			checks.recordPathMessage(p, m.memberlist.NumMembers(), m.options.Now())
			continue
		case r := <-connections:
			checks.recordTCPResult(r.name, r.succeeded, m.options.Now())
			continue
		case <-t.C:
		}
		nodes := m.membersSupportingPathChecks()
		names := make([]string, 0, len(nodes))
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		for _, name := range checks.chooseMembersToCheck(names) {
			i, _ := slices.BinarySearch(names, name)
			p := checks.beginCheck(name, m.options.Now())
			p.sender = m.options.NodeName
			m.sendPathMessage(&nodes[i], p)
			go m.checkTCPPathToMember(ctx, &nodes[i], connections)
		}
		faults := checks.listFaults(names, m.options.Now())
		m.pathFaults.Store(&faults)
	}
}

// membersSupportingPathChecks returns the other members that answer checks, sorted by name.
func (m *Members) membersSupportingPathChecks() []memberlist.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []memberlist.Node
	for name, n := range m.memberlistNodeByName {
		if name != m.options.NodeName && directMessageVersionOf(&n) >= pathCheckVersion {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(x, y memberlist.Node) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// sendPathMessage sends a datagram about a path.
func (m *Members) sendPathMessage(to *memberlist.Node, p pathMessage) {
	if err := m.memberlist.SendBestEffort(to, p.encode()); err != nil {
		m.options.Log.Debug("checking the path to a member", "node", to.Name, "error", err)
	}
}

// checkTCPPathToMember opens a TCP connection to the gossip port of a member, and closes it.
func (m *Members) checkTCPPathToMember(ctx context.Context, n *memberlist.Node, results chan<- tcpCheckResult) {
	a, _ := netip.AddrFromSlice(n.Addr)
	dialer := net.Dialer{Timeout: pathCheckInterval}
	c, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(a.Unmap(), n.Port).String())
	if err == nil {
		_ = c.Close() // nothing was sent
	}
	select {
	case results <- tcpCheckResult{n.Name, err == nil}:
	case <-ctx.Done():
	}
}

// answerPathChecks answers the checks of others until ctx ends.
func (m *Members) answerPathChecks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-m.pathChecksToAnswer.C():
			m.mu.Lock()
			n, ok := m.memberlistNodeByName[p.sender]
			m.mu.Unlock()
			if ok {
				m.sendPathMessage(&n, pathMessage{kind: kindPathCheckAnswer, sequence: p.sequence, sender: m.options.NodeName})
			}
		}
	}
}

// handlePathMessage passes a check or an answer on. A check is answered, too.
func (m *Members) handlePathMessage(p pathMessage) {
	m.receivedPathMessages.PutDroppingOldest(p)
	if p.kind == kindPathCheck {
		m.pathChecksToAnswer.PutDroppingOldest(p)
	}
}
