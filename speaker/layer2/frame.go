package layer2

import (
	"net/netip"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// Operation is what a Frame is.
type Operation uint16

// The operations of ARP (RFC 826). A Neighbor Solicitation is a Request, a Neighbor Advertisement a Reply.
const (
	Request Operation = 1
	Reply   Operation = 2
)

// Frame is an ARP frame for IPv4 over Ethernet, or the same said with neighbour discovery for IPv6. In a Reply SenderIP is
// the address that is spoken for and TargetIP the one that is spoken to, its own when everybody is.
type Frame struct {
	Destination, Source facts.MAC
	Operation           Operation
	SenderMAC           facts.MAC
	SenderIP            netip.Addr
	TargetMAC           facts.MAC
	TargetIP            netip.Addr
	// Unsolicited says that nobody asked for a Reply to one host. ARP does not tell.
	Unsolicited bool
}

// DropReason says why a frame is not answered.
type DropReason string

// What becomes of a frame that asks for a held address.
const (
	Answered       DropReason = ""
	DropNoRequest  DropReason = "NoRequest"
	DropNotForUs   DropReason = "NotForUs"
	DropGratuitous DropReason = "Gratuitous"
	DropBadSender  DropReason = "BadSender"
)

// BuildReply returns the reply to a frame whose target is an address that the node with this Ethernet address holds. A probe,
// whose sender has no address yet, is answered too: that is how its sender learns that the address is taken
// (RFC 5227 section 2.1.1; RFC 4862 section 5.4.3). For IPv6 that answer goes to all, since the sender cannot be
// addressed yet (RFC 4861 section 7.2.4).
func BuildReply(f Frame, own facts.MAC) (Frame, DropReason) {
	switch {
	case f.Operation != Request:
		return Frame{}, DropNoRequest
	case f.Destination != RequestMAC(f.TargetIP) && f.Destination != own:
		return Frame{}, DropNotForUs
	case f.SenderIP == f.TargetIP: // an announcement, no question
		return Frame{}, DropGratuitous
	case f.SenderMAC == facts.MAC{} || f.SenderMAC[0]&1 == 1: // a group is no sender: the answer would go to everybody
		return Frame{}, DropBadSender
	}
	answer := Frame{
		Destination: f.SenderMAC, Source: own, Operation: Reply,
		SenderMAC: own, SenderIP: f.TargetIP, TargetMAC: f.SenderMAC, TargetIP: f.SenderIP,
	}
	if f.TargetIP.Is6() && f.SenderIP.IsUnspecified() {
		answer.Destination, answer.TargetMAC, answer.TargetIP = allNodesMAC, allNodesMAC, f.TargetIP
	}
	return answer, Answered
}
