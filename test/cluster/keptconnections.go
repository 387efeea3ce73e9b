package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// KeptConnections are TCP connections of a client that stay open. The client sends HTTP requests
// over each of them, one after the other.
type KeptConnections struct {
	stop    context.CancelFunc
	running sync.WaitGroup

	mu              sync.Mutex // guards the fields below
	answersOfEach   []int
	failures        []error
	longestInterval time.Duration // between two answers over one connection
}

const (
	// keptRequestInterval is the time between two requests over one connection.
	keptRequestInterval = 200 * time.Millisecond
	// keptRequestTimeout is how long a request may take: TCP repeats what is lost, later each time.
	keptRequestTimeout = 10 * time.Second
)

// OpenKeptConnections opens so many connections to a URL for each of them, and waits until all have
// got an answer.
func (s *Cluster) OpenKeptConnections(ctx context.Context, host string, urls []string, each int) (*KeptConnections, error) {
	ctx, stop := context.WithCancel(ctx)
	k := &KeptConnections{stop: stop, answersOfEach: make([]int, len(urls)*each)}
	for i := range k.answersOfEach {
		u, err := url.Parse(urls[i/each])
		if err != nil {
			return nil, err
		}
		k.running.Go(func() {
			if err := k.exchange(ctx, s, host, u, i); err != nil {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.failures = append(k.failures, fmt.Errorf("connection %d to %s: %w", i, u.Host, err))
			}
		})
	}
	if err := k.AwaitMoreAnswersOnEach(ctx); err != nil {
		k.CloseAndListFailures()
		return nil, err
	}
	return k, nil
}

// exchange sends requests over one connection until ctx ends.
func (k *KeptConnections) exchange(ctx context.Context, s *Cluster, host string, u *url.URL, i int) error {
	dialCtx, cancel := context.WithTimeout(ctx, keptRequestTimeout)
	defer cancel()
	c, err := s.NamespaceOfHost(host).Dial(dialCtx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer c.Close()
	answers, last := bufio.NewReader(c), time.Now()
	for {
		if err := requestOverConnection(c, answers, u); err != nil {
			return fmt.Errorf("after %d answers: %w", k.countAnswers(i), err)
		}
		now := time.Now()
		k.recordAnswer(i, now.Sub(last))
		last = now
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keptRequestInterval):
		}
	}
}

// requestOverConnection sends one request and reads its answer.
func requestOverConnection(c net.Conn, answers *bufio.Reader, u *url.URL) error {
	if err := c.SetDeadline(time.Now().Add(keptRequestTimeout)); err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	if err := req.Write(c); err != nil {
		return err
	}
	r, err := http.ReadResponse(answers, req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return err
	}
	if r.Close {
		return errors.New("the server closes the connection after each answer")
	}
	return nil
}

func (k *KeptConnections) countAnswers(i int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.answersOfEach[i]
}

func (k *KeptConnections) recordAnswer(i int, interval time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.answersOfEach[i]++
	k.longestInterval = max(k.longestInterval, interval)
}

// AwaitMoreAnswersOnEach waits until each connection that is open has got another answer. A
// connection that failed counts too.
func (k *KeptConnections) AwaitMoreAnswersOnEach(ctx context.Context) error {
	k.mu.Lock()
	before := append([]int(nil), k.answersOfEach...)
	k.mu.Unlock()
	return AwaitNoError(ctx, "answers over open connections", func(context.Context) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		missing := 0
		for i, n := range k.answersOfEach {
			if n <= before[i] {
				missing++
			}
		}
		if missing > len(k.failures) {
			return fmt.Errorf("%d connections have no further answer", missing)
		}
		return nil
	})
}

// CloseAndListFailures closes the connections. It returns why some of them ended before, and the
// longest time between two answers over one connection.
func (k *KeptConnections) CloseAndListFailures() (failures []error, longestInterval time.Duration) {
	k.stop()
	k.running.Wait()
	return k.failures, k.longestInterval
}
