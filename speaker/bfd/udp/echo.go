package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// echoSocket sends packets to ourselves through neighbours, whose forwarding planes
// return them (RFC 5881 section 4). It is a packet socket: both addresses are ours, so that the
// kernel would neither send nor accept them over IP. Such a socket sees every packet on its link,
// so the sessions of a link share one.
type echoSocket struct {
	*receivingSocket
	key       echoSocketKey
	userCount int // sessions that use it
}

// echoSocketKey is what the sessions with one echo socket have in common.
type echoSocketKey struct {
	linkIndex int
	ipv6      bool
}

// echoPath is the path of echo packets. It is comparable.
type echoPath struct {
	linkIndex                      int
	localAddress                   netip.Addr
	neighbourHardwareAddress       [8]byte // of the neighbour, padded as in a socket address
	neighbourHardwareAddressLength uint8   // of neighbourHardwareAddress, in bytes
}

// echoSender sends the echo packets of a session.
type echoSender struct {
	socket             *echoSocket
	path               echoPath
	destinationAddress unix.RawSockaddrLinklayer // of the neighbour
	packetBuffer       []byte
}

// SendEcho sends an echo packet.
func (s *sender) SendEcho(payload []byte) error {
	if s.echoSender == nil {
		if err := s.openEchoSender(); err != nil {
			return err
		}
	}
	e := s.echoSender
	e.packetBuffer = appendEchoPacket(e.packetBuffer[:0], e.path.localAddress, s.sourcePort, payload)
	if err := sendNonBlocking(e.socket.fd, e.packetBuffer, unsafe.Pointer(&e.destinationAddress), unix.SizeofSockaddrLinklayer); err != nil {
		s.transport.stopSharingEchoSocket(e.socket)
		s.closeEchoSender()
		return fmt.Errorf("sending an echo packet through %s: %w", s.key, err)
	}
	return nil
}

// closeEchoIfPathChanged closes the echo sender when the path to the neighbour
// has changed. The next packet opens it again.
func (s *sender) closeEchoIfPathChanged() {
	if s.echoSender == nil {
		return
	}
	if now, err := s.lookUpEchoPath(); err != nil || now != s.echoSender.path {
		s.closeEchoSender()
	}
}

func (s *sender) openEchoSender() error {
	path, err := s.lookUpEchoPath()
	if err != nil {
		return err
	}
	socket, err := s.transport.acquireEchoSocket(echoSocketKey{path.linkIndex, path.localAddress.Is6()})
	if err != nil {
		return fmt.Errorf("opening a packet socket for echo packets: %w", err)
	}
	s.echoSender = &echoSender{socket: socket, path: path, destinationAddress: unix.RawSockaddrLinklayer{
		Family: unix.AF_PACKET, Protocol: etherType(path.localAddress.Is6()), Ifindex: int32(path.linkIndex),
		Halen: path.neighbourHardwareAddressLength, Addr: path.neighbourHardwareAddress,
	}}
	return nil
}

func (s *sender) closeEchoSender() {
	if s.echoSender != nil {
		s.transport.releaseEchoSocket(s.echoSender.socket)
		s.echoSender = nil
	}
}

// acquireEchoSocket returns the echo socket of a link, and opens it for its first user.
func (t *Transport) acquireEchoSocket(key echoSocketKey) (*echoSocket, error) {
	socket := t.echoSocketsByKey[key]
	if socket == nil {
		fd, err := openEchoPacketSocket(key)
		if err != nil {
			return nil, err
		}
		r, err := t.addReceivingSocket(fd, func(m receivedMessage) bfd.ReceivedDatagram { return decodeEchoPacket(m, key.ipv6) })
		if err != nil {
			return nil, err
		}
		socket = &echoSocket{r, key, 0}
		t.echoSocketsByKey[key] = socket
	}
	socket.userCount++
	return socket, nil
}

// releaseEchoSocket closes an echo socket when its last user has released it.
func (t *Transport) releaseEchoSocket(socket *echoSocket) {
	if socket.userCount--; socket.userCount == 0 {
		t.stopSharingEchoSocket(socket)
		t.closeReceivingSocket(socket.receivingSocket)
	}
}

// stopSharingEchoSocket gives the socket to no further user, such as after an error.
func (t *Transport) stopSharingEchoSocket(socket *echoSocket) {
	if t.echoSocketsByKey[socket.key] == socket {
		delete(t.echoSocketsByKey, socket.key)
	}
}

// openEchoPacketSocket opens a packet socket that receives echo packets.
func openEchoPacketSocket(key echoSocketKey) (int, error) {
	// The socket receives nothing before it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w (which needs NET_RAW)", err)
	}
	// Without it the kernel copies every packet that the link sends before the filter drops it.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	err = attachFilter(fd, echoFilter(key.ipv6))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: etherType(key.ipv6), Ifindex: key.linkIndex})
	}
	if err != nil {
		_ = unix.Close(fd) // nothing was sent
		return -1, err
	}
	return fd, nil
}

