package configurationreader

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// readerHarness is a running Reader with the objects that it reads.
type readerHarness struct {
	*Reader
	mu        sync.Mutex // guards all that follows
	pools     []v1beta1.IPAddressPool
	readError error
	readCount int
}

func (h *readerHarness) readObjects(context.Context) (snapshot.ConfigurationObjects, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readCount++
	return snapshot.ConfigurationObjects{Pools: h.pools}, h.readError
}

// setPool replaces all pools by one, without a notification.
func (h *readerHarness) setPool(generation int64, addresses ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := v1beta1.IPAddressPool{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Generation: generation}}
	p.Spec.Addresses = addresses
	h.pools = []v1beta1.IPAddressPool{p}
}

func (h *readerHarness) setReadError(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readError = err
}

func (h *readerHarness) countReads() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.readCount
}

func (h *readerHarness) countAssignmentChanges() int64 {
	return h.assignmentChangesCounter.count.Load()
}

// setPoolNamespaceSelector makes the pool select the Namespaces of a team, or none.
func (h *readerHarness) setPoolNamespaceSelector(selects bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := *h.pools[0].DeepCopy()
	p.Spec.AllocateTo = nil
	if selects {
		p.Spec.AllocateTo = &v1beta1.ServiceAllocation{NamespaceSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"team": "red"}}}}
	}
	h.pools = []v1beta1.IPAddressPool{p}
}

// checkPublishedPool checks which addresses are published, and whether a change waits.
func (h *readerHarness) checkPublishedPool(t *testing.T, text string, waits bool) {
	t.Helper()
	c, changeWaits := h.LatestConfiguration()
	if changeWaits != waits {
		t.Errorf("that a change waits is %v, want %v", changeWaits, waits)
	}
	got := ""
	if c != nil && len(c.Snapshot.Pools) > 0 && len(c.Snapshot.Pools[0].Ranges) > 0 {
		got = c.Snapshot.Pools[0].Ranges[0].String()
	}
	if got != text {
		t.Errorf("the pool that is published has %q, want %q", got, text)
	}
}

// runWithReaderHarness runs f with a Reader and fake time.
func runWithReaderHarness(t *testing.T, f func(*testing.T, *readerHarness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := &readerHarness{}
		h.Reader = NewReader(Options{ReadObjects: h.readObjects, Log: slog.New(slog.DiscardHandler)})
		h.setPool(1, "192.0.2.0/30")
		h.checkPublishedPool(t, "", true)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = h.Start(ctx)
		}()
		time.Sleep(time.Second)
		h.checkPublishedPool(t, "192.0.2.0/30", false)
		f(t, h)
		stop()
		<-ended
	})
}

func TestEditsInQuickSuccessionAreOneReading(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		before := h.countReads()
		for i := range 100 {
			h.setPool(int64(i+2), "198.51.100.0/30")
			h.NotifyAllocationObjectChanged()
			if _, waits := h.LatestConfiguration(); !waits {
				t.Fatal("a change does not wait though it was not read")
			}
		}
		time.Sleep(time.Second)
		h.checkPublishedPool(t, "198.51.100.0/30", false)
		if n := h.countReads() - before; n < 1 || n > 2 {
			t.Errorf("100 edits at once cause %d readings, want one or two", n)
		}
	})
}

// TestChangeDuringCollectDelayIsReadLater edits an object right after a reading. The change waits
// until it is read, and the subscriber wakes then.
func TestChangeDuringCollectDelayIsReadLater(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		published := h.Subscribe()
		<-published
		h.NotifyAllocationObjectChanged()
		<-published
		h.setPool(2, "198.51.100.0/30")
		h.NotifyAllocationObjectChanged()
		synctest.Wait()
		h.checkPublishedPool(t, "192.0.2.0/30", true)
		<-published
		h.checkPublishedPool(t, "198.51.100.0/30", false)
	})
}

// TestAssignmentsAwaitOnlyAllocationObjectEdits edits an advertisement or a pool right after a
// reading: only the pool's edit is a change that an assignment must wait for.
func TestAssignmentsAwaitOnlyAllocationObjectEdits(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		h.NotifyAnnouncementObjectChanged()
		synctest.Wait()
		h.NotifyAnnouncementObjectChanged()
		synctest.Wait()
		h.checkPublishedPool(t, "192.0.2.0/30", false)
		if !h.HasUnreadChange() {
			t.Error("the advertisement's edit is no change that waits to be read")
		}
		h.NotifyAllocationObjectChanged()
		h.checkPublishedPool(t, "192.0.2.0/30", true)
		time.Sleep(time.Second)
		h.checkPublishedPool(t, "192.0.2.0/30", false)
		if h.HasUnreadChange() {
			t.Error("a change waits still after a second")
		}
	})
}

