package members

import (
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
)

// messageDelegate receives the callbacks of memberlist for messages and states.
type messageDelegate Members

var _ memberlist.Delegate = (*messageDelegate)(nil)

// NodeMeta returns the metadata that the other members get.
func (d *messageDelegate) NodeMeta(limit int) []byte {
	b := *d.ownEncodedMetadata.Load()
	return b[:min(len(b), limit)]
}

// NotifyMsg processes a message. memberlist reuses the buffer.
func (d *messageDelegate) NotifyMsg(b []byte) {
	if len(b) < 1 || len(b) < 1+int(b[0]) {
		return
	}
	n := int(b[0])
	if p, ok := decodePathMessage(b[1:]); ok && n == 0 {
		(*Members)(d).handlePathMessage(p)
		return
	}
	if p, ok := decodeDeparture(b[1:]); ok && n == 0 {
		(*Members)(d).recordDeparture(p)
		return
	}
	if n == 0 {
		(*Members)(d).handleGreeting(string(b[1:]))
		return
	}
	// a full queue drops the oldest message, which says the least
	queue, payload := d.bulkReceivedMessages, slices.Clone(b[1+n:])
	if d.options.IsReceivedMessageUrgent(payload) {
		queue = d.urgentReceivedMessages
	}
	queue.PutDroppingOldest(ReceivedMessage{SenderName: string(b[1 : 1+n]), Payload: payload})
}

// GetBroadcasts returns nothing: messages go directly to their receivers.
func (d *messageDelegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState returns this node's part of a full exchange.
func (d *messageDelegate) LocalState(bool) []byte { return *d.fullExchangeState.Load() }

// MergeRemoteState delivers another member's part of a full exchange. If there is no room it drops
// the state, since the next exchange repeats it.
func (d *messageDelegate) MergeRemoteState(b []byte, _ bool) {
	d.receivedFullStates.PutIfRoom(slices.Clone(b))
}

// eventDelegate receives the callbacks of memberlist for members that come and go. memberlist holds
// its lock during a call, so the node must be copied here.
type eventDelegate Members

var _ memberlist.EventDelegate = (*eventDelegate)(nil)

func (w *eventDelegate) storeNode(n *memberlist.Node) {
	node := *n
	node.Addr, node.Meta = slices.Clone(n.Addr), slices.Clone(n.Meta)
	m := (*Members)(w)
	m.editMembersAndDeliverSet(func() {
		m.memberlistNodeByName[node.Name] = node
		m.departures.recordJoin(node.Name)
	})
}

// NotifyJoin adds a new member.
func (w *eventDelegate) NotifyJoin(n *memberlist.Node) { w.storeNode(n) }

// NotifyLeave removes a member that left or died.
func (w *eventDelegate) NotifyLeave(n *memberlist.Node) {
	m := (*Members)(w)
	m.editMembersAndDeliverSet(func() {
		known, isKnown := m.memberlistNodeByName[n.Name]
		if isKnown && n.Name != m.options.NodeName && m.departures.recordLeave(&known, m.options.Now()) {
			time.AfterFunc(departureTimeout, func() { m.editMembersAndDeliverSet(func() {}) })
		}
		delete(m.memberlistNodeByName, n.Name)
	})
}

// NotifyUpdate updates a member whose metadata changed.
func (w *eventDelegate) NotifyUpdate(n *memberlist.Node) { w.storeNode(n) }
