package elect

import (
	"slices"
	"time"
)

// busyProcessors are the cores that all speakers of a harness share, with other programs. A task
// that has work waits for its turn, runs for one slice at most, and waits again. So the delay of
// every speaker grows with the work of all.
type busyProcessors struct {
	harness         *harness
	idleCores       int
	waiting         []*simTask
	loopByNode      map[*simNode]*simTask
	readerByNode    map[*simNode]*simTask
	writerByNode    map[*simNode]*simTask
	otherWorkByNode map[*simNode]*simTask
	apiServer       *simTask
}

// schedulerSliceDelay is how long a task runs before the next one gets the core.
const schedulerSliceDelay = 3 * time.Millisecond

// What work costs. The writes of one takeover are those of a ServiceL2Status, its status, the
// removal of the former one and an event; each speaker decodes what changes.
const (
	stepCost            = 150 * time.Microsecond
	inputCost           = 20 * time.Microsecond
	messageCost         = 40 * time.Microsecond
	probeCost           = 50 * time.Microsecond
	addressChangeCost   = 100 * time.Microsecond
	answerCost          = 30 * time.Microsecond
	writesOfSpeakerCost = 5 * time.Millisecond
	writesOfServerCost  = 12 * time.Millisecond
	decodingCost        = time.Millisecond
)

// simTask is one thread of a program. It has pieces of work in a row.
type simTask struct {
	pieces           []simPiece
	isRunning        bool // waits for a core or has one
	inputs           []Input
	isStepRequested  bool
	isAlwaysRunnable bool
}

// simPiece is work that takes processor time and then has an effect.
type simPiece struct {
	cost   time.Duration
	finish func()
}

// useBusyProcessors makes the speakers share some cores with a number of programs that always have
// work.
func (w *harness) useBusyProcessors(coreCount, otherPrograms int) {
	p := &busyProcessors{
		harness: w, idleCores: coreCount, loopByNode: map[*simNode]*simTask{}, readerByNode: map[*simNode]*simTask{},
		writerByNode: map[*simNode]*simTask{}, otherWorkByNode: map[*simNode]*simTask{}, apiServer: &simTask{},
	}
	for _, name := range w.nodeNames {
		n := w.nodesByName[name]
		p.loopByNode[n], p.readerByNode[n], p.writerByNode[n], p.otherWorkByNode[n] = &simTask{}, &simTask{}, &simTask{}, &simTask{}
	}
	w.processors = p
	for range otherPrograms {
		p.makeRunnable(&simTask{isAlwaysRunnable: true})
	}
}

// addWork gives a task another piece of work.
func (p *busyProcessors) addWork(t *simTask, cost time.Duration, finish func()) {
	t.pieces = append(t.pieces, simPiece{cost, finish})
	p.makeRunnable(t)
}

// stepNode lets a node step when it gets a core. Inputs that wait come together.
func (p *busyProcessors) stepNode(n *simNode, inputs []Input) {
	t := p.loopByNode[n]
	t.inputs = append(t.inputs, inputs...)
	if t.isStepRequested {
		return
	}
	t.isStepRequested = true
	p.addWork(t, 0, func() {
		inputs := t.inputs
		t.inputs, t.isStepRequested = nil, false
		if n.machine == nil {
			return
		}
		m := n.machine
		effects := m.Step(p.harness.now, inputs...)
		// before what came meanwhile
		t.pieces = slices.Insert(t.pieces, 0, simPiece{costOfStep(inputs, effects), func() {
			if n.machine == m {
				p.harness.finishStep(n, effects)
				p.addWritesOfStep(n, effects)
			}
		}})
		p.makeRunnable(t)
	})
}

func costOfStep(inputs []Input, effects []Effect) time.Duration {
	cost := stepCost + time.Duration(len(inputs))*inputCost
	for _, e := range effects {
		switch e.(type) {
		case SendMessage:
			cost += messageCost
		case AcquireProbe, ReachabilityProbe, RepeatAnnouncement:
			cost += probeCost
		case HoldAddress, DropAddress:
			cost += addressChangeCost
		}
	}
	return cost
}

// addWritesOfStep adds the writes to the API server for the addresses that a node took or gave up,
// and what the other speakers have to read of them.
func (p *busyProcessors) addWritesOfStep(n *simNode, effects []Effect) {
	for _, e := range effects {
		switch e.(type) {
		case HoldAddress, DropAddress:
			p.addWork(p.writerByNode[n], writesOfSpeakerCost, func() {
				p.addWork(p.apiServer, writesOfServerCost, func() {
					for _, name := range p.harness.nodeNames {
						p.addWork(p.otherWorkByNode[p.harness.nodesByName[name]], decodingCost, nil)
					}
				})
			})
		}
	}
}

// makeRunnable lets a task wait for a core unless it does so already.
func (p *busyProcessors) makeRunnable(t *simTask) {
	if t.isRunning {
		return
	}
	t.isRunning = true
	p.waiting = append(p.waiting, t)
	if p.idleCores > 0 {
		p.idleCores--
		p.harness.scheduleEvent(0, p.runNextTask)
	}
}

// runNextTask gives a core to the task that waits longest.
func (p *busyProcessors) runNextTask() {
	if len(p.waiting) == 0 {
		p.idleCores++
		return
	}
	t := p.waiting[0]
	p.waiting = p.waiting[1:]
	if t.isAlwaysRunnable {
		p.harness.scheduleEvent(schedulerSliceDelay, func() { p.endSlice(t) })
		return
	}
	p.runSlice(t, schedulerSliceDelay)
}

// runSlice works on the pieces of a task until its slice is over.
func (p *busyProcessors) runSlice(t *simTask, left time.Duration) {
	if len(t.pieces) == 0 || left <= 0 {
		p.endSlice(t)
		return
	}
	part := min(t.pieces[0].cost, left)
	p.harness.scheduleEvent(part, func() {
		if t.pieces[0].cost -= part; t.pieces[0].cost == 0 {
			finish := t.pieces[0].finish
			t.pieces = t.pieces[1:]
			if finish != nil {
				finish()
			}
		}
		p.runSlice(t, left-part)
	})
}

// endSlice gives the core to the next task.
func (p *busyProcessors) endSlice(t *simTask) {
	t.isRunning = false
	if len(t.pieces) > 0 || t.isAlwaysRunnable {
		p.makeRunnable(t)
	}
	p.runNextTask()
}
