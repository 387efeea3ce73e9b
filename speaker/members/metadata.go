package members

import (
	"encoding/binary"
	"net/netip"

	"github.com/hashicorp/memberlist"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// The metadata of a member has at most 512 bytes, which memberlist carries. It begins with the
// nonce. Groups of 6 bytes follow. A group that begins with metadataExtensionMarker has 5 bytes of
// the extension, and each other group is an Ethernet address. A speaker that does not know the
// extension takes such a group for an Ethernet address that no host has, since the mark has the bit
// of group addresses.
//
// The extension: version of messages, flags, then the links. A link: flags with the number of
// subnets, hash of the name in 3 bytes, subnets. A subnet: number of bits, for IPv6 plus
// ipv6PrefixLengthOffset, and as many bytes of the address as these bits need.
const (
	nonceSize               = 8
	macSizedGroupBytes      = 6
	metadataExtensionMarker = 0xff
	extensionBytesPerGroup  = macSizedGroupBytes - 1
	linkHeaderSize          = 4
	ipv6PrefixLengthOffset  = 64
	// maxMACSizedGroups leaves some bytes for what is no group.
	maxMACSizedGroups = (memberlist.MetaMaxSize-nonceSize)/macSizedGroupBytes - 1
)

// maxPublishedMACs is how many Ethernet addresses a member publishes. minMACsPublishedWithLinks of
// them have room in any case; the links come before the others.
const (
	maxPublishedMACs          = 64
	minMACsPublishedWithLinks = 40
)

// The flags of the extension, and those of a link.
const (
	flagHasLinks = 1 << iota
	flagRawSocketsDenied
	flagLinksIncomplete
	flagNodeHasIPv4
)

const (
	flagLinkDown = 1 << iota
	flagLinkVirtualRouter
	flagLinkCannotSendIPv4
	flagLinkCannotSendIPv6
	// subnetCountShift is the place of the number of subnets, of which there are maxSubnetsPerLink
	// at most.
	subnetCountShift  = 4
	maxSubnetsPerLink = 15
)

// EncodeMetadata encodes what a member publishes.
func EncodeMetadata(nonce uint64, p facts.PublishedNode) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, memberlist.MetaMaxSize), nonce)
	groupsLeft := maxMACSizedGroups
	macs := p.LinkMACs[:min(len(p.LinkMACs), maxPublishedMACs)]
	first := macs[:min(len(macs), minMACsPublishedWithLinks)]
	extension := encodeMetadataExtension(p, (groupsLeft-len(first))*extensionBytesPerGroup)
	for len(extension)%extensionBytesPerGroup != 0 {
		extension = append(extension, 0)
	}
	for i := 0; i < len(extension); i += extensionBytesPerGroup {
		b = append(append(b, metadataExtensionMarker), extension[i:i+extensionBytesPerGroup]...)
	}
	for _, mac := range macs {
		if len(b) >= nonceSize+maxMACSizedGroups*macSizedGroupBytes {
			break
		}
		b = append(b, mac[:]...)
	}
	return b
}

// encodeMetadataExtension encodes as many links as fit into size bytes.
func encodeMetadataExtension(p facts.PublishedNode, size int) []byte {
	b := []byte{p.MaxMessageFormat, 0, 0}
	if p.Links == nil {
		return b
	}
	flags := byte(flagHasLinks)
	if p.Links.RawSocketsDenied {
		flags |= flagRawSocketsDenied
	}
	if p.Links.HasIPv4 {
		flags |= flagNodeHasIPv4
	}
	incomplete := p.Links.IsIncomplete
	for _, l := range p.Links.Links {
		e, whole := encodePublishedLink(l)
		if len(b)+len(e) > size || b[2] == 255 {
			incomplete = true
			continue
		}
		incomplete = incomplete || !whole
		b = append(b, e...)
		b[2]++
	}
	if incomplete {
		flags |= flagLinksIncomplete
	}
	b[1] = flags
	return b
}

