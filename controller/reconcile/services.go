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
	// Tell makes an event about a Service; kind is Normal or Warning.
	Tell func(about *corev1.Service, kind, reason, text string)
	// Forecast says of a Service that is about to have its first addresses that nobody will announce them; nil never does.
	Forecast func(ctx context.Context, s *corev1.Service, assigned []netip.Addr) (metav1.Condition, bool)
	// Namespace holds the configuration objects.
	Namespace string
	// Class is the load balancer class to serve; empty serves Services without a class.
	Class string
	// Identity names this process in the AddressLedger.
	Identity string
	// Metrics are where the worker counts what it does; nil is where nobody looks.
	Metrics *WorkerMetrics
}

// Services gives addresses to the Services of one class. The zero value is not usable; call New.
type Services struct {
	Options

	inbox *inbox
	// results of the tasks that ran; there is room for all that run at a time.
	results chan result
	// loaded is set once the Ledger holds every address in use.
	loaded atomic.Bool

	// The worker owns all that follows.
	ledger *allocate.Ledger
	// epoch counts how often the Ledger was built.
	epoch   int
	config  configurationState
	records map[view.ObjectKey]*record
	// pending are the Services that do not have what they ask for.
	pending pendingServices
	// suspects are Services with an address that another had, as far as was known: the last to claim it when the Ledger is built.
	suspects map[view.ObjectKey]struct{}
	// reloadCause is why all Services are read next, lastReload when they were because of a right to share.
	reloadCause string
	lastReload  time.Time
	// nextDeadline is when the worker is woken because something that is withheld ends.
	nextDeadline time.Time
	// wakePending asks for a look at all of them.
	wakePending bool
	// wakeSharers asks for a look at those of them that may share an address.
	wakeSharers bool
	// ready are tasks that wait for a place, sleeping ones that wait for their time.
	ready    []task
	sleeping []*write
	inFlight int
	journal  journal
	kept     keepsake
	probes   probes
	counters counters
	failures int // to load, in a row

	state workerState
}

// record is what the worker remembers of a Service that is, or was, ours.
type record struct {
	uid types.UID
	// version is the newest resourceVersion that the Service is known to have had. A cached object that is older is not looked
	// at: the newer one is on its way.
	version uint64
	// loaded is the one with which the Ledger was built, or with which the API server confirmed what the Ledger says of its
	// addresses; 0 when it came later.
	loaded uint64
	// checks counts those of its right to share in a row that led to nothing.
	checks int
	// busy says that a write waits or is under way; again, that there was news meanwhile.
	busy, again bool
	failures    int // in a row
	// What the API server refused is not tried again before retry, unless the Service has another resourceVersion than refused by then.
	refused string
	retry   time.Time
	// entryRefused says that the API server refused the AddressLedger with an entry of this Service when it was last tried.
	entryRefused bool
	// waiting is since when the Service waits for its first address; zero when it has one.
	waiting time.Time
	// writes counts those since.
	writes int
	since  time.Time
	// sharing is what its right to share an address hung on when it was last looked at.
	sharing string
}

// batchSize bounds how many Services are looked at before results are taken in: some milliseconds of work.
const batchSize = 64

// New returns a worker that has not begun.
func New(o Options) *Services {
	if o.Metrics == nil {
		o.Metrics = NewWorkerMetrics()
	}
	return &Services{
		Options: o, inbox: newInbox(), results: make(chan result, maxInFlight+2),
		probes: probes{}, records: map[view.ObjectKey]*record{}, pending: pendingServices{map[view.ObjectKey]names.Reason{}, o.Metrics.pending}, suspects: map[view.ObjectKey]struct{}{},
		reloadCause: causeStart, journal: journal{bound: maxOpen},
	}
}

// Loaded says whether the Ledger holds every address in use.
func (r *Services) Loaded() bool { return r.loaded.Load() }

// Run works until ctx ends. Then it does what the next leader would have to do in its place: what is under way, and the
// writes that the AddressLedger shows already.
func (r *Services) Run(ctx context.Context) error {
	tasks, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r.inbox.begin()
	r.inbox.poke()
	for ctx.Err() == nil {
		r.show()
		if !r.loaded.Load() && !r.journal.swapping { // a swap under way belongs to the Ledger that is
			r.reload(ctx)
		}
		if r.loaded.Load() {
			r.step(tasks)
		}
		r.show()
		r.countWork()
		r.await(ctx, tasks)
	}
	r.drain(tasks, cancel)
	r.state.show(time.Now(), [phases]bool{}, 0)
	return nil
}

