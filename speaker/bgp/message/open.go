package message

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// AFI is the address family identifier of routes, with the SAFI unicast.
type AFI uint16

// The address families (RFC 4760).
const (
	FamilyIPv4 AFI = 1
	FamilyIPv6 AFI = 2
)

// AFIOf returns the AFI of a prefix.
func AFIOf(p netip.Prefix) AFI {
	if ipfamily.FamilyOf(p.Addr()) == ipfamily.IPv4 {
		return FamilyIPv4
	}
	return FamilyIPv6
}

// String returns the name of the address family.
func (f AFI) String() string {
	switch f {
	case FamilyIPv4:
		return "ipv4-unicast"
	case FamilyIPv6:
		return "ipv6-unicast"
	}
	return fmt.Sprintf("afi %d", uint16(f))
}

// GracefulRestartCapability is the graceful restart capability (RFC 4724 section 3, RFC 8538
// section 2).
type GracefulRestartCapability struct {
	// SenderHasRestarted is the R bit: the sender has restarted.
	SenderHasRestarted bool
	// GracefulNotification is the N bit: routes are also kept after a NOTIFICATION.
	GracefulNotification bool
	// RestartSeconds is how long the sender's routes should be kept, 0 to 4095 s.
	RestartSeconds uint16
	// ForwardingKeptByFamily has the F bit of each family: the
	// forwarding state is kept over the restart.
	ForwardingKeptByFamily map[AFI]bool
}

// OpenMessage is an OPEN message.
type OpenMessage struct {
	// ASN is the sender's AS number.
	ASN uint32
	// HoldSeconds is the hold time: 0, or 3 s and more.
	HoldSeconds uint16
	// RouterID is the BGP identifier, an IPv4 address.
	RouterID netip.Addr
	// Families are those of the multiprotocol capability (RFC 4760). Other families than IPv4 and
	// IPv6 unicast are left out.
	Families []AFI
	// HasMultiprotocol is set if a received OPEN has the multiprotocol capability for any family.
	HasMultiprotocol bool
	// SupportsFourOctetASN is the capability for AS numbers of four octets (RFC 6793).
	SupportsFourOctetASN bool
	// SupportsRouteRefresh is the route refresh capability (RFC 2918).
	SupportsRouteRefresh bool
	// SupportsExtendedNextHop is the capability for IPv6 next hops of IPv4 routes (RFC 8950).
	SupportsExtendedNextHop bool
	// SupportsLinkLocalNextHop is the capability for link-local next hops in 16 octets
	// (draft-ietf-idr-linklocal-capability).
	SupportsLinkLocalNextHop bool
	// GracefulRestart is nil without the capability.
	GracefulRestart *GracefulRestartCapability
}

// asTrans replaces an AS number that does not fit into two octets (RFC 6793 section 9).
const asTrans = 23456

// TwoOctetASN returns an AS number in two octets, or AS_TRANS if it does not fit.
func TwoOctetASN(asn uint32) uint16 {
	if asn > 0xffff {
		return asTrans
	}
	return uint16(asn)
}

const safiUnicast = 1

// Encode returns the OPEN message. Each capability has its own
// optional parameter, which every router accepts.
func (o *OpenMessage) Encode() []byte {
	var params []byte
	add := func(code CapabilityCode, value []byte) {
		params = append(params, 2, byte(len(value)+2), byte(code), byte(len(value)))
		params = append(params, value...)
	}
	for _, f := range o.Families {
		add(capMultiprotocol, []byte{byte(f >> 8), byte(f), 0, safiUnicast})
	}
	if o.SupportsRouteRefresh {
		add(capRouteRefresh, nil)
	}
	if o.SupportsExtendedNextHop {
		add(capExtendedNextHop, []byte{0, byte(FamilyIPv4), 0, safiUnicast, 0, byte(FamilyIPv6)})
	}
	if o.SupportsLinkLocalNextHop {
		add(capLinkLocalNextHop, nil)
	}
	if g := o.GracefulRestart; g != nil {
		add(capGracefulRestart, g.encodeCapabilityValue())
	}
	if o.SupportsFourOctetASN {
		add(capFourOctetASN, binary.BigEndian.AppendUint32(nil, o.ASN))
	}
	body := make([]byte, 10, 10+len(params))
	body[0] = 4
	binary.BigEndian.PutUint16(body[1:], TwoOctetASN(o.ASN))
	binary.BigEndian.PutUint16(body[3:], o.HoldSeconds)
	id := o.RouterID.As4()
	copy(body[5:], id[:])
	body[9] = byte(len(params))
	return encodeMessage(TypeOpen, append(body, params...))
}

// encodeCapabilityValue returns the value of the capability. It names IPv4 also in an OPEN without
// the multiprotocol capability, since the session carries IPv4 routes then.
func (g *GracefulRestartCapability) encodeCapabilityValue() []byte {
	flags := g.RestartSeconds & 0x0fff
	if g.SenderHasRestarted {
		flags |= 0x8000
	}
	if g.GracefulNotification {
		flags |= 0x4000
	}
	out := binary.BigEndian.AppendUint16(nil, flags)
	for _, f := range []AFI{FamilyIPv4, FamilyIPv6} {
		forwarding, ok := g.ForwardingKeptByFamily[f]
		if !ok {
			continue
		}
		bits := byte(0)
		if forwarding {
			bits = 0x80
		}
		out = append(out, byte(f>>8), byte(f), safiUnicast, bits)
	}
	return out
}