func encodePublishedLink(l facts.PublishedLink) (b []byte, whole bool) {
	var flags byte
	for flag, set := range map[byte]bool{
		flagLinkDown: l.IsDown, flagLinkVirtualRouter: l.IsVirtualRouter,
		flagLinkCannotSendIPv4: l.CannotSendIPv4, flagLinkCannotSendIPv6: l.CannotSendIPv6,
	} {
		if set {
			flags |= flag
		}
	}
	subnets := l.Subnets[:min(len(l.Subnets), maxSubnetsPerLink)]
	b = append(b, flags|byte(len(subnets))<<subnetCountShift, byte(l.NameHash>>16), byte(l.NameHash>>8), byte(l.NameHash))
	for _, p := range subnets {
		bits := byte(p.Bits())
		if p.Addr().Is6() {
			bits += ipv6PrefixLengthOffset
		}
		b = append(append(b, bits), p.Masked().Addr().AsSlice()[:(p.Bits()+7)/8]...)
	}
	return b, len(subnets) == len(l.Subnets)
}

// decodeMetadata returns what a member published. It ignores what it does not know.
func decodeMetadata(b []byte) (nonce uint64, p facts.PublishedNode) {
	if len(b) < nonceSize {
		return 0, p
	}
	nonce = binary.BigEndian.Uint64(b)
	var extension []byte
	for b = b[nonceSize:]; len(b) >= macSizedGroupBytes; b = b[macSizedGroupBytes:] {
		if b[0] == metadataExtensionMarker {
			extension = append(extension, b[1:macSizedGroupBytes]...)
			continue
		}
		p.LinkMACs = append(p.LinkMACs, facts.MAC(b[:macSizedGroupBytes]))
	}
	if len(extension) < 3 {
		return nonce, p
	}
	p.MaxMessageFormat = extension[0]
	if flags := extension[1]; flags&flagHasLinks != 0 {
		p.Links = &facts.PublishedLinks{
			RawSocketsDenied: flags&flagRawSocketsDenied != 0, IsIncomplete: flags&flagLinksIncomplete != 0, HasIPv4: flags&flagNodeHasIPv4 != 0,
		}
		decodePublishedLinks(extension[3:], int(extension[2]), p.Links)
	}
	return nonce, p
}

// decodePublishedLinks reads the given number of links. If the bytes are malformed, the links count
// as incomplete.
func decodePublishedLinks(b []byte, count int, into *facts.PublishedLinks) {
	for range count {
		if len(b) < linkHeaderSize {
			into.IsIncomplete = true
			return
		}
		flags := b[0]
		l := facts.PublishedLink{
			NameHash: uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]),
			IsDown:   flags&flagLinkDown != 0, IsVirtualRouter: flags&flagLinkVirtualRouter != 0,
			CannotSendIPv4: flags&flagLinkCannotSendIPv4 != 0, CannotSendIPv6: flags&flagLinkCannotSendIPv6 != 0,
		}
		b = b[linkHeaderSize:]
		for range flags >> subnetCountShift {
			p, rest, ok := decodeSubnet(b)
			if !ok {
				into.IsIncomplete = true
				return
			}
			l.Subnets, b = append(l.Subnets, p), rest
		}
		into.Links = append(into.Links, l)
	}
}

func decodeSubnet(b []byte) (p netip.Prefix, rest []byte, ok bool) {
	if len(b) == 0 {
		return p, nil, false
	}
	bits, address := int(b[0]), make([]byte, 4)
	if bits >= ipv6PrefixLengthOffset {
		bits, address = bits-ipv6PrefixLengthOffset, make([]byte, 16)
	}
	size := (bits + 7) / 8
	if size > len(address) || len(b) < 1+size {
		return p, nil, false
	}
	copy(address, b[1:1+size])
	a, _ := netip.AddrFromSlice(address)
	return netip.PrefixFrom(a, bits).Masked(), b[1+size:], true
}
