package reconcile

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// oracle watches every change on the server, slowly and without help from the code that it judges.
type oracle struct {
	mu     sync.Mutex // guards all that follows
	held   map[view.ObjectKey]*corev1.Service
	edited map[view.ObjectKey]bool // the user gave a reason to move
	faults []string
}

func newOracle() *oracle {
	return &oracle{held: map[view.ObjectKey]*corev1.Service{}, edited: map[view.ObjectKey]bool{}}
}

func addresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	if s != nil {
		for _, in := range s.Status.LoadBalancer.Ingress {
			out = append(out, netip.MustParseAddr(in.IP))
		}
	}
	return out
}

// mayShare is the right to share, for Services of policy Cluster with one port each.
func mayShare(a, b *corev1.Service) bool {
	k := a.Annotations[names.AnnotationSharing]
	return k != "" && k == b.Annotations[names.AnnotationSharing] && a.Spec.Ports[0].Port != b.Spec.Ports[0].Port
}

// wishes are a Service's annotations without ours.
func wishes(s *corev1.Service) map[string]string {
	out := maps.Clone(s.Annotations)
	delete(out, names.AnnotationFromPool)
	return out
}

// check is told of every change of a Service.
func (o *oracle) check(before, after *corev1.Service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if after == nil {
		k := view.ObjectKey{Namespace: before.Namespace, Name: before.Name}
		delete(o.held, k)
		delete(o.edited, k)
		return
	}
	k := view.ObjectKey{Namespace: after.Namespace, Name: after.Name}
	o.held[k] = after
	if before != nil && (!reflect.DeepEqual(before.Spec, after.Spec) || !maps.Equal(wishes(before), wishes(after))) {
		o.edited[k] = true // until it is made anew: a controller may come to know of it late
		return
	}
	for _, a := range addresses(after) {
		if slices.Contains(addresses(before), a) {
			continue
		}
		for other, s := range o.held {
			if other != k && slices.Contains(addresses(s), a) && !mayShare(s, after) {
				o.faults = append(o.faults, fmt.Sprintf("%s was given %s, which %s holds", k, a, other))
			}
		}
	}
	for _, a := range addresses(before) {
		if !o.edited[k] && !slices.Contains(addresses(after), a) {
			o.faults = append(o.faults, fmt.Sprintf("%s was taken from %s, which had given no reason: %v", a, k, after.Status.Conditions))
		}
	}
}

// TestTwoControllersNeverGiveOneAddressTwice lets two controllers work at once through slow and faulty ways to the API server, with
// caches that lag, pauses, crashes with requests under way, and a user who creates, edits and deletes. At no moment may two
// Services hold an address that they may not share, or one lose an address that it did not give up; and in the end all is served.
func TestTwoControllersNeverGiveOneAddressTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := histories().Draw(rt, "history")
		o := newOracle()
		var leaks []string
		bubble(t, func(t *testing.T) {
			w := newWorld(t, o.check, h.seed)
			for _, s := range h.steps {
				w.do(s)
			}
			w.settle()
			leaks = w.leaks()
			writes := w.server.Writes("service") + w.server.Writes("ledger") + w.server.Writes("pool")
			time.Sleep(5 * time.Minute)
			if n := w.server.Writes("service") + w.server.Writes("ledger") + w.server.Writes("pool") - writes; n > 0 {
				leaks = append(leaks, fmt.Sprintf("%d more writes when nothing happens", n))
			}
			for _, c := range w.controllers {
				c.end()
				if n := c.journal.fence.Open(); n > 0 {
					leaks = append(leaks, fmt.Sprintf("%d pending assignments stay open when nothing happens", n))
				}
			}
			time.Sleep(time.Minute) // whatever is out arrives
		})
		for _, f := range append(o.faults, leaks...) {
			rt.Error(f)
		}
	})
}