// DecodeOpen decodes the body of an OPEN that ReadMessage returned. It ignores unknown
// capabilities.
func DecodeOpen(body []byte) (OpenMessage, error) {
	var o OpenMessage
	if len(body) < 10 {
		return o, &Notification{Code: CodeMessageHeaderError, Subcode: 2, FaultText: "its OPEN is too short"}
	}
	if body[0] != 4 {
		return o, &Notification{Code: CodeOpenMessageError, Subcode: 1, Data: []byte{0, 4}, FaultText: fmt.Sprintf("it uses BGP version %d, not 4", body[0])}
	}
	o.ASN = uint32(binary.BigEndian.Uint16(body[1:]))
	o.HoldSeconds = binary.BigEndian.Uint16(body[3:])
	o.RouterID = netip.AddrFrom4([4]byte(body[5:9]))
	params, lengthOctets := body[10:], 1
	n := int(body[9])
	if n == 255 && len(body) >= 13 && body[10] == 255 { // lengths of two octets, RFC 9072 section 2
		n, lengthOctets, params = int(binary.BigEndian.Uint16(body[11:])), 2, body[13:]
	}
	if n != len(params) {
		return o, malformedOpenError("the length of its optional parameters is wrong")
	}
	for len(params) > 0 {
		if len(params) < 1+lengthOctets {
			return o, malformedOpenError("an optional parameter of its OPEN is cut off")
		}
		l := int(params[1])
		if lengthOctets == 2 {
			l = int(binary.BigEndian.Uint16(params[1:]))
		}
		if len(params) < 1+lengthOctets+l {
			return o, malformedOpenError("an optional parameter of its OPEN is cut off")
		}
		if params[0] == 2 { // other parameters are deprecated
			if err := o.decodeCapabilities(params[1+lengthOctets : 1+lengthOctets+l]); err != nil {
				return o, err
			}
		}
		params = params[1+lengthOctets+l:]
	}
	if o.ASN == 0 {
		return o, &Notification{Code: CodeOpenMessageError, Subcode: 2, FaultText: "its AS number is 0, which is not allowed (RFC 7607)"}
	}
	if o.HoldSeconds == 1 || o.HoldSeconds == 2 {
		return o, &Notification{Code: CodeOpenMessageError, Subcode: 6, FaultText: fmt.Sprintf("it requests a hold time of %d s: only 0, or 3 s and more, is allowed", o.HoldSeconds)}
	}
	if o.RouterID.IsUnspecified() {
		return o, &Notification{Code: CodeOpenMessageError, Subcode: 3, FaultText: "its BGP identifier is 0.0.0.0"}
	}
	return o, nil
}

func malformedOpenError(text string) error {
	return &Notification{Code: CodeOpenMessageError, FaultText: text}
}

func (o *OpenMessage) decodeCapabilities(b []byte) error {
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return malformedOpenError("a capability in its OPEN is cut off")
		}
		o.decodeCapability(CapabilityCode(b[0]), b[2:2+int(b[1])])
		b = b[2+int(b[1]):]
	}
	return nil
}

func (o *OpenMessage) decodeCapability(code CapabilityCode, v []byte) {
	switch {
	case code == capMultiprotocol && len(v) == 4:
		o.HasMultiprotocol = true
		if f := AFI(binary.BigEndian.Uint16(v)); v[3] == safiUnicast && (f == FamilyIPv4 || f == FamilyIPv6) {
			o.Families = append(o.Families, f)
		}
	case code == capRouteRefresh:
		o.SupportsRouteRefresh = true
	case code == capLinkLocalNextHop:
		o.SupportsLinkLocalNextHop = true
	case code == capExtendedNextHop:
		for ; len(v) >= 6; v = v[6:] {
			if v[1] == byte(FamilyIPv4) && v[3] == safiUnicast && v[5] == byte(FamilyIPv6) && v[0]|v[2]|v[4] == 0 {
				o.SupportsExtendedNextHop = true
			}
		}
	case code == capFourOctetASN && len(v) == 4:
		o.SupportsFourOctetASN, o.ASN = true, binary.BigEndian.Uint32(v)
	case code == capGracefulRestart && len(v) >= 2:
		flags := binary.BigEndian.Uint16(v)
		g := &GracefulRestartCapability{SenderHasRestarted: flags&0x8000 != 0, GracefulNotification: flags&0x4000 != 0, RestartSeconds: flags & 0x0fff, ForwardingKeptByFamily: map[AFI]bool{}}
		for v = v[2:]; len(v) >= 4; v = v[4:] {
			if v[2] == safiUnicast {
				g.ForwardingKeptByFamily[AFI(binary.BigEndian.Uint16(v))] = v[3]&0x80 != 0
			}
		}
		o.GracefulRestart = g
	}
}
