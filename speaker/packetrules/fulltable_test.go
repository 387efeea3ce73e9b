package packetrules

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// statusOfAnswered are the flags of an entry that the kernel does not remove to make room: it is
// confirmed, has seen an answer, and is assured.
const statusOfAnswered = 1<<3 | statusSeenReply | 1<<2

// fillConnectionTracking adds entries of strangers to connection tracking, in the namespace of the
// caller, until it is full. The limit is one for the machine, so it cannot be lowered.
func fillConnectionTracking() error {
	limit, err := readConnectionTrackingNumber("max")
	if err != nil {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := errors.Join(conn.SetWriteBuffer(sendBufferBytes), conn.SetReadBuffer(sendBufferBytes)); err != nil {
		return err
	}
	const entriesPerMessage = 2000
	for next := 0; ; {
		var batch []netlink.Message
		for range entriesPerMessage {
			m, err := encodeStrangersEntry(next)
			if err != nil {
				return err
			}
			batch, next = append(batch, m), next+1
		}
		if _, err := conn.SendMessages(batch); err != nil {
			return err
		}
		if count, err := readConnectionTrackingNumber("count"); err != nil || count >= limit {
			return err
		}
	}
}

func readConnectionTrackingNumber(name string) (int, error) {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// encodeStrangersEntry returns the message that adds the i-th flow of UDP between strangers.
func encodeStrangersEntry(i int) (netlink.Message, error) {
	const portsPerAddress = 50000
	source := []byte{100, 64, byte(i / portsPerAddress), 1}
	target := []byte{100, 65, 0, 1}
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	addTuple := func(kind uint16, source, target []byte, sourcePort, targetPort uint16) {
		e.Nested(kind, func(e *netlink.AttributeEncoder) error {
			e.Nested(nl.CTA_TUPLE_IP, func(e *netlink.AttributeEncoder) error {
				e.Bytes(nl.CTA_IP_V4_SRC, source)
				e.Bytes(nl.CTA_IP_V4_DST, target)
				return nil
			})
			e.Nested(nl.CTA_TUPLE_PROTO, func(e *netlink.AttributeEncoder) error {
				e.Uint8(nl.CTA_PROTO_NUM, unix.IPPROTO_UDP)
				e.Uint16(nl.CTA_PROTO_SRC_PORT, sourcePort)
				e.Uint16(nl.CTA_PROTO_DST_PORT, targetPort)
				return nil
			})
			return nil
		})
	}
	port := uint16(1 + i%portsPerAddress)
	addTuple(nl.CTA_TUPLE_ORIG, source, target, port, 9)
	addTuple(nl.CTA_TUPLE_REPLY, target, source, 9, port)
	e.Uint32(nl.CTA_TIMEOUT, 600)
	e.Uint32(nl.CTA_STATUS, statusOfAnswered)
	b, err := e.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_NEW, Flags: netlink.Request | netlink.Create},
		Data:   append([]byte{unix.AF_INET, 0, 0, 0}, b...),
	}, err
}

// TestFullConnectionTrackingDelaysConnections: a full table costs all connections of the node, with
// and without these rules. The rules stand all the same, and act once there is room.
func TestFullConnectionTrackingDelaysConnections(t *testing.T) {
	t.Run("new connections", func(t *testing.T) {
		n := newTestNode(t, testFamilies[0])
		n.namespace.MustRunInside(fillConnectionTracking)
		p := n.steeredPort(intent.TCP)
		n.steer(p)
		n.namespace.MustRunInside(func() error {
			if _, err := n.writer.DeleteConnectionsToDeadEndpoints(intent.Steering{p}); err != nil {
				t.Errorf("the connections to dead endpoints in a full table: %v", err)
			}
			return nil
		})
		n.mustNotConnect(n.client, "the table is full: this test shows nothing")
		n.namespace.MustRunInside(func() error { return vnetlink.ConntrackTableFlush(vnetlink.ConntrackTable) })
		for range 10 {
			n.mustConnect(5 * time.Second)
		}
	})
	t.Run("open connections", func(t *testing.T) {
		s := newTestSegment(t, testFamilies[0])
		a, b := s.nodes[0], s.nodes[1]
		s.moveAddressTo(a)
		conn := s.open()
		s.mustBeAnsweredBy(conn, a, "before the move")
		b.MustRunInside(fillConnectionTracking)
		s.forward(b, a, nil)
		s.moveAddressTo(b)
		var failed net.Error
		if got, err := ask(conn, unansweredTimeout); !errors.As(err, &failed) || !failed.Timeout() {
			t.Errorf("the table of b is full, and the answer is %q, %v: this test shows nothing", got, err)
		}
		b.MustRunInside(func() error { return vnetlink.ConntrackTableFlush(vnetlink.ConntrackTable) })
		// the node has got both requests by now, perhaps as one
		if got, err := ask(conn, 5*time.Second); err != nil || !strings.HasPrefix(got, a.name) {
			t.Errorf("once there is room, the answer is %q, %v; want it from %s", got, err, a.name)
		}
	})
}
