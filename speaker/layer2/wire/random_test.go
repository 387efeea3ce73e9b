package wire

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/gantry-lb/gantry/speaker/layer2"
)

// mutations is how many damaged frames every ordinary run of the tests tries; go test -fuzz finds more, in its time.
const mutations = 500_000

// What holds for any frame holds for sound ones with a few bytes changed, cut off or added: the same ones in each run.
func TestDamagedFrames(t *testing.T) {
	var seeds [][]byte
	for _, m := range messages() {
		seeds = append(seeds, written(t, encodeNDP, m))
	}
	seeds = append(seeds, written(t, encodeARP, example()), echo(t, layer2.IPv4, "are you there?"), echo(t, layer2.IPv6, "are you there?"), query(client6))
	r := rand.New(rand.NewPCG(1, 2))
	sound := 0
	for range mutations {
		b := damaged(r, seeds[r.IntN(len(seeds))])
		if r.IntN(4) > 0 { // past the checksums there is more to try
			mend(b)
		}
		if _, ok := decodeNDP(b); ok {
			sound++
		}
		holdsForARP(t, b)
		holdsForNDP(t, b)
		holdsForPing(t, b)
		_ = isQuery(b)
	}
	if sound < mutations/10 {
		t.Errorf("%d of %d damaged frames are taken for sound ones: too few try anything", sound, mutations)
	}
}

// mend sets the checksums of a damaged frame right, if it is long enough to have any.
func mend(b []byte) {
	switch {
	case len(b) >= icmp6+echoMin && b[etherType] == 0x86:
		end := min(len(b), icmp6+int(binary.BigEndian.Uint16(b[ip6Length:])))
		if end < icmp6+4 {
			return
		}
		clear(b[icmp6+2 : icmp6+4])
		binary.BigEndian.PutUint16(b[icmp6+2:], ^checksum(b[ip6Source:icmp6], b[icmp6:end]))
	case len(b) >= icmp4+echoMin && b[etherType+1] == 0:
		end := min(len(b), ip4Header+int(binary.BigEndian.Uint16(b[ip4Length:])))
		if end < icmp4+4 {
			return
		}
		clear(b[ip4Sum : ip4Sum+2])
		binary.BigEndian.PutUint16(b[ip4Sum:], ^sumUp(0, b[ip4Header:icmp4]))
		clear(b[icmp4+2 : icmp4+4])
		binary.BigEndian.PutUint16(b[icmp4+2:], ^sumUp(0, b[icmp4:end]))
	}
}

func damaged(r *rand.Rand, seed []byte) []byte {
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
