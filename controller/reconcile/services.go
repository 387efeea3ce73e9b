// Package reconcile joins the allocator to the API server. One goroutine, the worker of Services, owns the Ledger and decides; what
// it decided is written side by side by tasks. It runs on the leader only, and knows every address in use before it gives
// the first new one. Two workers that run at once, by mistake or across a change of leaders, do not give one address twice: see
// package fence for how.
//
// The order of one assignment: the Decision is committed to the Ledger; its Intent is written to the AddressLedger, one write for
// all Services of a batch; the Service's status is written; the Intent is settled. An event tells the outcome. An address is
// given up only for what proves that it is free: our own write to the Service, or an answer of the API server itself.
package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/fence"
	"github.com/gantry-lb/gantry/internal/view"
)

// Options are what a worker is made of.
type Options struct {
	API API
	Log *slog.Logger
	// RecordEvent makes an event about a Service; kind is Normal or Warning.
	RecordEvent func(about *corev1.Service, kind, reason, text string)
	// ForecastAnnounced says of a Service that is about to have its first addresses that nobody will announce them; nil never does.
	ForecastAnnounced func(ctx context.Context, s *corev1.Service, assigned []netip.Addr) (metav1.Condition, bool)
	// Namespace holds the configuration objects.
	Namespace string
	// LoadBalancerClass is the load balancer class to serve; empty serves Services without a class.
	LoadBalancerClass string
	// Identity names this process in the AddressLedger.
	Identity string
	// Metrics are where the worker counts what it does; nil is where nobody looks.
	Metrics *WorkerMetrics
}

// ServiceWorker gives addresses to the Services of one class. The zero value is not usable; call New.
type ServiceWorker struct {
	Options

	queue *workQueue
	// results of the tasks that ran; there is room for all that run at a time.
	results chan taskResult
	// loaded is set once the Ledger holds every address in use.
	loaded atomic.Bool

	// The worker owns all that follows.
	ledger *allocate.Ledger
	// ledgerEpoch counts how often the Ledger was built.
	ledgerEpoch   int
	configuration parsedConfiguration
	records       map[view.ObjectKey]*serviceRecord
	// waitingServices are the Services that do not have what they ask for.
	waitingServices waitingServices
	// suspectServices are Services with an address that another had, as far as was known: the last to claim it when the Ledger is built.
	suspectServices map[view.ObjectKey]struct{}
	// reloadCause is why all Services are read next, lastReload when they were because of a right to share.
	reloadCause string
	lastReload  time.Time
	// nextDeadline is when the worker is woken because something that is withheld ends.
	nextDeadline time.Time
	// wakeWaiting asks for a look at all of them.
	wakeWaiting bool
	// wakeSharers asks for a look at those of them that may share an address.
	wakeSharers bool
	// readyTasks are tasks that wait for a place, sleeping ones that wait for their time.
	readyTasks         []task
	sleepingWrites     []*serviceWrite
	tasksInFlight      int
	ledgerWriter       ledgerWriter
	withheldCheckpoint withheldCheckpoint
	openProbes         probesByAddress
	poolCounters       poolCounters
	loadFailures       int // to load, in a row

	workerState workerState
}

// serviceRecord is what the worker remembers of a Service that is, or was, ours.
type serviceRecord struct {
	uid types.UID
	// newestVersion is the newest resourceVersion that the Service is known to have had. A cached object that is older is not looked
	// at: the newer one is on its way.
	newestVersion uint64
	// loadedVersion is the one with which the Ledger was built, or with which the API server confirmed what the Ledger says of its
	// addresses; 0 when it came later.
	loadedVersion uint64
	// sharingChecks counts those of its right to share in a row that led to nothing.
	sharingChecks int
	// writeInFlight says that a write waits or is under way; again, that there was news meanwhile.
	writeInFlight, changedMeanwhile bool
	failures                        int // in a row
	// What the API server refused is not tried again before retry, unless the Service has another resourceVersion than refused by then.
	refusedVersion string
	retryAt        time.Time
	// entryRefused says that the API server refused the AddressLedger with an entry of this Service when it was last tried.
	entryRefused bool
	// waitingSince is since when the Service waits for its first address; zero when it has one.
	waitingSince time.Time
	// recentWrites counts those since.
	recentWrites int
	recentSince  time.Time
	// sharing is what its right to share an address hung on when it was last looked at.
	sharing string
}

// decideBatchSize bounds how many Services are looked at before results are taken in: some milliseconds of work.
const decideBatchSize = 64

// NewServiceWorker returns a worker that has not begun.
func NewServiceWorker(o Options) *ServiceWorker {
	if o.Metrics == nil {
		o.Metrics = NewWorkerMetrics()
	}
	return &ServiceWorker{
		Options: o, queue: newWorkQueue(), results: make(chan taskResult, maxTasksInFlight+2),
		openProbes: probesByAddress{}, records: map[view.ObjectKey]*serviceRecord{}, waitingServices: waitingServices{map[view.ObjectKey]names.Reason{}, o.Metrics.waitingServices}, suspectServices: map[view.ObjectKey]struct{}{},
		reloadCause: reloadCauseStart, ledgerWriter: ledgerWriter{maxPending: maxPendingAssignments},
	}
}

// IsLoaded says whether the Ledger holds every address in use.
func (r *ServiceWorker) IsLoaded() bool { return r.loaded.Load() }

