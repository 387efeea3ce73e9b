package bgp

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// brokenConn is a connection on which every read and every write fails.
type brokenConn struct {
	Conn
	err error
}

func (c brokenConn) SetDeadline(time.Time) error      { return nil }
func (c brokenConn) SetWriteDeadline(time.Time) error { return nil }
func (c brokenConn) Read([]byte) (int, error)         { return 0, c.err }
func (c brokenConn) Write([]byte) (int, error)        { return 0, c.err }

// The port of this node is another one in each attempt to connect. The text of a failure is the
// same all the same: each text is written into the conditions of all Services.
func TestTextOfAFailureDoesNotChangeWithThePort(t *testing.T) {
	for name, c := range map[string]struct {
		cause      syscall.Errno
		explain    func(c Conn, err error) error
		wantReason names.Reason
		wantText   string
	}{
		"the router resets the connection before our OPEN": {
			syscall.EPIPE, func(c Conn, _ error) error {
				_, err := exchangeOpens(c, &messageCounter{}, message.OpenMessage{RouterID: netip.MustParseAddr("192.0.2.1")}, nil)
				return err
			}, names.ReasonConnectionLost, "sending our OPEN: write: broken pipe",
		},
		"the network fails before the router's OPEN": {
			syscall.EHOSTUNREACH, func(_ Conn, err error) error { return explainMissingRouterOpen(err) }, names.ReasonUnreachable, "write: no route to host",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, port := range []int{40001, 40002} {
				cause := &net.OpError{
					Op: "write", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: port},
					Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 254), Port: 179}, Err: os.NewSyscallError("write", c.cause),
				}
				err := c.explain(brokenConn{err: cause}, cause)
				if got := err.Error(); got != c.wantText || strings.Contains(got, "4000") {
					t.Errorf("from port %d: the text is %q, want %q", port, got, c.wantText)
				}
				if got := reasonOfFailure(err); got != c.wantReason {
					t.Errorf("from port %d: the Reason is %s, want %s", port, got, c.wantReason)
				}
			}
		})
	}
}
