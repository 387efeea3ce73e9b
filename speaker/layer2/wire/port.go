package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// packetSocketPort is a socket. One goroutine calls Receive; the owner of the port calls the other
// methods.
type packetSocketPort struct {
	linkName    string
	protocol    neighbourProtocol
	family      ipfamily.Family
	file        *os.File
	rawConn     syscall.RawConn
	memberships *groupMemberships // nil for IPv4

	mu          sync.Mutex // guards the fields below; no frame waits for it
	isReceiving bool
	closed      bool
	receiveRing *receiveRing // Receive uses it while it runs; otherwise it needs mu

	// Write uses these fields. writeBufferedFrameFunc is stored, so that no closure is allocated
	// per frame. It sends writeBuffer and sets writeError.
	writeBufferedFrameFunc func(fd uintptr) bool
	writeBuffer            []byte
	writeError             error

	lostFrames atomic.Uint64
}

// ReceiveFrames calls handle for every frame and sends its answers, until the port fails or is
// closed.
func (p *packetSocketPort) ReceiveFrames(handle func(layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool), isSendingAllowed func() bool) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("reading %s on %q: %w", p.protocol.name, p.linkName, os.ErrClosed)
	}
	p.isReceiving = true
	p.mu.Unlock()
	r := &frameReceiver{packetSocketPort: p, handleFrame: handle, isSendingAllowed: isSendingAllowed}
	r.answerBatch.attachFrameBuffers()
	err := p.rawConn.Read(r.drainRing)
	if err == nil || r.err != nil {
		err = r.err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isReceiving = false
	if p.closed {
		p.receiveRing.unmapMemory()
	}
	return fmt.Errorf("reading %s on %q: %w", p.protocol.name, p.linkName, toEngineError(err))
}

// frameReceiver is the state of a running Receive.
type frameReceiver struct {
	*packetSocketPort
	handleFrame      func(layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool)
	isSendingAllowed func() bool // nil allows all
	answerBatch      sendBatch
	err              error
}

// drainRing handles the frames in the ring. It returns false to be called again when there are
// more. It sends answers when the ring is empty or the batch is full, so that under load one system
// call sends many answers.
func (r *frameReceiver) drainRing(fd uintptr) bool {
	for {
		b := r.receiveRing.nextFrame()
		if b == nil {
			break
		}
		f, ok := r.protocol.decode(b)
		if !ok && r.memberships != nil && isMLDQuery(b) {
			r.memberships.answerMLDQuery()
		}
		r.receiveRing.releaseFrame()
		if !ok {
			continue
		}
		answer, ok := r.handleFrame(f)
		if !ok || ipfamily.FamilyOf(answer.SenderIP) != r.family {
			continue
		}
		if err := r.answerBatch.addFrame(r.protocol.encode, answer); err == nil && r.answerBatch.count < len(r.answerBatch.messages) {
			continue
		}
		if r.sendAnswerBatch(fd); r.err != nil {
			return true
		}
	}
	if r.sendAnswerBatch(fd); r.err != nil {
		return true
	}
	// The ring is also empty after the link went down.
	if code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		r.err = err
	} else if code != 0 {
		r.err = unix.Errno(code)
	}
	return r.err != nil
}

// answerSendTimeoutMilliseconds is how long answers wait for room in the send buffer, in
// milliseconds. The ring receives requests meanwhile.
const answerSendTimeoutMilliseconds = 10

// sendAnswerBatch sends the batch. Answers that find no room in time are lost; the client asks
// again. Answers that may not be sent any more are dropped: the process may have been paused since
// they were added. A pause between this check and the system call cannot be noticed, so the frames
// of that one call are sent.
func (r *frameReceiver) sendAnswerBatch(fd uintptr) {
	for waited := false; r.answerBatch.count > 0; {
		if r.isSendingAllowed != nil && !r.isSendingAllowed() {
			r.answerBatch.count = 0
			return
		}
		sent, err := r.answerBatch.sendFrames(fd)
		if err == nil {
			r.answerBatch.removeSentFrames(sent)
			continue
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(toEngineError(err), layer2.ErrFrameNotSent) && !waited:
			waited = true
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, answerSendTimeoutMilliseconds)
		case errors.Is(toEngineError(err), layer2.ErrFrameNotSent):
			r.lostFrames.Add(uint64(r.answerBatch.count))
			r.answerBatch.count = 0
		default:
			r.err, r.answerBatch.count = err, 0
		}
	}
}

