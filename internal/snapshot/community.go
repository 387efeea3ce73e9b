package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// Community is a BGP community: A:B of 16 bits each (RFC 1997), or, when Large, A:B:C of 32 bits
// each (RFC 8092).
type Community struct {
	Large                                   bool
	FirstPart, SecondPart, ThirdPartOfLarge uint32
}

// String writes c as BGPAdvertisements do.
func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("large:%d:%d:%d", c.FirstPart, c.SecondPart, c.ThirdPartOfLarge)
	}
	return fmt.Sprintf("%d:%d", c.FirstPart, c.SecondPart)
}

// Compare orders standard communities before large ones, then by value.
func (c Community) Compare(d Community) int {
	if c.Large != d.Large {
		if d.Large {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(c.FirstPart, d.FirstPart), cmp.Compare(c.SecondPart, d.SecondPart), cmp.Compare(c.ThirdPartOfLarge, d.ThirdPartOfLarge))
}

// ParseCommunity reads "A:B" or "large:A:B:C". The error quotes the text and says what to write.
func ParseCommunity(text string) (Community, error) {
	rest, large := strings.CutPrefix(text, "large:")
	limit, want := uint64(65535), 2
	if large {
		limit, want = 1<<32-1, 3
	}
	parts := strings.Split(rest, ":")
	c := Community{Large: large}
	ok := len(parts) == want
	for i, to := range []*uint32{&c.FirstPart, &c.SecondPart, &c.ThirdPartOfLarge} {
		if !ok || i >= want {
			break
		}
		n, err := strconv.ParseUint(parts[i], 10, 32)
		ok = err == nil && n <= limit
		*to = uint32(n)
	}
	if !ok {
		return Community{}, fmt.Errorf("invalid community value: %q: write A:B with both at most 65535, or large:A:B:C with each at most 4294967295", text)
	}
	return c, nil
}

// parseCommunityAliases returns the communities by alias. If two Community objects define one
// alias, the older one counts.
func (b *snapshotBuilder) parseCommunityAliases(in []v1beta1.Community) map[string]Community {
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y v1beta1.Community) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	out, from := map[string]Community{}, map[string]string{}
	for i := range in {
		o := ObjectReference{Kind: "Community", Namespace: in[i].Namespace, Name: in[i].Name}
		for j, a := range in[i].Spec.Communities {
			field := fmt.Sprintf("spec.communities[%d]", j)
			c, err := ParseCommunity(a.Value)
			if err != nil {
				b.reportProblem(o, field, names.ReasonInvalidCommunity, "%s.value: %v", field, err)
				continue
			}
			if other, taken := from[a.Name]; taken {
				b.reportProblem(o, field, names.ReasonDuplicate, "%s: the alias %q is duplicate: Community %q has it already; give one of them another name", field, a.Name, other)
				continue
			}
			out[a.Name], from[a.Name] = c, in[i].Name
		}
	}
	return out
}