// drainTimeout bounds what is done after the end; it is within the time that the manager waits for the worker.
const drainTimeout = 1500 * time.Millisecond

// drain runs the writes that have begun or may begin, until there are none or the time is over. Nothing new is decided.
func (r *Services) drain(ctx context.Context, cancel func()) {
	end := time.NewTimer(drainTimeout)
	defer end.Stop()
	for r.inFlight > 0 || len(r.ready) > 0 {
		r.ready = slices.DeleteFunc(r.ready, func(t task) bool { _, is := t.(*write); return !is })
		r.dispatch(ctx)
		if r.inFlight == 0 {
			return
		}
		select {
		case f := <-r.results:
			r.takeIn(ctx, f)
		case <-end.C:
			cancel()
			for ; r.inFlight > 0; r.inFlight-- {
				<-r.results
			}
			return
		}
	}
}

// show publishes what work there is.
func (r *Services) show() {
	open := 0
	if r.journal.fence != nil {
		open = r.journal.fence.Open()
	}
	r.state.show(time.Now(), [phases]bool{
		loading: !r.loaded.Load(),
		looking: r.loaded.Load() && !r.inbox.empty(),
		writing: len(r.journal.staged)+len(r.ready)+r.inFlight > 0,
	}, open)
}

// step does what there is to do now.
func (r *Services) step(ctx context.Context) {
	r.advance()
	looks := batchSize
	if !r.reconfigure(ctx) {
		looks = 0
	}
	letters := r.inbox.take(looks)
	for _, l := range letters {
		if r.loaded.Load() {
			r.look(ctx, l)
		} else {
			r.inbox.back(l)
		}
	}
	if !r.loaded.Load() {
		r.inbox.poke()
		return
	}
	if len(letters) > 0 {
		r.state.attempt(looking, true)
	}
	if r.wakePending || r.wakeSharers {
		r.wake()
	}
	r.probe(ctx)
	r.swap(ctx)
	r.remember(ctx)
	r.count(ctx)
	r.dispatch(ctx)
	r.advance()
}

// await waits until there is something to do or ctx ends, and takes in what has come of the tasks.
func (r *Services) await(ctx, tasks context.Context) {
	if !r.inbox.empty() && r.loaded.Load() && !r.config.due {
		r.inbox.poke()
	}
	select {
	case <-ctx.Done():
		return
	case <-r.inbox.signal:
	case f := <-r.results:
		r.takeIn(tasks, f)
	}
	for {
		select {
		case f := <-r.results:
			r.takeIn(tasks, f)
		default:
			return
		}
	}
}

func (r *Services) takeIn(ctx context.Context, f result) {
	r.inFlight--
	r.state.attempt(writing, false)
	f(ctx, r)
}

// pokeAfter has the worker look around after d.
func (r *Services) pokeAfter(d time.Duration) { time.AfterFunc(d, r.inbox.poke) }

// journal is the worker's side of the AddressLedger.
type journal struct {
	fence  *fence.Fence
	object *v1alpha1.AddressLedger
	// staged are writes whose Intents are to be in the object first.
	staged []*write
	// bound is how many Services may have open Intents; bounded says that writes were held back by it since none was staged.
	bound   int
	bounded bool
	// swapping says that a write of the object is under way.
	swapping bool
	// last is when the last one began, spent until when as many were made as may be in the long run; due is when a timer ends that
	// runs for the next.
	last     time.Time
	spent    time.Time
	due      time.Time
	wakeAt   time.Time // when the timer of tidy or heldBack ends
	failures int       // in a row
	// inSwap counts the writes of the swap under way.
	inSwap int
	// limit bounds the writes of the next swap while one is looked for that the API server will never take; 0 bounds nothing.
	limit int
	// refusals counts the new entries in a row that the API server refused for good; lastRefusal is when it refused the last of any.
	refusals    int
	lastRefusal time.Time
}

// versionOf reads a resourceVersion, which the API server counts up; 0 when it is no number, which compares with nothing.
func versionOf(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// problem logs what went wrong with a Service and when it is tried again.
func (r *Services) problem(k view.ObjectKey, err error, wait time.Duration) {
	if errors.Is(err, context.Canceled) {
		return
	}
	r.Log.Error("serving a Service", "service", k.String(), "error", err, "reason", names.ReasonWriteFailed, "again", wait)
}
