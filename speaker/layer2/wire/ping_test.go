package wire

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

var (
	heldIPv4  = netip.MustParseAddr("192.168.0.201")
	askerIPv4 = netip.MustParseAddr("192.168.0.100")
)

// buildEchoRequestFrame returns an Ethernet frame with an echo request, padded if it is short.
func buildEchoRequestFrame(t testing.TB, f ipfamily.Family, data string) []byte {
	t.Helper()
	head := append(append(append([]byte{}, nodeMAC[:]...), clientMAC[:]...), 0x08, 0x00)
	if f == ipfamily.IPv6 {
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_ICMPV6, 9
		copy(ip[8:], askerIPv6.AsSlice())
		copy(ip[24:], heldIPv6.AsSlice())
		m, err := (&icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: 7, Seq: 1, Data: []byte(data)}}).
			Marshal(icmp.IPv6PseudoHeader(askerIPv6.AsSlice(), heldIPv6.AsSlice()))
		if err != nil {
			t.Fatal(err)
		}
		ip[4], ip[5] = byte(len(m)>>8), byte(len(m))
		head[12], head[13] = 0x86, 0xdd
		return append(append(head, ip...), m...)
	}
	m, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 7, Seq: 1, Data: []byte(data)}}).Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	ip := make([]byte, 20)
	n := 20 + len(m)
	ip[0], ip[2], ip[3], ip[6], ip[8], ip[9] = 0x45, byte(n>>8), byte(n), 0x40, 9, unix.IPPROTO_ICMP
	copy(ip[12:], askerIPv4.AsSlice())
	copy(ip[16:], heldIPv4.AsSlice())
	sum := ^onesComplementSum(0, ip)
	ip[10], ip[11] = byte(sum>>8), byte(sum)
	return append(append(append(head, ip...), m...), make([]byte, max(0, 46-n))...)
}

// pingCaseByFamily has what differs between the families.
var pingCaseByFamily = map[ipfamily.Family]struct {
	answer      func([]byte, func(netip.Addr) bool) ([]byte, bool)
	held, asker netip.Addr
	body        int
	reply       byte
}{
	ipfamily.IPv4: {buildPingReply4, heldIPv4, askerIPv4, icmp4Offset, 0},
	ipfamily.IPv6: {buildPingReply6, heldIPv6, askerIPv6, icmp6Offset, typeEchoReply6},
}

func TestEchoRequestPassesFilterAndGetsValidReply(t *testing.T) {
	for f, tt := range pingCaseByFamily {
		is := func(a netip.Addr) bool { return a == tt.held }
		for _, data := range []string{"", "x", "are you there?", string(bytes.Repeat([]byte{0xff}, 1400))} {
			request := buildEchoRequestFrame(t, f, data)
			program := pingFilter4
			if f == ipfamily.IPv6 {
				program = pingFilter6
			}
			if n, err := newFilterVM(t, program).Run(request); err != nil || n == 0 {
				t.Errorf("%s: the filter passes %d bytes (%v)", f, n, err)
			}
			answer, ok := tt.answer(bytes.Clone(request), is)
			if !ok {
				t.Fatalf("%s: no answer", f)
			}
			if !bytes.Equal(answer[0:6], request[6:12]) || !bytes.Equal(answer[6:12], request[0:6]) {
				t.Errorf("%s: the answer goes from %x to %x", f, answer[6:12], answer[0:6])
			}
			if got := answer[tt.body+echoMinLength:]; string(got) != data || answer[tt.body] != tt.reply {
				t.Errorf("%s: the answer is of type %d and says %q", f, answer[tt.body], got)
			}
			if sound := onesComplementSum(0, answer[ip4HeaderOffset:icmp4Offset]) == 0xffff && onesComplementSum(0, answer[icmp4Offset:]) == 0xffff; f == ipfamily.IPv4 && !sound {
				t.Error("IPv4: the checksums are wrong")
			}
			if f == ipfamily.IPv6 && !isICMPv6ChecksumValid(answer[ip6SourceOffsetInFrame:icmp6Offset], answer[icmp6Offset:]) {
				t.Error("IPv6: the checksum is wrong")
			}
			if _, ok := tt.answer(bytes.Clone(request), func(netip.Addr) bool { return false }); ok {
				t.Errorf("%s: what is not held is answered for", f)
			}
			if _, ok := tt.answer(bytes.Clone(answer), func(netip.Addr) bool { return true }); ok {
				t.Errorf("%s: an answer is answered", f)
			}
		}
	}
}

