package snapshot

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
)

// parsedEntry is an entry of spec.addresses. If err or specialPurpose is set, it cannot be served.
type parsedEntry struct {
	Range
	text           string
	err            error
	specialPurpose string
}

// parseEntries parses the entries of one pool.
func parseEntries(texts []string) []parsedEntry {
	out := make([]parsedEntry, len(texts))
	for i, text := range texts {
		e := &out[i]
		e.text = text
		if e.Range, e.err = ParseRange(text); e.err == nil {
			e.specialPurpose = purposeOfSpecialRange(e.Range)
		}
	}
	return out
}

// rangesOfEntries returns the ranges of entries that can all be served.
func rangesOfEntries(entries []parsedEntry) []Range {
	out := make([]Range, len(entries))
	for i := range entries {
		out[i] = entries[i].Range
	}
	return out
}

// takeRangesForPool returns the ranges that a pool gets, and adds them to takenRanges. before is
// the pool as it was, or nil.
func (b *snapshotBuilder) takeRangesForPool(o ObjectReference, entries []parsedEntry, before *Pool, takenRanges *rangeIndex) []Range {
	b.currentObjectUnservable = false
	taken := b.rangesOfUsableEntries(o, entries, takenRanges)
	if b.currentObjectUnservable && before != nil {
		taken = before.previousRangesWithoutOverlap(takenRanges)
	}
	out := make([]Range, 0, len(taken))
	for _, e := range taken {
		takenRanges.insertRange(e)
		out = append(out, e.Range)
	}
	return out
}

// rangesOfUsableEntries returns the ranges of the entries of one pool. It leaves out those that are
// invalid or overlap takenRanges.
func (b *snapshotBuilder) rangesOfUsableEntries(o ObjectReference, entries []parsedEntry, takenRanges *rangeIndex) []poolRange {
	out := make([]poolRange, 0, len(entries))
	own := &rangeIndex{}
	for j := range entries {
		e := &entries[j]
		if e.err != nil {
			field := addressEntryFieldPath(j)
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %v", field, e.err)
			continue
		}
		if e.specialPurpose != "" {
			field := addressEntryFieldPath(j)
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %q has %s: write addresses of the nodes' network, or addresses that routers forward to it", field, e.text, e.specialPurpose)
			continue
		}
		t, clash := takenRanges.findOverlap(e.Range)
		if !clash {
			t, clash = own.findOverlap(e.Range)
		}
		if clash {
			field := addressEntryFieldPath(j)
			b.reportProblemAndMarkBroken(o, field, names.ReasonOverlap, "%s: %q %s %q%s",
				field, e.text, overlapProblemText, t.entryText, endOfOverlapText(t.poolName))
			continue
		}
		accepted := poolRange{e.Range, o.Name, e.text}
		own.insertRange(accepted)
		out = append(out, accepted)
	}
	return out
}

// addressEntryFieldPath names an entry of spec.addresses.
func addressEntryFieldPath(i int) string { return fmt.Sprintf("spec.addresses[%d]", i) }

// overlapProblemText is the part of an overlap's text that is the same for all.
const overlapProblemText = "overlaps with already defined CIDR or range"

// endOfOverlapText is the end of an overlap's text. It names the pool of the other entry.
func endOfOverlapText(pool string) string {
	return fmt.Sprintf(" of pool %q: remove one of them", pool)
}

// previousRangesWithoutOverlap returns the pool's ranges that do not overlap takenRanges.
func (p *Pool) previousRangesWithoutOverlap(takenRanges *rangeIndex) []poolRange {
	var out []poolRange
	for _, r := range p.Ranges {
		if _, clash := takenRanges.findOverlap(r); !clash {
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
	case a.Is4In6() || z.Is4In6():
		return Range{}, fmt.Errorf("the range %q has IPv4 addresses in IPv6 form: write %s-%s", text, a.Unmap(), z.Unmap())
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
