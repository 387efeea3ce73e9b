package links

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/latest"
)

// netlinkGroups are the rtnetlink groups for links, addresses and routes, one bit each.
const netlinkGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// netlinkSubscription is a subscription to rtnetlink. It says only that an event came; the state is
// read as a whole. It uses its own socket, because a subscription of the netlink library cannot be
// closed while it blocks.
type netlinkSubscription struct {
	socket              *os.File
	eventReceivedSignal *latest.Wake
	// endErrorChannel delivers the error that ended the subscription.
	endErrorChannel chan error
}

// subscribeToNetlink opens a subscription. The caller closes it.
func subscribeToNetlink() (*netlinkSubscription, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: netlinkGroups}); err != nil {
		_ = unix.Close(fd) // the error of bind says more
		return nil, fmt.Errorf("subscribing to links, addresses and routes: %w", err)
	}
	e := &netlinkSubscription{socket: os.NewFile(uintptr(fd), "netlink"), eventReceivedSignal: latest.NewWake(), endErrorChannel: make(chan error, 1)}
	go e.readEvents()
	return e, nil
}

// readEvents reads events until the socket fails or is closed. Then it sends the error to
// endErrorChannel.
func (e *netlinkSubscription) readEvents() {
	defer close(e.endErrorChannel)
	buf := make([]byte, 64<<10)
	for {
		n, err := e.socket.Read(buf)
		// events were lost, but every event leads to a full read anyway
		if errors.Is(err, unix.ENOBUFS) {
			e.eventReceivedSignal.Signal()
			continue
		}
		if err != nil {
			e.endErrorChannel <- fmt.Errorf("reading netlink events: %w", err)
			return
		}
		if isRelevantEvent(buf[:n]) {
			e.eventReceivedSignal.Signal()
		}
	}
}

// close ends the subscription and waits for its reader.
func (e *netlinkSubscription) close() {
	_ = e.socket.Close() // nothing was written
	for range e.endErrorChannel {
	}
}

// rtmsgDestinationLengthOffset is where a route message has the prefix length of its destination,
// in bytes (struct rtmsg). The length of a default route is 0.
const rtmsgDestinationLengthOffset = 1

// isRelevantEvent says whether a netlink datagram is about anything but non-default routes. Those
// may change often on a node that speaks BGP. A datagram that cannot be parsed is relevant.
func isRelevantEvent(b []byte) bool {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if len(m.Data) <= rtmsgDestinationLengthOffset || m.Data[rtmsgDestinationLengthOffset] == 0 {
				return true
			}
		default:
			return true
		}
	}
	return false
}
