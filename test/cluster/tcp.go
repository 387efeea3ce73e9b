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

// errSYNRetransmitted means that the SYN of the connection had to be sent again.
var errSYNRetransmitted = errors.New("the SYN of the connection was sent again")

// StartTCPStream sends lines over TCP, rate per second, each over a new connection. A request also
// counts as lost if the kernel had to repeat its SYN: that takes a second, which a person would
// notice.
func (s *Cluster) StartTCPStream(ctx context.Context, host, address string, rate int) *RequestStream {
	return startParallelRequestStream(ctx, rate, func(ctx context.Context, st *RequestStream, seq int) {
		begun := time.Now()
		if err := s.exchangeLineOverNewTCPConnection(ctx, host, address, seq); err != nil {
			st.recordFailure(RequestFailure{StartedAt: begun, EndedAt: time.Now(), Err: err})
			return
		}
		st.recordAnswer(seq)
	})
}

// tcpRequestTimeout limits one request. The kernel repeats a SYN after one second and after three,
// and on a busy machine the answer may be late.
const tcpRequestTimeout = 15 * time.Second

// exchangeLineOverNewTCPConnection sends one request and waits for the answer.
func (s *Cluster) exchangeLineOverNewTCPConnection(ctx context.Context, host, address string, seq int) error {
	ctx, cancel := context.WithTimeout(ctx, tcpRequestTimeout)
	defer cancel()
	c, err := s.NamespaceOfHost(host).Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := checkSYNNotRetransmitted(c); err != nil {
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

// checkSYNNotRetransmitted returns errSYNRetransmitted if the kernel had to send a packet of the
// connection again. Call it before any data is sent, so that this packet is the SYN.
func checkSYNNotRetransmitted(c net.Conn) error {
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
		return errSYNRetransmitted
	}
	return nil
}
