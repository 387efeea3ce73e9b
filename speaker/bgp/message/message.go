// Package message encodes and decodes the BGP messages that a relay needs (RFC 4271 section 4): the
// framing, the OPEN, and the NOTIFICATION with its meaning in words. It does not decode UPDATEs.
// All functions are pure. Errors of the router are a *Notification, ready to be sent.
package message

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// MessageType is the type of a message.
type MessageType uint8

// The message types (RFC 4271 section 4.1, RFC 2918).
const (
	TypeOpen         MessageType = 1
	TypeUpdate       MessageType = 2
	TypeNotification MessageType = 3
	TypeKeepalive    MessageType = 4
	TypeRouteRefresh MessageType = 5
)

// String returns the name of the type.
func (t MessageType) String() string {
	switch t {
	case TypeOpen:
		return "OPEN"
	case TypeUpdate:
		return "UPDATE"
	case TypeNotification:
		return "NOTIFICATION"
	case TypeKeepalive:
		return "KEEPALIVE"
	case TypeRouteRefresh:
		return "ROUTE-REFRESH"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Lengths in bytes (RFC 4271 section 4.1).
const (
	headerLength = 19
	// MaxMessageLength is the longest message without the extended message capability (RFC 8654).
	MaxMessageLength = 4096
)

// minMessageBytesByType is the shortest message of each type.
var minMessageBytesByType = map[MessageType]int{TypeOpen: 29, TypeUpdate: 23, TypeNotification: 21, TypeKeepalive: 19, TypeRouteRefresh: 23}

var headerMarker = bytes.Repeat([]byte{0xff}, 16)

// TypeOf returns the type of a message that ReadMessage returned.
func TypeOf(message []byte) MessageType { return MessageType(message[18]) }

// BodyOf returns the body of a message that ReadMessage returned.
func BodyOf(message []byte) []byte { return message[headerLength:] }

// ReadMessage reads one message, header included, into buf, which must have MaxMessageLength bytes.
// It returns a *Notification for an invalid message. Other errors are those of the reader.
func ReadMessage(r io.Reader, buf []byte) ([]byte, error) {
	n, err := readHeader(r, buf)
	if err != nil {
		return nil, err
	}
	return readBody(r, buf[:n])
}

// readHeader reads a header into buf and returns the length of the message.
func readHeader(r io.Reader, buf []byte) (int, error) {
	if _, err := io.ReadFull(r, buf[:headerLength]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(buf[16:18]))
	t := MessageType(buf[18])
	least, known := minMessageBytesByType[t]
	switch {
	case !bytes.Equal(buf[:16], headerMarker):
		return 0, &Notification{Code: CodeMessageHeaderError, Subcode: 1, FaultText: "what it sent is not a BGP message"}
	case !known:
		return 0, &Notification{Code: CodeMessageHeaderError, Subcode: 3, Data: []byte{buf[18]}, FaultText: fmt.Sprintf("it sent a message of the unknown type %d", buf[18])}
	case n < least || n > MaxMessageLength || (t == TypeKeepalive && n != least):
		return 0, &Notification{Code: CodeMessageHeaderError, Subcode: 2, Data: bytes.Clone(buf[16:18]), FaultText: fmt.Sprintf("it sent %s %s of %d bytes", indefiniteArticleFor(t), t, n)}
	}
	return n, nil
}

// readBody reads the body of a message whose header was read.
func readBody(r io.Reader, message []byte) ([]byte, error) {
	if _, err := io.ReadFull(r, BodyOf(message)); err != nil {
		t := TypeOf(message)
		return nil, fmt.Errorf("reading the rest of %s %s: %w", indefiniteArticleFor(t), t, err)
	}
	return message, nil
}

// Reader reads messages into a buffer of its own. Most sessions are at rest, and their messages are
// short: the buffer is small until the first message that does not fit.
type Reader struct {
	source io.Reader
	buffer []byte
}

// initialReaderBufferBytes is enough for a KEEPALIVE, a ROUTE-REFRESH and most NOTIFICATIONs.
const initialReaderBufferBytes = 64

// NewReader returns a Reader of a connection.
func NewReader(source io.Reader) *Reader {
	return &Reader{source: source, buffer: make([]byte, initialReaderBufferBytes)}
}

// ReadMessage reads one message, like the function ReadMessage. The message is valid until the next
// call.
func (r *Reader) ReadMessage() ([]byte, error) {
	n, err := readHeader(r.source, r.buffer)
	if err != nil {
		return nil, err
	}
	if n > len(r.buffer) {
		longer := make([]byte, MaxMessageLength)
		copy(longer, r.buffer[:headerLength])
		r.buffer = longer
	}
	return readBody(r.source, r.buffer[:n])
}

func indefiniteArticleFor(t MessageType) string {
	if t == TypeOpen || t == TypeUpdate {
		return "an"
	}
	return "a"
}

// encodeMessage puts a header before a body.
func encodeMessage(t MessageType, body []byte) []byte {
	out := make([]byte, headerLength, headerLength+len(body))
	copy(out, headerMarker)
	binary.BigEndian.PutUint16(out[16:], uint16(headerLength+len(body)))
	out[18] = byte(t)
	return append(out, body...)
}

// DecodeRouteRefresh returns the family whose routes the body of a ROUTE-REFRESH asks for. It
// returns false if the message asks for no routes, or for those of another SAFI than unicast.
func DecodeRouteRefresh(body []byte) (AFI, bool) {
	// The second field is 1 or 2 in messages that only mark the start and end of an answer (RFC
	// 7313 section 3.2).
	if len(body) < 4 || body[2] != 0 || body[3] != safiUnicast {
		return 0, false
	}
	return AFI(binary.BigEndian.Uint16(body)), true
}

// EncodeKeepalive returns a KEEPALIVE.
func EncodeKeepalive() []byte { return encodeMessage(TypeKeepalive, nil) }
