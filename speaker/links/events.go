package links

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// netlinkGroups are the rtnetlink groups for links, addresses and routes, one bit each.
const netlinkGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// subscription is a subscription to rtnetlink. It says only that an event came; the state is read
// as a whole. It uses its own socket, because a subscription of the netlink library cannot be
// closed while it blocks.
type subscription struct {
	socket *os.File
	// changed has a value when an event came since it was last received.
	changed chan struct{}
	// failed delivers the error that ended the subscription.
	failed chan error
}

// subscribe opens a subscription. The caller closes it.
func subscribe() (*subscription, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: netlinkGroups}); err != nil {
		_ = unix.Close(fd) // the error of bind says more
		return nil, fmt.Errorf("subscribing to links, addresses and routes: %w", err)
	}
	e := &subscription{socket: os.NewFile(uintptr(fd), "netlink"), changed: make(chan struct{}, 1), failed: make(chan error, 1)}
	go e.readEvents()
	return e, nil
}

// readEvents reads events until the socket fails or is closed. Then it closes failed.
func (e *subscription) readEvents() {
	defer close(e.failed)
	buf := make([]byte, 64<<10)
	for {
		n, err := e.socket.Read(buf)
		// events were lost, but every event leads to a full read anyway
		if errors.Is(err, unix.ENOBUFS) {
			e.signalChange()
			continue
		}
		if err != nil {
			e.failed <- fmt.Errorf("reading netlink events: %w", err)
			return
		}
		if isRelevant(buf[:n]) {
			e.signalChange()
		}
	}
}

func (e *subscription) signalChange() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// close ends the subscription and waits for its reader.
func (e *subscription) close() {
	_ = e.socket.Close() // nothing was written
	for range e.failed {
	}
}

// destinationLengthOffset is where a route message has the prefix length of its destination, in
// bytes (struct rtmsg). The length of a default route is 0.
const destinationLengthOffset = 1

// isRelevant says whether a netlink datagram is about anything but non-default routes. Those may
// change often on a node that speaks BGP. A datagram that cannot be parsed is relevant.
func isRelevant(b []byte) bool {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if len(m.Data) <= destinationLengthOffset || m.Data[destinationLengthOffset] == 0 {
				return true
			}
		default:
			return true
		}
	}
	return false
}
