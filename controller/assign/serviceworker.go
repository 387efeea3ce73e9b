// Package assign connects the allocator to the API server. One goroutine, that of ServiceWorker,
// owns the Ledger and decides; tasks write the decisions in parallel. It runs only on the leader,
// and reads every address in use before it assigns the first new one. Two workers that run at once,
// by mistake or during a change of leaders, do not assign one address twice: see
// package pendingwrites.
//
// One assignment takes these steps: the Decision is committed to the Ledger; its pending assignment
// is written to the AddressLedger, one write for a batch of Services; the Service's status is
// written; the pending assignment is closed. An event reports the outcome. An address is released
// only when it is proven to be free: by our own write to the Service, or by an answer of the API
// server itself.
package assign

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/controller/pendingwrites"
	"github.com/gantry-lb/gantry/internal/view"
)

// ServiceWorkerOptions are the settings of a ServiceWorker.
type ServiceWorkerOptions struct {
	API WorkerAPI
	// Now is the clock.
	Now func() time.Time
	// ConfigurationReader reads and publishes the configuration.
	ConfigurationReader *configurationreader.Reader
	Log                 *slog.Logger
	// RecordEvent creates an event about a Service; kind is Normal or Warning.
	RecordEvent func(about *corev1.Service, kind, reason, text string)
	// PredictUnannouncedCondition returns the condition of a Service that is about to get its first
	// addresses if no speaker will announce them; it may be nil.
	PredictUnannouncedCondition func(ctx context.Context, s *corev1.Service, assigned []netip.Addr) (metav1.Condition, bool)
	// LeaderAbsence returns the time in which no controller led before this one; it may be nil.
	LeaderAbsence func() LeaderAbsence
	// Namespace holds the configuration objects.
	Namespace string
	// LoadBalancerClass is the class to serve; empty serves Services without a class.
	LoadBalancerClass string
	// LedgerWriterIdentity names this process in the AddressLedger.
	LedgerWriterIdentity string
	// Metrics count what the worker does; may be nil.
	Metrics *WorkerMetrics
}

// ServiceWorker assigns addresses to the Services of one class. The zero value is not usable; call
// NewServiceWorker.
type ServiceWorker struct {
	ServiceWorkerOptions

	workQueue *workQueue
	// ledgerLoaded is set once the Ledger has every address in use.
	ledgerLoaded atomic.Bool

	// Only the worker's goroutine uses the fields below.
	ledger *allocate.Ledger
	// ledgerBuildNumber counts how often the Ledger was built.
	ledgerBuildNumber int
	// configuration is what the decisions use; nil until the Ledger is first loaded.
	configuration *configurationreader.Configuration
	// mustAwaitConfigurationRead says that a change of the configuration waits to be read.
	mustAwaitConfigurationRead bool
	recordByService            map[view.ObjectKey]*serviceRecord
	// waitingServices do not have all that they ask for.
	waitingServices waitingServices
	// servicesWithContestedAddresses have an address that another Service seemed to hold. They are
	// the last to get their addresses when the Ledger is built.
	servicesWithContestedAddresses map[view.ObjectKey]struct{}
	servicesWithRefusedStatus      servicesWithRefusedStatus
	// reloadCause is why all Services are read next. lastSharingReload is when they were last read
	// because of a right to share.
	reloadCause       string
	lastSharingReload time.Time
	reloadSchedule    reloadSchedule
	slowWriteTimer    wakeTimer
	// nextWithheldDeadline is when the next entry of a withheld address ends.
	nextWithheldDeadline time.Time
	// mustQueueWaitingServices queues all waitingServices.
	mustQueueWaitingServices bool
	// seenFreedAddressesVersion and seenShareableAddressesVersion are the versions of the Ledger
	// for which the waiting Services were last queued.
	seenFreedAddressesVersion, seenShareableAddressesVersion uint64
	apiTaskQueue                                             *apiTaskQueue
	ledgerWriter                                             ledgerWriter
	unrecordedWritesInvalidator                              unrecordedWritesInvalidator
	withheldCheckpoint                                       withheldCheckpoint
	addressProber                                            addressProber
	poolOrReservationStatusWriter                            poolOrReservationStatusWriter
	deferredEventQueue                                       deferredEventQueue
	retirementScheduler                                      retirementScheduler
	editTurns                                                editTurns
	consecutiveLoadFailures                                  int // in a row

	workerState observableWorkerState
}

