package members

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// errNoGossipKey is the error for an empty list of keys.
var errNoGossipKey = errors.New("there is no gossip key")

// newKeyring returns the AES keys for gossip keys. The first one encrypts; each of them decrypts.
func newKeyring(gossipKeys [][]byte) (*memberlist.Keyring, error) {
	if len(gossipKeys) == 0 {
		return nil, errNoGossipKey
	}
	var aesKeys [][]byte
	for _, k := range gossipKeys {
		sum := sha256.Sum256(k)
		aesKeys = append(aesKeys, sum[:])
	}
	ring, err := memberlist.NewKeyring(aesKeys, aesKeys[0])
	if err != nil {
		return nil, fmt.Errorf("using the gossip keys: %w", err)
	}
	return ring, nil
}

// SetGossipKeys replaces the keys while the gossip runs. The first one encrypts from now on.
// Members that know none of each other's first keys lose each other.
func (m *Members) SetGossipKeys(keys [][]byte) error {
	wanted, err := newKeyring(keys)
	if err != nil {
		return err
	}
	for _, k := range wanted.GetKeys() {
		err = errors.Join(err, m.keyring.AddKey(k))
	}
	err = errors.Join(err, m.keyring.UseKey(wanted.GetPrimaryKey()))
	for _, k := range m.keyring.GetKeys() {
		isWanted := false
		for _, w := range wanted.GetKeys() {
			isWanted = isWanted || bytes.Equal(k, w)
		}
		if !isWanted {
			err = errors.Join(err, m.keyring.RemoveKey(k))
		}
	}
	m.ContactMissingSeeds()
	if err != nil {
		return fmt.Errorf("replacing the gossip keys: %w", err)
	}
	return nil
}

// updateAllowedSources admits messages from the seeds, the members and this node itself. Without
// any seed it admits all. The caller holds mu.
func (m *Members) updateAllowedSources() {
	allowed, members := map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}
	for _, s := range m.allSeeds {
		if a, ok := parseSeedAddress(s); ok {
			allowed[a] = struct{}{}
		}
	}
	for _, n := range m.memberlistNodeByName {
		if a, ok := netip.AddrFromSlice(n.Addr); ok {
			members[a.Unmap()] = struct{}{}
		}
	}
	m.transport.setMemberSources(members)
	if len(allowed) > 0 {
		maps.Copy(allowed, members)
		allowed[m.listenAddress.Addr()] = struct{}{}
	}
	m.transport.setAllowedSources(allowed)
}

// parseSeedAddress returns the address of a seed, which may have a port.
func parseSeedAddress(seed string) (netip.Addr, bool) {
	if p, err := netip.ParseAddrPort(seed); err == nil {
		return p.Addr().Unmap(), true
	}
	a, err := netip.ParseAddr(seed)
	return a.Unmap(), err == nil
}

// seedsOfOwnFamily returns the seeds of the family of this node's gossip address. The sockets
// cannot reach the others.
func (m *Members) seedsOfOwnFamily(seeds []string) []string {
	var out []string
	for _, s := range seeds {
		if a, ok := parseSeedAddress(s); !ok || a.Is4() == m.listenAddress.Addr().Is4() {
			out = append(out, s)
		}
	}
	return out
}
