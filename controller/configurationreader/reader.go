// Package configurationreader reads the configuration objects when they change, and publishes what
// they mean as one immutable value: the controller has one Snapshot, and all its parts use it.
package configurationreader

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// Configuration is the configuration as of one reading. It must not be modified.
type Configuration struct {
	Snapshot *snapshot.Snapshot
	Problems []snapshot.Problem
	// Nodes are those that node selectors may match.
	Nodes           []snapshot.NodeLabels
	generationByUID map[types.UID]int64
}

// IsUpToDateWith reports whether the object has not been edited since the reading. It knows all
// kinds but Secrets, Nodes and Namespaces.
func (c *Configuration) IsUpToDateWith(o client.Object) bool {
	generation, known := c.generationByUID[o.GetUID()]
	return known && generation == o.GetGeneration()
}

// matchNamespaceSelectors reports for each namespace selector of the pools whether it matches the
// labels.
func (c *Configuration) matchNamespaceSelectors(namespaceLabels map[string]string) []bool {
	var out []bool
	for _, p := range c.Snapshot.Pools {
		if p.ServiceAllocation == nil {
			continue
		}
		for _, s := range p.ServiceAllocation.NamespaceSelectors {
			out = append(out, s.Matches(labels.Set(namespaceLabels)))
		}
	}
	return out
}

const (
	// EditCollectDelay is how long edits of the configuration are collected after a reading, so
	// that a manifest with many pools is one change.
	EditCollectDelay = 50 * time.Millisecond
	// failedReadRetryDelay is how long the Reader waits after a failed reading. The cache fails
	// only while it is filled.
	failedReadRetryDelay = 50 * time.Millisecond
)

// Options are the settings of a Reader.
type Options struct {
	// ReadObjects reads all configuration objects.
	ReadObjects func(context.Context) (snapshot.ConfigurationObjects, error)
	Log         *slog.Logger
	// RecordProblems is called with the Problems of every reading; it may be nil.
	RecordProblems func([]snapshot.Problem)
}

// Reader publishes the configuration. One goroutine, that of Start, reads it. Any goroutine may
// call the other methods. Use NewReader to create it.
type Reader struct {
	Options
	publishedConfiguration atomic.Pointer[Configuration]
	// allChangesCounter counts all changes of objects, assignmentChangesCounter those that may
	// decide which Service gets which address.
	allChangesCounter, assignmentChangesCounter changeCounter
	changeWake                                  *latest.Wake
	// immediateReadRequests are requests for a reading. Each gets the error of the reading.
	immediateReadRequests chan chan error

	mu          sync.Mutex // guards all that follows
	subscribers []*latest.Wake
	// readingEnded is closed when the next reading has ended.
	readingEnded chan struct{}
}

// changeCounter counts changes of objects.
type changeCounter struct {
	count atomic.Int64
	// countAtLastReading is the count when the last finished reading began.
	countAtLastReading atomic.Int64
}

// hasUnreadChange reports whether a change came after the last finished reading began.
func (c *changeCounter) hasUnreadChange() bool {
	return c.countAtLastReading.Load() != c.count.Load()
}

// NewReader returns a Reader that has nothing published.
func NewReader(o Options) *Reader {
	r := &Reader{Options: o, changeWake: latest.NewWake(), immediateReadRequests: make(chan chan error), readingEnded: make(chan struct{})}
	r.NotifyAllocationObjectChanged() // nothing has been read yet
	return r
}

// NotifyAllocationObjectChanged reports that an object changed that may decide which Service gets
// which address: a pool, a reservation, or a Namespace that a pool selects.
func (r *Reader) NotifyAllocationObjectChanged() {
	r.assignmentChangesCounter.count.Add(1)
	r.NotifyAnnouncementObjectChanged()
}

// NotifyAnnouncementObjectChanged reports that another object changed, such as an advertisement, a
// BGPPeer, a Secret or a Node. No assignment waits until that is read.
func (r *Reader) NotifyAnnouncementObjectChanged() {
	r.allChangesCounter.count.Add(1)
	r.changeWake.Signal()
}

