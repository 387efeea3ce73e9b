package members

import (
	"slices"

	"github.com/hashicorp/memberlist"
)

// messageDelegate is what memberlist asks of Members.
type messageDelegate Members

var _ memberlist.Delegate = (*messageDelegate)(nil)

// NodeMeta is what the others learn about this node.
func (d *messageDelegate) NodeMeta(limit int) []byte {
	b := *d.metadata.Load()
	return b[:min(len(b), limit)]
}

// NotifyMsg takes in a message; the buffer is memberlist's own.
func (d *messageDelegate) NotifyMsg(b []byte) {
	if len(b) < 1 || len(b) < 1+int(b[0]) {
		return
	}
	n := int(b[0])
	if n == 0 {
		(*Members)(d).handleGreeting(string(b[1:]))
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
			d.droppedCount.Add(1)
		default:
		}
	}
}

// GetBroadcasts returns nothing: messages go to their receivers directly.
func (d *messageDelegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is this node's part of a full exchange.
func (d *messageDelegate) LocalState(bool) []byte { return *d.state.Load() }

// MergeRemoteState takes in another member's part of a full exchange. A state too many is dropped: the next exchange
// brings it again.
func (d *messageDelegate) MergeRemoteState(b []byte, _ bool) {
	select {
	case d.remoteStates <- slices.Clone(b):
	default:
		d.droppedCount.Add(1)
	}
}

// eventDelegate is told when members come and go. memberlist calls with its lock held, so that the node can be copied here and
// nowhere else.
type eventDelegate Members

var _ memberlist.EventDelegate = (*eventDelegate)(nil)

func (w *eventDelegate) setNode(n *memberlist.Node) {
	node := *n
	node.Addr, node.Meta = slices.Clone(n.Addr), slices.Clone(n.Meta)
	m := (*Members)(w)
	m.changeMembers(func() { m.nodesByName[node.Name] = node })
}

// NotifyJoin tells of a new member.
func (w *eventDelegate) NotifyJoin(n *memberlist.Node) { w.setNode(n) }

// NotifyLeave tells of a member that left or died.
func (w *eventDelegate) NotifyLeave(n *memberlist.Node) {
	m := (*Members)(w)
	m.changeMembers(func() { delete(m.nodesByName, n.Name) })
}

// NotifyUpdate tells of a member whose meta changed.
func (w *eventDelegate) NotifyUpdate(n *memberlist.Node) { w.setNode(n) }
