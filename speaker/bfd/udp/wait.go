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

// epollWaiter waits for all sockets of a Transport at once, for a time and for wake. It is one file
// of the kernel (epoll) with the sockets, a timer and an event in it. Go's runtime waits for this
// file as for a socket. So no socket needs a goroutine of its own, and the goroutine that waits
// occupies no thread. A timer of Go's would be up to a millisecond late, and wake other threads.
type epollWaiter struct {
	epollFD       int
	epollFile     *os.File // owns epollFD
	rawConn       syscall.RawConn
	pollFunc      func(fd uintptr) bool
	events        []unix.EpollEvent // room for an event of each file
	readyCount    int               // of events
	timerFD       int
	timerDeadline time.Time // that the timer is set to; zero once it has passed

	wakeMutex   sync.Mutex // guards wakeEventFD, which only close changes
	wakeEventFD int        // -1 once it is closed
}

func newEpollWaiter() (*epollWaiter, error) {
	w := &epollWaiter{epollFD: -1, timerFD: -1, wakeEventFD: -1}
	if err := w.open(); err != nil {
		w.close()
		return nil, fmt.Errorf("preparing to wait for BFD packets: %w", err)
	}
	return w, nil
}

func (w *epollWaiter) open() (err error) {
	if w.epollFD, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if err = unix.SetNonblock(w.epollFD, true); err != nil { // so that Go's runtime waits for it
		_ = unix.Close(w.epollFD)
		return err
	}
	w.epollFile = os.NewFile(uintptr(w.epollFD), "bfd")
	if w.rawConn, err = w.epollFile.SyscallConn(); err != nil {
		return err
	}
	// It fails if the runtime cannot wait for the file: waitForReadyFileUntil would then never
	// wait.
	if err = w.epollFile.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if w.timerFD, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return err
	}
	if w.wakeEventFD, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return err
	}
	if err = w.addFile(w.timerFD); err != nil {
		return err
	}
	w.pollFunc = func(uintptr) bool { return w.pollReadyFiles() }
	return w.addFile(w.wakeEventFD)
}

// addFile waits for a file as well, until remove.
func (w *epollWaiter) addFile(fd int) error {
	w.events = append(w.events, unix.EpollEvent{})
	return unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// removeFile ends the waiting for a file. The caller closes it.
func (w *epollWaiter) removeFile(fd int) {
	_ = unix.EpollCtl(w.epollFD, unix.EPOLL_CTL_DEL, fd, nil)
	w.events, w.readyCount = w.events[1:], 0
}

// waitForReadyFileUntil waits until a file is ready, for wake, or from now until the deadline. If
// that has passed, it only looks.
func (w *epollWaiter) waitForReadyFileUntil(now, deadline time.Time) {
	d := deadline.Sub(now)
	if d <= 0 {
		w.pollReadyFiles()
		return
	}
	if !deadline.Equal(w.timerDeadline) {
		w.timerDeadline = deadline
		setTimer(w.timerFD, unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))})
	}
	_ = w.rawConn.Read(w.pollFunc) // it fails only after close
}

// pollReadyFiles asks the kernel which files are ready, and reports whether one is.
func (w *epollWaiter) pollReadyFiles() bool {
	w.readyCount = epollWaitNonBlocking(w.epollFD, w.events)
	for _, e := range w.events[:w.readyCount] {
		switch fd := int(e.Fd); fd {
		case w.timerFD:
			w.timerDeadline = time.Time{}
			resetTimerOrEventFile(fd)
		case w.wakeEventFD:
			resetTimerOrEventFile(fd)
		}
	}
	return w.readyCount > 0
}

// isFileReady reports whether a file was ready at the last poll.
func (w *epollWaiter) isFileReady(fd int) bool {
	for _, e := range w.events[:w.readyCount] {
		if int(e.Fd) == fd {
			return true
		}
	}
	return false
}

// wake ends the wait under way, or else the next one. Any goroutine may call it.
func (w *epollWaiter) wake() {
	w.wakeMutex.Lock()
	defer w.wakeMutex.Unlock()
	if w.wakeEventFD >= 0 {
		// It fails only if the counter is full.
		_, _ = unix.Write(w.wakeEventFD, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

func (w *epollWaiter) close() {
	if w.epollFile != nil {
		_ = w.epollFile.Close()
	}
	if w.timerFD >= 0 {
		_ = unix.Close(w.timerFD)
	}
	w.wakeMutex.Lock()
	defer w.wakeMutex.Unlock()
	if w.wakeEventFD >= 0 {
		_ = unix.Close(w.wakeEventFD)
		w.wakeEventFD = -1
	}
}
