package stage

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

	mu      sync.Mutex // guards all that follows
	sent    int
	answers []time.Time
	got     map[int]bool
	faults  []Failure
}

// Outcome is what a Stream saw.
type Outcome struct {
	Sent, Lost int
	// Gap is the longest time without an answer.
	Gap time.Duration
	// Failures are those of connections.
	Failures []Failure
}

// Failure is a question by a connection that was not answered.
type Failure struct {
	Begun, Ended time.Time
	Err          error
}

func newStream(ctx context.Context) (*Stream, context.Context) {
	ctx, stop := context.WithCancel(ctx)
	return &Stream{stop: stop, done: make(chan struct{}), got: map[int]bool{}}, ctx
}

// lateness is how long after the last question answers are still waited for.
const lateness = 300 * time.Millisecond

// Stop ends the asking, waits for late answers, and tells what was seen.
func (s *Stream) Stop() Outcome {
	s.stop()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	o := Outcome{Sent: s.sent, Lost: s.sent - len(s.got), Failures: s.faults}
	for i := 1; i < len(s.answers); i++ {
		o.Gap = max(o.Gap, s.answers[i].Sub(s.answers[i-1]))
	}
	return o
}

func (s *Stream) failed(f Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
}

func (s *Stream) answered(seq int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.got[seq] {
		s.got[seq] = true
		s.answers = append(s.answers, time.Now())
	}
}

// Answers counts the answers so far.
func (s *Stream) Answers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got)
}

// AwaitAnswers waits until n more questions were answered.
func (s *Stream) AwaitAnswers(ctx context.Context, n int) error {
	target := s.Answers() + n
	return Await(ctx, fmt.Sprintf("%d more answers", n), func(context.Context) error {
		if have := s.Answers(); have < target {
			return fmt.Errorf("%d are missing", target-have)
		}
		return nil
	})
}

// UDP asks by datagrams of one socket, rate a second.
func (s *Stage) UDP(ctx context.Context, host, address string, rate int) (*Stream, error) {
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
				st.answered(seq)
			}
		}
	}()
	go func() {
		defer close(st.done)
		defer c.Close()
		st.ask(ctx, rate, func(seq int) { fmt.Fprint(c, seq) })
		time.Sleep(lateness)
	}()
	return st, nil
}

// HTTP asks by a request on a connection of its own, rate a second.
func (s *Stage) HTTP(ctx context.Context, host, url string, rate int) *Stream {
	return each(ctx, rate, func(ctx context.Context, st *Stream, seq int) {
		if _, err := s.Fetch(ctx, host, url); err == nil {
			st.answered(seq)
		}
	})
}

// each has every question asked beside the others, so that none waits for the answer to another. A question that was begun is ended.
func each(ctx context.Context, rate int, question func(ctx context.Context, st *Stream, seq int)) *Stream {
	st, ctx := newStream(ctx)
	go func() {
		defer close(st.done)
		var running sync.WaitGroup
		defer running.Wait()
		st.ask(ctx, rate, func(seq int) { running.Go(func() { question(context.WithoutCancel(ctx), st, seq) }) })
	}()
	return st
}

// ask counts the questions and has each put, rate a second, until ctx ends.
func (s *Stream) ask(ctx context.Context, rate int, put func(seq int)) {
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
