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
