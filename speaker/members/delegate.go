package members

import (
	"slices"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist asks of Members.
type delegate Members

var _ memberlist.Delegate = (*delegate)(nil)

// NodeMeta is what the others learn about this node.
func (d *delegate) NodeMeta(limit int) []byte {
	b := *d.meta.Load()
	return b[:min(len(b), limit)]
}

// NotifyMsg takes in a message; the buffer is memberlist's own.
func (d *delegate) NotifyMsg(b []byte) {
	if len(b) < 1 || len(b) < 1+int(b[0]) {
		return
	}
	n := int(b[0])
	msg := Message{From: string(b[1 : 1+n]), Payload: slices.Clone(b[1+n:])}
	for {
		select {
		case d.messages <- msg:
			return
		default:
		}
		select {
		case <-d.messages: // the oldest says the least
			d.dropped.Add(1)
		default:
		}
	}
}

// GetBroadcasts returns nothing: messages go to their receivers directly.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is this node's part of a full exchange.
func (d *delegate) LocalState(bool) []byte { return *d.state.Load() }

// MergeRemoteState takes in another member's part of a full exchange. A state too many is dropped: the next exchange
// brings it again.
func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	select {
	case d.remote <- slices.Clone(b):
	default:
		d.dropped.Add(1)
	}
}

// watcher is told when members come and go.
type watcher Members

var _ memberlist.EventDelegate = (*watcher)(nil)

// The set is read in a goroutine of its own: memberlist calls with its lock held.
func (w *watcher) changed() {
	go func() {
		<-w.created
		(*Members)(w).deliver()
	}()
}

// NotifyJoin tells of a new member.
func (w *watcher) NotifyJoin(*memberlist.Node) { w.changed() }

// NotifyLeave tells of a member that left or died.
func (w *watcher) NotifyLeave(*memberlist.Node) { w.changed() }

// NotifyUpdate tells of a member whose meta changed.
func (w *watcher) NotifyUpdate(*memberlist.Node) { w.changed() }
