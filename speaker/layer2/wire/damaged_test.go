package wire

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// damagedFrameCount is how many damaged frames each ordinary run of the tests tries;
// go test -fuzz tries more.
const damagedFrameCount = 500_000

// The checks of the fuzz tests pass for valid frames with a few bytes changed, cut off or added.
// Each run tries the same ones.
func TestFuzzChecksPassForDamagedFrames(t *testing.T) {
	var seeds [][]byte
	for _, m := range exampleNDPFrames() {
		seeds = append(seeds, encodeFrame(t, encodeNDP, m))
	}
	seeds = append(seeds, encodeFrame(t, encodeARP, exampleARPFrame()), buildEchoRequestFrame(t, ipfamily.IPv4, "are you there?"), buildEchoRequestFrame(t, ipfamily.IPv6, "are you there?"), buildMLDQuery(clientMAC))
	r := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for range damagedFrameCount {
		b := damageFrame(r, seeds[r.IntN(len(seeds))])
		if r.IntN(4) > 0 { // gets past the checksums
			correctChecksums(b)
		}
		if _, ok := decodeNDP(b); ok {
			accepted++
		}
		compareARPDecodingWithLibrary(t, b)
		checkDecodedNDPFrame(t, b)
		checkReplyToPingFrame(t, b)
		_ = isMLDQuery(b)
	}
	if accepted < damagedFrameCount/10 {
		t.Errorf("%d of %d damaged frames are accepted, too few for a useful test", accepted, damagedFrameCount)
	}
}

// correctChecksums corrects the checksums of a damaged frame, if it is long enough to have any.
func correctChecksums(b []byte) {
	switch {
	case len(b) >= icmp6Offset+echoMinLength && b[etherTypeOffset] == 0x86:
		end := min(len(b), icmp6Offset+int(binary.BigEndian.Uint16(b[ip6PayloadLengthOffsetInFrame:])))
		if end < icmp6Offset+4 {
			return
		}
		clear(b[icmp6Offset+2 : icmp6Offset+4])
		binary.BigEndian.PutUint16(b[icmp6Offset+2:], ^icmpv6Checksum(b[ip6SourceOffsetInFrame:icmp6Offset], b[icmp6Offset:end]))
	case len(b) >= icmp4Offset+echoMinLength && b[etherTypeOffset+1] == 0:
		end := min(len(b), ip4HeaderOffset+int(binary.BigEndian.Uint16(b[ip4TotalLengthOffset:])))
		if end < icmp4Offset+4 {
			return
		}
		clear(b[ip4ChecksumOffset : ip4ChecksumOffset+2])
		binary.BigEndian.PutUint16(b[ip4ChecksumOffset:], ^onesComplementSum(0, b[ip4HeaderOffset:icmp4Offset]))
		clear(b[icmp4Offset+2 : icmp4Offset+4])
		binary.BigEndian.PutUint16(b[icmp4Offset+2:], ^onesComplementSum(0, b[icmp4Offset:end]))
	}
}

func damageFrame(r *rand.Rand, seed []byte) []byte {
	b := append([]byte{}, seed...)
	for range 1 + r.IntN(3) {
		switch i := r.IntN(len(b) + 1); r.IntN(8) {
		case 0:
			b = b[:i]
		case 1:
			b = append(b, make([]byte, r.IntN(64))...)
		case 2:
			if i < len(b) {
				b[i] = []byte{0, 1, 0x7f, 0x80, 0xff}[r.IntN(5)]
			}
		default:
			if i < len(b) {
				b[i] ^= 1 << r.IntN(8)
			}
		}
	}
	return b
}
