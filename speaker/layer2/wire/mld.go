package wire

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// The kinds of records of a report (RFC 3810 section 5.2.12). A listener to every source excludes none.
const (
	isExclude byte = 2
	toInclude byte = 3
	toExclude byte = 4
)

// A Multicast Listener Report, version 2 (RFC 3810 section 5.2), in bytes from the start of the frame. It follows a
// Hop-by-Hop header with a Router Alert (RFC 2711), by which switches and routers know it.
const (
	hopByHop   = icmp6
	mld        = hopByHop + 8
	mldRecords = mld + 8
	mldRecord  = 20 // without sources
	mldReport  = 143
	mldQuery   = 130
	// maxRecords fit a frame of 1,500 bytes, which every Ethernet carries.
	maxRecords = (1500 - (mldRecords - ip6Header)) / mldRecord
)

// allRouters are the listeners to reports (RFC 3810 section 5.2.14), and their Ethernet address.
var (
	allRouters    = netip.MustParseAddr("ff02::16")
	allRoutersMAC = facts.MAC{0x33, 0x33, 0, 0, 0, 0x16}
)

// encodeReport writes a report with a record of each group. The source may be unspecified: switches take that in, while
// routers do not (RFC 3590 section 4), and no router forwards what is sent to a link's own groups.
func encodeReport(mac facts.MAC, source netip.Addr, kind byte, groups []netip.Addr) []byte {
	b := make([]byte, mldRecords+mldRecord*len(groups))
	copy(b[0:6], allRoutersMAC[:])
	copy(b[6:12], mac[:])
	binary.BigEndian.PutUint16(b[etherType:], unix.ETH_P_IPV6)
	binary.BigEndian.PutUint32(b[ip6Header:], 6<<28)
	binary.BigEndian.PutUint16(b[ip6Length:], uint16(len(b)-hopByHop))
	b[ip6Next], b[ip6Hops] = unix.IPPROTO_HOPOPTS, 1
	from, to := source.As16(), allRouters.As16()
	copy(b[ip6Source:], from[:])
	copy(b[ip6Target:], to[:])
	copy(b[hopByHop:], []byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0}) // Router Alert of MLD, and padding
	b[mld] = mldReport
	binary.BigEndian.PutUint16(b[mld+6:], uint16(len(groups)))
	for i, g := range groups {
		r := b[mldRecords+i*mldRecord:]
		r[0] = kind
		group := g.As16()
		copy(r[4:], group[:])
	}
	binary.BigEndian.PutUint16(b[mld+2:], ^checksum(b[ip6Source:icmp6], b[mld:]))
	return b
}

// isQuery says whether the frame asks for reports.
func isQuery(b []byte) bool {
	return len(b) > mld && b[ip6Next] == unix.IPPROTO_HOPOPTS && b[hopByHop] == unix.IPPROTO_ICMPV6 && b[hopByHop+1] == 0 && b[mld] == mldQuery
}
