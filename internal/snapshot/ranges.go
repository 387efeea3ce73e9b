package snapshot

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
)

// parseRanges parses the entries of one pool. It leaves out those that are invalid or overlap
// takenRanges.
func (b *snapshotBuilder) parseRanges(o ObjectReference, entries []string, takenRanges []poolRange) []poolRange {
	var out []poolRange
	for j, text := range entries {
		field := fmt.Sprintf("spec.addresses[%d]", j)
		r, err := ParseRange(text)
		if err != nil {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %v", field, err)
			continue
		}
		if what := purposeOfSpecialRange(r); what != "" {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %q has %s: write addresses of the nodes' network, or addresses that routers forward to it", field, text, what)
			continue
		}
		t, clash := findOverlap(takenRanges, r)
		if !clash {
			t, clash = findOverlap(out, r)
		}
		if clash {
			b.reportProblemAndMarkBroken(o, field, names.ReasonOverlap, "%s: %q overlaps with already defined CIDR or range %q of pool %q: remove one of them",
				field, text, t.entryText, t.poolName)
			continue
		}
		out = append(out, poolRange{r, o.Name, text})
	}
	return out
}

// previousRangesWithoutOverlap returns the pool's ranges that do not overlap takenRanges.
func (p *Pool) previousRangesWithoutOverlap(takenRanges []poolRange) []poolRange {
	var out []poolRange
	for _, r := range p.Ranges {
		if _, clash := findOverlap(takenRanges, r); !clash {
			out = append(out, poolRange{r, p.Name, r.String()})
		}
	}
	return out
}

// poolRange is a Range with its pool and its text there.
type poolRange struct {
	Range
	poolName, entryText string
}

func findOverlap(takenRanges []poolRange, r Range) (poolRange, bool) {
	for _, t := range takenRanges {
		if t.overlaps(r) {
			return t, true
		}
	}
	return poolRange{}, false
}

// ParseRange reads an entry of spec.addresses: a CIDR (host bits are masked), a range that includes
// both ends (blanks around the ends are allowed), or a single address. The error quotes the text
// and says what to write.
func ParseRange(text string) (Range, error) {
	if first, last, ok := strings.Cut(text, "-"); ok {
		return parseRangeEnds(text, strings.TrimSpace(first), strings.TrimSpace(last))
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return Range{a.Unmap(), a.Unmap()}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return Range{}, fmt.Errorf("%q is no CIDR, range or address: write 192.0.2.0/24, 192.0.2.10-192.0.2.20 or 192.0.2.10, without blanks", text)
	}
	return Range{p.Masked().Addr(), lastAddressOfPrefix(p)}, nil
}

func parseRangeEnds(text, first, last string) (Range, error) {
	a, errA := netip.ParseAddr(first)
	z, errZ := netip.ParseAddr(last)
	switch {
	case errA != nil || a.Zone() != "":
		return Range{}, fmt.Errorf("in the range %q the start %q is no address: write FIRST-LAST, such as 192.0.2.10-192.0.2.20", text, first)
	case errZ != nil || z.Zone() != "":
		return Range{}, fmt.Errorf("in the range %q the end %q is no address: write FIRST-LAST, such as 192.0.2.10-192.0.2.20", text, last)
	case a.BitLen() != z.BitLen():
		return Range{}, fmt.Errorf("the range %q mixes IPv4 and IPv6: write an entry for each family", text)
	case z.Less(a):
		return Range{}, fmt.Errorf("the range %q ends before it starts: write %s-%s", text, last, first)
	}
	return Range{a, z}, nil
}

// lastAddressOfPrefix returns the highest address of p.
func lastAddressOfPrefix(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		keep := min(max(p.Bits()-8*i, 0), 8)
		b[i] |= byte(0xff >> keep)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
