package snapshot

import (
	"net/netip"
	"slices"
)

// specialPurposeRange is a range of addresses with a purpose of its own.
type specialPurposeRange struct {
	Range
	what string
}

// specialPurposeRanges are addresses at which no client can reach a Service, with their purpose
// (RFC 6890; RFC 1122, section 3.2.1.3; RFC 4291, sections 2.5 and 2.7).
var specialPurposeRanges = []specialPurposeRange{
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

// purposeOfSpecialRange returns the purpose of the addresses of r when none of them can serve. It
// is empty when some can: 0.0.0.0/0, for example, means the others, which AssignableRanges returns.
func purposeOfSpecialRange(r Range) string {
	for _, n := range specialPurposeRanges {
		if n.Contains(r.First) && n.Contains(r.Last) {
			return n.what
		}
	}
	return ""
}

// isSpecialPurpose says whether a is an address at which no client can reach a Service.
func isSpecialPurpose(a netip.Addr) bool {
	return slices.ContainsFunc(specialPurposeRanges, func(n specialPurposeRange) bool { return n.Contains(a) })
}

// specialPurposeRangesIn returns those that have an address in common with the ranges.
func specialPurposeRangesIn(ranges []Range) []Range {
	var out []Range
	for _, n := range specialPurposeRanges {
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
