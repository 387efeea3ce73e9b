package preflight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/internal/nodefacts"
)

const (
	// pathTimeout bounds each attempt. Nodes of one cluster answer each other within milliseconds.
	pathTimeout = 2 * time.Second
	// datagramRetryInterval is after how long a datagram is sent again: one may be lost.
	datagramRetryInterval = 500 * time.Millisecond
)

// greeting is what the nodes send each other. Nothing else is answered, and the answer is not
// longer than the question.
var greeting = []byte("gantry preflight")

// answerOnGossipPort answers greetings by TCP and UDP until ctx ends. It fails if the port is in
// use.
func answerOnGossipPort(ctx context.Context) (*sync.WaitGroup, error) {
	var config net.ListenConfig
	address := net.JoinHostPort("", strconv.Itoa(nodefacts.GossipPort))
	connections, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	datagrams, err := config.ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, errors.Join(err, connections.Close())
	}
	var all sync.WaitGroup
	all.Go(func() {
		<-ctx.Done()
		_ = connections.Close()
		_ = datagrams.Close()
	})
	all.Go(func() { answerConnections(connections) })
	all.Go(func() { answerDatagrams(datagrams) })
	return &all, nil
}

// answerConnections sends each caller a greeting, one after the other: it takes no time.
func answerConnections(from net.Listener) {
	for {
		c, err := from.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(pathTimeout))
		_, _ = c.Write(greeting)
		_ = c.Close()
	}
}

func answerDatagrams(from net.PacketConn) {
	buffer := make([]byte, len(greeting)+1)
	for {
		n, sender, err := from.ReadFrom(buffer)
		if err != nil {
			return
		}
		if bytes.Equal(buffer[:n], greeting) {
			_, _ = from.WriteTo(greeting, sender)
		}
	}
}

// checkPaths asks all targets at the same time.
func checkPaths(ctx context.Context, targets []netip.Addr) []nodefacts.Path {
	out := make([]nodefacts.Path, len(targets))
	var all sync.WaitGroup
	for i, a := range targets {
		out[i].To = a
		all.Go(func() { out[i].TCP = nodefacts.NewAttempt(askByTCP(ctx, a)) })
		all.Go(func() { out[i].UDP = nodefacts.NewAttempt(askByUDP(ctx, a)) })
	}
	all.Wait()
	return out
}

// errNoGreeting says that another program answers on the port of the gossip.
var errNoGreeting = errors.New("another program answers there")

func askByTCP(ctx context.Context, to netip.Addr) error {
	c, err := (&net.Dialer{Timeout: pathTimeout}).DialContext(ctx, "tcp", netip.AddrPortFrom(to, nodefacts.GossipPort).String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(pathTimeout))
	answer := make([]byte, len(greeting))
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("it is connected, and gets no answer: %w", err)
	}
	if !bytes.Equal(answer, greeting) {
		return errNoGreeting
	}
	return nil
}

func askByUDP(ctx context.Context, to netip.Addr) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(to, nodefacts.GossipPort).String())
	if err != nil {
		return err
	}
	defer c.Close()
	answer := make([]byte, len(greeting)+1)
	for range int(pathTimeout / datagramRetryInterval) {
		if _, err = c.Write(greeting); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(datagramRetryInterval))
		var n int
		if n, err = c.Read(answer); err == nil {
			if !bytes.Equal(answer[:n], greeting) {
				return errNoGreeting
			}
			return nil
		}
	}
	return fmt.Errorf("no answer within %s: %w", pathTimeout, err)
}
