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
	// arpSlotSize and ndpSlotSize hold a frame with the 66 bytes that the kernel puts before it, in bytes; both divide a
	// block. ARP is 60 bytes long on the wire; neighbour discovery 86, or more with options that nobody needs here.
	arpSlotSize = 128
	ndpSlotSize = 512
	// arpSlotCount and ndpSlotCount are how many frames wait while the speaker does not run: of 50,000 a second those of a third,
	// and of a sixth, of a second.
	arpSlotCount = 16384
	ndpSlotCount = 8192
	blockSize    = 1 << 16
)

// receiveRing is where the kernel puts frames, and the one goroutine that takes them knows the next. A slot is the kernel's
// until its status has TP_STATUS_USER, and the speaker's until it is given back.
type receiveRing struct {
	memory     []byte
	slotSize   int
	nextOffset int // offset of the slot that is filled next
}

// newReceiveRing gives a socket a ring.
func newReceiveRing(fd, slot, slots int) (*receiveRing, error) {
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
	return &receiveRing{memory: memory, slotSize: slot}, nil
}

func (r *receiveRing) slotHeader() *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(&r.memory[r.nextOffset]))
}

// nextFrame returns the next frame, nil when there is none. It is the caller's until release.
func (r *receiveRing) nextFrame() []byte {
	h := r.slotHeader()
	if atomic.LoadUint32(&h.Status)&unix.TP_STATUS_USER == 0 {
		return nil
	}
	from := int(h.Mac)
	to := from + int(h.Snaplen)
	if from > r.slotSize || to > r.slotSize { // the kernel cuts a frame to its slot
		to = from
	}
	return r.memory[r.nextOffset+from : r.nextOffset+to : r.nextOffset+to]
}

// releaseFrame gives the slot of the last frame back to the kernel.
func (r *receiveRing) releaseFrame() {
	atomic.StoreUint32(&r.slotHeader().Status, unix.TP_STATUS_KERNEL)
	if r.nextOffset += r.slotSize; r.nextOffset == len(r.memory) {
		r.nextOffset = 0
	}
}

// unmapMemory gives the memory back. The ring must not be used any more.
func (r *receiveRing) unmapMemory() {
	_ = unix.Munmap(r.memory) // it was mapped, and whole
	r.memory = nil
}
