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
	if n == 0 {
		(*Members)(d).greeted(string(b[1:]))
		return
	}
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

// watcher is told when members come and go. memberlist calls with its lock held, so that the node can be copied here and
// nowhere else.
type watcher Members

var _ memberlist.EventDelegate = (*watcher)(nil)

func (w *watcher) set(n *memberlist.Node) {
	node := *n
	node.Addr, node.Meta = slices.Clone(n.Addr), slices.Clone(n.Meta)
	m := (*Members)(w)
	m.change(func() { m.nodes[node.Name] = node })
}

// NotifyJoin tells of a new member.
func (w *watcher) NotifyJoin(n *memberlist.Node) { w.set(n) }

// NotifyLeave tells of a member that left or died.
func (w *watcher) NotifyLeave(n *memberlist.Node) {
	m := (*Members)(w)
	m.change(func() { delete(m.nodes, n.Name) })
}

// NotifyUpdate tells of a member whose meta changed.
func (w *watcher) NotifyUpdate(n *memberlist.Node) { w.set(n) }
