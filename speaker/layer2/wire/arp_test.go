package wire

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

var addresses = cmpopts.EquateComparable(netip.Addr{})

// reference decodes with the library.
func reference(b []byte) (layer2.Frame, bool) {
	var e ethernet.Frame
	var a arp.Packet
	if e.UnmarshalBinary(b) != nil || e.EtherType != ethernet.EtherTypeARP || e.VLAN != nil || a.UnmarshalBinary(e.Payload) != nil {
		return layer2.Frame{}, false
	}
	if a.HardwareType != 1 || a.ProtocolType != 0x0800 || !a.SenderIP.Is4() || !a.TargetIP.Is4() || len(a.SenderHardwareAddr) != 6 {
		return layer2.Frame{}, false
	}
	return layer2.Frame{
		Destination: facts.MAC(e.Destination), Source: facts.MAC(e.Source), Operation: layer2.Operation(a.Operation),
		SenderMAC: facts.MAC(a.SenderHardwareAddr), SenderIP: a.SenderIP,
		TargetMAC: facts.MAC(a.TargetHardwareAddr), TargetIP: a.TargetIP,
	}, true
}

func example() layer2.Frame {
	return layer2.Frame{
		Destination: facts.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, Source: facts.MAC{2, 0, 0, 0, 0, 1}, Operation: layer2.Request,
		SenderMAC: facts.MAC{2, 0, 0, 0, 0, 1}, SenderIP: netip.MustParseAddr("192.168.0.100"),
		TargetMAC: facts.MAC{2, 0, 0, 0, 0, 3}, TargetIP: netip.MustParseAddr("192.168.0.201"),
	}
}

// written encodes with a function that must not fail.
func written(t testing.TB, encode func([]byte, layer2.Frame) ([]byte, error), f layer2.Frame) []byte {
	t.Helper()
	b, err := encode(make([]byte, 0, maxFrame), f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheLibraryReadsWhatIsWritten(t *testing.T) {
	f := example()
	b := written(t, encodeARP, f)
	for name, decode := range map[string]func([]byte) (layer2.Frame, bool){"library": reference, "own": decodeARP} {
		got, ok := decode(b)
		if diff := cmp.Diff(f, got, addresses); !ok || diff != "" {
			t.Errorf("%s: ok=%v (-want +got)\n%s", name, ok, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := map[string]func(b []byte) []byte{
		"nothing":                   func([]byte) []byte { return nil },
		"a frame cut short":         func(b []byte) []byte { return b[:arpFrame-1] },
		"another EtherType":         func(b []byte) []byte { b[etherType+1] = 0; return b },
		"another hardware":          func(b []byte) []byte { b[arpHardware+1] = 6; return b },
		"another protocol":          func(b []byte) []byte { b[arpHardware+2] = 0x86; return b },
		"another length of address": func(b []byte) []byte { b[arpLengths] = 8; return b },
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			if f, ok := decodeARP(edit(written(t, encodeARP, example()))); ok {
				t.Errorf("decoded as %+v", f)
			}
		})
	}
}

// FuzzDecode holds that the library agrees on whatever is taken for a frame, and that it is written as it was read.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(written(f, encodeARP, example()))
	f.Fuzz(holdsForARP)
}

func holdsForARP(t *testing.T, b []byte) {
	got, ok := decodeARP(b)
	if !ok {
		return
	}
	want, ok := reference(b)
	if !ok || got != want {
		t.Fatalf("the library says ok=%v (-library +own)\n%s", ok, cmp.Diff(want, got, addresses))
	}
	if again := written(t, encodeARP, got); string(again) != string(b[:arpFrame]) {
		t.Fatalf("written as %x, read from %x", again, b)
	}
}
