package view

import (
	"net/netip"
	"strings"
)

// JoinAddresses lists addresses in a sentence, separated by commas.
func JoinAddresses(all []netip.Addr) string {
	texts := make([]string, 0, len(all))
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}