// TestAwaitUnreadChangesWaitsForEarlierChangesOnly waits for an advertisement that came right after
// a reading, while more advertisements come all the time.
func TestAwaitUnreadChangesWaitsForEarlierChangesOnly(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		begun := time.Now()
		h.AwaitUnreadChanges(t.Context())
		if waited := time.Since(begun); waited > 0 {
			t.Errorf("it waited %s though nothing has changed", waited)
		}
		h.NotifyAnnouncementObjectChanged()
		synctest.Wait()
		before := h.countReads()
		h.NotifyAnnouncementObjectChanged()
		go func() {
			for range 10 {
				time.Sleep(EditCollectDelay / 2)
				h.NotifyAnnouncementObjectChanged()
			}
		}()
		h.AwaitUnreadChanges(t.Context())
		if waited := time.Since(begun); waited > EditCollectDelay || h.countReads() == before {
			t.Errorf("it waited %s, want at most %s, for %d readings", waited, EditCollectDelay, h.countReads()-before)
		}
		time.Sleep(time.Second)
		h.setReadError(errors.New("broken"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		h.NotifyAnnouncementObjectChanged()
		h.AwaitUnreadChanges(ctx) // returns
	})
}

// TestOnlySelectedNamespacesCauseReading creates, labels and deletes Namespaces. Those that no pool
// selects cause no reading.
func TestOnlySelectedNamespacesCauseReading(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		namespace := func(labels map[string]string) client.Object {
			n := configuration.NewMetadataObject("Namespace")
			n.Labels = labels
			return n
		}
		handler := h.selectedNamespaceEventHandler()
		plain, selected := namespace(map[string]string{"a": "1"}), namespace(map[string]string{"team": "red", "a": "1"})
		selectedToo := namespace(map[string]string{"team": "red", "a": "2"})
		for _, step := range []struct {
			name               string
			change             func()
			readings, selected int // without and with a pool that selects the team
		}{
			{"a new one", func() { handler.OnAdd(plain, false) }, 0, 0},
			{"a new one of the team", func() { handler.OnAdd(selected, false) }, 0, 1},
			{"one joins the team", func() { handler.OnUpdate(plain, selected) }, 0, 1},
			{"one leaves the team", func() { handler.OnUpdate(selected, plain) }, 0, 1},
			{"another label of one in the team", func() { handler.OnUpdate(selected, selectedToo) }, 0, 0},
			{"one is deleted", func() { handler.OnDelete(plain) }, 0, 0},
			{"one of the team is deleted", func() { handler.OnDelete(cache.DeletedFinalStateUnknown{Obj: selected}) }, 0, 1},
		} {
			for selects, want := range map[bool]int{false: step.readings, true: step.selected} {
				h.setPoolNamespaceSelector(selects)
				h.NotifyAllocationObjectChanged()
				time.Sleep(time.Second)
				before := h.countReads()
				step.change()
				time.Sleep(time.Second)
				if n := h.countReads() - before; n != want {
					t.Errorf("%s (a pool selects the team: %t): %d readings, want %d", step.name, selects, n, want)
				}
			}
		}
	})
}

// TestNamespaceChangeCountsWhilePoolEditIsUnread labels a Namespace while a pool that may select it
// has not been read yet.
func TestNamespaceChangeCountsWhilePoolEditIsUnread(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		h.NotifyAllocationObjectChanged()
		synctest.Wait()
		h.NotifyAllocationObjectChanged() // the delay after the last reading runs
		before := h.countAssignmentChanges()
		h.selectedNamespaceEventHandler().OnAdd(configuration.NewMetadataObject("Namespace"), false)
		if h.countAssignmentChanges() == before {
			t.Error("the Namespace is no change, although the pool that waits may select it")
		}
	})
}

