package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errRetransmitted says that the first packet of a connection was not answered.
var errRetransmitted = errors.New("the connection was asked for more than once")

// StreamTCP asks by a line on a connection of its own, rate a second. A question is lost, too, if its connection came about only
// because the kernel asked for it again a second later, which a person would notice.
func (s *Cluster) StreamTCP(ctx context.Context, host, address string, rate int) *Stream {
	return startStream(ctx, rate, func(ctx context.Context, st *Stream, seq int) {
		begun := time.Now()
		if err := s.exchangeLine(ctx, host, address, seq); err != nil {
			st.recordFailure(Failure{StartedAt: begun, EndedAt: time.Now(), Err: err})
			return
		}
		st.recordAnswer(seq)
	})
}

// connectTimeout bounds how long a connection may take, with a packet that is sent again after a second and after three.
const connectTimeout = 5 * time.Second

// exchangeLine asks once.
func (s *Cluster) exchangeLine(ctx context.Context, host, address string, seq int) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := s.Host(host).Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := checkNoRetransmission(c); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "question %d\n", seq); err != nil {
		return err
	}
	for lines := bufio.NewReader(c); ; {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the answer ends: %w", io.ErrUnexpectedEOF)
		}
		if err != nil || strings.HasPrefix(line, "line: ") {
			return err
		}
	}
}

// checkNoRetransmission says whether a connection came about without its first packet being sent again.
func checkNoRetransmission(c net.Conn) error {
	tcp, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no socket", c)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	if failed := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); failed != nil || err != nil {
		return errors.Join(failed, err)
	}
	if info.Total_retrans > 0 {
		return errRetransmitted
	}
	return nil
}
