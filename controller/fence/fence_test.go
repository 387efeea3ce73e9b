package fence

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gantry-lb/gantry/internal/view"
)

func intent(name, base string, addresses ...string) Intent {
	i := Intent{Service: view.ObjectKey{Namespace: "default", Name: name}, Base: base}
	for _, a := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParseAddr(a))
	}
	return i
}

func same(t *testing.T, what string, got []Intent, want ...Intent) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestAnIntentStaysUntilItIsSettled(t *testing.T) {
	f := New([]Intent{intent("arrived", "1", "192.0.2.1"), intent("deleted", "2", "192.0.2.2"), intent("under-way", "3", "192.0.2.3")})
	versions := map[string]string{"arrived": "9", "under-way": "3"}
	left := f.Review(func(k view.ObjectKey) (string, bool) { v, ok := versions[k.Name]; return v, ok })
	same(t, "after reading the Services", left, intent("under-way", "3", "192.0.2.3"))

	batch := []Intent{intent("new", "7", "192.0.2.1")}
	same(t, "the next object", f.Next(batch), intent("new", "7", "192.0.2.1"), intent("under-way", "3", "192.0.2.3"))
	same(t, "before it is written", f.Next(nil), intent("under-way", "3", "192.0.2.3"))
	f.Wrote(batch)
	f.Settle(view.ObjectKey{Namespace: "default", Name: "new"}, "6")
	if f.Open() != 2 {
		t.Error("an Intent on another base was settled too")
	}
	f.Settle(view.ObjectKey{Namespace: "default", Name: "new"}, "7")
	f.Settle(view.ObjectKey{Namespace: "default", Name: "under-way"}, "")
	same(t, "when all is settled", f.Next(nil))
}

func TestTwoWritesOnOneBaseMayBothArrive(t *testing.T) {
	f := New([]Intent{intent("s", "3", "192.0.2.1")})
	f.Wrote([]Intent{intent("s", "3", "192.0.2.2")})
	same(t, "two writes on one base", f.Next(nil), intent("s", "3", "192.0.2.2", "192.0.2.1"))
	f.Wrote([]Intent{intent("s", "4", "192.0.2.5")})
	same(t, "on a later base the older cannot arrive", f.Next(nil), intent("s", "4", "192.0.2.5"))
}

func service(name string) view.ObjectKey { return view.ObjectKey{Namespace: "default", Name: name} }

func TestWhatAnotherControllerSentStaysPendingWhenOurWriteIsRefused(t *testing.T) {
	theirs, ours := intent("s", "3", "192.0.2.1"), intent("s", "3", "192.0.2.2")
	f := New([]Intent{theirs})
	if !f.Covers(theirs) || f.Covers(ours) || f.Covers(intent("s", "4", "192.0.2.1")) || f.Covers(intent("other", "3")) {
		t.Error("a write needs no further pending assignment just where the object shows its base and all of its addresses")
	}
	f.Wrote([]Intent{ours})
	f.Refuse(service("s"), "2")
	same(t, "a refusal on another base", f.Next(nil), intent("s", "3", "192.0.2.2", "192.0.2.1"))
	f.Refuse(service("s"), "3")
	same(t, "after our write was refused", f.Next(nil), theirs)

	f.Wrote([]Intent{intent("s", "4", "192.0.2.3")})
	f.Refuse(service("s"), "4")
	same(t, "on a later base theirs cannot arrive", f.Next(nil))
}

func TestALaterVersionEndsAPendingAssignment(t *testing.T) {
	f := New([]Intent{intent("s", "10", "192.0.2.1"), intent("behind", "10", "192.0.2.2")})
	left := f.Review(func(k view.ObjectKey) (string, bool) {
		return map[string]string{"s": "10", "behind": "9"}[k.Name], true
	})
	same(t, "a list that is older than a pending assignment ends none", left, intent("behind", "10", "192.0.2.2"), intent("s", "10", "192.0.2.1"))
	f.Supersede(service("s"), "9")
	for _, version := range []string{"9", "10"} {
		if got := f.Addresses(service("s"), version); len(got) != 1 {
			t.Errorf("a Service of version %s may still get %v, want the address on base 10", version, got)
		}
	}
	if got := f.Addresses(service("s"), "11"); len(got) > 0 || !f.Shows(service("s")) {
		t.Errorf("a Service of version 11 may still get %v, want nothing", got)
	}
	f.Supersede(service("s"), "11")
	if f.Shows(service("s")) || f.Open() != 1 {
		t.Error("what is pending on an older base was not ended")
	}
}
