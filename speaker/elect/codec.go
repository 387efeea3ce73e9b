package elect

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// The wire format. A message is a version byte, a kind byte and the body; integers are unsigned varints, strings and
// addresses have a length byte in front. Members of other versions ignore what they cannot read.
const wireVersion = 2

// The kinds of messages.
const (
	kindBeacon  = 1 // nonce, seq, digest, flags
	kindAck     = 2 // nonce and seq of the beacon, digest of who acknowledges
	kindClaims  = 3 // claims
	kindSuspect = 4 // node, nonce, what is said of it, milliseconds of silence
	kindOffer   = 5 // claims that the receiver is asked to make
	kindRefuse  = 6 // claims that were offered and are refused
	kindSync    = 7 // ID, digests of all buckets: asks for a delta of each bucket that differs
	kindDelta   = 8 // ID, how many deltas answer it, bucket, all claims of the bucket
)

// The flags of a beacon.
const (
	flagLeaving      = 1 << iota
	flagAckRequested // the receiver is asked to acknowledge it
)

// claimsPerMessage keeps a message within one datagram of an Ethernet segment: a claim takes up to about 36 bytes with
// node names of 12 bytes, and memberlist adds encryption and headers. Longer names only fragment.
const claimsPerMessage = 32

// bucketCount is how many parts the claims are divided into to find where two members differ: their digests fill one
// datagram, and 10,000 addresses make 40 claims in each.
const bucketCount = 256

// Claim says who holds an address. It is asserted by the holder alone.
type Claim struct {
	Address netip.Addr
	Holder  string
	// Nonce is the life of the holder's process in which the claim was made.
	Nonce uint64
	// Epoch counts the holders of the address; the higher one is right. 0 is no claim.
	Epoch uint64
	// Released says that the holder gave the address up without a successor.
	Released bool
}

// errMalformedMessage is the error for bytes that are no message.
var errMalformedMessage = errors.New("elect: malformed message")

func messageHeader(kind byte) []byte { return []byte{wireVersion, kind} }

func appendString(b []byte, s string) []byte {
	if len(s) > 255 {
		s = s[:255]
	}
	return append(append(b, byte(len(s))), s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendClaim(b []byte, c Claim) []byte {
	b = appendString(b, string(c.Address.AsSlice()))
	b = appendString(b, c.Holder)
	b = binary.AppendUvarint(b, c.Nonce)
	b = binary.AppendUvarint(b, c.Epoch)
	return appendBool(b, c.Released)
}

func appendClaims(b []byte, claims []Claim) []byte {
	b = binary.AppendUvarint(b, uint64(len(claims)))
	for _, c := range claims {
		b = appendClaim(b, c)
	}
	return b
}

// messageReader reads a message; after the first fault everything it returns is zero.
type messageReader struct {
	unread []byte
	err    error
}

func (r *messageReader) markMalformed() { r.unread, r.err = nil, errMalformedMessage }

func (r *messageReader) readUvarint() uint64 {
	v, n := binary.Uvarint(r.unread)
	if n <= 0 {
		r.markMalformed()
		return 0
	}
	r.unread = r.unread[n:]
	return v
}

func (r *messageReader) readByte() byte {
	if len(r.unread) == 0 {
		r.markMalformed()
		return 0
	}
	v := r.unread[0]
	r.unread = r.unread[1:]
	return v
}

func (r *messageReader) readUint32() uint32 {
	if len(r.unread) < 4 {
		r.markMalformed()
		return 0
	}
	v := binary.BigEndian.Uint32(r.unread)
	r.unread = r.unread[4:]
	return v
}

func (r *messageReader) readString() string {
	n := int(r.readByte())
	if n > len(r.unread) {
		r.markMalformed()
		return ""
	}
	s := string(r.unread[:n])
	r.unread = r.unread[n:]
	return s
}

func (r *messageReader) readClaim() Claim {
	var c Claim
	a, ok := netip.AddrFromSlice([]byte(r.readString()))
	c.Address, c.Holder = a, r.readString()
	c.Nonce, c.Epoch = r.readUvarint(), r.readUvarint()
	c.Released = r.readByte() == 1
	if !ok {
		r.markMalformed()
	}
	return c
}

func (r *messageReader) readClaims() []Claim {
	n := r.readUvarint()
	var out []Claim
	for range n {
		c := r.readClaim()
		if r.err != nil {
			return nil
		}
		out = append(out, c)
	}
	return out
}

// openMessage checks the header and returns the kind and a reader of the body.
func openMessage(payload []byte) (byte, *messageReader) {
	if len(payload) < 2 || payload[0] != wireVersion {
		return 0, &messageReader{err: errMalformedMessage}
	}
	return payload[1], &messageReader{unread: payload[2:]}
}
