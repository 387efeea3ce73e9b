package snapshot

import (
	"net/netip"
	"slices"
)

// unservableRange is a range of addresses with a purpose of its own.
type unservableRange struct {
	Range
	purpose string
}

// unservableRanges are addresses at which no client can reach a Service, with their purpose
// (RFC 6890; RFC 1122, section 3.2.1.3; RFC 4291, sections 2.5 and 2.7).
var unservableRanges = []unservableRange{
	{parsePrefixRange("0.0.0.0/8"), "addresses of \"this host\""},
	{parsePrefixRange("127.0.0.0/8"), "loopback addresses"},
	{parsePrefixRange("224.0.0.0/4"), "multicast addresses"},
	{parsePrefixRange("255.255.255.255/32"), "the broadcast address"},
	{parsePrefixRange("::/127"), "the unspecified and the loopback address"},
	{parsePrefixRange("::ffff:0:0/96"), "IPv4 addresses in IPv6 form"},
	{parsePrefixRange("fe80::/10"), "link-local addresses, which mean nothing without a link"},
	{parsePrefixRange("ff00::/8"), "multicast addresses"},
}

func parsePrefixRange(text string) Range {
	p := netip.MustParsePrefix(text)
	return Range{p.Addr(), lastAddressOfPrefix(p)}
}

// unservableLeadingBytes says which first bytes the addresses of unservableRanges have. Hardly any
// address that a pool lists has one of them.
var unservableLeadingBytes = leadingBytesOfRanges(unservableRanges)

type leadingBytes struct{ ipv4, ipv6 [256]bool }

func leadingBytesOfRanges(ranges []unservableRange) *leadingBytes {
	out := &leadingBytes{}
	for _, n := range ranges {
		known := out.ofFamily(n.First)
		for b := int(leadingByte(n.First)); b <= int(leadingByte(n.Last)); b++ {
			known[b] = true
		}
	}
	return out
}

func (l *leadingBytes) ofFamily(a netip.Addr) *[256]bool {
	if a.Is4() {
		return &l.ipv4
	}
	return &l.ipv6
}

func leadingByte(a netip.Addr) byte {
	if a.Is4() {
		return a.As4()[0]
	}
	return a.As16()[0]
}

// purposeOfSpecialRange returns the purpose of the addresses of r when none of them can serve. It
// is empty when some can: 0.0.0.0/0, for example, means the others, which AssignableRanges returns.
func purposeOfSpecialRange(r Range) string {
	if !unservableLeadingBytes.ofFamily(r.First)[leadingByte(r.First)] {
		return ""
	}
	for _, n := range unservableRanges {
		if n.Contains(r.First) && n.Contains(r.Last) {
			return n.purpose
		}
	}
	return ""
}

// isSpecialPurpose says whether a is an address at which no client can reach a Service.
func isSpecialPurpose(a netip.Addr) bool {
	return slices.ContainsFunc(unservableRanges, func(n unservableRange) bool { return n.Contains(a) })
}

// unservableRangesIn returns those that have an address in common with the ranges.
func unservableRangesIn(ranges []Range) []Range {
	var out []Range
	for _, n := range unservableRanges {
		if slices.ContainsFunc(ranges, n.overlaps) {
			out = append(out, n.Range)
		}
	}
	return out
}

// overlaps says whether the ranges have an address in common.
func (r Range) overlaps(o Range) bool {
	return r.First.BitLen() == o.First.BitLen() && r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}