func TestReadNowHasEveryEarlierEdit(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		// The second edit comes within the delay after the first reading.
		for i, want := range []string{"198.51.100.0/30", "203.0.113.0/30"} {
			h.setPool(int64(i+2), want)
			c, err := h.ReadNow(t.Context())
			if err != nil || c.Snapshot.Pools[0].Ranges[0].String() != want {
				t.Errorf("a reading returns %v, %v, want %s", c, err, want)
			}
		}
		h.setReadError(errors.New("no"))
		if _, err := h.ReadNow(t.Context()); err == nil {
			t.Error("a reading that failed returns no error")
		}
	})
}

func TestInvalidEditKeepsLastGoodConfiguration(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		h.setPool(2, "nonsense")
		h.NotifyAllocationObjectChanged()
		time.Sleep(time.Second)
		h.checkPublishedPool(t, "192.0.2.0/30", false)
		if c, _ := h.LatestConfiguration(); len(c.Problems) != 1 {
			t.Errorf("the Problems are %v, want the invalid entry", c.Problems)
		}
		h.setReadError(errors.New("no"))
		h.setPool(3, "198.51.100.0/30")
		h.NotifyAllocationObjectChanged()
		time.Sleep(time.Second)
		h.checkPublishedPool(t, "192.0.2.0/30", false) // what cannot be read stops nothing
		h.setReadError(nil)
		time.Sleep(time.Second)
		h.checkPublishedPool(t, "198.51.100.0/30", false)
	})
}

func TestIsUpToDateWithDetectsNewerObject(t *testing.T) {
	runWithReaderHarness(t, func(t *testing.T, h *readerHarness) {
		c, _ := h.LatestConfiguration()
		for name, tt := range map[string]struct {
			meta metav1.ObjectMeta
			want bool
		}{
			"as it was read": {metav1.ObjectMeta{UID: "u", Generation: 1}, true},
			"edited":         {metav1.ObjectMeta{UID: "u", Generation: 2}, false},
			"created again":  {metav1.ObjectMeta{UID: "v", Generation: 1}, false},
		} {
			if got := c.IsUpToDateWith(&v1beta1.IPAddressPool{ObjectMeta: tt.meta}); got != tt.want {
				t.Errorf("a pool that is %s: %v, want %v", name, got, tt.want)
			}
		}
	})
}

// TestOnlyRelevantUpdatesChangeConfiguration sends updates of objects as a cache does.
func TestOnlyRelevantUpdatesChangeConfiguration(t *testing.T) {
	meta := metav1.ObjectMeta{UID: "u", Generation: 1, ResourceVersion: "1", Labels: map[string]string{"a": "1"}}
	pool := func(edit func(*metav1.ObjectMeta)) client.Object {
		o := &v1beta1.IPAddressPool{ObjectMeta: *meta.DeepCopy()}
		o.ResourceVersion = "2"
		edit(&o.ObjectMeta)
		return o
	}
	node := configuration.NewMetadataObject("Node")
	node.ObjectMeta = *meta.DeepCopy()
	labelled := node.DeepCopy()
	labelled.Labels["b"] = "2"
	for name, tt := range map[string]struct {
		before, after client.Object
		want          bool
	}{
		"a status":                  {&v1beta1.IPAddressPool{ObjectMeta: meta}, pool(func(*metav1.ObjectMeta) {}), false},
		"a spec":                    {&v1beta1.IPAddressPool{ObjectMeta: meta}, pool(func(m *metav1.ObjectMeta) { m.Generation = 2 }), true},
		"labels":                    {&v1beta1.IPAddressPool{ObjectMeta: meta}, pool(func(m *metav1.ObjectMeta) { m.Labels["a"] = "2" }), true},
		"a new object":              {&v1beta1.IPAddressPool{ObjectMeta: meta}, pool(func(m *metav1.ObjectMeta) { m.UID = "v" }), true},
		"the annotation that lifts": {&v1beta1.IPAddressPool{ObjectMeta: meta}, pool(func(m *metav1.ObjectMeta) { m.Annotations = map[string]string{names.AnnotationLiftWithheld: "all"} }), true},
		"another annotation":        {&v1beta1.IPAddressPool{ObjectMeta: meta}, pool(func(m *metav1.ObjectMeta) { m.Annotations = map[string]string{"a": "b"} }), false},
		"a node's label":            {node, labelled, true},
		"a heartbeat":               {node, node.DeepCopy(), false},
	} {
		if got := canUpdateAffectConfiguration(tt.before, tt.after); got != tt.want {
			t.Errorf("%s is a change of the configuration: %v, want %v", name, got, tt.want)
		}
	}
}
