package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// RequestStream is a client in the lab that sends requests at a constant rate and records the
// answers.
type RequestStream struct {
	stop          context.CancelFunc
	stoppedSignal chan struct{}

	mu                         sync.Mutex // guards the fields below
	sentCount                  int
	answerTimes                []time.Time
	isAnsweredBySequenceNumber map[int]bool
	failures                   []RequestFailure
}

// RequestStreamResult is the result of a RequestStream.
type RequestStreamResult struct {
	SentCount, LostCount int
	// LongestTimeWithoutAnswer is the longest time without an answer.
	LongestTimeWithoutAnswer time.Duration
	// Failures are the failed requests of StartTCPStream.
	Failures []RequestFailure
}

// RequestFailure is a request over TCP that was not answered.
type RequestFailure struct {
	StartedAt, EndedAt time.Time
	Err                error
}

func newRequestStreamAndContext(ctx context.Context) (*RequestStream, context.Context) {
	ctx, stop := context.WithCancel(ctx)
	return &RequestStream{stop: stop, stoppedSignal: make(chan struct{}), isAnsweredBySequenceNumber: map[int]bool{}}, ctx
}

// lateStreamAnswerTimeout is how long a stream waits after its last request while no further answer
// comes. On a busy machine each process on the way may wait for a processor.
const lateStreamAnswerTimeout = 3 * time.Second

// StopSending ends the requests. It does not wait for answers, so it is for callers that need no
// result.
func (s *RequestStream) StopSending() { s.stop() }

// StopAndAwaitLateAnswers ends the requests, waits for late answers and returns the result.
func (s *RequestStream) StopAndAwaitLateAnswers() RequestStreamResult {
	s.stop()
	<-s.stoppedSignal
	s.mu.Lock()
	defer s.mu.Unlock()
	o := RequestStreamResult{SentCount: s.sentCount, LostCount: s.sentCount - len(s.isAnsweredBySequenceNumber), Failures: s.failures}
	for i := 1; i < len(s.answerTimes); i++ {
		o.LongestTimeWithoutAnswer = max(o.LongestTimeWithoutAnswer, s.answerTimes[i].Sub(s.answerTimes[i-1]))
	}
	return o
}

func (s *RequestStream) recordFailure(f RequestFailure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, f)
}

func (s *RequestStream) recordAnswer(seq int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isAnsweredBySequenceNumber[seq] {
		s.isAnsweredBySequenceNumber[seq] = true
		s.answerTimes = append(s.answerTimes, time.Now())
	}
}

// CountAnswers returns the number of answered requests so far.
func (s *RequestStream) CountAnswers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.isAnsweredBySequenceNumber)
}

// FirstAnswerTime returns the time of the first answer; zero if there was none.
func (s *RequestStream) FirstAnswerTime() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.answerTimes) == 0 {
		return time.Time{}
	}
	return s.answerTimes[0]
}

// AwaitMoreAnswers waits until n more requests have been answered.
func (s *RequestStream) AwaitMoreAnswers(ctx context.Context, n int) error {
	target := s.CountAnswers() + n
	return AwaitNoError(ctx, fmt.Sprintf("%d more answers", n), func(context.Context) error {
		if have := s.CountAnswers(); have < target {
			return fmt.Errorf("%d are missing", target-have)
		}
		return nil
	})
}

// StartUDPStream sends datagrams from one socket, rate per second.
func (s *Cluster) StartUDPStream(ctx context.Context, host, address string, rate int) (*RequestStream, error) {
	c, err := s.NamespaceOfHost(host).Dial(ctx, "udp", address)
	if err != nil {
		return nil, fmt.Errorf("opening a socket on %s: %w", host, err)
	}
	netns.EnlargeReceiveBuffer(c)
	st, ctx := newRequestStreamAndContext(ctx)
	go func() {
		b := make([]byte, 512)
		for {
			n, err := c.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if n == 0 && err != nil {
				continue // a temporary "connection refused": the request counts as lost
			}
			text, _, _ := strings.Cut(strings.TrimPrefix(string(b[:n]), "seq="), " ")
			if seq, err := strconv.Atoi(text); err == nil {
				st.recordAnswer(seq)
			}
		}
	}()
	go func() {
		defer close(st.stoppedSignal)
		defer c.Close()
		st.sendRequests(ctx, rate, func(seq int) { fmt.Fprint(c, seq) })
		st.awaitLateAnswers()
	}()
	return st, nil
}

// awaitLateAnswers returns when every request is answered, or when no further answer comes.
func (s *RequestStream) awaitLateAnswers() {
	for last, changed := s.CountAnswers(), time.Now(); time.Since(changed) < lateStreamAnswerTimeout; time.Sleep(pollInterval) {
		s.mu.Lock()
		answered, sent := len(s.isAnsweredBySequenceNumber), s.sentCount
		s.mu.Unlock()
		if answered == sent {
			return
		}
		if answered != last {
			last, changed = answered, time.Now()
		}
	}
}

// SendUDPUntilAnswered sends a datagram from a new socket again and again until one is answered. If
// the first datagram of a socket reaches a node before kube-proxy has set its rules, the kernel
// keeps a connection without translation for that socket, and none of its datagrams is ever
// answered. Each socket waits longer than the one before it, for a machine that is busy.
func (s *Cluster) SendUDPUntilAnswered(ctx context.Context, host, address string) error {
	timeout := 200 * time.Millisecond
	return AwaitNoError(ctx, "an answer from "+address+" to "+host, func(ctx context.Context) error {
		timeout += 100 * time.Millisecond
		c, err := s.NamespaceOfHost(host).Dial(ctx, "udp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := fmt.Fprint(c, 0); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 512))
		return err
	})
}

// StartHTTPStream sends HTTP requests, rate per second, each over a new connection.
func (s *Cluster) StartHTTPStream(ctx context.Context, host, url string, rate int) *RequestStream {
	return startParallelRequestStream(ctx, rate, func(ctx context.Context, st *RequestStream, seq int) {
		if _, err := s.FetchURLFromHost(ctx, host, url); err == nil {
			st.recordAnswer(seq)
		}
	})
}

// startParallelRequestStream sends requests in parallel, so that none waits for the answer to
// another. Stop waits until those under way have ended.
func startParallelRequestStream(ctx context.Context, rate int, request func(ctx context.Context, st *RequestStream, seq int)) *RequestStream {
	st, ctx := newRequestStreamAndContext(ctx)
	go func() {
		defer close(st.stoppedSignal)
		var running sync.WaitGroup
		defer running.Wait()
		st.sendRequests(ctx, rate, func(seq int) { running.Go(func() { request(context.WithoutCancel(ctx), st, seq) }) })
	}()
	return st
}

// sendRequests numbers the requests and calls send for each, rate per second, until ctx ends.
func (s *RequestStream) sendRequests(ctx context.Context, rate int, send func(seq int)) {
	t := time.NewTicker(time.Second / time.Duration(rate))
	defer t.Stop()
	for ctx.Err() == nil {
		<-t.C
		s.mu.Lock()
		s.sentCount++
		seq := s.sentCount
		s.mu.Unlock()
		send(seq)
	}
}