// Subscribe returns a channel that is ready after each reading, a failed one too.
func (r *Reader) Subscribe() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := latest.NewWake()
	w.Signal()
	r.subscribers = append(r.subscribers, w)
	return w.C()
}

// LatestConfiguration returns what was last published, nil before the first reading. It also
// reports whether a change waits to be read that may decide which Service gets which address.
// Changes whose reading failed do not count: the last good configuration stays in force.
func (r *Reader) LatestConfiguration() (latest *Configuration, changeWaits bool) {
	// The order matters: what is published has all changes that were read before.
	changeWaits = r.assignmentChangesCounter.hasUnreadChange()
	return r.publishedConfiguration.Load(), changeWaits
}

// HasUnreadChange reports whether any change waits to be read.
func (r *Reader) HasUnreadChange() bool { return r.allChangesCounter.hasUnreadChange() }

// AwaitUnreadChanges waits until the changes that came before the call are read, or until ctx ends.
func (r *Reader) AwaitUnreadChanges(ctx context.Context) {
	for changes := r.allChangesCounter.count.Load(); ; {
		// The order matters: a reading that ends after this closes the channel.
		readingEnded := r.nextReadingEnded()
		if r.allChangesCounter.countAtLastReading.Load() >= changes {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-readingEnded:
		}
	}
}

// nextReadingEnded returns a channel that is closed when the next reading has ended.
func (r *Reader) nextReadingEnded() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.readingEnded
}

// ReadNow reads the configuration, publishes and returns it. It works only while Start runs.
func (r *Reader) ReadNow(ctx context.Context) (*Configuration, error) {
	reply := make(chan error, 1)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r.immediateReadRequests <- reply:
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case err := <-reply:
		return r.publishedConfiguration.Load(), err
	}
}

// NeedLeaderElection is part of manager.LeaderElectionRunnable. A controller that does not lead
// reads too, so that it can begin at once.
func (*Reader) NeedLeaderElection() bool { return false }

// Start reads and publishes until ctx ends.
func (r *Reader) Start(ctx context.Context) error {
	var collected, retry <-chan time.Time
	for {
		changed := r.changeWake.C()
		if collected != nil {
			changed = nil
		}
		var reply chan error
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			collected = nil
			continue
		case <-changed:
		case <-retry:
		case reply = <-r.immediateReadRequests:
		}
		err := r.readAndPublish(ctx)
		collected, retry = time.After(EditCollectDelay), nil
		if err != nil {
			retry = time.After(failedReadRetryDelay)
		}
		if reply != nil {
			reply <- err
		}
	}
}

// readAndPublish reads all objects once. An object that an edit broke keeps its last good state.
func (r *Reader) readAndPublish(ctx context.Context) error {
	all, ofAssignment := r.allChangesCounter.count.Load(), r.assignmentChangesCounter.count.Load()
	o, err := r.ReadObjects(ctx)
	if err == nil {
		if before := r.publishedConfiguration.Load(); before != nil {
			o.PreviousSnapshot = before.Snapshot
		}
		r.buildAndPublishConfiguration(o)
	} else if ctx.Err() == nil {
		r.Log.Error("reading the configuration; the last one that was read stays in force", "error", err, "again", failedReadRetryDelay)
	}
	r.allChangesCounter.countAtLastReading.Store(all)
	r.assignmentChangesCounter.countAtLastReading.Store(ofAssignment)
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.readingEnded)
	r.readingEnded = make(chan struct{})
	for _, w := range r.subscribers {
		w.Signal()
	}
	return err
}

func (r *Reader) buildAndPublishConfiguration(o snapshot.ConfigurationObjects) {
	c := &Configuration{Nodes: o.Nodes, generationByUID: generationsByUID(&o)}
	c.Snapshot, c.Problems = snapshot.BuildSnapshot(o)
	for _, p := range c.Problems {
		r.Log.Debug("configuration problem", "object", p.Object.Kind+"/"+p.Object.Name, "reason", p.Reason, "cause", p.Text)
	}
	if r.RecordProblems != nil {
		r.RecordProblems(c.Problems)
	}
	r.publishedConfiguration.Store(c)
}
