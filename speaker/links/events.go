package links

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// netlinkGroups are the multicast groups of rtnetlink that tell of links, addresses and routes. A group is a bit here.
const netlinkGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// subscription is a subscription to rtnetlink. What an event says is not used, only that there was one: the state is read
// anew. The subscriptions of the netlink library cannot be ended while they wait, so that this is a socket of our own.
type subscription struct {
	socket *os.File
	// changed holds a value when there was an event since it was last taken.
	changed chan struct{}
	// failed delivers the error that ended the subscription.
	failed chan error
}

// subscribe opens a subscription; close it.
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

// readEvents notes events until the socket fails or is closed. failed is closed at the end.
func (e *subscription) readEvents() {
	defer close(e.failed)
	buf := make([]byte, 64<<10)
	for {
		n, err := e.socket.Read(buf)
		if errors.Is(err, unix.ENOBUFS) { // events were lost; reading anew is what every event leads to
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

// destinationLengthOffset is where a route message has the length of its destination's prefix, 0 for a default route (struct rtmsg).
const destinationLengthOffset = 1

// isRelevant says whether a datagram of netlink tells of more than routes other than the default: a node that speaks BGP
// may have many of those change. What cannot be parsed is relevant.
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
