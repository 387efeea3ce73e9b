package snapshot

import (
	"net/netip"
	"testing"
)

// FuzzParseRange checks that every parsed text is a sound Range: both ends of one family, in order,
// and the same when its own text is parsed.
func FuzzParseRange(f *testing.F) {
	for _, seed := range []string{
		"", "-", "192.0.2.0/24", "192.0.2.9/24", "192.0.2.1 - 192.0.2.9", "192.0.2.9-192.0.2.1", "192.0.2.1-fd00::1", "fd00::/64", "fd00::1",
		"::ffff:192.0.2.1", "::ffff:192.0.2.0/120", "::ffff:192.0.2.1-192.0.2.9", "fe80::1%eth0", "0.0.0.0/0", "::/0", "1.2.3.4/", "/8", "1.2.3.4-5",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRange(text)
		if err != nil {
			if r.First.IsValid() || err.Error() == "" {
				t.Fatalf("%q gives %v beside the error %v", text, r, err)
			}
			return
		}
		for _, a := range []netip.Addr{r.First, r.Last} {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Fatalf("%q has the end %v", text, a)
			}
		}
		if r.First.BitLen() != r.Last.BitLen() || r.Last.Less(r.First) {
			t.Fatalf("%q gives %s to %s", text, r.First, r.Last)
		}
		p := &Pool{Ranges: []Range{r}}
		v4, v6 := p.CountAssignableAddresses()
		own, other := v4, v6
		if r.First.Is6() {
			own, other = v6, v4
		}
		canBeServed := !isSpecialPurpose(r.First) || !isSpecialPurpose(r.Last)
		if own < 0 || other != 0 || canBeServed && own == 0 || purposeOfSpecialRange(r) != "" && own > 0 {
			t.Fatalf("%q counts %d and %d addresses", text, v4, v6)
		}
		if again, err := ParseRange(r.First.String() + "-" + r.Last.String()); err != nil || again != r {
			t.Fatalf("%v reads back as %v, %v", r, again, err)
		}
	})
}