// serviceRecord is what the worker knows of a Service that it serves or served.
type serviceRecord struct {
	uid types.UID
	// newestResourceVersion is the newest known resourceVersion. An older cached object is ignored,
	// because a newer one is on its way.
	newestResourceVersion uint64
	// resourceVersionMatchingLedger is the resourceVersion with which the Ledger was built, or for
	// which the API server confirmed what the Ledger has of its addresses; 0 when it came later.
	resourceVersionMatchingLedger uint64
	// inconclusiveSharingChecks counts the checks of its right to share in a row that had no
	// result.
	inconclusiveSharingChecks int
	// requestInFlight says that a write waits or has not ended, changedDuringRequest that the
	// Service changed since it began.
	requestInFlight, changedDuringRequest bool
	consecutiveFailures                   int // in a row
	// A write that the API server refused is not repeated before retryAt, unless the Service has
	// another resourceVersion than refusedResourceVersion by then.
	refusedResourceVersion string
	retryAt                time.Time
	// ledgerEntryRefused says that the API server refused the AddressLedger with an entry of this
	// Service when it was last tried.
	ledgerEntryRefused bool
	// waitingSince is since when the Service has waited for its first address; zero when it has
	// one.
	waitingSince time.Time
	// recentWriteCount counts the writes since recentWritesSince.
	recentWriteCount  int
	recentWritesSince time.Time
	edits             serviceEdits
	// wantsToShare says that the Service had a sharing key when it was last decided.
	wantsToShare bool
	// rivalWriter is the other program that has changed the addresses; empty for none.
	// rivalCheckedAt is when that was last asked.
	rivalWriter    string
	rivalCheckedAt time.Time
}

// maxServicesDecidedPerTurn bounds how many Services are decided before results are handled: some
// milliseconds of work.
const maxServicesDecidedPerTurn = 64

// NewServiceWorker returns a worker that is not running.
func NewServiceWorker(o ServiceWorkerOptions) *ServiceWorker {
	if o.Metrics == nil {
		o.Metrics = NewWorkerMetrics()
	}
	queue, tasks := newWorkQueue(), newAPITaskQueue(o.API)
	r := &ServiceWorker{
		ServiceWorkerOptions: o, workQueue: queue, apiTaskQueue: tasks,
		recordByService:                map[view.ObjectKey]*serviceRecord{},
		waitingServices:                waitingServices{map[view.ObjectKey]names.Reason{}, o.Metrics.waitingServicesByReason},
		servicesWithContestedAddresses: map[view.ObjectKey]struct{}{},
		servicesWithRefusedStatus:      servicesWithRefusedStatus{},
		reloadCause:                    reloadCauseStart,
		ledgerWriter:                   ledgerWriter{maxPendingServices: maxPendingAssignments},
		withheldCheckpoint:             withheldCheckpoint{log: o.Log, workQueue: queue, apiTaskQueue: tasks, namespace: o.Namespace, writerIdentity: o.LedgerWriterIdentity, countByReason: o.Metrics.withheldAddressesByReason},
		addressProber:                  addressProber{api: o.API, log: o.Log, recordEvent: o.RecordEvent, workQueue: queue, apiTaskQueue: tasks, openProbeByAddress: map[netip.Addr]*openAddressProbe{}},
		retirementScheduler:            retirementScheduler{workQueue: queue},
		editTurns:                      newEditTurns(o.Log, queue),
		deferredEventQueue:             deferredEventQueue{recordEvent: o.RecordEvent, workQueue: queue},
		poolOrReservationStatusWriter:  poolOrReservationStatusWriter{api: o.API, log: o.Log, workQueue: queue, apiTaskQueue: tasks},
	}
	r.unrecordedWritesInvalidator = unrecordedWritesInvalidator{ServiceWorkerOptions: o, isServiceServed: r.isServiceOurs, recordOutcome: func(out writeOutcome) {
		o.Metrics.statusWritesByOutcome.WithLabelValues(out.String()).Inc()
		r.workerState.recordAttempt(o.Now(), phaseLoading, out == outcomeWritten)
	}}
	return r
}

// IsLedgerLoaded says whether the Ledger has every address in use.
func (r *ServiceWorker) IsLedgerLoaded() bool { return r.ledgerLoaded.Load() }