// answerBatchSize is how many answers one system call sends.
const answerBatchSize = 32

// sendBatch has the frames to send together (sendmmsg).
type sendBatch struct {
	count    int
	messages [answerBatchSize]mmsghdr
	vectors  [answerBatchSize]unix.Iovec
	frames   [answerBatchSize][maxFrameBytes]byte
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	header    unix.Msghdr
	sentBytes uint32
}

func (b *sendBatch) attachFrameBuffers() {
	for i := range b.messages {
		b.vectors[i].Base = &b.frames[i][0]
		b.messages[i].header.Iov = &b.vectors[i]
		b.messages[i].header.SetIovlen(1)
	}
}

func (b *sendBatch) addFrame(encode func([]byte, layer2.ARPOrNDPFrame) ([]byte, error), f layer2.ARPOrNDPFrame) error {
	out, err := encode(b.frames[b.count][:0], f)
	if err != nil {
		return err
	}
	b.vectors[b.count].SetLen(len(out))
	b.count++
	return nil
}

// sendFrames sends as many frames as the kernel takes, and returns their number.
func (b *sendBatch) sendFrames(fd uintptr) (int, error) {
	n, _, code := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.messages[0])), uintptr(b.count), 0, 0, 0)
	if code != 0 {
		return 0, code
	}
	return int(n), nil
}

// removeSentFrames removes the first n frames.
func (b *sendBatch) removeSentFrames(n int) {
	for i := n; i < b.count; i++ {
		length := b.vectors[i].Len
		copy(b.frames[i-n][:length], b.frames[i][:length])
		b.vectors[i-n].Len = length
	}
	b.count -= n
}

// WriteFrame sends a frame. If it would block, it returns ErrFrameNotSent.
func (p *packetSocketPort) WriteFrame(f layer2.ARPOrNDPFrame) error {
	if ipfamily.FamilyOf(f.SenderIP) != p.family || ipfamily.FamilyOf(f.TargetIP) != p.family {
		return fmt.Errorf("sending %s on %q: %w: %s and %s are not both %s", p.protocol.name, p.linkName, layer2.ErrFrameNotSent, f.SenderIP, f.TargetIP, p.family)
	}
	b, err := p.protocol.encode(p.writeBuffer[:0], f)
	if err != nil {
		return fmt.Errorf("encoding %s for %q: %w: %w", p.protocol.name, p.linkName, layer2.ErrFrameNotSent, err)
	}
	p.writeBuffer = b
	if err = p.rawConn.Write(p.writeBufferedFrameFunc); err == nil {
		err = p.writeError
	}
	if err != nil {
		return fmt.Errorf("sending %s on %q: %w", p.protocol.name, p.linkName, toEngineError(err))
	}
	return nil
}

func (p *packetSocketPort) writeBufferedFrame(fd uintptr) bool {
	_, p.writeError = unix.Write(int(fd), p.writeBuffer)
	return true
}

// writeMLDReport sends an MLD report. A lost report is followed by another.
func (p *packetSocketPort) writeMLDReport(b []byte) {
	_ = p.rawConn.Write(func(fd uintptr) bool {
		_, _ = unix.Write(int(fd), b)
		return true
	})
}

// JoinGroupOfAddress joins the group to which requests for an IPv6 address are sent.
func (p *packetSocketPort) JoinGroupOfAddress(a netip.Addr) error {
	if p.memberships == nil {
		return nil
	}
	return p.memberships.joinGroupOfAddress(a)
}

// LeaveGroupOfAddress undoes JoinGroupOfAddress.
func (p *packetSocketPort) LeaveGroupOfAddress(a netip.Addr) {
	if p.memberships != nil {
		p.memberships.leaveGroupOfAddress(a)
	}
}

// LostFrameCount counts the frames that found the ring full, and the answers that found the send
// buffer full. Any goroutine may call it.
func (p *packetSocketPort) LostFrameCount() uint64 {
	_ = p.rawConn.Control(func(fd uintptr) { // fails on a closed port, which loses no more
		// Reading the kernel's counters resets them.
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			p.lostFrames.Add(uint64(s.Drops))
		}
	})
	return p.lostFrames.Load()
}

// Close ends Receive. It does not wait for it.
func (p *packetSocketPort) Close() error {
	if p.memberships != nil {
		p.memberships.closeMemberships()
	}
	err := p.file.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && !p.isReceiving && p.receiveRing != nil {
		p.receiveRing.unmapMemory()
	}
	p.closed = true
	return err
}
