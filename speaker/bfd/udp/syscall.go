package udp

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of this file never block. They are made without the runtime's preparation for
// calls that may block: that wakes a thread of the runtime each time that a program at rest sends
// or receives, which costs more than the call.

// rawSockaddr is an address in the form of the kernel.
type rawSockaddr struct {
	bytes  [unix.SizeofSockaddrInet6]byte
	length uintptr
}

// newRawSockaddr returns an address for system calls. link is the index of a link-local address's
// link.
func newRawSockaddr(a netip.Addr, port uint16, link int) *rawSockaddr {
	s := &rawSockaddr{}
	binary.BigEndian.PutUint16(s.bytes[2:], port)
	if a.Is4() {
		binary.NativeEndian.PutUint16(s.bytes[:], unix.AF_INET)
		address := a.As4()
		copy(s.bytes[4:], address[:])
		s.length = unix.SizeofSockaddrInet4
		return s
	}
	binary.NativeEndian.PutUint16(s.bytes[:], unix.AF_INET6)
	address := a.As16()
	copy(s.bytes[8:], address[:])
	if a.IsLinkLocalUnicast() {
		binary.NativeEndian.PutUint32(s.bytes[24:], uint32(link))
	}
	s.length = unix.SizeofSockaddrInet6
	return s
}

// sendNonBlocking sends a datagram, which is not empty. If there is no room for it, it returns an
// error.
func sendNonBlocking(fd int, datagram []byte, to unsafe.Pointer, toLength uintptr) error {
	_, _, code := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&datagram[0])), uintptr(len(datagram)), unix.MSG_DONTWAIT, uintptr(to), toLength)
	if code != 0 {
		return code
	}
	return nil
}

// receiveNonBlocking reads datagrams that wait in a socket into messages, and returns their number.
func receiveNonBlocking(fd int, messages []mmsghdr) int {
	n, _, code := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	if code != 0 {
		return 0 // as if none had arrived: after a lasting error the socket is opened again
	}
	return int(n)
}

// epollWaitNonBlocking returns how many of the files of an epoll file are ready, with their events.
func epollWaitNonBlocking(epollFD int, events []unix.EpollEvent) int {
	n, _, code := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epollFD), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if code != 0 {
		return 0
	}
	return int(n)
}

// setTimer makes a timer's file ready after a time. It never fails for an open file.
func setTimer(timerFD int, value unix.ItimerSpec) {
	_, _, _ = unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(timerFD), 0, uintptr(unsafe.Pointer(&value)), 0, 0, 0)
}

// resetTimerOrEventFile makes the file of a timer or an event wait for the next one.
func resetTimerOrEventFile(fd int) {
	var count [8]byte
	_, _, _ = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&count[0])), uintptr(len(count)))
}
