package message

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func exampleOpenWithAllCapabilities() OpenMessage {
	return OpenMessage{
		ASN: 4200000001, HoldSeconds: 90, RouterID: netip.MustParseAddr("10.0.0.1"), Families: []AFI{FamilyIPv4, FamilyIPv6}, SupportsFourOctetASN: true, SupportsRouteRefresh: true, SupportsExtendedNextHop: true, SupportsLinkLocalNextHop: true,
		GracefulRestart: &GracefulRestartCapability{SenderHasRestarted: true, GracefulNotification: true, RestartSeconds: 120, ForwardingKeptByFamily: map[AFI]bool{FamilyIPv4: true, FamilyIPv6: true}},
	}
}

func TestOpenRoundTrip(t *testing.T) {
	plain := OpenMessage{ASN: 64512, HoldSeconds: 0, RouterID: netip.MustParseAddr("192.0.2.1")}
	for name, o := range map[string]OpenMessage{"all capabilities": exampleOpenWithAllCapabilities(), "no capability": plain} {
		o.HasMultiprotocol = len(o.Families) > 0
		m, err := ReadMessage(bytes.NewReader(o.Encode()), make([]byte, MaxMessageLength))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeOpen(BodyOf(m)); err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%s: it is %+v (%v), want %+v", name, got, err, o)
		}
	}
}

// TestGracefulRestartNamesIPv4WithoutMultiprotocol checks that a router also keeps the IPv4 routes
// of a session without the multiprotocol capability.
func TestGracefulRestartNamesIPv4WithoutMultiprotocol(t *testing.T) {
	o := exampleOpenWithAllCapabilities()
	o.Families, o.GracefulRestart.ForwardingKeptByFamily = nil, map[AFI]bool{FamilyIPv4: true}
	got, err := DecodeOpen(BodyOf(o.Encode()))
	if err != nil || !reflect.DeepEqual(got.GracefulRestart, o.GracefulRestart) {
		t.Errorf("the router reads %+v (%v)", got.GracefulRestart, err)
	}
}

func TestInvalidOpenIsExplained(t *testing.T) {
	for name, c := range map[string]struct {
		body    string // in hexadecimal digits
		code    uint8
		subcode uint8
		want    string
	}{
		"too short":                    {"04fc", CodeMessageHeaderError, 2, "too short"},
		"another version":              {"03fc00005a0a00000100", CodeOpenMessageError, 1, "version 3"},
		"a hold time of a second":      {"04fc0000010a00000100", CodeOpenMessageError, 6, "hold time of 1 s"},
		"the AS number 0":              {"040000005a0a00000100", CodeOpenMessageError, 2, "AS number is 0"},
		"no identifier":                {"04fc00005a0000000000", CodeOpenMessageError, 3, "0.0.0.0"},
		"a length beyond the end":      {"04fc00005a0a00000105", CodeOpenMessageError, 0, "length of its optional parameters"},
		"a parameter that is cut off":  {"04fc00005a0a000001020205", CodeOpenMessageError, 0, "cut off"},
		"a capability that is cut off": {"04fc00005a0a0000010402024105", CodeOpenMessageError, 0, "capability in its OPEN is cut off"},
	} {
		body, err := hex.DecodeString(c.body)
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeOpen(body)
		var f *Notification
		if !errors.As(err, &f) || f.Code != c.code || f.Subcode != c.subcode || !strings.Contains(f.Error(), c.want) {
			t.Errorf("%s: %v (%+v), want %d/%d with %q", name, err, f, c.code, c.subcode, c.want)
		}
	}
}

func TestUnknownCapabilitiesAreIgnored(t *testing.T) {
	// The capabilities are 72 and 71.
	body, _ := hex.DecodeString("04fc00005a0a0000010a" + "02084804deadbeef4700")
	if o, err := DecodeOpen(body); err != nil || o.ASN != 64512 || len(o.Families) != 0 {
		t.Errorf("%+v (%v)", o, err)
	}
	// The lengths have two octets (RFC 9072).
	wide, _ := hex.DecodeString("04fc00005a0a000001ffff000902000641040000fde8")
	if o, err := DecodeOpen(wide); err != nil || o.ASN != 65000 || !o.SupportsFourOctetASN {
		t.Errorf("%+v (%v)", o, err)
	}
}

