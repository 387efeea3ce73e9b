// Package ethernet says what an Ethernet address is used for.
package ethernet

// IsVirtualRouterAddress reports whether an Ethernet address of 6 bytes belongs to a virtual router
// (RFC 9568 section 7.3). Several hosts of a segment may have an interface with such an address.
func IsVirtualRouterAddress(mac []byte) bool {
	return len(mac) == 6 && mac[0] == 0 && mac[1] == 0 && mac[2] == 0x5e && mac[3] == 0 && (mac[4] == 1 || mac[4] == 2)
}
