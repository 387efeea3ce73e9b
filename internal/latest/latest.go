// Package latest has the channels of goroutines that never wait for their readers: a value of
// which only the latest one counts, a wake-up that is remembered once, and a queue that drops and
// counts what does not fit. Any goroutine may call the methods, and none of them blocks.
package latest

import "sync/atomic"

// Value passes on the latest value. Use NewValue or NewMergedValue to create it.
type Value[T any] struct {
	c     chan T
	merge func(older, newer T) T
}

// NewValue returns a Value in which a newer value replaces one that was not received yet.
func NewValue[T any]() *Value[T] {
	return NewMergedValue(func(_, newer T) T { return newer })
}

// NewMergedValue returns a Value in which merge joins a newer value with one that was not received
// yet. merge must not change its arguments.
func NewMergedValue[T any](merge func(older, newer T) T) *Value[T] {
	return &Value[T]{c: make(chan T, 1), merge: merge}
}

// Put makes v the value to receive.
func (l *Value[T]) Put(v T) {
	for {
		select {
		case l.c <- v:
			return
		default:
		}
		select {
		case older := <-l.c:
			v = l.merge(older, v)
		default:
		}
	}
}

// C delivers the value, once.
func (l *Value[T]) C() <-chan T { return l.c }

// Wake passes on that something happened. However often it happens before the reader looks, the
// reader wakes once. Use NewWake to create it.
type Wake struct{ c chan struct{} }

// NewWake returns a Wake without a signal.
func NewWake() *Wake { return &Wake{make(chan struct{}, 1)} }

// Signal wakes the reader now, or when it next waits.
func (w *Wake) Signal() {
	select {
	case w.c <- struct{}{}:
	default:
	}
}

// C is ready to read after a Signal.
func (w *Wake) C() <-chan struct{} { return w.c }

// BoundedQueue passes on values in order. It holds a limited number of them, and counts those that
// it drops. Use NewBoundedQueue to create it.
type BoundedQueue[T any] struct {
	c       chan T
	dropped atomic.Uint64
}

// NewBoundedQueue returns a BoundedQueue for at most limit values, which is at least 1.
func NewBoundedQueue[T any](limit int) *BoundedQueue[T] {
	return &BoundedQueue[T]{c: make(chan T, max(limit, 1))}
}

// PutDroppingOldest appends v. A full queue drops its oldest value.
func (q *BoundedQueue[T]) PutDroppingOldest(v T) {
	for {
		select {
		case q.c <- v:
			return
		default:
		}
		select {
		case <-q.c:
			q.dropped.Add(1)
		default:
		}
	}
}

// PutIfRoom appends v, and reports whether there was room. A full queue drops v.
func (q *BoundedQueue[T]) PutIfRoom(v T) bool {
	select {
	case q.c <- v:
		return true
	default:
		q.dropped.Add(1)
		return false
	}
}

// C delivers the values.
func (q *BoundedQueue[T]) C() <-chan T { return q.c }

// DroppedCount returns how many values were dropped so far.
func (q *BoundedQueue[T]) DroppedCount() uint64 { return q.dropped.Load() }
