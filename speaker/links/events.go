package links

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// groups are the multicast groups of rtnetlink that tell of links, addresses and routes. A group is a bit here.
const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// events is a subscription to rtnetlink. What an event says is not used, only that there was one: the state is read
// anew. The subscriptions of the netlink library cannot be ended while they wait, so that this is a socket of our own.
type events struct {
	socket *os.File
	// something holds a value when there was an event since it was last taken.
	something chan struct{}
	// failed delivers the error that ended the subscription.
	failed chan error
}

// subscribe opens a subscription; close it.
func subscribe() (*events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd) // the error of bind says more
		return nil, fmt.Errorf("subscribing to links, addresses and routes: %w", err)
	}
	e := &events{socket: os.NewFile(uintptr(fd), "netlink"), something: make(chan struct{}, 1), failed: make(chan error, 1)}
	go e.read()
	return e, nil
}

// read notes events until the socket fails or is closed. failed is closed at the end.
func (e *events) read() {
	defer close(e.failed)
	buf := make([]byte, 64<<10)
	for {
		n, err := e.socket.Read(buf)
		if errors.Is(err, unix.ENOBUFS) { // events were lost; reading anew is what every event leads to
			e.note()
			continue
		}
		if err != nil {
			e.failed <- fmt.Errorf("reading netlink events: %w", err)
			return
		}
		if relevant(buf[:n]) {
			e.note()
		}
	}
}

func (e *events) note() {
	select {
	case e.something <- struct{}{}:
	default:
	}
}

// close ends the subscription and waits for its reader.
func (e *events) close() {
	_ = e.socket.Close() // nothing was written
	for range e.failed {
	}
}

// dstLen is where a route message has the length of its destination's prefix, 0 for a default route (struct rtmsg).
const dstLen = 1

// relevant says whether a datagram of netlink tells of more than routes other than the default: a node that speaks BGP
// may have many of those change. What cannot be parsed is relevant.
func relevant(b []byte) bool {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if len(m.Data) <= dstLen || m.Data[dstLen] == 0 {
				return true
			}
		default:
			return true
		}
	}
	return false
}
