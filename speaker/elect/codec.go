package elect

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// The wire format. A message is a version byte, a kind byte and a body. Integers are unsigned
// varints. A length byte precedes strings and addresses.
//
// A speaker reads NewestMessageFormat and the version before it. It sends the highest version that
// all members read, so that a rolling upgrade disturbs no election. Each member publishes in the
// gossip the highest version that it reads; see newestCommonMessageFormat. Version 3 adds a flags
// byte to the report of a silent node.
//
// The former holders of claims follow at the end of a message, after all of its claims. Earlier
// speakers ignore what they do not expect there.
const (
	NewestMessageFormat = 3
	oldestMessageFormat = 2
)

// IsReceivedMessageUrgent reports whether a received message goes before others: it says who lives
// or moves an address. Claims can be repeated.
func IsReceivedMessageUrgent(payload []byte) bool {
	return len(payload) < 2 || payload[1] != kindClaims
}

// newestCommonMessageFormat returns the highest version that all members read. A member that
// publishes no version reads the oldest one.
func newestCommonMessageFormat(members map[string]facts.Member, self string) byte {
	format := byte(NewestMessageFormat)
	for name, p := range members {
		if name != self {
			format = min(format, max(p.MaxMessageFormat, oldestMessageFormat))
		}
	}
	return format
}

// The kinds of messages, with their bodies.
const (
	kindBeacon    = 1 // nonce, seq, digest, flags
	kindBeaconAck = 2 // nonce and seq of the beacon, digest of the sender
	kindClaims    = 3 // claims, former holders
	// node, nonce, kind of suspicion, milliseconds of silence; version 3: flags of the witness
	kindSuspicion = 4
	kindOffer     = 5 // claims that the receiver is asked to make
	kindRefusal   = 6 // offered claims that the sender refuses
	// ID, digests of all buckets; the answer is a delta for each bucket that differs
	kindSyncRequest = 7
	kindSyncDelta   = 8 // ID, number of deltas in the answer, bucket, all claims of the bucket
)

// The flags of a beacon.
const (
	flagLeaving      = 1 << iota
	flagAckRequested // the receiver has to acknowledge the beacon
)

// maxClaimsPerMessage keeps a message within one datagram of an Ethernet segment. A claim takes up
// to 36 bytes with node names of 12 bytes; memberlist adds encryption and headers. With longer
// names, or with many former holders, the datagram is fragmented.
const maxClaimsPerMessage = 32

// claimBucketCount is the number of buckets that the claims are divided into, so that two members
// find their differences. All digests fit into one datagram. With 10,000 addresses a bucket has 40
// claims.
const claimBucketCount = 256

// Claim is a node's claim to an address. Only the holder makes it.
type Claim struct {
	Address netip.Addr
	Holder  string
	// Nonce identifies the run of the holder's process that made the claim.
	Nonce uint64
	// Epoch counts the holders of the address. The higher epoch wins. 0 means that there is no
	// claim.
	Epoch uint64
	// Released is set when the holder gave the address up without a successor.
	Released bool
	// WithoutGateway is set if no default gateway answered the holder when it took the address. It
	// is no part of the order of claims. A released claim does not have it.
	WithoutGateway bool `json:",omitempty"`
	// FormerHolders are the nodes that handed the address over before, the last one first, each
	// once and without Holder. They may still serve connections. They are no part of the order of
	// claims. They must not be changed.
	FormerHolders []string `json:",omitempty"`
}

// The values of the last byte of a claim. Earlier versions know two of them, and take a claim
// without gateway for one that is not released.
const (
	claimIsLive = iota
	claimIsReleased
	claimIsWithoutGateway
)

// errMalformedMessage is the error for bytes that are not a message.
var errMalformedMessage = errors.New("elect: malformed message")

func encodeMessageHeader(format, kind byte) []byte { return []byte{format, kind} }

func appendString(b []byte, s string) []byte {
	if len(s) > 255 {
		s = s[:255]
	}
	return append(append(b, byte(len(s))), s...)
}

func appendClaim(b []byte, c Claim) []byte {
	b = appendString(b, string(c.Address.AsSlice()))
	b = appendString(b, c.Holder)
	b = binary.AppendUvarint(b, c.Nonce)
	b = binary.AppendUvarint(b, c.Epoch)
	switch {
	case c.Released:
		return append(b, claimIsReleased)
	case c.WithoutGateway:
		return append(b, claimIsWithoutGateway)
	}
	return append(b, claimIsLive)
}

func appendClaims(b []byte, claims []Claim) []byte {
	b = binary.AppendUvarint(b, uint64(len(claims)))
	for _, c := range claims {
		b = appendClaim(b, c)
	}
	for _, c := range claims {
		b = appendFormerHolders(b, c)
	}
	return b
}

// appendFormerHolders appends the address of a claim with its former holders, if it has any.
func appendFormerHolders(b []byte, c Claim) []byte {
	if len(c.FormerHolders) == 0 {
		return b
	}
	b = appendString(b, string(c.Address.AsSlice()))
	b = binary.AppendUvarint(b, uint64(len(c.FormerHolders)))
	for _, n := range c.FormerHolders {
		b = appendString(b, n)
	}
	return b
}

// messageReader reads a message. After the first error all its methods return zero values.
type messageReader struct {
	format byte
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
	last := r.readByte()
	c.Released, c.WithoutGateway = last == claimIsReleased, last == claimIsWithoutGateway
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
	if r.err != nil {
		return nil
	}
	formerHolders := readFormerHolders(r.unread)
	for i, c := range out {
		out[i].FormerHolders = deduplicateFormerHolders(formerHolders[c.Address], c.Holder)
	}
	return out
}

// readFormerHolders reads the former holders of claims from the end of a message. It reads as far
// as it can: claims are more important than their former holders. If the list of an address comes
// twice, the last one counts.
func readFormerHolders(unread []byte) map[netip.Addr][]string {
	r, out := messageReader{unread: unread}, map[netip.Addr][]string{}
	for len(r.unread) > 0 {
		// no claim has the zero address, which stands for one that is not valid
		a, _ := netip.AddrFromSlice([]byte(r.readString()))
		var nodes []string
		for range r.readUvarint() {
			nodes = append(nodes, r.readString())
			if r.err != nil {
				return out
			}
		}
		out[a] = nodes
	}
	return out
}

// parseMessageHeader checks the header and returns the kind and a reader of the body.
func parseMessageHeader(payload []byte) (byte, *messageReader) {
	if len(payload) < 2 || payload[0] < oldestMessageFormat || payload[0] > NewestMessageFormat {
		return 0, &messageReader{err: errMalformedMessage}
	}
	return payload[1], &messageReader{format: payload[0], unread: payload[2:]}
}
