package cluster

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Stream is a client on the LAN that asks again and again, and remembers what was answered when.
type Stream struct {
	stop context.CancelFunc
	done chan struct{}

	mu            sync.Mutex // guards all that follows
	sent          int
	answerTimes   []time.Time
	answeredBySeq map[int]bool
	failures      []Failure
}

// StreamResult is what a Stream saw.
type StreamResult struct {
	Sent, Lost int
	// LongestGap is the longest time without an answer.
	LongestGap time.Duration
	// Failures are those of connections.
	Failures []Failure
}

// Failure is a question by a connection that was not answered.
type Failure struct {
	StartedAt, EndedAt time.Time
	Err                error
}

func newStream(ctx context.Context) (*Stream, context.Context) {
	ctx, stop := context.WithCancel(ctx)
	return &Stream{stop: stop, done: make(chan struct{}), answeredBySeq: map[int]bool{}}, ctx
}

// lateAnswerTimeout is how long after the last question answers are still waited for.
const lateAnswerTimeout = 300 * time.Millisecond

// Stop ends the asking, waits for late answers, and tells what was seen.
func (s *Stream) Stop() StreamResult {
	s.stop()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	o := StreamResult{Sent: s.sent, Lost: s.sent - len(s.answeredBySeq), Failures: s.failures}
	for i := 1; i < len(s.answerTimes); i++ {
		o.LongestGap = max(o.LongestGap, s.answerTimes[i].Sub(s.answerTimes[i-1]))
	}
	return o
}

func (s *Stream) recordFailure(f Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, f)
}

func (s *Stream) recordAnswer(seq int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.answeredBySeq[seq] {
		s.answeredBySeq[seq] = true
		s.answerTimes = append(s.answerTimes, time.Now())
	}
}

// AnswerCount counts the answers so far.
func (s *Stream) AnswerCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.answeredBySeq)
}

// AwaitAnswers waits until n more questions were answered.
func (s *Stream) AwaitAnswers(ctx context.Context, n int) error {
	target := s.AnswerCount() + n
	return Await(ctx, fmt.Sprintf("%d more answers", n), func(context.Context) error {
		if have := s.AnswerCount(); have < target {
			return fmt.Errorf("%d are missing", target-have)
		}
		return nil
	})
}

// StreamUDP asks by datagrams of one socket, rate a second.
func (s *Cluster) StreamUDP(ctx context.Context, host, address string, rate int) (*Stream, error) {
	c, err := s.Host(host).Dial(ctx, "udp", address)
	if err != nil {
		return nil, fmt.Errorf("opening a socket on %s: %w", host, err)
	}
	st, ctx := newStream(ctx)
	go func() {
		b := make([]byte, 512)
		for {
			n, err := c.Read(b)
			if n == 0 && err != nil {
				if ctx.Err() != nil {
					return
				}
				continue // "connection refused" of a moment: the question counts as lost
			}
			text, _, _ := strings.Cut(strings.TrimPrefix(string(b[:n]), "seq="), " ")
			if seq, err := strconv.Atoi(text); err == nil {
				st.recordAnswer(seq)
			}
		}
	}()
	go func() {
		defer close(st.done)
		defer c.Close()
		st.sendRequests(ctx, rate, func(seq int) { fmt.Fprint(c, seq) })
		time.Sleep(lateAnswerTimeout)
	}()
	return st, nil
}

// StreamHTTP asks by a request on a connection of its own, rate a second.
func (s *Cluster) StreamHTTP(ctx context.Context, host, url string, rate int) *Stream {
	return startStream(ctx, rate, func(ctx context.Context, st *Stream, seq int) {
		if _, err := s.Fetch(ctx, host, url); err == nil {
			st.recordAnswer(seq)
		}
	})
}

// startStream has every question asked beside the others, so that none waits for the answer to another. A question that was begun is ended.
func startStream(ctx context.Context, rate int, question func(ctx context.Context, st *Stream, seq int)) *Stream {
	st, ctx := newStream(ctx)
	go func() {
		defer close(st.done)
		var running sync.WaitGroup
		defer running.Wait()
		st.sendRequests(ctx, rate, func(seq int) { running.Go(func() { question(context.WithoutCancel(ctx), st, seq) }) })
	}()
	return st
}

// sendRequests counts the questions and has each put, rate a second, until ctx ends.
func (s *Stream) sendRequests(ctx context.Context, rate int, put func(seq int)) {
	t := time.NewTicker(time.Second / time.Duration(rate))
	defer t.Stop()
	for ctx.Err() == nil {
		<-t.C
		s.mu.Lock()
		s.sent++
		seq := s.sent
		s.mu.Unlock()
		put(seq)
	}
}
