package packetrules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// statusSeenReply is IPS_SEEN_REPLY: an answer to the connection has come.
const statusSeenReply = 1 << 1

// nfgenmsgBytes is the length of the header of a message about connection tracking.
const nfgenmsgBytes = 4

// trackedConnection is an entry of connection tracking.
type trackedConnection struct {
	service    intent.ServiceAddressPort // where the client connected to
	endpoint   netip.AddrPort            // where the answers come from
	isAnswered bool
	// tupleAttribute and zoneAttribute identify the entry for the kernel.
	tupleAttribute, zoneAttribute []byte
}

// DeleteConnectionsToDeadEndpoints deletes the entries of connection tracking that send clients of
// the steered ports to dead endpoints, so that the next packet chooses anew. It leaves connections
// alone over which answers have come: the node may live although it seems dead. Only those of UDP
// to endpoints that are dead for long are deleted too. It returns how many entries it deleted.
func (w *Writer) DeleteConnectionsToDeadEndpoints(s intent.Steering) (deleted int, err error) {
	ports := map[intent.ServiceAddressPort]*intent.SteeredPort{}
	families := map[uint8]bool{}
	for i := range s {
		ports[s[i].ServiceAddressPort] = &s[i]
		families[headerFamily(s[i].Address).nfproto] = true
	}
	for f := range families {
		var doomed []trackedConnection
		err = errors.Join(err, forEachConnection(f, func(c trackedConnection) {
			if p := ports[c.service]; p != nil && c.isDoomed(p) {
				doomed = append(doomed, c)
			}
		}))
		for _, c := range doomed {
			switch failed := deleteConnection(f, c); {
			case failed == nil:
				deleted++
			case !errors.Is(failed, unix.ENOENT): // it may have ended meanwhile
				err = errors.Join(err, failed)
			}
		}
	}
	return deleted, err
}

// isDoomed reports whether the connection to a steered port has to choose anew.
func (c trackedConnection) isDoomed(p *intent.SteeredPort) bool {
	if c.isAnswered {
		return p.Protocol == intent.UDP && slices.Contains(p.LongDeadEndpoints, c.endpoint)
	}
	return slices.Contains(p.DeadEndpoints, c.endpoint)
}

// forEachConnection calls visit for each entry of an address family.
func forEachConnection(nfproto uint8, visit func(trackedConnection)) error {
	req := newConntrackRequest(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, nfproto)
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(message []byte) bool {
		if c, ok := parseConnection(message); ok {
			visit(c)
		}
		return true
	})
	if err != nil && !errors.Is(err, unix.EINTR) { // EINTR: entries came and went meanwhile
		return fmt.Errorf("listing tracked connections: %w", err)
	}
	return nil
}

func newConntrackRequest(operation, flags int, nfproto uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: nfproto, Version: nl.NFNETLINK_V0})
	return req
}

func deleteConnection(nfproto uint8, c trackedConnection) error {
	req := newConntrackRequest(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, nfproto)
	req.AddData(nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, c.tupleAttribute))
	if c.zoneAttribute != nil {
		req.AddData(nl.NewRtAttr(nl.CTA_ZONE, c.zoneAttribute))
	}
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return fmt.Errorf("deleting the tracked connection to %s: %w", c.endpoint, err)
	}
	return nil
}

// parseConnection parses a message. It returns false for other protocols than those of Services.
func parseConnection(message []byte) (c trackedConnection, ok bool) {
	if len(message) < nfgenmsgBytes {
		return c, false
	}
	var original, reply flowTuple
	for kind, value := range attributesOf(message[nfgenmsgBytes:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			original, c.tupleAttribute = parseTuple(value), slices.Clone(value)
		case nl.CTA_TUPLE_REPLY:
			reply = parseTuple(value)
		case nl.CTA_STATUS:
			c.isAnswered = len(value) == 4 && binary.BigEndian.Uint32(value)&statusSeenReply != 0
		case nl.CTA_ZONE:
			c.zoneAttribute = slices.Clone(value)
		}
	}
	c.service = intent.ServiceAddressPort{Address: original.target, Protocol: original.protocol, Port: original.targetPort}
	c.endpoint = netip.AddrPortFrom(reply.source, reply.sourcePort)
	return c, original.target.IsValid() && reply.source.IsValid()
}

// flowTuple is one direction of a connection.
type flowTuple struct {
	source, target         netip.Addr
	protocol               intent.TransportProtocol
	sourcePort, targetPort uint16
}

func parseTuple(b []byte) (t flowTuple) {
	for kind, value := range attributesOf(b) {
		for field, v := range attributesOf(value) {
			switch {
			case kind == nl.CTA_TUPLE_IP && (field == nl.CTA_IP_V4_SRC || field == nl.CTA_IP_V6_SRC):
				t.source, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_IP && (field == nl.CTA_IP_V4_DST || field == nl.CTA_IP_V6_DST):
				t.target, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_PROTO && field == nl.CTA_PROTO_NUM && len(v) == 1:
				t.protocol = intent.TransportProtocol(v[0])
			case kind == nl.CTA_TUPLE_PROTO && field == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
				t.sourcePort = binary.BigEndian.Uint16(v)
			case kind == nl.CTA_TUPLE_PROTO && field == nl.CTA_PROTO_DST_PORT && len(v) == 2:
				t.targetPort = binary.BigEndian.Uint16(v)
			}
		}
	}
	return t
}

// attributesOf yields the netlink attributes in b. It stops at the first that is cut off.
func attributesOf(b []byte) func(yield func(kind int, value []byte) bool) {
	return func(yield func(int, []byte) bool) {
		for len(b) >= syscall.SizeofRtAttr {
			length, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if length < syscall.SizeofRtAttr || length > len(b) {
				return
			}
			if !yield(int(kind&nl.NLA_TYPE_MASK), b[syscall.SizeofRtAttr:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}
