package wire

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The size of a ring (TPACKET_V2). Its version 3 hands frames over in blocks, of which one that is not full waits for a
// tick of the kernel, 4 ms or 10 ms: too long for an answer. The ring is not part of the socket's receive buffer, whose
// limit only NET_ADMIN may pass.
const (
	// arpSlot and ndpSlot hold a frame with the 66 bytes that the kernel puts before it, in bytes; both divide a
	// block. ARP is 60 bytes long on the wire; neighbour discovery 86, or more with options that nobody needs here.
	arpSlot = 128
	ndpSlot = 512
	// arpSlots and ndpSlots are how many frames wait while the speaker does not run: of 50,000 a second those of a third,
	// and of a sixth, of a second.
	arpSlots  = 16384
	ndpSlots  = 8192
	blockSize = 1 << 16
)

// ring is where the kernel puts frames, and the one goroutine that takes them knows the next. A slot is the kernel's
// until its status has TP_STATUS_USER, and the speaker's until it is given back.
type ring struct {
	memory []byte
	slot   int
	next   int // offset of the slot that is filled next
}

// newRing gives a socket a ring.
func newRing(fd, slot, slots int) (*ring, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return nil, fmt.Errorf("asking for a ring: %w", err)
	}
	request := unix.TpacketReq{
		Block_size: blockSize, Block_nr: uint32(slots * slot / blockSize), Frame_size: uint32(slot), Frame_nr: uint32(slots),
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return nil, fmt.Errorf("asking for a ring: %w", err)
	}
	memory, err := unix.Mmap(fd, 0, slots*slot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the ring: %w", err)
	}
	return &ring{memory: memory, slot: slot}, nil
}

func (r *ring) header() *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(&r.memory[r.next]))
}

// frame returns the next frame, nil when there is none. It is the caller's until release.
func (r *ring) frame() []byte {
	h := r.header()
	if atomic.LoadUint32(&h.Status)&unix.TP_STATUS_USER == 0 {
		return nil
	}
	from := int(h.Mac)
	to := from + int(h.Snaplen)
	if from > r.slot || to > r.slot { // the kernel cuts a frame to its slot
		to = from
	}
	return r.memory[r.next+from : r.next+to : r.next+to]
}

// release gives the slot of the last frame back to the kernel.
func (r *ring) release() {
	atomic.StoreUint32(&r.header().Status, unix.TP_STATUS_KERNEL)
	if r.next += r.slot; r.next == len(r.memory) {
		r.next = 0
	}
}

// unmap gives the memory back. The ring must not be used any more.
func (r *ring) unmap() {
	_ = unix.Munmap(r.memory) // it was mapped, and whole
	r.memory = nil
}
