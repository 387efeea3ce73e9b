package reconcile

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/internal/view"
)

// inbox collects what the worker has to look at, each Service once however often it changed. It may be used from any goroutine. It
// takes nothing in until it is opened: a controller that stands by has nothing to do.
type inbox struct {
	// signal has something in it when there may be something to take.
	signal chan struct{}

	mu   sync.Mutex // guards all that follows
	open bool
	// changed are Services with news, later those that a change of something else may concern; the first come first, so
	// that a new Service does not wait behind all the others.
	changed, later queue
	// gone are the UIDs of Services that the cache saw deleted and that were not taken yet.
	gone map[view.ObjectKey]types.UID
	// config says that the configuration changed, status that somebody wrote the status of a configuration object.
	config, status bool
	// answers says that AddressProbes changed.
	answers bool
}

// queue is a list of Services without doubles.
type queue struct {
	keys []view.ObjectKey
	has  map[view.ObjectKey]struct{}
}

func (q *queue) add(k view.ObjectKey) {
	if _, double := q.has[k]; double {
		return
	}
	if q.has == nil {
		q.has = map[view.ObjectKey]struct{}{}
	}
	q.has[k] = struct{}{}
	q.keys = append(q.keys, k)
}

func (q *queue) take(n int) []view.ObjectKey {
	n = min(n, len(q.keys))
	out := q.keys[:n:n]
	q.keys = q.keys[n:]
	for _, k := range out {
		delete(q.has, k)
	}
	return out
}

func newInbox() *inbox {
	return &inbox{signal: make(chan struct{}, 1), gone: map[view.ObjectKey]types.UID{}}
}

func (b *inbox) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = true
}

// poke has the worker look around.
func (b *inbox) poke() {
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

// add takes in Services that changed.
func (b *inbox) add(keys ...view.ObjectKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return
	}
	for _, k := range keys {
		b.changed.add(k)
	}
	b.poke()
}

// addLater takes in Services that something else may concern.
func (b *inbox) addLater(keys ...view.ObjectKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range keys {
		b.later.add(k)
	}
	b.poke()
}

// deleted takes in a Service that the cache saw deleted: this very one, whatever comes under its name.
func (b *inbox) deleted(k view.ObjectKey, uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return
	}
	b.gone[k] = uid
	b.changed.add(k)
	b.poke()
}

// reconfigured takes in that the configuration changed.
func (b *inbox) reconfigured() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.config = true
	b.poke()
}

// recount takes in that the status of a configuration object was written.
func (b *inbox) recount() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status = true
	b.poke()
}

// answered takes in that AddressProbes changed.
func (b *inbox) answered() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answers = true
	b.poke()
}

// takeAnswers says whether AddressProbes changed since it was last asked.
func (b *inbox) takeAnswers() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.answers
	b.answers = false
	return a
}

// takeRecount says whether the status of a configuration object was written since it was last asked.
func (b *inbox) takeRecount() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	b.status = false
	return s
}

// letter is a Service to look at; gone is the UID under which it was seen to be deleted, if it was.
type letter struct {
	view.ObjectKey
	gone types.UID
}

// take returns at most n Services to look at.
func (b *inbox) take(n int) []letter {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := b.changed.take(n)
	keys = append(keys, b.later.take(n-len(keys))...)
	out := make([]letter, 0, len(keys))
	for _, k := range keys {
		out = append(out, letter{k, b.gone[k]})
		delete(b.gone, k)
	}
	return out
}

// back takes in again what was taken and not looked at.
func (b *inbox) back(l letter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, newer := b.gone[l.ObjectKey]; l.gone != "" && !newer {
		b.gone[l.ObjectKey] = l.gone
	}
	b.changed.add(l.ObjectKey)
	b.poke()
}

// configChanged says whether the configuration changed since it was last taken.
func (b *inbox) configChanged() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.config
}

// takeConfig says whether the configuration changed since it was last asked.
func (b *inbox) takeConfig() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.config
	b.config = false
	return c
}

// empty says whether no Service waits to be looked at.
func (b *inbox) empty() bool { return b.length() == 0 }

// length counts the Services that wait to be looked at.
func (b *inbox) length() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.changed.keys) + len(b.later.keys)
}
