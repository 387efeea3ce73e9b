package members

import (
	"crypto/aes"
	"crypto/cipher"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// undecryptableSourceTimeout is how long a speaker counts as one with another key after its last
// message. It sends a greeting each 300 ms, and some may be lost.
const undecryptableSourceTimeout = 10 * time.Second

// undecryptableSources has the addresses of speakers whose messages this speaker cannot decrypt,
// because they use another key. Any goroutine may call its methods.
type undecryptableSources struct {
	mu               sync.Mutex // guards lastSeenBySource
	lastSeenBySource map[netip.Addr]time.Time
}

// recordOrForgetSource records a message from an address. With hasOtherKey, this speaker could not
// decrypt the message. Without it, the address uses a known key and is forgotten.
func (r *undecryptableSources) recordOrForgetSource(source netip.Addr, hasOtherKey bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !hasOtherKey {
		delete(r.lastSeenBySource, source)
		return
	}
	if r.lastSeenBySource == nil {
		r.lastSeenBySource = map[netip.Addr]time.Time{}
	}
	r.lastSeenBySource[source] = now
}

// listSources returns the addresses of speakers with another key, sorted. It forgets silent ones.
func (r *undecryptableSources) listSources(now time.Time) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []netip.Addr
	for source, seen := range r.lastSeenBySource {
		if now.Sub(seen) >= undecryptableSourceTimeout {
			delete(r.lastSeenBySource, source)
			continue
		}
		out = append(out, source)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// AddressesWithUnknownGossipKey returns the addresses of speakers that encrypt their gossip with a
// key that this one does not have, sorted.
func (m *Members) AddressesWithUnknownGossipKey() []netip.Addr {
	return m.transport.undecryptableSources.listSources(m.options.Now())
}

// The parts of an encrypted packet of memberlist: a version, a nonce, the ciphertext with its tag.
const (
	maxMemberlistEncryptionVersion = 1
	encryptedNonceOffset           = 1
	encryptedTextOffset            = encryptedNonceOffset + 12
	minEncryptedPacketBytes        = encryptedTextOffset + 16
)

// isEncryptedWithUnknownKey reports whether a packet is encrypted, and by none of the keys.
func isEncryptedWithUnknownKey(packet []byte, keyring *memberlist.Keyring) bool {
	if len(packet) < minEncryptedPacketBytes || packet[0] > maxMemberlistEncryptionVersion {
		return false
	}
	for _, key := range keyring.GetKeys() {
		block, err := aes.NewCipher(key)
		if err != nil {
			return false
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return false
		}
		if _, err := gcm.Open(nil, packet[encryptedNonceOffset:encryptedTextOffset], packet[encryptedTextOffset:], nil); err == nil {
			return false
		}
	}
	return true
}
