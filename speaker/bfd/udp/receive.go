package udp

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

const (
	// datagramBatchSize is how many datagrams one system call reads at most.
	datagramBatchSize = 32
	// maxReadDatagramBytes is how much of a datagram is read, in bytes: a
	// packet with the largest authentication section is shorter.
	maxReadDatagramBytes = 512
	// ancillaryBufferBytes is the room for the ancillary data of a datagram, in bytes.
	ancillaryBufferBytes = 128
)

// receivingSocket is a receiving socket.
type receivingSocket struct {
	fd int
	// decodeFunc returns a datagram of the socket. If the datagram is malformed, fields are
	// missing that no accepted datagram lacks.
	decodeFunc func(m receivedMessage) bfd.ReceivedDatagram
}

// receivedMessage is a datagram and what the kernel says about it. It is valid until the next
// readFrom of its batch.
type receivedMessage struct{ payload, sourceAddress, ancillaryData []byte }

// addReceivingSocket waits for datagrams on a non-blocking socket. It takes ownership of the
// socket.
func (t *Transport) addReceivingSocket(fd int, decode func(m receivedMessage) bfd.ReceivedDatagram) (*receivingSocket, error) {
	if err := t.waiter.addFile(fd); err != nil {
		_ = unix.Close(fd) // nothing was received
		return nil, fmt.Errorf("waiting for BFD packets: %w", err)
	}
	r := &receivingSocket{fd, decode}
	t.receivingSockets = append(t.receivingSockets, r)
	return r, nil
}

// closeReceivingSocket closes the socket. Its unread datagrams are lost.
func (t *Transport) closeReceivingSocket(r *receivingSocket) {
	isClosed := func(o *receivingSocket) bool { return o == r }
	t.receivingSockets = slices.DeleteFunc(t.receivingSockets, isClosed)
	t.readableSockets = slices.DeleteFunc(t.readableSockets, isClosed)
	if t.batchSocket == r {
		t.batch.discardRest()
	}
	t.waiter.removeFile(r.fd)
	_ = unix.Close(r.fd)
}

// Receive returns the next datagram. It reads the sockets in turn.
func (t *Transport) Receive() (bfd.ReceivedDatagram, bool) {
	for {
		if m, ok := t.batch.next(); ok {
			return t.batchSocket.decodeFunc(m), true
		}
		if len(t.readableSockets) == 0 {
			return bfd.ReceivedDatagram{}, false
		}
		r := t.readableSockets[0]
		t.readableSockets = slices.Delete(t.readableSockets, 0, 1)
		t.batchSocket = r
		if t.batch.readFrom(r.fd) == datagramBatchSize { // there may be more
			t.readableSockets = append(t.readableSockets, r)
		}
	}
}

// datagramBatch has the datagrams that one system call read (recvmmsg). Make it with
// newDatagramBatch.
type datagramBatch struct {
	nextIndex, count int
	messages         [datagramBatchSize]mmsghdr
	vectors          [datagramBatchSize]unix.Iovec
	payloads         [datagramBatchSize][maxReadDatagramBytes]byte
	sourceAddresses  [datagramBatchSize][unix.SizeofSockaddrInet6]byte
	ancillaryData    [datagramBatchSize][ancillaryBufferBytes]byte
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	header        unix.Msghdr
	receivedBytes uint32
}

func newDatagramBatch() *datagramBatch {
	b := &datagramBatch{}
	for i := range b.messages {
		h := &b.messages[i].header
		b.vectors[i].Base = &b.payloads[i][0]
		b.vectors[i].SetLen(maxReadDatagramBytes)
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
		h.Name, h.Control = &b.sourceAddresses[i][0], &b.ancillaryData[i][0]
		b.resetLengths(i)
	}
	return b
}

// resetLengths gives the kernel the whole room for a datagram again.
func (b *datagramBatch) resetLengths(i int) {
	h := &b.messages[i].header
	h.Namelen = unix.SizeofSockaddrInet6
	h.SetControllen(ancillaryBufferBytes)
}

// readFrom reads the datagrams that wait in a socket, and returns their number. After an error
// there are none.
func (b *datagramBatch) readFrom(fd int) int {
	for i := range b.messages[:b.count] { // those that the kernel filled
		b.resetLengths(i)
	}
	b.nextIndex = 0
	b.count = receiveNonBlocking(fd, b.messages[:])
	return b.count
}

// hasNext reports whether next returns a datagram.
func (b *datagramBatch) hasNext() bool { return b.nextIndex < b.count }

// next returns the next datagram.
func (b *datagramBatch) next() (receivedMessage, bool) {
	if !b.hasNext() {
		return receivedMessage{}, false
	}
	i := b.nextIndex
	b.nextIndex++
	m := &b.messages[i]
	return receivedMessage{
		payload:       b.payloads[i][:m.receivedBytes],
		sourceAddress: b.sourceAddresses[i][:min(m.header.Namelen, unix.SizeofSockaddrInet6)],
		ancillaryData: b.ancillaryData[i][:m.header.Controllen],
	}, true
}

// discardRest drops the datagrams that next has not returned.
func (b *datagramBatch) discardRest() { b.nextIndex = b.count }
