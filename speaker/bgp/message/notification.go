package message

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The error codes of a NOTIFICATION (RFC 4271 section 4.5).
const (
	CodeMessageHeaderError uint8 = 1
	CodeOpenMessageError   uint8 = 2
	CodeUpdateMessageError uint8 = 3
	CodeHoldTimerExpired   uint8 = 4
	CodeFSMError           uint8 = 5
	CodeCease              uint8 = 6
	CodeRouteRefreshError  uint8 = 7 // RFC 7313
	CodeSendHoldExpired    uint8 = 8 // RFC 9687
)

// The subcodes of an OPEN message error that the speaker answers (RFC 4271, RFC 5492).
const (
	OpenUnsupportedParameter  uint8 = 4
	OpenUnsupportedCapability uint8 = 7
)

// The subcodes of a Cease (RFC 4486, RFC 8538, RFC 9384) that the speaker sends or explains.
const (
	CeaseMaxPrefixes  uint8 = 1
	CeaseShutdown     uint8 = 2
	CeaseDeconfigured uint8 = 3
	CeaseReset        uint8 = 4
	CeaseRejected     uint8 = 5
	CeaseConfigChange uint8 = 6
	CeaseCollision    uint8 = 7
	CeaseHardReset    uint8 = 9
	CeaseBFDDown      uint8 = 10
)

// Notification is a NOTIFICATION, sent or received. As an
// error it is the reason that a session ends.
type Notification struct {
	// Code and Subcode are the error code and subcode.
	Code, Subcode uint8
	// Data depends on Code and Subcode.
	Data []byte
	// FaultText is a clause that says what the router did wrong.
	// It is empty when Code and Subcode say it.
	FaultText string
}

var errorNameByCode = map[uint8]string{
	CodeMessageHeaderError: "message header error", CodeOpenMessageError: "OPEN message error", CodeUpdateMessageError: "UPDATE message error",
	CodeHoldTimerExpired: "hold timer expired", CodeFSMError: "unexpected message", CodeCease: "cease",
	CodeRouteRefreshError: "ROUTE-REFRESH message error", CodeSendHoldExpired: "send hold timer expired",
}

var errorNameByCodeAndSubcode = map[[2]uint8]string{
	{CodeMessageHeaderError, 1}: "connection not synchronised", {CodeMessageHeaderError, 2}: "bad message length", {CodeMessageHeaderError, 3}: "bad message type",
	{CodeOpenMessageError, 1}: "unsupported version", {CodeOpenMessageError, 2}: "bad peer AS", {CodeOpenMessageError, 3}: "bad BGP identifier",
	{CodeOpenMessageError, 4}: "unsupported optional parameter", {CodeOpenMessageError, 6}: "unacceptable hold time", {CodeOpenMessageError, 7}: "unsupported capability",
	{CodeOpenMessageError, 11}:  "role mismatch",
	{CodeUpdateMessageError, 1}: "malformed attribute list", {CodeUpdateMessageError, 2}: "unrecognised well-known attribute",
	{CodeUpdateMessageError, 3}: "missing well-known attribute", {CodeUpdateMessageError, 4}: "attribute flags error", {CodeUpdateMessageError, 5}: "attribute length error",
	{CodeUpdateMessageError, 6}: "invalid ORIGIN", {CodeUpdateMessageError, 8}: "invalid NEXT_HOP", {CodeUpdateMessageError, 9}: "optional attribute error",
	{CodeUpdateMessageError, 10}: "invalid network field", {CodeUpdateMessageError, 11}: "malformed AS_PATH",
	{CodeCease, CeaseMaxPrefixes}: "maximum number of prefixes reached", {CodeCease, CeaseShutdown}: "administrative shutdown",
	{CodeCease, CeaseDeconfigured}: "peer de-configured", {CodeCease, CeaseReset}: "administrative reset",
	{CodeCease, CeaseRejected}: "connection rejected", {CodeCease, CeaseConfigChange}: "other configuration change",
	{CodeCease, CeaseCollision}: "connection collision resolution", {CodeCease, 8}: "out of resources",
	{CodeCease, CeaseHardReset}: "hard reset", {CodeCease, CeaseBFDDown}: "BFD down",
}

// Description names code and subcode, with the administrator's message if there is one (RFC 9003).
func (n *Notification) Description() string {
	out, ok := errorNameByCode[n.Code]
	if !ok {
		out = fmt.Sprintf("error code %d", n.Code)
	}
	if s, ok := errorNameByCodeAndSubcode[[2]uint8{n.Code, n.Subcode}]; ok {
		out += ", " + s
	} else if n.Subcode != 0 {
		out += fmt.Sprintf(", subcode %d", n.Subcode)
	}
	if c := n.shutdownCommunication(); c != "" {
		out += fmt.Sprintf(" (%q)", c)
	}
	return out + n.describePrefixLimit()
}

// describePrefixLimit returns the maximum of prefixes, if the router sent
// it: AFI, SAFI and the number (RFC 4486 section 4).
func (n *Notification) describePrefixLimit() string {
	if n.Code != CodeCease || n.Subcode != CeaseMaxPrefixes || len(n.Data) < 7 {
		return ""
	}
	return fmt.Sprintf(", %d of %s", binary.BigEndian.Uint32(n.Data[3:]), AFI(binary.BigEndian.Uint16(n.Data)))
}

// Error says what was wrong.
func (n *Notification) Error() string {
	if n.FaultText == "" {
		return n.Description()
	}
	return n.FaultText
}

// shutdownCommunication returns the administrator's text of a shutdown or
// reset: one byte of length, then UTF-8 (RFC 9003 section 2).
func (n *Notification) shutdownCommunication() string {
	data := n.Data
	if n.Code == CodeCease && n.Subcode == CeaseHardReset && len(data) >= 2 {
		data = data[2:] // a wrapped NOTIFICATION, RFC 8538 section 3.1
	} else if n.Code != CodeCease || (n.Subcode != CeaseShutdown && n.Subcode != CeaseReset) {
		return ""
	}
	if len(data) == 0 || int(data[0]) > len(data)-1 {
		return ""
	}
	text := data[1 : 1+int(data[0])]
	if !utf8.Valid(text) {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, string(text))
}

// Encode returns the NOTIFICATION message.
func (n *Notification) Encode() []byte {
	return encodeMessage(TypeNotification, append([]byte{n.Code, n.Subcode}, n.Data...))
}

// NewCeaseNotification returns a Cease with a text for the router's administrator. The
// text is cut to the 255 bytes that RFC 9003 section 2 allows.
func NewCeaseNotification(subcode uint8, text string) *Notification {
	n := &Notification{Code: CodeCease, Subcode: subcode}
	if subcode == CeaseShutdown || subcode == CeaseReset {
		t := []byte(text)
		for len(t) > 255 || !utf8.Valid(t) {
			t = t[:min(len(t)-1, 255)]
		}
		n.Data = append([]byte{byte(len(t))}, t...)
	}
	return n
}

// AsHardReset wraps a Cease into a Hard Reset, which ends the
// session without graceful restart (RFC 8538 section 3.1).
func (n *Notification) AsHardReset() *Notification {
	return &Notification{Code: CodeCease, Subcode: CeaseHardReset, Data: append([]byte{n.Code, n.Subcode}, n.Data...), FaultText: n.FaultText}
}

// DecodeNotification decodes the body of a NOTIFICATION that ReadMessage returned.
func DecodeNotification(body []byte) *Notification {
	if len(body) < 2 {
		return &Notification{}
	}
	return &Notification{Code: body[0], Subcode: body[1], Data: bytes.Clone(body[2:])}
}
