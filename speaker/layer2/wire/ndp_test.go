package wire

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

var (
	node6   = facts.MAC{2, 0, 0, 0, 0, 0x0b}
	client6 = facts.MAC{2, 0, 0, 0, 0, 0x64}
	held6   = netip.MustParseAddr("fd00:a8::201")
	asker6  = netip.MustParseAddr("fd00:a8::100")
)

// messages are the frames that the engine sends for IPv6.
func messages() map[string]layer2.Frame {
	all := layer2.Everybody(held6)
	return map[string]layer2.Frame{
		"a question": {
			Destination: layer2.Asked(held6), Source: client6, Operation: layer2.Request,
			SenderMAC: client6, SenderIP: asker6, TargetIP: held6,
		},
		"a question to one host": {
			Destination: node6, Source: client6, Operation: layer2.Request,
			SenderMAC: client6, SenderIP: asker6, TargetIP: held6,
		},
		"a question of who has no address yet": {
			Destination: layer2.Asked(held6), Source: client6, Operation: layer2.Request,
			SenderMAC: client6, SenderIP: netip.IPv6Unspecified(), TargetIP: held6,
		},
		"an answer": {
			Destination: client6, Source: node6, Operation: layer2.Reply,
			SenderMAC: node6, SenderIP: held6, TargetMAC: client6, TargetIP: asker6,
		},
		"a word to one host": {
			Destination: client6, Source: node6, Operation: layer2.Reply,
			SenderMAC: node6, SenderIP: held6, TargetMAC: client6, TargetIP: asker6, Unsolicited: true,
		},
		"an announcement": {
			Destination: all, Source: node6, Operation: layer2.Reply,
			SenderMAC: node6, SenderIP: held6, TargetMAC: all, TargetIP: held6,
		},
	}
}

func TestWhatIsWrittenIsReadAndPassesTheFilter(t *testing.T) {
	vm := map[layer2.Family]*bpf.VM{layer2.IPv4: machine(t, filter), layer2.IPv6: machine(t, ndpFilter)}
	frames := messages()
	frames["ARP"] = example()
	for name, f := range frames {
		t.Run(name, func(t *testing.T) {
			family := layer2.FamilyOf(f.TargetIP)
			p := protocolOf(family)
			b := written(t, p.encode, f)
			got, ok := p.decode(b)
			if diff := cmp.Diff(f, got, addresses); !ok || diff != "" {
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

// machine runs a filter without its first two instructions, the kernel's mark of who sent the frame.
func machine(t *testing.T, program []bpf.Instruction) *bpf.VM {
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

func TestFlagsOfAdvertisements(t *testing.T) {
	const solicitedFlag, overrideFlag = 0x40, 0x20 // RFC 4861 section 4.4
	for name, want := range map[string]byte{"an answer": solicitedFlag | overrideFlag, "an announcement": overrideFlag, "a word to one host": overrideFlag} {
		b := written(t, encodeNDP, messages()[name])
		if got := b[icmp6+4]; got != want {
			t.Errorf("%s has flags %#x, want %#x", name, got, want)
		}
	}
}

func TestDecodeNDPRefuses(t *testing.T) {
	tests := map[string]struct {
		of   string
		edit func(b []byte) []byte
	}{
		"nothing":                           {"a question", func([]byte) []byte { return nil }},
		"a frame cut short":                 {"a question", func(b []byte) []byte { return b[:len(b)-1] }},
		"a packet from another link":        {"a question", func(b []byte) []byte { b[ip6Hops] = 254; return b }},
		"a wrong checksum":                  {"a question", func(b []byte) []byte { b[icmp6+2]++; return b }},
		"another code":                      {"an answer", func(b []byte) []byte { b[icmp6Code] = 1; return sum(b) }},
		"another type":                      {"an answer", func(b []byte) []byte { b[icmp6] = 128; return sum(b) }},
		"a multicast target":                {"a question", func(b []byte) []byte { b[icmp6+8] = 0xff; return sum(b) }},
		"an announced multicast target":     {"an announcement", func(b []byte) []byte { b[icmp6+8] = 0xff; return sum(b) }},
		"an answer to nobody asking":        {"an announcement", func(b []byte) []byte { b[icmp6+4] = 0x60; return sum(b) }},
		"an option from who has no address": {"a question", func(b []byte) []byte { clear(b[ip6Source:ip6Target]); return sum(b) }},
		"a question of who has no address, to one host": {"a question of who has no address yet", func(b []byte) []byte {
			to := held6.As16()
			copy(b[ip6Target:], to[:])
			return sum(b)
		}},
		"an option of no length":               {"a question", func(b []byte) []byte { b[icmp6Min+1] = 0; return sum(b) }},
		"a length beyond the frame":            {"a question", func(b []byte) []byte { b[ip6Length] = 1; return b }},
		"a question from a group of receivers": {"a question", func(b []byte) []byte { b[ip6Source] = 0xff; return sum(b) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if f, ok := decodeNDP(tt.edit(written(t, encodeNDP, messages()[tt.of]))); ok {
				t.Errorf("decoded as %+v", f)
			}
		})
	}
}

// sum sets the checksum right.
func sum(b []byte) []byte {
	b[icmp6+2], b[icmp6+3] = 0, 0
	for c := range 1 << 16 { // slow and sure
		binary.BigEndian.PutUint16(b[icmp6+2:], uint16(c))
		if checksumRight(b[ip6Source:icmp6], b[icmp6:]) {
			return b
		}
	}
	return nil
}

// FuzzDecodeNDP holds that nothing of a frame is believed that a valid one may not say.
func FuzzDecodeNDP(f *testing.F) {
	f.Add([]byte{})
	for _, m := range messages() {
		f.Add(written(f, encodeNDP, m))
	}
	f.Fuzz(holdsForNDP)
}

func holdsForNDP(t *testing.T, b []byte) {
	got, ok := decodeNDP(b)
	if !ok {
		return
	}
	if !got.TargetIP.Is6() || !got.SenderIP.Is6() || got.SenderIP.IsMulticast() || got.TargetIP.IsMulticast() {
		t.Fatalf("decoded as %+v", got)
	}
	if answer, why := layer2.Answer(got, node6); why == layer2.Answered {
		if again, ok := decodeNDP(written(t, encodeNDP, answer)); !ok || again != answer {
			t.Fatalf("the answer is not readable: ok=%v (-want +got)\n%s", ok, cmp.Diff(answer, again, addresses))
		}
	}
}
