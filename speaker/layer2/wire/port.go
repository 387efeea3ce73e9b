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

	"github.com/gantry-lb/gantry/speaker/layer2"
)

// port is one socket. One goroutine calls Receive; the others' methods belong to the port's owner.
type port struct {
	link     string
	protocol protocol
	family   layer2.Family
	file     *os.File
	raw      syscall.RawConn
	groups   *groups // nil for IPv4

	mu        sync.Mutex // guards what follows; nothing takes it for a frame
	receiving bool
	closed    bool
	ring      *ring // Receive's while it runs; then of who holds mu

	// Write's: writeOnce is kept so that no closure is made for a frame, and passes what follows to and fro.
	writeOnce func(fd uintptr) bool
	out       []byte
	writeErr  error

	lost atomic.Uint64
}

// Receive hands every frame to handle, and sends what handle answers, until the port fails or is closed.
func (p *port) Receive(handle func(layer2.Frame) (layer2.Frame, bool)) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("reading %s on %q: %w", p.protocol.name, p.link, os.ErrClosed)
	}
	p.receiving = true
	p.mu.Unlock()
	r := &receiver{port: p, handle: handle}
	r.batch.init()
	err := p.raw.Read(r.drain)
	if err == nil || r.err != nil {
		err = r.err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.receiving = false
	if p.closed {
		p.ring.unmap()
	}
	return fmt.Errorf("reading %s on %q: %w", p.protocol.name, p.link, classify(err))
}

// receiver is a running Receive.
type receiver struct {
	*port
	handle func(layer2.Frame) (layer2.Frame, bool)
	batch  batch
	err    error
}

// drain handles what is in the ring; false asks to be called again when there is more. Answers are sent together when the
// ring is empty or the batch full: under load one system call serves many requests.
func (r *receiver) drain(fd uintptr) bool {
	for {
		b := r.ring.frame()
		if b == nil {
			break
		}
		f, ok := r.protocol.decode(b)
		if !ok && r.groups != nil && isQuery(b) {
			r.groups.queried()
		}
		r.ring.release()
		if !ok {
			continue
		}
		answer, ok := r.handle(f)
		if !ok || layer2.FamilyOf(answer.SenderIP) != r.family {
			continue
		}
		if err := r.batch.add(r.protocol.encode, answer); err == nil && r.batch.n < len(r.batch.messages) {
			continue
		}
		if r.flush(fd); r.err != nil {
			return true
		}
	}
	if r.flush(fd); r.err != nil {
		return true
	}
	// An empty ring is also what a link that went down leaves behind.
	if code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		r.err = err
	} else if code != 0 {
		r.err = unix.Errno(code)
	}
	return r.err != nil
}

// patience is how long answers wait for room in the send buffer, in milliseconds. The ring takes requests in meanwhile.
const patience = 10

// flush sends the batch. What finds no room is lost: its asker asks again.
func (r *receiver) flush(fd uintptr) {
	for waited := false; r.batch.n > 0; {
		sent, err := r.batch.send(fd)
		if err == nil {
			r.batch.drop(sent)
			continue
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(classify(err), layer2.ErrNotSent) && !waited:
			waited = true
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, patience)
		case errors.Is(classify(err), layer2.ErrNotSent):
			r.lost.Add(uint64(r.batch.n))
			r.batch.n = 0
		default:
			r.err, r.batch.n = err, 0
		}
	}
}

// batchSize is how many answers go out with one system call.
const batchSize = 32

// batch is frames to be sent together (sendmmsg).
type batch struct {
	n        int
	messages [batchSize]message
	parts    [batchSize]unix.Iovec
	frames   [batchSize][maxFrame]byte
}

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
}

func (b *batch) init() {
	for i := range b.messages {
		b.parts[i].Base = &b.frames[i][0]
		b.messages[i].header.Iov = &b.parts[i]
		b.messages[i].header.SetIovlen(1)
	}
}

func (b *batch) add(encode func([]byte, layer2.Frame) ([]byte, error), f layer2.Frame) error {
	out, err := encode(b.frames[b.n][:0], f)
	if err != nil {
		return err
	}
	b.parts[b.n].SetLen(len(out))
	b.n++
	return nil
}

// send sends as many as the kernel takes.
func (b *batch) send(fd uintptr) (int, error) {
	n, _, code := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.messages[0])), uintptr(b.n), 0, 0, 0)
	if code != 0 {
		return 0, code
	}
	return int(n), nil
}

// drop forgets the first n frames.
func (b *batch) drop(n int) {
	for i := n; i < b.n; i++ {
		length := b.parts[i].Len
		copy(b.frames[i-n][:length], b.frames[i][:length])
		b.parts[i-n].Len = length
	}
	b.n -= n
}

// Write sends a frame, or answers ErrNotSent when it would have to wait.
func (p *port) Write(f layer2.Frame) error {
	if layer2.FamilyOf(f.SenderIP) != p.family || layer2.FamilyOf(f.TargetIP) != p.family {
		return fmt.Errorf("sending %s on %q: %w: %s and %s are not both %s", p.protocol.name, p.link, layer2.ErrNotSent, f.SenderIP, f.TargetIP, p.family)
	}
	b, err := p.protocol.encode(p.out[:0], f)
	if err != nil {
		return fmt.Errorf("encoding %s for %q: %w: %w", p.protocol.name, p.link, layer2.ErrNotSent, err)
	}
	p.out = b
	if err = p.raw.Write(p.writeOnce); err == nil {
		err = p.writeErr
	}
	if err != nil {
		return fmt.Errorf("sending %s on %q: %w", p.protocol.name, p.link, classify(err))
	}
	return nil
}

func (p *port) send(fd uintptr) bool {
	_, p.writeErr = unix.Write(int(fd), p.out)
	return true
}

// tell sends a report to the switches; one that is lost is followed by another.
func (p *port) tell(b []byte) {
	_ = p.raw.Write(func(fd uintptr) bool {
		_, _ = unix.Write(int(fd), b)
		return true
	})
}

// Join lets questions about an IPv6 address in.
func (p *port) Join(a netip.Addr) error {
	if p.groups == nil {
		return nil
	}
	return p.groups.join(a)
}

// Leave keeps them out again.
func (p *port) Leave(a netip.Addr) {
	if p.groups != nil {
		p.groups.leave(a)
	}
}

// Lost counts the frames that found the ring full, and the answers that found no room. Any goroutine may call it.
func (p *port) Lost() uint64 {
	_ = p.raw.Control(func(fd uintptr) { // a closed port has lost what it has lost
		// Reading the kernel's counters sets them back.
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			p.lost.Add(uint64(s.Drops))
		}
	})
	return p.lost.Load()
}

// Close ends Receive, and waits for nobody.
func (p *port) Close() error {
	if p.groups != nil {
		p.groups.close()
	}
	err := p.file.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && !p.receiving && p.ring != nil {
		p.ring.unmap()
	}
	p.closed = true
	return err
}