func TestNotificationDescriptions(t *testing.T) {
	for want, f := range map[string]*Notification{
		`cease, administrative shutdown ("back at noon")`: NewCeaseNotification(CeaseShutdown, "back at noon"),
		`cease, hard reset ("back at noon")`:              NewCeaseNotification(CeaseShutdown, "back at noon").AsHardReset(),
		"cease, BFD down":                                 NewCeaseNotification(CeaseBFDDown, "is not sent"),
		"hold timer expired":                              {Code: CodeHoldTimerExpired},
		"error code 99, subcode 7":                        {Code: 99, Subcode: 7},
		"cease, administrative reset":                     {Code: CodeCease, Subcode: CeaseReset, Data: []byte{200, 'x'}},
		`cease, administrative reset ("a b")`:             {Code: CodeCease, Subcode: CeaseReset, Data: []byte("\x03a\nb")},
		"UPDATE message error, malformed AS_PATH":         {Code: CodeUpdateMessageError, Subcode: 11},
		"cease, maximum number of prefixes reached":       {Code: CodeCease, Subcode: 1},
		"OPEN message error, bad peer AS":                 {Code: CodeOpenMessageError, Subcode: 2},
	} {
		m, err := ReadMessage(bytes.NewReader(f.Encode()), make([]byte, MaxMessageLength))
		if err != nil {
			t.Fatal(err)
		}
		if got := DecodeNotification(BodyOf(m)).Description(); got != want {
			t.Errorf("it says %q, want %q", got, want)
		}
	}
	if n := len(NewCeaseNotification(CeaseShutdown, strings.Repeat("ü", 200)).Data); n > 256 {
		t.Errorf("a long text takes %d bytes, more than RFC 9003 allows", n)
	}
}

// TestReaderTakesMessagesOfAllLengths reads short and long messages by turns.
func TestReaderTakesMessagesOfAllLengths(t *testing.T) {
	var in, want []byte
	for _, length := range []int{4, initialReaderBufferBytes, 4, MaxMessageLength - headerLength, 4, 200} {
		in = append(append(in, encodeMessage(TypeUpdate, bytes.Repeat([]byte{byte(length)}, length))...), EncodeKeepalive()...)
	}
	want = bytes.Clone(in)
	r := NewReader(bytes.NewReader(in))
	for len(want) > 0 {
		m, err := r.ReadMessage()
		if err != nil || !bytes.HasPrefix(want, m) {
			t.Fatalf("read %x, %v; want the beginning of %x", m, err, want)
		}
		want = want[len(m):]
	}
	if m, err := r.ReadMessage(); err != io.EOF {
		t.Errorf("after the last message: %x, %v", m, err)
	}
}

// FuzzReadMessage reads arbitrary bytes as messages. ReadMessage must not panic, read
// beyond a message, or return a message that its type does not allow.
func FuzzReadMessage(f *testing.F) {
	o := exampleOpenWithAllCapabilities()
	f.Add(o.Encode())
	f.Add(EncodeKeepalive())
	f.Add(NewCeaseNotification(CeaseShutdown, "text").AsHardReset().Encode())
	f.Add(append(encodeMessage(TypeUpdate, []byte{0, 0, 0, 0}), EncodeKeepalive()...))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, read := bytes.NewReader(in), 0
		messages := NewReader(r)
		for {
			m, err := messages.ReadMessage()
			if err != nil {
				var fault *Notification
				if !errors.As(err, &fault) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("the error is %v", err)
				}
				return
			}
			if read += len(m); len(in)-r.Len() != read {
				t.Fatalf("%d bytes were read for %d of messages", len(in)-r.Len(), read)
			}
			switch TypeOf(m) {
			case TypeOpen:
				if o, err := DecodeOpen(BodyOf(m)); err == nil && !o.RouterID.Is4() {
					t.Fatalf("an OPEN without an identifier passed: %+v", o)
				}
			case TypeNotification:
				_ = DecodeNotification(BodyOf(m)).Description()
			}
		}
	})
}
