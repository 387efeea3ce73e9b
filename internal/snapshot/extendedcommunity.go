package snapshot

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// ExtendedCommunity is an extended community in its wire format (RFC 4360).
type ExtendedCommunity [8]byte

// ParseExtendedCommunity reads "rt:A:N" and "soo:A:N", where A is an AS number or an IPv4 address
// (RFC 4360, sections 3 and 4; RFC 5668), or "0x" and eight bytes in hexadecimal digits. The error
// quotes the text and says what to write.
func ParseExtendedCommunity(text string) (ExtendedCommunity, error) {
	var c ExtendedCommunity
	if digits, ok := strings.CutPrefix(text, "0x"); ok && len(digits) == 16 {
		if n, err := hex.Decode(c[:], []byte(digits)); err == nil && n == len(c) {
			return c, nil
		}
	}
	parts := strings.Split(text, ":")
	subtype, known := map[string]byte{"rt": 2, "soo": 3}[parts[0]]
	if known && len(parts) == 3 {
		c[1] = subtype
		if c.encodeAdministratorAndNumber(parts[1], parts[2]) {
			return c, nil
		}
	}
	return ExtendedCommunity{}, fmt.Errorf("invalid extended community value: %q: write rt:A:N or soo:A:N, where A is a number of an autonomous system or an IPv4 address, and N is at most 65535 unless A is at most 65535, or eight bytes such as 0x0002fc0000000064", text)
}

// encodeAdministratorAndNumber writes the administrator and the number. A two-octet AS number
// leaves four octets for N; a four-octet one and an IPv4 address leave two.
func (c *ExtendedCommunity) encodeAdministratorAndNumber(administrator, number string) bool {
	bits := 16
	a, err := strconv.ParseUint(administrator, 10, 32)
	address, parseErr := netip.ParseAddr(administrator)
	switch {
	case err == nil && a <= 0xffff:
		c[2], c[3] = byte(a>>8), byte(a)
		bits = 32
	case err == nil:
		c[0] = 2
		c[2], c[3], c[4], c[5] = byte(a>>24), byte(a>>16), byte(a>>8), byte(a)
	case parseErr == nil && address.Is4():
		c[0] = 1
		b := address.As4()
		copy(c[2:], b[:])
	default:
		return false
	}
	n, err := strconv.ParseUint(number, 10, bits)
	if err != nil {
		return false
	}
	if bits == 32 {
		c[4], c[5] = byte(n>>24), byte(n>>16)
	}
	c[6], c[7] = byte(n>>8), byte(n)
	return true
}

// parseExtendedCommunityAliases returns the extended communities by alias. If two Community objects
// define one alias, the older one counts.
func (b *snapshotBuilder) parseExtendedCommunityAliases(in []v1beta1.Community) map[string]ExtendedCommunity {
	out, from := map[string]ExtendedCommunity{}, map[string]string{}
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y v1beta1.Community) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	for _, c := range in {
		if c.Spec.Gantry == nil {
			continue
		}
		o := ObjectReference{Kind: "Community", Namespace: c.Namespace, Name: c.Name}
		for j, a := range c.Spec.Gantry.Extended {
			field := fmt.Sprintf("spec.gantry.extended[%d]", j)
			value, err := ParseExtendedCommunity(a.Value)
			if err != nil {
				b.reportProblem(o, field, names.ReasonInvalidCommunity, "%s.value: %v", field, err)
				continue
			}
			if other, taken := from[a.Name]; taken {
				b.reportProblem(o, field, names.ReasonDuplicate, "%s: the alias %q is duplicate: Community %q has it already; give one of them another name", field, a.Name, other)
				continue
			}
			out[a.Name], from[a.Name] = value, c.Name
		}
	}
	return out
}

// parseBGPAdvertisementExtension reads spec.gantry of an advertisement.
func (b *snapshotBuilder) parseBGPAdvertisementExtension(o ObjectReference, ad *BGPAdvertisement, in *v1beta1.BGPAdvertisementExtension, aliases map[string]ExtendedCommunity) {
	if in == nil {
		return
	}
	if in.MED != nil {
		ad.HasMED, ad.MED = true, uint32(min(max(*in.MED, 0), 1<<32-1))
	}
	ad.ASPathPrepend = uint8(min(max(in.ASPathPrepend, 0), 16))
	ad.LinkBandwidthPerEndpoint = max(in.LinkBandwidthPerEndpoint, 0)
	for i, text := range in.ExtendedCommunities {
		field := fmt.Sprintf("spec.gantry.extendedCommunities[%d]", i)
		c, known := aliases[text]
		if !known {
			var err error
			if c, err = ParseExtendedCommunity(text); err != nil && (strings.Contains(text, ":") || strings.HasPrefix(text, "0x")) {
				b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidCommunity, "%s: %v", field, err)
			} else if err != nil {
				b.reportProblemAndMarkBroken(o, field, names.ReasonUnknownCommunity, "%s: no Community names the alias %q of an extended community in namespace %q: create one there, or write a value such as rt:64512:100", field, text, o.Namespace)
			}
		}
		ad.ExtendedCommunities = append(ad.ExtendedCommunities, c)
	}
	slices.SortFunc(ad.ExtendedCommunities, func(x, y ExtendedCommunity) int { return slices.Compare(x[:], y[:]) })
	ad.ExtendedCommunities = slices.Compact(ad.ExtendedCommunities)
}
