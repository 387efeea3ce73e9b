package layer2

import (
	"net/netip"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// Operation says whether a Frame asks or answers.
type Operation uint16

// The operations of ARP (RFC 826). A Neighbor Solicitation is a Request, a Neighbor
// Advertisement is a Reply.
const (
	Request Operation = 1
	Reply   Operation = 2
)

// ARPOrNDPFrame is an ARP frame for IPv4 over Ethernet, or the same content in neighbour discovery
// for IPv6. In a Reply, SenderIP is the address that the sender claims. TargetIP is the address of
// the receiver, or equal to SenderIP in a Reply to all hosts.
type ARPOrNDPFrame struct {
	EthernetDestination, EthernetSource facts.MAC
	Operation                           Operation
	SenderMAC                           facts.MAC
	SenderIP                            netip.Addr
	TargetMAC                           facts.MAC
	TargetIP                            netip.Addr
	// Unsolicited marks a Reply to one host that sent no request. ARP has no such flag.
	Unsolicited bool
}

// DropReason is why a frame is not answered.
type DropReason string

// The outcomes for a frame that requests a held address.
const (
	NotDropped            DropReason = ""
	DropNotARequest       DropReason = "NoRequest"
	DropForOtherMAC       DropReason = "NotForUs"
	DropGratuitousRequest DropReason = "Gratuitous"
	DropInvalidSenderMAC  DropReason = "BadSender"
)

// BuildReply returns the reply to a request for an address that this node holds; own
// is the Ethernet address of its link. A probe has no sender address yet. It is
// answered too, so that its sender learns that the address is in use (RFC 5227 section
// 2.1.1; RFC 4862 section 5.4.3). For IPv6 that answer goes to all nodes, because the
// sender has no address to send to (RFC 4861 section 7.2.4).
func BuildReply(f ARPOrNDPFrame, own facts.MAC) (ARPOrNDPFrame, DropReason) {
	switch {
	case f.Operation != Request:
		return ARPOrNDPFrame{}, DropNotARequest
	case f.EthernetDestination != RequestDestinationMAC(f.TargetIP) && f.EthernetDestination != own:
		return ARPOrNDPFrame{}, DropForOtherMAC
	case f.SenderIP == f.TargetIP: // an announcement, not a request
		return ARPOrNDPFrame{}, DropGratuitousRequest
	// the reply to a group address would reach many hosts
	case f.SenderMAC == facts.MAC{} || f.SenderMAC[0]&1 == 1:
		return ARPOrNDPFrame{}, DropInvalidSenderMAC
	}
	answer := ARPOrNDPFrame{
		EthernetDestination: f.SenderMAC, EthernetSource: own, Operation: Reply,
		SenderMAC: own, SenderIP: f.TargetIP, TargetMAC: f.SenderMAC, TargetIP: f.SenderIP,
	}
	if f.TargetIP.Is6() && f.SenderIP.IsUnspecified() {
		answer.EthernetDestination, answer.TargetMAC, answer.TargetIP = allNodesMAC, allNodesMAC, f.TargetIP
	}
	return answer, NotDropped
}
