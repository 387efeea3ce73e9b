package members

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/gantry-lb/gantry/speaker/facts"
)

func newTestPublishedNode(links, macs int) facts.PublishedNode {
	p := facts.PublishedNode{MaxMessageFormat: 3, Links: &facts.PublishedLinks{HasIPv4: true}}
	for i := range macs {
		p.LinkMACs = append(p.LinkMACs, facts.MAC{2, 0, 0, 0, 1, byte(i)})
	}
	for i := range links {
		p.Links.Links = append(p.Links.Links, facts.PublishedLink{
			NameHash: facts.LinkNameHash(fmt.Sprintf("eth%d", i)), IsDown: i%3 == 2, CannotSendIPv6: i%2 == 1, IsVirtualRouter: i == 4,
			Subnets: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16),
				netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::/64", i)),
			},
		})
	}
	return p
}

func TestEncodedMetadataDecodesUnchanged(t *testing.T) {
	for _, links := range []int{0, 1, 3, 8} {
		want := newTestPublishedNode(links, links+1)
		nonce, got := decodeMetadata(EncodeMetadata(7, want))
		if nonce != 7 || !reflect.DeepEqual(got, want) {
			t.Errorf("published %+v %+v, read %d %+v %+v", want, want.Links, nonce, got, got.Links)
		}
	}
}

func TestMetadataStaysWithinItsLimit(t *testing.T) {
	want := newTestPublishedNode(200, 200)
	b := EncodeMetadata(7, want)
	if len(b) > memberlist.MetaMaxSize {
		t.Fatalf("the metadata has %d bytes, memberlist carries %d", len(b), memberlist.MetaMaxSize)
	}
	_, got := decodeMetadata(b)
	if len(got.LinkMACs) < minMACsPublishedWithLinks || len(got.Links.Links) < 10 || !got.Links.IsIncomplete {
		t.Errorf("%d Ethernet addresses and %d links of 200 are published, incomplete: %v, want at least %d and 10, and incomplete",
			len(got.LinkMACs), len(got.Links.Links), got.Links.IsIncomplete, minMACsPublishedWithLinks)
	}
	if !reflect.DeepEqual(got.LinkMACs[0], want.LinkMACs[0]) || !reflect.DeepEqual(got.Links.Links[0], want.Links.Links[0]) {
		t.Error("the most important ones are not published first")
	}
}

// Commit 4ed98b1 publishes the nonce and the Ethernet addresses, and reads the same.
func TestMetadataIsCompatibleWithPreviousVersion(t *testing.T) {
	old, _ := hex.DecodeString("0000000000000007" + "020000000101" + "020000000102")
	nonce, got := decodeMetadata(old)
	want := []facts.MAC{{2, 0, 0, 0, 1, 1}, {2, 0, 0, 0, 1, 2}}
	if nonce != 7 || !reflect.DeepEqual(got, facts.PublishedNode{LinkMACs: want}) {
		t.Errorf("read %d %+v, want 7 and %v alone", nonce, got, want)
	}
	b := EncodeMetadata(7, newTestPublishedNode(3, 2))
	if binary.BigEndian.Uint64(b) != 7 {
		t.Errorf("the nonce is %x, want 7", b[:nonceSize])
	}
	found := map[facts.MAC]bool{}
	for b = b[nonceSize:]; len(b) >= macSizedGroupBytes; b = b[macSizedGroupBytes:] {
		mac := facts.MAC(b[:macSizedGroupBytes])
		if found[mac] = true; mac[0]&1 == 0 && mac[0] != 2 {
			t.Errorf("the version before reads the Ethernet address %v, which a host may have", mac)
		}
	}
	if !found[facts.MAC{2, 0, 0, 0, 1, 0}] || !found[facts.MAC{2, 0, 0, 0, 1, 1}] || len(b) != 0 {
		t.Errorf("the version before does not find the Ethernet addresses: %v, rest %v", found, b)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(EncodeMetadata(1, newTestPublishedNode(3, 2)))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		nonce, p := decodeMetadata(b)
		if again := EncodeMetadata(nonce, p); len(again) > memberlist.MetaMaxSize {
			t.Errorf("%d bytes", len(again))
		}
	})
}
