package wire

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The size of a ring (TPACKET_V2). Version 3 delivers frames in blocks. It delays a block that is
// not full until a tick of the kernel, 4 ms or 10 ms, which is too long for an answer. The ring
// does not count against the socket's receive buffer, whose limit only NET_ADMIN may exceed.
const (
	// The slot sizes are in bytes. A slot has the 66 bytes that the kernel puts before a frame, and
	// the frame: 60 bytes for ARP, 86 or more for neighbour discovery. Both sizes divide
	// ringBlockBytes.
	arpRingSlotBytes = 128
	ndpRingSlotBytes = 512
	// The slot counts are the frames that the ring holds while the speaker does not run: at 50,000
	// frames per second, those of a third and of a sixth of a second.
	arpRingSlotCount = 16384
	ndpRingSlotCount = 8192
	ringBlockBytes   = 1 << 16
)

// receiveRing is the memory into which the kernel writes frames. One goroutine reads
// it. A slot belongs to the kernel until its status has TP_STATUS_USER, and then to
// the speaker until releaseFrame.
type receiveRing struct {
	memory         []byte
	slotBytes      int
	nextSlotOffset int // offset of the slot that is filled next
}

// newReceiveRing gives a ring to a socket.
func newReceiveRing(fd, slot, slots int) (*receiveRing, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return nil, fmt.Errorf("setting up the receive ring: %w", err)
	}
	request := unix.TpacketReq{
		Block_size: ringBlockBytes, Block_nr: uint32(slots * slot / ringBlockBytes), Frame_size: uint32(slot), Frame_nr: uint32(slots),
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return nil, fmt.Errorf("setting up the receive ring: %w", err)
	}
	memory, err := unix.Mmap(fd, 0, slots*slot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the ring: %w", err)
	}
	return &receiveRing{memory: memory, slotBytes: slot}, nil
}

func (r *receiveRing) currentSlotHeader() *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(&r.memory[r.nextSlotOffset]))
}

// nextFrame returns the next frame, or nil when there is none. The frame is valid
// until releaseFrame.
func (r *receiveRing) nextFrame() []byte {
	h := r.currentSlotHeader()
	if atomic.LoadUint32(&h.Status)&unix.TP_STATUS_USER == 0 {
		return nil
	}
	from := int(h.Mac)
	to := from + int(h.Snaplen)
	if from > r.slotBytes || to > r.slotBytes { // the kernel truncates a frame to its slot
		to = from
	}
	return r.memory[r.nextSlotOffset+from : r.nextSlotOffset+to : r.nextSlotOffset+to]
}

// releaseFrame returns the slot of the last frame to the kernel.
func (r *receiveRing) releaseFrame() {
	atomic.StoreUint32(&r.currentSlotHeader().Status, unix.TP_STATUS_KERNEL)
	if r.nextSlotOffset += r.slotBytes; r.nextSlotOffset == len(r.memory) {
		r.nextSlotOffset = 0
	}
}

// unmapMemory frees the memory. The ring must not be used after it.
func (r *receiveRing) unmapMemory() {
	_ = unix.Munmap(r.memory) // cannot fail: the memory was mapped as a whole
	r.memory = nil
}
