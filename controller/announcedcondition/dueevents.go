package announcedcondition

import (
	"context"
	"sync"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// dueEventDelay is after how long the events about a condition that was written are sent at the
// latest. Most are sent when the cache shows the write, which makes it the Service's turn again.
const dueEventDelay = 100 * time.Millisecond

// dueEventMemory has the events about Services whose condition has just been written. They are sent
// when it is the Service's turn again. So when the only router dies, the conditions of all Services
// are written before the events. Any goroutine may use it.
type dueEventMemory struct {
	mu sync.Mutex // guards sendByService
	// sendByService has a function for each Service, which sends the events and returns when to
	// look again.
	sendByService map[client.ObjectKey]func(context.Context) ctrl.Result
}

func newDueEventMemory() *dueEventMemory {
	return &dueEventMemory{sendByService: map[client.ObjectKey]func(context.Context) ctrl.Result{}}
}

// addEvents adds the events about a Service. It has none: they are taken when it is its turn.
func (m *dueEventMemory) addEvents(key client.ObjectKey, send func(context.Context) ctrl.Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sendByService[key] = send
}

// takeEvents removes and returns the events about a Service; nil if there are none.
func (m *dueEventMemory) takeEvents(key client.ObjectKey) (send func(context.Context) ctrl.Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	send = m.sendByService[key]
	delete(m.sendByService, key)
	return send
}