// Run works until ctx ends. Then it does what the next leader would have to do in its place: what is under way, and the
// writes that the AddressLedger shows already.
func (r *ServiceWorker) Run(ctx context.Context) error {
	tasks, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r.queue.startAccepting()
	r.queue.wakeWorker()
	for ctx.Err() == nil {
		r.publishState()
		if !r.loaded.Load() && !r.ledgerWriter.swapInFlight { // a swap under way belongs to the Ledger that is
			r.reloadLedger(ctx)
		}
		if r.loaded.Load() {
			r.runOnce(tasks)
		}
		r.publishState()
		r.updateWorkMetrics()
		r.awaitWork(ctx, tasks)
	}
	r.drainTasks(tasks, cancel)
	r.workerState.setWork(time.Now(), [phaseCount]bool{}, 0)
	return nil
}

// drainTimeout bounds what is done after the end; it is within the time that the manager waits for the worker.
const drainTimeout = 1500 * time.Millisecond

// drainTasks runs the writes that have begun or may begin, until there are none or the time is over. Nothing new is decided.
func (r *ServiceWorker) drainTasks(ctx context.Context, cancel func()) {
	end := time.NewTimer(drainTimeout)
	defer end.Stop()
	for r.tasksInFlight > 0 || len(r.readyTasks) > 0 {
		r.readyTasks = slices.DeleteFunc(r.readyTasks, func(t task) bool { _, is := t.(*serviceWrite); return !is })
		r.dispatchTasks(ctx)
		if r.tasksInFlight == 0 {
			return
		}
		select {
		case f := <-r.results:
			r.applyResult(ctx, f)
		case <-end.C:
			cancel()
			for ; r.tasksInFlight > 0; r.tasksInFlight-- {
				<-r.results
			}
			return
		}
	}
}

// publishState publishes what work there is.
func (r *ServiceWorker) publishState() {
	open := 0
	if r.ledgerWriter.fence != nil {
		open = r.ledgerWriter.fence.CountPending()
	}
	r.workerState.setWork(time.Now(), [phaseCount]bool{
		phaseLoading:  !r.loaded.Load(),
		phaseDeciding: r.loaded.Load() && !r.queue.isEmpty(),
		phaseWriting:  len(r.ledgerWriter.stagedWrites)+len(r.sleepingWrites)+len(r.readyTasks)+r.tasksInFlight > 0,
	}, open)
}

// runOnce does what there is to do now.
func (r *ServiceWorker) runOnce(ctx context.Context) {
	r.advanceLedgerTime()
	looks := decideBatchSize
	if !r.applyConfiguration(ctx) {
		looks = 0
	}
	letters := r.queue.takeItems(looks)
	for _, l := range letters {
		if r.loaded.Load() {
			r.decideService(ctx, l)
		} else {
			r.queue.returnItem(l)
		}
	}
	if !r.loaded.Load() {
		r.queue.wakeWorker()
		return
	}
	if len(letters) > 0 {
		r.workerState.recordAttempt(phaseDeciding, true)
	}
	if r.wakeWaiting || r.wakeSharers {
		r.wakePendingServices()
	}
	r.syncProbes(ctx)
	r.startSwap(ctx)
	r.saveWithheld(ctx)
	r.writePoolStatuses(ctx)
	r.dispatchTasks(ctx)
	r.advanceLedgerTime()
}

// awaitWork waits until there is something to do or ctx ends, and takes in what has come of the tasks.
func (r *ServiceWorker) awaitWork(ctx, tasks context.Context) {
	if !r.queue.isEmpty() && r.loaded.Load() && !r.configuration.timerSet {
		r.queue.wakeWorker()
	}
	select {
	case <-ctx.Done():
		return
	case <-r.queue.wakeSignal:
	case f := <-r.results:
		r.applyResult(tasks, f)
	}
	for {
		select {
		case f := <-r.results:
			r.applyResult(tasks, f)
		default:
			return
		}
	}
}

func (r *ServiceWorker) applyResult(ctx context.Context, f taskResult) {
	r.tasksInFlight--
	r.workerState.recordAttempt(phaseWriting, false)
	f(ctx, r)
}

// wakeAfter has the worker look around after d.
func (r *ServiceWorker) wakeAfter(d time.Duration) { time.AfterFunc(d, r.queue.wakeWorker) }

// ledgerWriter is the worker's side of the AddressLedger.
type ledgerWriter struct {
	fence  *fence.Fence
	object *v1alpha1.AddressLedger
	// stagedWrites are writes whose Intents are to be in the object first.
	stagedWrites []*serviceWrite
	// maxPending is how many Services may have open Intents; bounded says that writes were held back by it since none was staged.
	maxPending int
	fullLogged bool
	// swapInFlight says that a write of the object is under way.
	swapInFlight bool
	// lastSwap is when the last one began, spent until when as many were made as may be in the long run; due is when a timer ends that
	// runs for the next.
	lastSwap       time.Time
	burstUsedUntil time.Time
	timerUntil     time.Time
	wakeTimerUntil time.Time // when the timer of tidy or isLedgerFull ends
	failures       int       // in a row
	// writesInSwap counts the writes of the swap under way.
	writesInSwap int
	// batchLimit bounds the writes of the next swap while one is looked for that the API server will never take; 0 bounds nothing.
	batchLimit int
	// refusalsInARow counts the new entries in a row that the API server refused for good; lastRefusal is when it refused the last of any.
	refusalsInARow int
	lastRefusal    time.Time
}

// parseResourceVersion reads a resourceVersion, which the API server counts up; 0 when it is no number, which compares with nothing.
func parseResourceVersion(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// logFailure logs what went wrong with a Service and when it is tried again.
func (r *ServiceWorker) logFailure(k view.ObjectKey, err error, wait time.Duration) {
	if errors.Is(err, context.Canceled) {
		return
	}
	r.Log.Error("serving a Service", "service", k.String(), "error", err, "reason", names.ReasonWriteFailed, "again", wait)
}