// Run works until ctx ends. It then finishes the tasks in flight, and the writes whose assignments
// the AddressLedger has, so that the next leader need not.
func (r *ServiceWorker) Run(ctx context.Context) error {
	tasks, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	published := r.ConfigurationReader.Subscribe()
	r.workQueue.startAcceptingServices()
	r.workQueue.wakeWorker()
	for ctx.Err() == nil {
		r.publishBusyPhases()
		// A swap in flight belongs to the current Ledger.
		if !r.ledgerLoaded.Load() && !r.ledgerWriter.swapInFlight && r.reloadSchedule.isReloadDue(r.Now(), r.workQueue) {
			r.loadLedgerOrRetry(ctx)
		}
		if r.ledgerLoaded.Load() {
			r.runOnce(tasks)
		}
		r.publishBusyPhases()
		r.updateUnfinishedWorkGauge()
		r.awaitWork(ctx, tasks, published)
	}
	r.drainTasks(tasks, cancel)
	r.deferredEventQueue.recordOldestEvents(len(r.deferredEventQueue.queuedEvents))
	r.workerState.setBusyPhasesAndPendingCount(r.Now(), [phaseCount]bool{}, 0)
	return nil
}

// drainTasksTimeout bounds the work after ctx has ended; it is shorter than the manager's wait for
// the worker.
const drainTasksTimeout = 1500 * time.Millisecond

// drainTasks runs the writes that have begun or are ready, until none is left or the time is over.
// It decides nothing new.
func (r *ServiceWorker) drainTasks(ctx context.Context, cancel func()) {
	end := time.NewTimer(drainTasksTimeout)
	defer end.Stop()
	for r.apiTaskQueue.countUnfinishedTasks() > 0 {
		r.apiTaskQueue.dropAllButStatusWrites()
		r.apiTaskQueue.dispatchTasks(ctx, r.Now())
		if r.apiTaskQueue.tasksInFlightCount == 0 {
			return
		}
		select {
		case f := <-r.apiTaskQueue.endedTaskHandlerChannel:
			r.runTaskResultHandler(ctx, f)
		case <-end.C:
			cancel()
			for ; r.apiTaskQueue.tasksInFlightCount > 0; r.apiTaskQueue.tasksInFlightCount-- {
				<-r.apiTaskQueue.endedTaskHandlerChannel
			}
			return
		}
	}
}

// publishBusyPhases publishes which work there is.
func (r *ServiceWorker) publishBusyPhases() {
	open := 0
	if r.ledgerWriter.pendingWrites != nil {
		open = r.ledgerWriter.pendingWrites.CountPending()
	}
	r.workerState.setBusyPhasesAndPendingCount(r.Now(), [phaseCount]bool{
		phaseLoading:  !r.ledgerLoaded.Load(),
		phaseDeciding: r.ledgerLoaded.Load() && !r.workQueue.hasNoQueuedServices(),
		phaseWriting:  r.hasWritesBesidesRefusedServices(),
	}, open)
}

// runOnce does all work that is due.
func (r *ServiceWorker) runOnce(ctx context.Context) {
	r.advanceLedgerTime()
	looks := maxServicesDecidedPerTurn
	if r.mustAwaitConfigurationRead = !r.applyConfiguration(); r.mustAwaitConfigurationRead {
		looks = 0
	}
	letters := r.workQueue.takeItems(looks)
	for _, l := range letters {
		if r.ledgerLoaded.Load() {
			r.decideService(ctx, l)
		} else {
			r.workQueue.putBackItem(l)
		}
	}
	if !r.ledgerLoaded.Load() {
		r.workQueue.wakeWorker()
		return
	}
	if len(letters) > 0 {
		r.workerState.recordAttempt(r.Now(), phaseDeciding, true)
	}
	r.queueServicesWaitingForAddress()
	r.editTurns.queueServicesWithTurn(r.Now(), r.recordByService)
	r.retirementScheduler.startDueTurns(r.Now(), r.ledger, r.configuration.Snapshot)
	r.addressProber.createAndDeleteProbes(ctx, r.Now(), r.ledger, r.configuration)
	r.apiTaskQueue.slowWriteTracker.updateSlowWrites(r.Now())
	r.startLedgerSwapIfDue(ctx)
	r.withheldCheckpoint.saveIfChanged(r.Now(), r.ledger, r.ledgerBuildNumber)
	if r.poolOrReservationStatusWriter.writeStatusesAndFreeAddresses(ctx, r.Now(), r.ledger, r.configuration, &r.retirementScheduler) {
		r.mustQueueWaitingServices = true
		r.workQueue.wakeWorker()
	}
	r.apiTaskQueue.dispatchTasks(ctx, r.Now())
	if due := r.apiTaskQueue.slowWriteTracker.nextSlowTime(r.Now()); !due.IsZero() {
		r.slowWriteTimer.wakeWorkerAt(due, r.Now(), r.workQueue)
	}
	r.deferredEventQueue.recordDueEvents(r.Now(), r.hasServiceWork)
	r.advanceLedgerTime()
}

