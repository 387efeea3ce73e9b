package latest_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/gantry-lb/gantry/internal/latest"
)

// requireEmptyChannel fails if c has a value.
func requireEmptyChannel[T any](t *testing.T, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Errorf("received %v, want nothing to receive", v)
	default:
	}
}

// drainChannel returns what waits in c.
func drainChannel[T any](c <-chan T) (out []T) {
	for {
		select {
		case v := <-c:
			out = append(out, v)
		default:
			return out
		}
	}
}

func TestANewerValueReplacesTheOlderOne(t *testing.T) {
	v := latest.NewValue[string]()
	requireEmptyChannel(t, v.C())
	v.Put("first")
	v.Put("second")
	v.Put("third")
	if got := <-v.C(); got != "third" {
		t.Errorf("received %q, want the latest value", got)
	}
	requireEmptyChannel(t, v.C())
	v.Put("fourth")
	if got := <-v.C(); got != "fourth" {
		t.Errorf("received %q, want the value that was put after the last one was received", got)
	}
}

func TestPutMergesWithUnreceivedValue(t *testing.T) {
	v := latest.NewMergedValue(func(older, newer []int) []int {
		return append(slices.Clone(older), newer...)
	})
	v.Put([]int{1})
	v.Put([]int{2, 3})
	v.Put([]int{4})
	if got := <-v.C(); !slices.Equal(got, []int{1, 2, 3, 4}) {
		t.Errorf("received %v, want all that was put, in order", got)
	}
	v.Put([]int{5})
	if got := <-v.C(); !slices.Equal(got, []int{5}) {
		t.Errorf("received %v, want only what was put since the last value was received", got)
	}
}

// TestPutNeverBlocks puts values from many goroutines at once, with and without a reader.
func TestPutNeverBlocks(t *testing.T) {
	const goroutines, puts = 8, 2000
	putAll := func(put func(int)) {
		var all sync.WaitGroup
		for range goroutines {
			all.Go(func() {
				for range puts {
					put(1)
				}
			})
		}
		all.Wait()
	}
	sum := latest.NewMergedValue(func(older, newer int) int { return older + newer })
	putAll(sum.Put)
	if got := <-sum.C(); got != goroutines*puts {
		t.Errorf("the merged value is %d, want the sum of all values, %d", got, goroutines*puts)
	}

	sum = latest.NewMergedValue(func(older, newer int) int { return older + newer })
	total, stop, ended := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case n := <-sum.C():
				total += n
			case <-stop:
				return
			}
		}
	}()
	putAll(sum.Put)
	close(stop)
	<-ended
	for _, n := range drainChannel(sum.C()) {
		total += n
	}
	if total != goroutines*puts {
		t.Errorf("the reader got values of %d in total, want %d", total, goroutines*puts)
	}

	q := latest.NewBoundedQueue[int](16)
	putAll(q.PutDroppingOldest)
	putAll(func(n int) { q.PutIfRoom(n) })
	waiting := len(drainChannel(q.C()))
	if got := waiting + int(q.DroppedCount()); waiting != 16 || got != 2*goroutines*puts {
		t.Errorf("the queue has %d values and dropped %d, want 16, and together all %d", waiting, q.DroppedCount(), 2*goroutines*puts)
	}
}

func TestTheLastValueAlwaysArrives(t *testing.T) {
	v, done := latest.NewValue[int](), make(chan int)
	const last = 20000
	go func() {
		previous := 0
		for n := range v.C() {
			if n <= previous {
				t.Errorf("received %d after %d, want newer values only", n, previous)
			}
			if previous = n; n == last {
				done <- n
				return
			}
		}
	}()
	for n := range last {
		v.Put(n + 1)
	}
	<-done
}

func TestSeveralSignalsWakeReaderOnce(t *testing.T) {
	w := latest.NewWake()
	requireEmptyChannel(t, w.C())
	w.Signal()
	w.Signal()
	if n := len(drainChannel(w.C())); n != 1 {
		t.Errorf("two signals woke the reader %d times, want 1", n)
	}
	w.Signal()
	if n := len(drainChannel(w.C())); n != 1 {
		t.Errorf("a signal after the first wake-up woke the reader %d times, want 1", n)
	}
}

func TestAFullQueueDropsTheOldest(t *testing.T) {
	q := latest.NewBoundedQueue[int](3)
	for n := range 5 {
		q.PutDroppingOldest(n)
	}
	if got := drainChannel(q.C()); !slices.Equal(got, []int{2, 3, 4}) || q.DroppedCount() != 2 {
		t.Errorf("the queue has %v and dropped %d, want the newest three, in order, and 2", got, q.DroppedCount())
	}
}

func TestAFullQueueRefusesWithPutIfRoom(t *testing.T) {
	q := latest.NewBoundedQueue[int](3)
	for n := range 5 {
		if got := q.PutIfRoom(n); got != (n < 3) {
			t.Errorf("value %d of a queue for 3: %v says whether it was taken", n, got)
		}
	}
	if got := drainChannel(q.C()); !slices.Equal(got, []int{0, 1, 2}) || q.DroppedCount() != 2 {
		t.Errorf("the queue has %v and dropped %d, want the first three, in order, and 2", got, q.DroppedCount())
	}
}

func TestQueueWithLimitZeroHasRoomForOne(t *testing.T) {
	q := latest.NewBoundedQueue[int](0)
	q.PutDroppingOldest(1)
	if got := drainChannel(q.C()); !slices.Equal(got, []int{1}) {
		t.Errorf("the queue has %v, want the value that was put", got)
	}
}