// lookUpEchoPath looks up the link and the hardware address of the neighbour.
func (s *sender) lookUpEchoPath() (echoPath, error) {
	peer := s.key.PeerAddress
	if peer.IsLinkLocalUnicast() {
		return echoPath{}, fmt.Errorf("%w to link-local neighbours: no forwarding plane returns packets of link-local addresses", bfd.ErrEchoUnsupported)
	}
	o := &netlink.RouteGetOptions{Oif: s.boundDeviceName()}
	if s.key.LocalAddress.IsValid() {
		o.SrcAddr = s.key.LocalAddress.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(peer.AsSlice(), o)
	if err != nil || len(routes) == 0 {
		return echoPath{}, fmt.Errorf("looking for the path to %s: %w", peer, err)
	}
	r := routes[0]
	if r.Gw != nil || r.LinkIndex == 0 {
		return echoPath{}, fmt.Errorf("%w to %s, which is on no link of this node", bfd.ErrEchoUnsupported, peer)
	}
	path := echoPath{linkIndex: r.LinkIndex, localAddress: s.key.LocalAddress}
	if !path.localAddress.IsValid() {
		path.localAddress, _ = netip.AddrFromSlice(r.Src)
		path.localAddress = path.localAddress.Unmap()
	}
	if !path.localAddress.IsValid() {
		return echoPath{}, fmt.Errorf("looking for the path to %s: the kernel has no source address for it", peer)
	}
	n, err := readNeighbourTableEntry(r.LinkIndex, peer)
	if err != nil {
		return echoPath{}, fmt.Errorf("looking for the hardware address of %s: %w", peer, err)
	}
	if n == nil || len(n.HardwareAddr) == 0 || n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 {
		return echoPath{}, fmt.Errorf("the hardware address of %s is not known yet", peer)
	}
	path.neighbourHardwareAddressLength = uint8(copy(path.neighbourHardwareAddress[:], n.HardwareAddr))
	return path, nil
}

// readNeighbourTableEntry returns one entry of the neighbour table, nil if there is none. It does
// not list the table, which has thousands of entries on a large link.
func readNeighbourTableEntry(linkIndex int, address netip.Addr) (*netlink.Neigh, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	request.AddData(&netlink.Ndmsg{Family: uint8(addressFamily(address.Is6())), Index: uint32(linkIndex)})
	request.AddData(nl.NewRtAttr(netlink.NDA_DST, address.AsSlice()))
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if errors.Is(err, unix.ENOENT) || err == nil && len(messages) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return netlink.NeighDeserialize(messages[0])
}

// etherType is the protocol in network byte order, as packet sockets use it.
func etherType(v6 bool) uint16 {
	if v6 {
		return binary.NativeEndian.Uint16([]byte{0x86, 0xdd})
	}
	return binary.NativeEndian.Uint16([]byte{0x08, 0x00})
}

const (
	ipv4HeaderLength = 20 // bytes, without options
	ipv6HeaderLength = 40 // bytes, without extension headers
	echoTTL          = 255
)

// ipHeaderLength returns the length of the IP header, in bytes.
func ipHeaderLength(v6 bool) int {
	if v6 {
		return ipv6HeaderLength
	}
	return ipv4HeaderLength
}

// echoFilter accepts incoming UDP packets to the echo port.
func echoFilter(v6 bool) []bpf.Instruction {
	// The first octet has version 4 and no options. protocol is the offset of the protocol.
	first, mask, protocol := uint32(0x45), uint32(0xff), uint32(9)
	if v6 {
		first, mask, protocol = 0x60, 0xf0, 6
	}
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: first, SkipTrue: 5},
		bpf.LoadAbsolute{Off: protocol, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
		bpf.LoadAbsolute{Off: uint32(ipHeaderLength(v6)) + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: echoPort, SkipTrue: 1},
		bpf.RetConstant{Val: maxReadDatagramBytes},
		bpf.RetConstant{Val: 0},
	}
}

// decodeEchoPacket decodes an IP packet that the filter accepted. Its payload identifies the
// session.
func decodeEchoPacket(m receivedMessage, ipv6 bool) bfd.ReceivedDatagram {
	head := min(ipHeaderLength(ipv6)+udpHeaderLength, len(m.payload))
	return bfd.ReceivedDatagram{IsEchoPacket: true, Payload: m.payload[head:]}
}

// appendEchoPacket appends the IP packet from ourselves to ourselves.
func appendEchoPacket(b []byte, local netip.Addr, sourcePort uint16, payload []byte) []byte {
	const networkControl = 0xc0
	begin := len(b)
	size := udpHeaderLength + len(payload)
	if local.Is6() {
		b = binary.BigEndian.AppendUint32(b, 6<<28|networkControl<<20)
		b = binary.BigEndian.AppendUint16(b, uint16(size))
		b = append(b, unix.IPPROTO_UDP, echoTTL)
	} else {
		b = append(b, 0x45, networkControl)
		b = binary.BigEndian.AppendUint16(b, uint16(ipv4HeaderLength+size))
		b = append(b, 0, 0, 0, 0, echoTTL, unix.IPPROTO_UDP, 0, 0)
	}
	addresses := len(b)
	for range 2 {
		if local.Is6() {
			address := local.As16()
			b = append(b, address[:]...)
		} else {
			address := local.As4()
			b = append(b, address[:]...)
		}
	}
	head := len(b)
	if !local.Is6() {
		binary.BigEndian.PutUint16(b[begin+10:], ^addToChecksum(b[begin:head], 0))
	}
	b = binary.BigEndian.AppendUint16(b, sourcePort)
	b = binary.BigEndian.AppendUint16(b, echoPort)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(append(b, 0, 0), payload...)
	// The pseudo-header has both addresses, the length and the
	// protocol (RFC 768, RFC 8200 section 8.1).
	check := ^addToChecksum(b[addresses:], uint16(size)+unix.IPPROTO_UDP)
	if check == 0 {
		check = 0xffff // 0 means no checksum
	}
	binary.BigEndian.PutUint16(b[head+6:], check)
	return b
}

// addToChecksum adds bytes to an Internet checksum (RFC 1071).
func addToChecksum(b []byte, to uint16) uint16 {
	n := uint32(to)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		n += word
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return uint16(n)
}
