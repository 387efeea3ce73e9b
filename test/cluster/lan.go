package cluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// lanLinkName is the name of a host's link to the LAN.
const lanLinkName = "eth0"

// gossipPort is the port of the gossip between speakers.
const gossipPort = "7946"

// BlockGossipBetweenNodeGroups drops the gossip between two groups of nodes and nothing else.
// UnblockPorts on each node undoes it.
func (s *Cluster) BlockGossipBetweenNodeGroups(ctx context.Context, one, other []string) error {
	for _, groups := range [][2][]string{{one, other}, {other, one}} {
		if err := s.BlockGossipOneWay(ctx, groups[0], groups[1], "tcp", "udp"); err != nil {
			return err
		}
	}
	return nil
}

// BlockGossipOneWay drops the gossip of these protocols that one group of nodes sends to another
// one. UnblockPorts on each sending node undoes it.
func (s *Cluster) BlockGossipOneWay(ctx context.Context, from, to []string, protocols ...string) error {
	addresses, err := s.nodeInternalIPv4Addresses(ctx, to)
	if err != nil {
		return err
	}
	rules := "add table inet lab\nadd chain inet lab out { type filter hook output priority -300; }\n"
	for _, proto := range protocols {
		for _, port := range []string{"sport", "dport"} {
			rules += fmt.Sprintf("add rule inet lab out ip daddr { %s } %s %s %s drop\n", strings.Join(addresses, ", "), proto, port, gossipPort)
		}
	}
	for _, n := range from {
		if err := s.runOnHostWithStdin(n, rules, "nft", "-f", "-"); err != nil {
			return err
		}
	}
	return nil
}

func (s *Cluster) nodeInternalIPv4Addresses(ctx context.Context, nodes []string) ([]string, error) {
	var out []string
	for _, n := range nodes {
		text, err := s.RunKubectl(ctx, "", "get", "node", n, "-o", "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}")
		if err != nil {
			return nil, err
		}
		for _, a := range strings.Fields(text) {
			if ip, err := netip.ParseAddr(a); err == nil && ip.Is4() {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// runOnHostWithStdin runs a program in a host's network namespace.
func (s *Cluster) runOnHostWithStdin(host, stdin, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.NamespaceOfHost(host).RunInside(cmd.Run); err != nil {
		return fmt.Errorf("%s on %s: %w: %s", name, host, err, out.String())
	}
	return nil
}

// RunOnHost runs a program in a host's network namespace.
func (s *Cluster) RunOnHost(host, name string, args ...string) error {
	return s.runOnHostWithStdin(host, "", name, args...)
}

// DeleteNeighborEntriesRepeatedly deletes the neighbor entries of the addresses on a host every 50
// ms until ctx ends. So the host has to ask the LAN again, if a stream on it uses the addresses.
func (s *Cluster) DeleteNeighborEntriesRepeatedly(ctx context.Context, host string, addresses ...netip.Addr) {
	go func() {
		t := time.NewTicker(50 * time.Millisecond)
		defer t.Stop()
		for ctx.Err() == nil {
			<-t.C
			// An entry that does not exist cannot be deleted, which is fine.
			_ = s.NamespaceOfHost(host).RunInside(func() error { return deleteNeighborEntries(addresses) })
		}
	}()
}

// deleteNeighborEntries deletes the neighbor entries of the addresses in the current namespace.
func deleteNeighborEntries(addresses []netip.Addr) error {
	link, err := netlink.LinkByName(lanLinkName)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		err = errors.Join(err, netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: a.AsSlice()}))
	}
	return err
}

// HostMAC returns the Ethernet address of a host's link to the LAN, in the form of
// NeighborAnswer.MAC.
func (s *Cluster) HostMAC(host string) (string, error) {
	var i *net.Interface
	err := s.NamespaceOfHost(host).RunInside(func() (err error) {
		i, err = net.InterfaceByName(lanLinkName)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading the Ethernet address of %s: %w", host, err)
	}
	return i.HardwareAddr.String(), nil
}

// NeighborAnswer is a frame whose sender claims an address.
type NeighborAnswer struct {
	CapturedAt time.Time
	Address    netip.Addr
	MAC        string
}

// arpAndNDPCaptureFilter matches ARP, Neighbor Solicitations and Neighbor Advertisements.
const arpAndNDPCaptureFilter = "arp or (icmp6 and (ip6[40] == 135 or ip6[40] == 136))"

// CaptureNeighborAnswers captures the ARP and NDP frames that a host receives. Calling stop ends
// the capture and returns the answers for the addresses, in order.
func (s *Cluster) CaptureNeighborAnswers(ctx context.Context, host string) (stop func(addresses ...netip.Addr) ([]NeighborAnswer, error), err error) {
	path, end, err := s.StartCapture(ctx, host, arpAndNDPCaptureFilter)
	if err != nil {
		return nil, err
	}
	// tcpdump writes the file's header once it is listening.
	err = AwaitNoError(ctx, "the start of the capture", func(context.Context) error {
		if f, err := os.Stat(path); err != nil || f.Size() < 24 {
			return errors.Join(err, errors.New("the file is empty"))
		}
		return nil
	})
	return func(addresses ...netip.Addr) ([]NeighborAnswer, error) {
		if err := end(); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		return parseCapturedAnswers(b, addresses), nil
	}, err
}

// parseCapturedAnswers reads a capture file
// (https://www.tcpdump.org/manpages/pcap-savefile.5.html).
func parseCapturedAnswers(b []byte, addresses []netip.Addr) []NeighborAnswer {
	const fileHeader, recordHeader = 24, 16
	var out []NeighborAnswer
	for b = b[min(fileHeader, len(b)):]; len(b) >= recordHeader; {
		n := int(binary.LittleEndian.Uint32(b[8:]))
		at := time.Unix(int64(binary.LittleEndian.Uint32(b)), 1000*int64(binary.LittleEndian.Uint32(b[4:])))
		if len(b) < recordHeader+n {
			break
		}
		a, ok := parseNeighborAnswer(b[recordHeader : recordHeader+n])
		for _, wanted := range addresses {
			if ok && a.Address == wanted {
				a.CapturedAt = at
				out = append(out, a)
			}
		}
		b = b[recordHeader+n:]
	}
	return out
}

// parseNeighborAnswer returns the address that the sender of a frame claims.
func parseNeighborAnswer(f []byte) (NeighborAnswer, bool) {
	switch {
	case len(f) >= 42 && f[12] == 8 && f[13] == 6: // ARP: the sender's addresses, RFC 826
		a, _ := netip.AddrFromSlice(f[28:32])
		return NeighborAnswer{Address: a, MAC: net.HardwareAddr(f[22:28]).String()}, true
	// Neighbor Advertisement, RFC 4861 section 4.4
	case len(f) >= 78 && f[12] == 0x86 && f[13] == 0xdd && f[20] == 58 && f[54] == 136:
		a, _ := netip.AddrFromSlice(f[62:78])
		return NeighborAnswer{Address: a, MAC: net.HardwareAddr(f[6:12]).String()}, true
	}
	return NeighborAnswer{}, false
}