// awaitWork waits until there is work, and handles the results of tasks.
func (r *ServiceWorker) awaitWork(ctx, tasks context.Context, published <-chan struct{}) {
	if !r.workQueue.hasNoQueuedServices() && r.ledgerLoaded.Load() && !r.mustAwaitConfigurationRead {
		r.workQueue.wakeWorker()
	}
	if !r.ledgerLoaded.Load() {
		published = nil // a failed load has read the configuration too, and is not repeated at once
	}
	select {
	case <-ctx.Done():
		return
	case <-r.workQueue.wakeSignal.C():
	case <-published:
	case f := <-r.apiTaskQueue.endedTaskHandlerChannel:
		r.runTaskResultHandler(tasks, f)
	}
	for {
		select {
		case f := <-r.apiTaskQueue.endedTaskHandlerChannel:
			r.runTaskResultHandler(tasks, f)
		default:
			return
		}
	}
}

func (r *ServiceWorker) runTaskResultHandler(ctx context.Context, f taskResultHandler) {
	r.apiTaskQueue.tasksInFlightCount--
	r.apiTaskQueue.lastTaskStartOrEnd = r.Now()
	r.workerState.recordAttempt(r.Now(), phaseWriting, false)
	f(ctx, r)
}

// ledgerWriter is the state of the writes of the AddressLedger.
type ledgerWriter struct {
	pendingWrites *pendingwrites.Set
	ledgerObject  *v1alpha1.AddressLedger
	// writesAwaitingLedgerEntry wait until their pending assignments are in the object.
	writesAwaitingLedgerEntry []*serviceStatusWriteTask
	// maxPendingServices is how many Services may have open assignments. fullLedgerLogged says that
	// the log says that this is reached.
	maxPendingServices int
	fullLedgerLogged   bool
	// unansweredWritesOfLastBatch counts the status writes of the last batch without a first
	// answer. batchNumber is the number of that batch, and lastBatchAnswerTime is when one of its
	// writes was answered last.
	unansweredWritesOfLastBatch, batchNumber int
	lastBatchAnswerTime                      time.Time
	// isBatchingSwaps says that Services come so fast that several should share a swap.
	isBatchingSwaps bool
	// recentWriters knows which namespaces have many writes.
	recentWriters recentWriters
	// swapInFlight says that a write of the object has not ended.
	swapInFlight bool
	// lastSwapStart is when the last swap began.
	lastSwapStart       time.Time
	swapTimer           wakeTimer // of startLedgerSwapIfDue
	trimTimer           wakeTimer // of removeClosedEntriesWhenIdle
	consecutiveFailures int       // in a row
	trimFailures        int       // of removeClosedEntriesWhenIdle, in a row
	// writesInSwap counts the writes of the swap in flight.
	writesInSwap int
	// maxWritesWhileFindingRefused bounds the writes of the next swap during the search for a
	// refused entry; 0 means no limit.
	maxWritesWhileFindingRefused int
	// mustOmitEarlierEntries says that the next object has only the entry of one write, because the
	// API server may refuse the entry of an earlier one.
	mustOmitEarlierEntries bool
	// refusalsInARow counts the new entries in a row that the API server refused permanently.
	// lastRefusalTime is when it last refused any entry.
	refusalsInARow  int
	lastRefusalTime time.Time
}

// logServiceFailure logs what failed for a Service and when it is repeated.
func (r *ServiceWorker) logServiceFailure(k view.ObjectKey, err error, wait time.Duration) {
	if errors.Is(err, context.Canceled) {
		return
	}
	r.Log.Error("serving a Service failed", "service", k.String(), "error", err, "reason", names.ReasonWriteFailed, "again", wait)
}
