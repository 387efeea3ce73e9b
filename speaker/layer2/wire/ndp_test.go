package wire

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

var (
	nodeMAC   = facts.MAC{2, 0, 0, 0, 0, 0x0b}
	clientMAC = facts.MAC{2, 0, 0, 0, 0, 0x64}
	heldIPv6  = netip.MustParseAddr("fd00:a8::201")
	askerIPv6 = netip.MustParseAddr("fd00:a8::100")
)

// exampleNDPFrames returns the kinds of frames that the engine sends for IPv6.
func exampleNDPFrames() map[string]layer2.ARPOrNDPFrame {
	all := layer2.AnnouncementDestinationMAC(heldIPv6)
	return map[string]layer2.ARPOrNDPFrame{
		"a solicitation": {
			EthernetDestination: layer2.RequestDestinationMAC(heldIPv6), EthernetSource: clientMAC, Operation: layer2.Request,
			SenderMAC: clientMAC, SenderIP: askerIPv6, TargetIP: heldIPv6,
		},
		"a unicast solicitation": {
			EthernetDestination: nodeMAC, EthernetSource: clientMAC, Operation: layer2.Request,
			SenderMAC: clientMAC, SenderIP: askerIPv6, TargetIP: heldIPv6,
		},
		"a solicitation without a sender address": {
			EthernetDestination: layer2.RequestDestinationMAC(heldIPv6), EthernetSource: clientMAC, Operation: layer2.Request,
			SenderMAC: clientMAC, SenderIP: netip.IPv6Unspecified(), TargetIP: heldIPv6,
		},
		"a solicited advertisement": {
			EthernetDestination: clientMAC, EthernetSource: nodeMAC, Operation: layer2.Reply,
			SenderMAC: nodeMAC, SenderIP: heldIPv6, TargetMAC: clientMAC, TargetIP: askerIPv6,
		},
		"a unicast notice": {
			EthernetDestination: clientMAC, EthernetSource: nodeMAC, Operation: layer2.Reply,
			SenderMAC: nodeMAC, SenderIP: heldIPv6, TargetMAC: clientMAC, TargetIP: askerIPv6, Unsolicited: true,
		},
		"an announcement": {
			EthernetDestination: all, EthernetSource: nodeMAC, Operation: layer2.Reply,
			SenderMAC: nodeMAC, SenderIP: heldIPv6, TargetMAC: all, TargetIP: heldIPv6,
		},
	}
}

func TestEncodedFramesAreDecodedAndPassTheirFilterOnly(t *testing.T) {
	vm := map[ipfamily.Family]*bpf.VM{ipfamily.IPv4: newFilterVM(t, arpFilter), ipfamily.IPv6: newFilterVM(t, ndpFilter)}
	frames := exampleNDPFrames()
	frames["ARP"] = exampleARPFrame()
	for name, f := range frames {
		t.Run(name, func(t *testing.T) {
			family := ipfamily.FamilyOf(f.TargetIP)
			p := protocolOfFamily(family)
			b := encodeFrame(t, p.encode, f)
			got, ok := p.decode(b)
			if diff := cmp.Diff(f, got, compareAddressesOption); !ok || diff != "" {
				t.Errorf("ok=%v (-want +got)\n%s", ok, diff)
			}
			for of, m := range vm {
				n, err := m.Run(b)
				if err != nil || (n > 0) != (of == family) {
					t.Errorf("the filter for %s passes %d bytes (%v)", of, n, err)
				}
			}
		})
	}
}

