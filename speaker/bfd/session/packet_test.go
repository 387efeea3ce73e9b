package session_test

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// validPacketHex is a packet on the wire: Up, multiplier 3,
// discriminators 1 and 2, intervals 50, 100 and 0 ms.
const validPacketHex = "20c00318" + "00000001" + "00000002" + "0000c350" + "000186a0" + "00000000"

func decodeHex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPacketEncoding(t *testing.T) {
	want := session.Packet{
		State: session.Up, DetectMultiplier: 3, MyDiscriminator: 1, YourDiscriminator: 2, DesiredMinTxInterval: 50 * time.Millisecond, RequiredMinRxInterval: 100 * time.Millisecond,
	}
	got, why := session.ParsePacket(decodeHex(t, validPacketHex))
	if why != session.NotDiscarded || got != want {
		t.Errorf("%s is read as %+v (%s), want %+v", validPacketHex, got, why, want)
	}
	if b := hex.EncodeToString(want.AppendEncoded(nil)); b != validPacketHex {
		t.Errorf("%+v is written as %s, want %s", want, b, validPacketHex)
	}
}

// TestInvalidPacketsAreDiscardedWithTheirReason checks the rules of RFC 5880 section 6.8.6
// that need no session, in the RFC's order.
func TestInvalidPacketsAreDiscardedWithTheirReason(t *testing.T) {
	for sentence, tc := range map[string]struct {
		edit func(b []byte) []byte
		want session.DiscardReason
	}{
		"nothing is wrong":                         {func(b []byte) []byte { return b }, session.NotDiscarded},
		"the datagram is longer than the packet":   {func(b []byte) []byte { return append(b, 1, 2, 3) }, session.NotDiscarded},
		"version 0":                                {func(b []byte) []byte { b[0] &= 0x1f; return b }, session.DiscardBadVersion},
		"version 2":                                {func(b []byte) []byte { b[0] = 0x40; return b }, session.DiscardBadVersion},
		"no bytes":                                 {func(b []byte) []byte { return nil }, session.DiscardBadLength},
		"one byte is missing":                      {func(b []byte) []byte { return b[:23] }, session.DiscardBadLength},
		"it says to be shorter":                    {func(b []byte) []byte { b[3] = 23; return b }, session.DiscardBadLength},
		"it says to be longer":                     {func(b []byte) []byte { b[3] = 25; return b }, session.DiscardBadLength},
		"authenticated without a section":          {func(b []byte) []byte { b[1] |= 4; return b }, session.DiscardBadLength},
		"multiplier 0":                             {func(b []byte) []byte { b[2] = 0; return b }, session.DiscardZeroMultiplier},
		"multipoint":                               {func(b []byte) []byte { b[1] |= 1; return b }, session.DiscardMultipoint},
		"no discriminator of its own":              {func(b []byte) []byte { b[7] = 0; return b }, session.DiscardZeroMyDiscriminator},
		"Up without ours":                          {func(b []byte) []byte { b[11] = 0; return b }, session.DiscardZeroYourDiscriminator},
		"Init without ours":                        {func(b []byte) []byte { b[11], b[1] = 0, 0x80; return b }, session.DiscardZeroYourDiscriminator},
		"Down without ours":                        {func(b []byte) []byte { b[11], b[1] = 0, 0x40; return b }, session.NotDiscarded},
		"AdminDown without ours":                   {func(b []byte) []byte { b[11], b[1] = 0, 0; return b }, session.NotDiscarded},
		"an unassigned diagnostic":                 {func(b []byte) []byte { b[0] |= 31; return b }, session.NotDiscarded},
		"authenticated, with the shortest section": {func(b []byte) []byte { b[1] |= 4; b[3] = 26; return append(b, 1, 2) }, session.NotDiscarded},
	} {
		if _, why := session.ParsePacket(tc.edit(decodeHex(t, validPacketHex))); why != tc.want {
			t.Errorf("%s: %q, want %q", sentence, why, tc.want)
		}
	}
}

// FuzzParsePacket checks that Parse does not panic and that an
// accepted packet is encoded and decoded without change.
func FuzzParsePacket(f *testing.F) {
	f.Add(decodeHex(f, validPacketHex))
	f.Add(decodeHex(f, "20440318"+"00000001"+"00000000"+"000f4240"+"000f4240"+"0000c350"))
	f.Add(decodeHex(f, "2046031c"+"00000001"+"00000000"+"000f4240"+"000f4240"+"00000000"+"01040178"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, why := session.ParsePacket(b)
		if why != session.NotDiscarded {
			return
		}
		if p.AuthenticationPresent {
			return // never written
		}
		again, why := session.ParsePacket(p.AppendEncoded(nil))
		if why != session.NotDiscarded || again != p {
			t.Fatalf("%x is read as %+v, and written and read again as %+v (%s)", b, p, again, why)
		}
	})
}