func TestInvalidPingsAreNotAnswered(t *testing.T) {
	tests := map[string]func(b []byte, v4 bool){
		"a wrong checksum":         func(b []byte, v4 bool) { b[len(b)-30] ^= 1 },
		"a sender that is a group": func(b []byte, v4 bool) { b[6] |= 1 },
		"another code":             func(b []byte, v4 bool) { b[icmpOffset(v4)+1] = 1 },
		"another type":             func(b []byte, v4 bool) { b[icmpOffset(v4)] = 13 },
		"another protocol": func(b []byte, v4 bool) {
			b[map[bool]int{true: ip4ProtocolOffset, false: ip6NextHeaderOffsetInFrame}[v4]] = 17
		},
		"a length beyond the frame": func(b []byte, v4 bool) {
			b[map[bool]int{true: ip4TotalLengthOffset, false: ip6PayloadLengthOffsetInFrame}[v4]] = 0x7f
		},
		"a length of nothing": func(b []byte, v4 bool) {
			clear(b[map[bool]int{true: ip4TotalLengthOffset, false: ip6PayloadLengthOffsetInFrame}[v4]:][:2])
		},
	}
	for name, edit := range tests {
		for f, tt := range pingCaseByFamily {
			b := buildEchoRequestFrame(t, f, "are you there? are you there? are you there?")
			edit(b, f == ipfamily.IPv4)
			if answer, ok := tt.answer(b, func(netip.Addr) bool { return true }); ok {
				t.Errorf("%s, %s: answered with %x", name, f, answer)
			}
		}
	}
	piece := buildEchoRequestFrame(t, ipfamily.IPv4, "")
	piece[ip4FragmentFieldOffset] = 0x20
	if n, err := newFilterVM(t, pingFilter4).Run(piece); n != 0 || err != nil {
		t.Errorf("the filter passes a piece of a ping (%v)", err)
	}
}

func icmpOffset(v4 bool) int {
	if v4 {
		return icmp4Offset
	}
	return icmp6Offset
}

// FuzzBuildPingReply checks that every answered frame gets a valid reply, and that it goes to the
// sender.
func FuzzBuildPingReply(f *testing.F) {
	f.Add([]byte{})
	for family := range pingCaseByFamily {
		f.Add(buildEchoRequestFrame(f, family, "are you there?"))
	}
	f.Fuzz(checkReplyToPingFrame)
}

func checkReplyToPingFrame(t *testing.T, b []byte) {
	for family, tt := range pingCaseByFamily {
		var pinged netip.Addr
		answer, ok := tt.answer(bytes.Clone(b), func(a netip.Addr) bool { pinged = a; return true })
		if !ok {
			continue
		}
		if len(answer) > len(b) || !bytes.Equal(answer[0:6], b[6:12]) || answer[0]&1 != 0 || answer[tt.body] != tt.reply {
			t.Fatalf("%x is answered with %x", b, answer)
		}
		from := answer[ip4SourceOffset:ip4DestinationOffset]
		if family == ipfamily.IPv6 {
			from = answer[ip6SourceOffsetInFrame:ip6DestinationOffsetInFrame]
		}
		if !bytes.Equal(from, pinged.AsSlice()) {
			t.Fatalf("a ping of %s is answered from %x", pinged, from)
		}
	}
}
