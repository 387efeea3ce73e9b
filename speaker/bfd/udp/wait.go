package udp

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// waiter waits for all sockets of a Transport at once, for a time and for wake. It is one file of
// the kernel (epoll) with the sockets, a timer and an event in it. Go's runtime waits for this file
// as for a socket. So no socket needs a goroutine of its own, and the goroutine that waits occupies
// no thread. A timer of Go's would be up to a millisecond late, and wake other threads.
type waiter struct {
	epollFD       int
	file          *os.File // owns epollFD
	rawConn       syscall.RawConn
	isReadyFunc   func(fd uintptr) bool
	events        []unix.EpollEvent // room for an event of each file
	readyCount    int               // of events
	timerFD       int
	timerDeadline time.Time // that the timer is set to; zero once it has passed

	wakeMutex sync.Mutex // guards eventFD, which only close changes
	eventFD   int        // -1 once it is closed
}

func newWaiter() (*waiter, error) {
	w := &waiter{epollFD: -1, timerFD: -1, eventFD: -1}
	if err := w.open(); err != nil {
		w.close()
		return nil, fmt.Errorf("preparing to wait for BFD packets: %w", err)
	}
	return w, nil
}

func (w *waiter) open() (err error) {
	if w.epollFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if err = unix.SetNonblock(w.epollFD, true); err != nil { // so that Go's runtime waits for it
		_ = unix.Close(w.epollFD)
		return err
	}
	w.file = os.NewFile(uintptr(w.epollFD), "bfd")
	if w.rawConn, err = w.file.SyscallConn(); err != nil {
		return err
	}
	// It fails if the runtime cannot wait for the file: waitUntil would then never wait.
	if err = w.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if w.timerFD, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return err
	}
	if w.eventFD, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return err
	}
	if err = w.add(w.timerFD); err != nil {
		return err
	}
	w.isReadyFunc = func(uintptr) bool { return w.poll() }
	return w.add(w.eventFD)
}

// add waits for a file as well, until remove.
func (w *waiter) add(fd int) error {
	w.events = append(w.events, unix.EpollEvent{})
	return unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// remove ends the waiting for a file. The caller closes it.
func (w *waiter) remove(fd int) {
	_ = unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_DEL, fd, nil)
	w.events, w.readyCount = w.events[1:], 0
}

// waitUntil waits until a file is ready, for wake, or from now until the deadline. If that has
// passed, it only looks.
func (w *waiter) waitUntil(now, deadline time.Time) {
	d := deadline.Sub(now)
	if d <= 0 {
		w.poll()
		return
	}
	if !deadline.Equal(w.timerDeadline) {
		w.timerDeadline = deadline
		setTimer(w.timerFD, unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))})
	}
	_ = w.rawConn.Read(w.isReadyFunc) // it fails only after close
}

// poll asks the kernel which files are ready, and reports whether one is.
func (w *waiter) poll() bool {
	w.readyCount = findReadyFiles(w.epollFD, w.events)
	for _, e := range w.events[:w.readyCount] {
		switch fd := int(e.Fd); fd {
		case w.timerFD:
			w.timerDeadline = time.Time{}
			resetTimerOrEventFile(fd)
		case w.eventFD:
			resetTimerOrEventFile(fd)
		}
	}
	return w.readyCount > 0
}

// isReady reports whether a file was ready at the last poll.
func (w *waiter) isReady(fd int) bool {
	for _, e := range w.events[:w.readyCount] {
		if int(e.Fd) == fd {
			return true
		}
	}
	return false
}

// wake ends the wait under way, or else the next one. Any goroutine may call it.
func (w *waiter) wake() {
	w.wakeMutex.Lock()
	defer w.wakeMutex.Unlock()
	if w.eventFD >= 0 {
		// It fails only if the counter is full.
		_, _ = unix.Write(w.eventFD, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

func (w *waiter) close() {
	if w.file != nil {
		_ = w.file.Close()
	}
	if w.timerFD >= 0 {
		_ = unix.Close(w.timerFD)
	}
	w.wakeMutex.Lock()
	defer w.wakeMutex.Unlock()
	if w.eventFD >= 0 {
		_ = unix.Close(w.eventFD)
		w.eventFD = -1
	}
}
