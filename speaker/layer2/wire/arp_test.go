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

var compareAddressesOption = cmpopts.EquateComparable(netip.Addr{})

// decodeARPWithLibrary decodes a frame with the library mdlayher/arp.
func decodeARPWithLibrary(b []byte) (layer2.ARPOrNDPFrame, bool) {
	var e ethernet.Frame
	var a arp.Packet
	if e.UnmarshalBinary(b) != nil || e.EtherType != ethernet.EtherTypeARP || e.VLAN != nil || a.UnmarshalBinary(e.Payload) != nil {
		return layer2.ARPOrNDPFrame{}, false
	}
	if a.HardwareType != 1 || a.ProtocolType != 0x0800 || !a.SenderIP.Is4() || !a.TargetIP.Is4() || len(a.SenderHardwareAddr) != 6 {
		return layer2.ARPOrNDPFrame{}, false
	}
	return layer2.ARPOrNDPFrame{
		EthernetDestination: facts.MAC(e.Destination), EthernetSource: facts.MAC(e.Source), Operation: layer2.Operation(a.Operation),
		SenderMAC: facts.MAC(a.SenderHardwareAddr), SenderIP: a.SenderIP,
		TargetMAC: facts.MAC(a.TargetHardwareAddr), TargetIP: a.TargetIP,
	}, true
}

func exampleARPFrame() layer2.ARPOrNDPFrame {
	return layer2.ARPOrNDPFrame{
		EthernetDestination: facts.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EthernetSource: facts.MAC{2, 0, 0, 0, 0, 1}, Operation: layer2.Request,
		SenderMAC: facts.MAC{2, 0, 0, 0, 0, 1}, SenderIP: netip.MustParseAddr("192.168.0.100"),
		TargetMAC: facts.MAC{2, 0, 0, 0, 0, 3}, TargetIP: netip.MustParseAddr("192.168.0.201"),
	}
}

// encodeFrame encodes a frame and fails the test on an error.
func encodeFrame(t testing.TB, encode func([]byte, layer2.ARPOrNDPFrame) ([]byte, error), f layer2.ARPOrNDPFrame) []byte {
	t.Helper()
	b, err := encode(make([]byte, 0, maxFrameBytes), f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestARPFrameIsReadByTheLibrary(t *testing.T) {
	f := exampleARPFrame()
	b := encodeFrame(t, encodeARP, f)
	for name, decode := range map[string]func([]byte) (layer2.ARPOrNDPFrame, bool){"library": decodeARPWithLibrary, "own": decodeARP} {
		got, ok := decode(b)
		if diff := cmp.Diff(f, got, compareAddressesOption); !ok || diff != "" {
			t.Errorf("%s: ok=%v (-want +got)\n%s", name, ok, diff)
		}
	}
}

func TestDecodeARPRefusesInvalidFrames(t *testing.T) {
	tests := map[string]func(b []byte) []byte{
		"nothing":                   func([]byte) []byte { return nil },
		"a frame cut short":         func(b []byte) []byte { return b[:arpFrameLength-1] },
		"another EtherType":         func(b []byte) []byte { b[etherTypeOffset+1] = 0; return b },
		"another hardware":          func(b []byte) []byte { b[arpHardwareAndProtocolTypesOffset+1] = 6; return b },
		"another protocol":          func(b []byte) []byte { b[arpHardwareAndProtocolTypesOffset+2] = 0x86; return b },
		"another length of address": func(b []byte) []byte { b[arpLengthsOffset] = 8; return b },
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			if f, ok := decodeARP(edit(encodeFrame(t, encodeARP, exampleARPFrame()))); ok {
				t.Errorf("decoded as %+v", f)
			}
		})
	}
}

// FuzzDecodeARP checks that the library decodes every accepted frame to the same value, and that
// the value is encoded to the same bytes.
func FuzzDecodeARP(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodeFrame(f, encodeARP, exampleARPFrame()))
	f.Fuzz(compareARPDecodingWithLibrary)
}

func compareARPDecodingWithLibrary(t *testing.T, b []byte) {
	got, ok := decodeARP(b)
	if !ok {
		return
	}
	want, ok := decodeARPWithLibrary(b)
	if !ok || got != want {
		t.Fatalf("the library says ok=%v (-library +own)\n%s", ok, cmp.Diff(want, got, compareAddressesOption))
	}
	if again := encodeFrame(t, encodeARP, got); string(again) != string(b[:arpFrameLength]) {
		t.Fatalf("written as %x, read from %x", again, b)
	}
}
