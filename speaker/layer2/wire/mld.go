package wire

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// The types of records in a report (RFC 3810 section 5.2.12). A listener to all
// sources excludes none.
const (
	mldModeIsExclude   byte = 2
	mldChangeToInclude byte = 3
	mldChangeToExclude byte = 4
)

// A Multicast Listener Report, version 2 (RFC 3810 section 5.2), in bytes from the start of the
// frame. It follows a Hop-by-Hop header with a Router Alert (RFC 2711), by which switches and
// routers recognize it.
const (
	hopByHopOffset   = icmp6Offset
	mldMessageOffset = hopByHopOffset + 8
	mldRecordsOffset = mldMessageOffset + 8
	mldRecordLength  = 20 // without sources
	typeMLDv2Report  = 143
	typeMLDQuery     = 130
	// maxRecordsPerMLDReport fills a frame of 1,500 bytes, which every Ethernet carries.
	maxRecordsPerMLDReport = (1500 - (mldRecordsOffset - ip6HeaderOffsetInFrame)) / mldRecordLength
)

// The group that receives reports (RFC 3810 section 5.2.14), and its Ethernet address.
var (
	mldRoutersGroup = netip.MustParseAddr("ff02::16")
	mldRoutersMAC   = facts.MAC{0x33, 0x33, 0, 0, 0, 0x16}
)

// encodeMLDReport builds a report with one record for each group. The source may be unspecified.
// Switches accept that. Routers do not (RFC 3590 section 4), but they forward nothing for these
// groups, which are local to the link.
func encodeMLDReport(mac facts.MAC, source netip.Addr, kind byte, groups []netip.Addr) []byte {
	b := make([]byte, mldRecordsOffset+mldRecordLength*len(groups))
	copy(b[0:6], mldRoutersMAC[:])
	copy(b[6:12], mac[:])
	binary.BigEndian.PutUint16(b[etherTypeOffset:], unix.ETH_P_IPV6)
	binary.BigEndian.PutUint32(b[ip6HeaderOffsetInFrame:], 6<<28)
	binary.BigEndian.PutUint16(b[ip6PayloadLengthOffsetInFrame:], uint16(len(b)-hopByHopOffset))
	b[ip6NextHeaderOffsetInFrame], b[ip6HopLimitOffsetInFrame] = unix.IPPROTO_HOPOPTS, 1
	from, to := source.As16(), mldRoutersGroup.As16()
	copy(b[ip6SourceOffsetInFrame:], from[:])
	copy(b[ip6DestinationOffsetInFrame:], to[:])
	// Router Alert for MLD, and padding
	copy(b[hopByHopOffset:], []byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0})
	b[mldMessageOffset] = typeMLDv2Report
	binary.BigEndian.PutUint16(b[mldMessageOffset+6:], uint16(len(groups)))
	for i, g := range groups {
		r := b[mldRecordsOffset+i*mldRecordLength:]
		r[0] = kind
		group := g.As16()
		copy(r[4:], group[:])
	}
	binary.BigEndian.PutUint16(b[mldMessageOffset+2:], ^icmpv6Checksum(b[ip6SourceOffsetInFrame:icmp6Offset], b[mldMessageOffset:]))
	return b
}

// isMLDQuery says whether the frame asks for reports.
func isMLDQuery(b []byte) bool {
	return len(b) > mldMessageOffset && b[ip6NextHeaderOffsetInFrame] == unix.IPPROTO_HOPOPTS && b[hopByHopOffset] == unix.IPPROTO_ICMPV6 && b[hopByHopOffset+1] == 0 && b[mldMessageOffset] == typeMLDQuery
}
