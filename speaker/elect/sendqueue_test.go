package elect

import "time"

// transmitMessage delivers a message unless it is lost.
func (w *clusterSimulation) transmitMessage(n *simNode, e SendMessage) {
	to := w.nodesByName[e.To]
	m := to.machine
	deliver := func() {
		if to.machine == m {
			w.stepNode(to, MessageReceived{From: n.name, Payload: e.Payload})
		}
	}
	if w.doKernelsQueueDuringCuts && !w.canGossip(n.name, e.To) {
		w.messagesHeldBack = append(w.messagesHeldBack, deliver)
		return
	}
	if !w.canGossip(n.name, e.To) || w.deafNodes[e.To] || w.random.Float64() < w.messageLossRate {
		return
	}
	w.scheduleEvent(time.Duration(w.random.Int63n(int64(w.maxMessageDelay))), deliver)
}

// simBulkQueueLimit is how many bulk messages wait on a node, as in package members.
const simBulkQueueLimit = 1 << 15

// queueMessage queues a message for a node that sends a limited number of them in a millisecond,
// urgent ones first.
func (w *clusterSimulation) queueMessage(n *simNode, e SendMessage) {
	switch {
	case e.Priority == PriorityUrgent:
		n.urgentMessages = append(n.urgentMessages, e)
	case e.Priority == PriorityNormal:
		n.normalPriorityMessages = append(n.normalPriorityMessages, e)
	case len(n.bulkMessages) < simBulkQueueLimit:
		n.bulkMessages = append(n.bulkMessages, e)
	}
	if !n.isSending {
		n.isSending = true
		w.scheduleEvent(0, func() { w.sendQueuedMessages(n) })
	}
}

func (w *clusterSimulation) sendQueuedMessages(n *simNode) {
	for range w.maxSentMessagesPerMillisecond {
		switch {
		case len(n.urgentMessages) > 0:
			w.transmitMessage(n, n.urgentMessages[0])
			n.urgentMessages = n.urgentMessages[1:]
		case len(n.normalPriorityMessages) > 0:
			w.transmitMessage(n, n.normalPriorityMessages[0])
			n.normalPriorityMessages = n.normalPriorityMessages[1:]
		case len(n.bulkMessages) > 0:
			w.transmitMessage(n, n.bulkMessages[0])
			n.bulkMessages = n.bulkMessages[1:]
		}
	}
	if n.isSending = len(n.urgentMessages)+len(n.normalPriorityMessages)+len(n.bulkMessages) > 0; n.isSending {
		w.scheduleEvent(time.Millisecond, func() { w.sendQueuedMessages(n) })
	}
}
