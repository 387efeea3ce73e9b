package reconcile

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/speaker/status"
)

// The cache of a busy API server shows a write late. Until then the node counts what it wrote.
func TestStatusWritesCountBeforeCacheShowsThem(t *testing.T) {
	now := time.Unix(1000, 0)
	entry := func(name, node string) status.ExistingServiceL2Status {
		return status.ExistingServiceL2Status{ExistingObjectName: name, Status: v1beta1.ServiceL2StatusStatus{Node: node}}
	}
	inCache := []status.ExistingServiceL2Status{entry("former", "a"), entry("kept", "a")}
	var r recentWrites
	expect := func(when, want string) {
		t.Helper()
		var got []string
		for _, e := range r.overlayOnCachedStatuses(slices.Clone(inCache), now) {
			got = append(got, e.ExistingObjectName+"@"+e.Status.Node)
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: these objects exist: %v, want %s", when, got, want)
		}
	}
	r.recordWrite(recentWrite{serviceL2Status: entry("new", "b"), writtenAt: now})
	r.recordWrite(recentWrite{serviceL2Status: entry("former", ""), isRemoval: true, writtenAt: now})
	expect("the cache shows neither write", "kept@a new@b")

	r.forgetWriteIfCacheShows(&v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Name: "new"}})
	expect("the cache shows the object without its status", "kept@a new@b")
	inCache = append(inCache, entry("new", "b"))
	r.forgetWriteIfCacheShows(&v1beta1.ServiceL2Status{ObjectMeta: metav1.ObjectMeta{Name: "new"}, Status: inCache[2].Status})
	inCache[2].Status.Node = "c"
	expect("another program changed the object after the cache had shown it", "kept@a new@c")

	r.forgetWrite("former")
	expect("the removed object is there again", "former@a kept@a new@c")
	r.recordWrite(recentWrite{serviceL2Status: entry("former", ""), isRemoval: true, writtenAt: now})
	now = now.Add(recentWriteTimeout)
	expect("a write that the cache never shows", "former@a kept@a new@c")
}
