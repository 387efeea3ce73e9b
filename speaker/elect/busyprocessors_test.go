package elect

import (
	"slices"
	"time"
)

// busyProcessors are the cores that all speakers of a harness share, with other programs. A task
// that has work waits for its turn, runs for one slice at most, and waits again. So the delay of
// every speaker grows with the work of all.
type busyProcessors struct {
	simulation            *clusterSimulation
	idleCores             int
	waitingTasks          []*simTask
	stepTaskByNode        map[*simNode]*simTask
	probeAnswerTaskByNode map[*simNode]*simTask
	apiWriteTaskByNode    map[*simNode]*simTask
	decodeTaskByNode      map[*simNode]*simTask
	apiServerTask         *simTask
}

// schedulerSliceDelay is how long a task runs before the next one gets the core.
const schedulerSliceDelay = 3 * time.Millisecond

// What work costs. The writes of one takeover are those of a ServiceL2Status, its status, the
// removal of the former one and an event; each speaker decodes what changes.
const (
	stepCPUTime            = 150 * time.Microsecond
	inputCPUTime           = 20 * time.Microsecond
	messageCPUTime         = 40 * time.Microsecond
	probeCPUTime           = 50 * time.Microsecond
	addressChangeCPUTime   = 100 * time.Microsecond
	probeAnswerCPUTime     = 30 * time.Microsecond
	speakerAPIWriteCPUTime = 5 * time.Millisecond
	apiServerWriteCPUTime  = 12 * time.Millisecond
	objectDecodingCPUTime  = time.Millisecond
)

// simTask is one thread of a program. It has pieces of work in a row.
type simTask struct {
	pieces            []simWorkPiece
	isQueuedOrRunning bool // waits for a core or has one
	inputs            []Input
	isStepRequested   bool
	isAlwaysRunnable  bool
}

// simWorkPiece is work that takes processor time and then has an effect.
type simWorkPiece struct {
	cpuTime time.Duration
	finish  func()
}

// useBusyProcessors makes the speakers share some cores with a number of programs that always have
// work.
func (w *clusterSimulation) useBusyProcessors(coreCount, otherPrograms int) {
	p := &busyProcessors{
		simulation: w, idleCores: coreCount, stepTaskByNode: map[*simNode]*simTask{}, probeAnswerTaskByNode: map[*simNode]*simTask{},
		apiWriteTaskByNode: map[*simNode]*simTask{}, decodeTaskByNode: map[*simNode]*simTask{}, apiServerTask: &simTask{},
	}
	for _, name := range w.nodeNames {
		n := w.nodesByName[name]
		p.stepTaskByNode[n], p.probeAnswerTaskByNode[n], p.apiWriteTaskByNode[n], p.decodeTaskByNode[n] = &simTask{}, &simTask{}, &simTask{}, &simTask{}
	}
	w.processors = p
	for range otherPrograms {
		p.makeRunnable(&simTask{isAlwaysRunnable: true})
	}
}

// addWork gives a task another piece of work.
func (p *busyProcessors) addWork(t *simTask, cost time.Duration, finish func()) {
	t.pieces = append(t.pieces, simWorkPiece{cost, finish})
	p.makeRunnable(t)
}

// stepNode lets a node step when it gets a core. Inputs that wait come together.
func (p *busyProcessors) stepNode(n *simNode, inputs []Input) {
	t := p.stepTaskByNode[n]
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
		effects := m.Step(p.simulation.clockOf(n), inputs...)
		// before what came meanwhile
		t.pieces = slices.Insert(t.pieces, 0, simWorkPiece{cpuTimeOfStep(inputs, effects), func() {
			if n.machine == m {
				p.simulation.performEffectsOfStep(n, effects)
				p.addAPIWritesOfStep(n, effects)
			}
		}})
		p.makeRunnable(t)
	})
}

func cpuTimeOfStep(inputs []Input, effects []Effect) time.Duration {
	cost := stepCPUTime + time.Duration(len(inputs))*inputCPUTime
	for _, e := range effects {
		switch e.(type) {
		case SendMessage:
			cost += messageCPUTime
		case AcquireProbe, ReachabilityProbe, RepeatAnnouncement:
			cost += probeCPUTime
		case HoldAddress, DropAddress:
			cost += addressChangeCPUTime
		}
	}
	return cost
}

// addAPIWritesOfStep adds the writes to the API server for the addresses that a node took or gave
// up, and what the other speakers have to read of them.
func (p *busyProcessors) addAPIWritesOfStep(n *simNode, effects []Effect) {
	for _, e := range effects {
		switch e.(type) {
		case HoldAddress, DropAddress:
			p.addWork(p.apiWriteTaskByNode[n], speakerAPIWriteCPUTime, func() {
				p.addWork(p.apiServerTask, apiServerWriteCPUTime, func() {
					for _, name := range p.simulation.nodeNames {
						p.addWork(p.decodeTaskByNode[p.simulation.nodesByName[name]], objectDecodingCPUTime, nil)
					}
				})
			})
		}
	}
}

// makeRunnable lets a task wait for a core unless it does so already.
func (p *busyProcessors) makeRunnable(t *simTask) {
	if t.isQueuedOrRunning {
		return
	}
	t.isQueuedOrRunning = true
	p.waitingTasks = append(p.waitingTasks, t)
	if p.idleCores > 0 {
		p.idleCores--
		p.simulation.scheduleEvent(0, p.runNextTask)
	}
}

// runNextTask gives a core to the task that waits longest.
func (p *busyProcessors) runNextTask() {
	if len(p.waitingTasks) == 0 {
		p.idleCores++
		return
	}
	t := p.waitingTasks[0]
	p.waitingTasks = p.waitingTasks[1:]
	if t.isAlwaysRunnable {
		p.simulation.scheduleEvent(schedulerSliceDelay, func() { p.endSlice(t) })
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
	part := min(t.pieces[0].cpuTime, left)
	p.simulation.scheduleEvent(part, func() {
		if t.pieces[0].cpuTime -= part; t.pieces[0].cpuTime == 0 {
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
	t.isQueuedOrRunning = false
	if len(t.pieces) > 0 || t.isAlwaysRunnable {
		p.makeRunnable(t)
	}
	p.runNextTask()
}
