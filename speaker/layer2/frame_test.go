package layer2_test

import (
	"net/netip"
	"testing"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

func TestRepliesAndDropReasonsOfFrames(t *testing.T) {
	own, client := facts.MAC{2, 0, 0, 0, 0, 0x0b}, facts.MAC{2, 0, 0, 0, 0, 0x64}
	request := layer2.ARPOrNDPFrame{
		EthernetDestination: ethernetBroadcast, EthernetSource: client, Operation: layer2.Request,
		SenderMAC: client, SenderIP: clientIPv4, TargetIP: heldIPv4,
	}
	reply := layer2.ARPOrNDPFrame{
		EthernetDestination: client, EthernetSource: own, Operation: layer2.Reply,
		SenderMAC: own, SenderIP: heldIPv4, TargetMAC: client, TargetIP: clientIPv4,
	}
	probeReply := reply
	probeReply.TargetIP = netip.IPv4Unspecified()
	tests := map[string]struct {
		edit func(f *layer2.ARPOrNDPFrame)
		want layer2.ARPOrNDPFrame
		why  layer2.DropReason
	}{
		"a broadcast request":                    {func(*layer2.ARPOrNDPFrame) {}, reply, layer2.NotDropped},
		"a request to our MAC":                   {func(f *layer2.ARPOrNDPFrame) { f.EthernetDestination = own }, reply, layer2.NotDropped},
		"a probe without sender address":         {func(f *layer2.ARPOrNDPFrame) { f.SenderIP = netip.IPv4Unspecified() }, probeReply, layer2.NotDropped},
		"a request to another host's MAC":        {func(f *layer2.ARPOrNDPFrame) { f.EthernetDestination = foreignMAC }, layer2.ARPOrNDPFrame{}, layer2.DropForOtherMAC},
		"a request to a group":                   {func(f *layer2.ARPOrNDPFrame) { f.EthernetDestination = facts.MAC{1, 0, 0x5e} }, layer2.ARPOrNDPFrame{}, layer2.DropForOtherMAC},
		"a reply":                                {func(f *layer2.ARPOrNDPFrame) { f.Operation = layer2.Reply }, layer2.ARPOrNDPFrame{}, layer2.DropNotARequest},
		"an unknown operation":                   {func(f *layer2.ARPOrNDPFrame) { f.Operation = 9 }, layer2.ARPOrNDPFrame{}, layer2.DropNotARequest},
		"an announcement of our address":         {func(f *layer2.ARPOrNDPFrame) { f.SenderIP = heldIPv4 }, layer2.ARPOrNDPFrame{}, layer2.DropGratuitousRequest},
		"a sender with the broadcast address":    {func(f *layer2.ARPOrNDPFrame) { f.SenderMAC = ethernetBroadcast }, layer2.ARPOrNDPFrame{}, layer2.DropInvalidSenderMAC},
		"a sender with a group address":          {func(f *layer2.ARPOrNDPFrame) { f.SenderMAC = facts.MAC{1} }, layer2.ARPOrNDPFrame{}, layer2.DropInvalidSenderMAC},
		"a sender without Ethernet address":      {func(f *layer2.ARPOrNDPFrame) { f.SenderMAC = facts.MAC{} }, layer2.ARPOrNDPFrame{}, layer2.DropInvalidSenderMAC},
		"the target MAC of a request is ignored": {func(f *layer2.ARPOrNDPFrame) { f.TargetMAC = foreignMAC }, reply, layer2.NotDropped},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := request
			tt.edit(&f)
			got, why := layer2.BuildReply(f, own)
			if why != tt.why || got != tt.want {
				t.Errorf("Answer = %+v, %q; want %+v, %q", got, why, tt.want, tt.why)
			}
		})
	}
}

// FuzzBuildReply checks that a reply goes to one host, has the right content, and is no request.
func FuzzBuildReply(f *testing.F) {
	f.Add(uint16(1), []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\xc0\xa8\x00\x64"))
	f.Add(uint16(2), make([]byte, 16))
	f.Fuzz(func(t *testing.T, op uint16, b []byte) {
		if len(b) < 16 {
			return
		}
		own := facts.MAC{2, 0, 0, 0, 0, 0x0b}
		in := layer2.ARPOrNDPFrame{
			EthernetDestination: facts.MAC(b[:6]), Operation: layer2.Operation(op), SenderMAC: facts.MAC(b[6:12]),
			SenderIP: netip.AddrFrom4([4]byte(b[12:16])), TargetIP: heldIPv4,
		}
		out, why := layer2.BuildReply(in, own)
		if why != layer2.NotDropped {
			if out != (layer2.ARPOrNDPFrame{}) {
				t.Fatalf("a frame beside the reason %q: %+v", why, out)
			}
			return
		}
		if out.EthernetDestination != in.SenderMAC || out.EthernetDestination[0]&1 == 1 || out.SenderMAC != own || out.EthernetSource != own ||
			out.SenderIP != heldIPv4 || out.TargetIP != in.SenderIP || out.Operation != layer2.Reply {
			t.Fatalf("Answer(%+v) = %+v", in, out)
		}
		if _, why := layer2.BuildReply(out, out.EthernetDestination); why == layer2.NotDropped {
			t.Fatalf("the answer %+v is answered in turn", out)
		}
	})
}

func BenchmarkBuildReply(b *testing.B) {
	own := facts.MAC{2, 0, 0, 0, 0, 0x0b}
	f := layer2.ARPOrNDPFrame{EthernetDestination: ethernetBroadcast, Operation: layer2.Request, SenderMAC: foreignMAC, SenderIP: clientIPv4, TargetIP: heldIPv4}
	b.ReportAllocs()
	for b.Loop() {
		layer2.BuildReply(f, own)
	}
}
