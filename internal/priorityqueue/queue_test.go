package priorityqueue_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/internal/priorityqueue"
)

type item struct {
	due      int
	position priorityqueue.Position
}

func newItemQueue() *priorityqueue.Queue[*item] {
	return priorityqueue.NewQueue(func(x, y *item) bool { return x.due < y.due }, func(x *item) *priorityqueue.Position { return &x.position })
}

// After any inserts, changes and removals the first item is one with the least time of all that are
// left.
func TestFirstItemIsTheLeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newItemQueue()
		items := make([]*item, rapid.IntRange(1, 12).Draw(t, "items"))
		for i := range items {
			items[i] = &item{}
		}
		var queued []*item
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			x := rapid.SampledFrom(items).Draw(t, "item")
			if rapid.Bool().Draw(t, "insert") {
				x.due = rapid.IntRange(0, 9).Draw(t, "due")
				q.Insert(x)
				if !slices.Contains(queued, x) {
					queued = append(queued, x)
				}
			} else {
				q.Remove(x)
				queued = slices.DeleteFunc(queued, func(y *item) bool { return x == y })
			}
			first, ok := q.First()
			if ok != (len(queued) > 0) || q.Len() != len(queued) {
				t.Fatalf("the queue has %d items, want %d", q.Len(), len(queued))
			}
			for _, y := range queued {
				if y.due < first.due {
					t.Fatalf("the first item is due at %d, another at %d", first.due, y.due)
				}
			}
			for _, y := range items {
				if y.position.IsQueued() != slices.Contains(queued, y) {
					t.Fatalf("IsQueued is %v for an item that was inserted or removed", y.position.IsQueued())
				}
			}
		}
	})
}