// newFilterVM runs a filter without its first two instructions, which check the
// kernel's packet type.
func newFilterVM(t *testing.T, program []bpf.Instruction) *bpf.VM {
	t.Helper()
	if _, err := bpf.Assemble(program); err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(program[2:])
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestAdvertisementsHaveSolicitedAndOverrideFlags(t *testing.T) {
	const solicitedFlag, overrideFlag = 0x40, 0x20 // RFC 4861 section 4.4
	for name, want := range map[string]byte{"a solicited advertisement": solicitedFlag | overrideFlag, "an announcement": overrideFlag, "a unicast notice": overrideFlag} {
		b := encodeFrame(t, encodeNDP, exampleNDPFrames()[name])
		if got := b[icmp6Offset+4]; got != want {
			t.Errorf("%s has flags %#x, want %#x", name, got, want)
		}
	}
}

func TestDecodeNDPRefusesInvalidFrames(t *testing.T) {
	tests := map[string]struct {
		of   string
		edit func(b []byte) []byte
	}{
		"nothing":                             {"a solicitation", func([]byte) []byte { return nil }},
		"a frame cut short":                   {"a solicitation", func(b []byte) []byte { return b[:len(b)-1] }},
		"a hop limit of 254":                  {"a solicitation", func(b []byte) []byte { b[ip6HopLimitOffsetInFrame] = 254; return b }},
		"a wrong checksum":                    {"a solicitation", func(b []byte) []byte { b[icmp6Offset+2]++; return b }},
		"another code":                        {"a solicited advertisement", func(b []byte) []byte { b[icmp6CodeOffset] = 1; return withValidChecksum(b) }},
		"another type":                        {"a solicited advertisement", func(b []byte) []byte { b[icmp6Offset] = 128; return withValidChecksum(b) }},
		"a multicast target":                  {"a solicitation", func(b []byte) []byte { b[icmp6Offset+8] = 0xff; return withValidChecksum(b) }},
		"an announced multicast target":       {"an announcement", func(b []byte) []byte { b[icmp6Offset+8] = 0xff; return withValidChecksum(b) }},
		"a solicited flag in an announcement": {"an announcement", func(b []byte) []byte { b[icmp6Offset+4] = 0x60; return withValidChecksum(b) }},
		"a link-layer option without a sender address": {"a solicitation", func(b []byte) []byte {
			clear(b[ip6SourceOffsetInFrame:ip6DestinationOffsetInFrame])
			return withValidChecksum(b)
		}},
		"a unicast solicitation without a sender address": {"a solicitation without a sender address", func(b []byte) []byte {
			to := heldIPv6.As16()
			copy(b[ip6DestinationOffsetInFrame:], to[:])
			return withValidChecksum(b)
		}},
		"an option of no length":                    {"a solicitation", func(b []byte) []byte { b[ndpMinFrameLength+1] = 0; return withValidChecksum(b) }},
		"a length beyond the frame":                 {"a solicitation", func(b []byte) []byte { b[ip6PayloadLengthOffsetInFrame] = 1; return b }},
		"a solicitation with a group as its sender": {"a solicitation", func(b []byte) []byte { b[ip6SourceOffsetInFrame] = 0xff; return withValidChecksum(b) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if f, ok := decodeNDP(tt.edit(encodeFrame(t, encodeNDP, exampleNDPFrames()[tt.of]))); ok {
				t.Errorf("decoded as %+v", f)
			}
		})
	}
}

// withValidChecksum corrects the checksum.
func withValidChecksum(b []byte) []byte {
	b[icmp6Offset+2], b[icmp6Offset+3] = 0, 0
	for c := range 1 << 16 { // independent of the tested code
		binary.BigEndian.PutUint16(b[icmp6Offset+2:], uint16(c))
		if isICMPv6ChecksumValid(b[ip6SourceOffsetInFrame:icmp6Offset], b[icmp6Offset:]) {
			return b
		}
	}
	return nil
}

// FuzzDecodeNDP checks that decoded frames have only values that are valid in neighbour discovery.
func FuzzDecodeNDP(f *testing.F) {
	f.Add([]byte{})
	for _, m := range exampleNDPFrames() {
		f.Add(encodeFrame(f, encodeNDP, m))
	}
	f.Fuzz(checkDecodedNDPFrame)
}

func checkDecodedNDPFrame(t *testing.T, b []byte) {
	got, ok := decodeNDP(b)
	if !ok {
		return
	}
	if !got.TargetIP.Is6() || !got.SenderIP.Is6() || got.SenderIP.IsMulticast() || got.TargetIP.IsMulticast() {
		t.Fatalf("decoded as %+v", got)
	}
	if answer, why := layer2.BuildReply(got, nodeMAC); why == layer2.NotDropped {
		if again, ok := decodeNDP(encodeFrame(t, encodeNDP, answer)); !ok || again != answer {
			t.Fatalf("the answer is not readable: ok=%v (-want +got)\n%s", ok, cmp.Diff(answer, again, compareAddressesOption))
		}
	}
}
