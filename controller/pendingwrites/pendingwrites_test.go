package pendingwrites

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/gantry-lb/gantry/internal/view"
)

func newPending(name, base string, addresses ...string) PendingStatusWrite {
	i := PendingStatusWrite{Service: view.ObjectKey{Namespace: "default", Name: name}, BaseResourceVersion: base}
	for _, a := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParseAddr(a))
	}
	return i
}

func wantPending(t *testing.T, what string, got []PendingStatusWrite, want ...PendingStatusWrite) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestPendingStaysUntilItIsClosed(t *testing.T) {
	f := NewSet([]PendingStatusWrite{newPending("arrived", "1", "192.0.2.1"), newPending("deleted", "2", "192.0.2.2"), newPending("under-way", "3", "192.0.2.3")})
	versions := map[string]string{"arrived": "9", "under-way": "3"}
	left := f.RemoveClosedPending(func(k view.ObjectKey) (string, bool) { v, ok := versions[k.Name]; return v, ok })
	wantPending(t, "after reading the Services", left, newPending("under-way", "3", "192.0.2.3"))

	batch := []PendingStatusWrite{newPending("new", "7", "192.0.2.1")}
	wantPending(t, "the next object", f.ListPendingMergedWithBatch(batch), newPending("new", "7", "192.0.2.1"), newPending("under-way", "3", "192.0.2.3"))
	wantPending(t, "before it is written", f.ListPendingMergedWithBatch(nil), newPending("under-way", "3", "192.0.2.3"))
	f.RecordBatchInAddressLedger(batch)
	f.ClosePendingWithBase(view.ObjectKey{Namespace: "default", Name: "new"}, "6")
	if f.CountPending() != 2 {
		t.Error("a pending assignment on another base was closed too")
	}
	f.ClosePendingWithBase(view.ObjectKey{Namespace: "default", Name: "new"}, "7")
	f.ClosePendingWithBase(view.ObjectKey{Namespace: "default", Name: "under-way"}, "")
	wantPending(t, "when all is settled", f.ListPendingMergedWithBatch(nil))
}

func TestPendingAddressesOfSameBaseAreMerged(t *testing.T) {
	f := NewSet([]PendingStatusWrite{newPending("s", "3", "192.0.2.1")})
	f.RecordBatchInAddressLedger([]PendingStatusWrite{newPending("s", "3", "192.0.2.2")})
	wantPending(t, "two writes on one base", f.ListPendingMergedWithBatch(nil), newPending("s", "3", "192.0.2.2", "192.0.2.1"))
	f.RecordBatchInAddressLedger([]PendingStatusWrite{newPending("s", "4", "192.0.2.5")})
	wantPending(t, "on a later base the older cannot arrive", f.ListPendingMergedWithBatch(nil), newPending("s", "4", "192.0.2.5"))
}

func serviceKey(name string) view.ObjectKey { return view.ObjectKey{Namespace: "default", Name: name} }

func TestRefusedWriteKeepsAddressesOfOtherController(t *testing.T) {
	theirs, ours := newPending("s", "3", "192.0.2.1"), newPending("s", "3", "192.0.2.2")
	f := NewSet([]PendingStatusWrite{theirs})
	if f.AddressLedgerContainsPending(theirs) {
		t.Error("a write relies on an object that only another controller has written: that one may remove the assignment")
	}
	f.RecordBatchInAddressLedger(nil)
	if !f.AddressLedgerContainsPending(theirs) || f.AddressLedgerContainsPending(ours) || f.AddressLedgerContainsPending(newPending("s", "4", "192.0.2.1")) || f.AddressLedgerContainsPending(newPending("other", "3")) {
		t.Error("a write needs no further pending assignment just where the object shows its base and all of its addresses")
	}
	f.RecordBatchInAddressLedger([]PendingStatusWrite{ours})
	f.ClosePendingOfRefusedStatusWrite(serviceKey("s"), "2")
	wantPending(t, "a refusal on another base", f.ListPendingMergedWithBatch(nil), newPending("s", "3", "192.0.2.2", "192.0.2.1"))
	f.ClosePendingOfRefusedStatusWrite(serviceKey("s"), "3")
	wantPending(t, "after our write was refused", f.ListPendingMergedWithBatch(nil), theirs)

	f.RecordBatchInAddressLedger([]PendingStatusWrite{newPending("s", "4", "192.0.2.3")})
	f.ClosePendingOfRefusedStatusWrite(serviceKey("s"), "4")
	wantPending(t, "on a later base theirs cannot arrive", f.ListPendingMergedWithBatch(nil))
}

func TestLaterVersionClosesAPendingAssignment(t *testing.T) {
	f := NewSet([]PendingStatusWrite{newPending("s", "10", "192.0.2.1"), newPending("behind", "10", "192.0.2.2")})
	left := f.RemoveClosedPending(func(k view.ObjectKey) (string, bool) {
		return map[string]string{"s": "10", "behind": "9"}[k.Name], true
	})
	wantPending(t, "a list that is older than a pending assignment ends none", left, newPending("behind", "10", "192.0.2.2"), newPending("s", "10", "192.0.2.1"))
	f.ClosePendingWithOlderBase(serviceKey("s"), "9")
	for _, version := range []string{"9", "10"} {
		if got := f.PendingAddressesOfService(serviceKey("s"), version); len(got) != 1 {
			t.Errorf("a Service of version %s may still get %v, want the address on base 10", version, got)
		}
	}
	if got := f.PendingAddressesOfService(serviceKey("s"), "11"); len(got) > 0 || !f.AddressLedgerContainsService(serviceKey("s")) {
		t.Errorf("a Service of version 11 may still get %v, want nothing", got)
	}
	f.ClosePendingWithOlderBase(serviceKey("s"), "11")
	if f.AddressLedgerContainsService(serviceKey("s")) || f.CountPending() != 1 {
		t.Error("what is pending on an older base was not ended")
	}
}

// TestPendingSurvivesDeletedOrReplacedLedgerObject reads an object that is empty, or that has an
// entry on another base, after the first one was lost.
func TestPendingSurvivesDeletedOrReplacedLedgerObject(t *testing.T) {
	k := view.ObjectKey{Namespace: "default", Name: "s"}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	mine := PendingStatusWrite{Service: k, BaseResourceVersion: "5", Addresses: []netip.Addr{a}}
	for name, tc := range map[string]struct {
		object []PendingStatusWrite
		want   []netip.Addr
	}{
		"empty":        {want: []netip.Addr{a}},
		"as it was":    {object: []PendingStatusWrite{mine}, want: []netip.Addr{a}},
		"later base":   {object: []PendingStatusWrite{{Service: k, BaseResourceVersion: "7", Addresses: []netip.Addr{b}}}, want: []netip.Addr{b}},
		"earlier base": {object: []PendingStatusWrite{{Service: k, BaseResourceVersion: "4", Addresses: []netip.Addr{b}}}, want: []netip.Addr{a}},
	} {
		t.Run(name, func(t *testing.T) {
			f := NewSet(tc.object)
			f.AddPendingOfEarlierSet(NewSet([]PendingStatusWrite{mine}))
			if got := f.PendingAddressesOfService(k, "4"); !slices.Equal(got, tc.want) {
				t.Errorf("%v is pending, want %v", got, tc.want)
			}
			if f.AddressLedgerContainsPending(mine) {
				t.Error("a write relies on the object before this controller has written it")
			}
			f.RecordBatchInAddressLedger(nil)
			if got, want := f.AddressLedgerContainsPending(mine), slices.Contains(tc.want, a); got != want {
				t.Errorf("after another write the object shows it: %v, want %v", got, want)
			}
		})
	}
}

// TestOtherNonNumericVersionClosesPending: a version that cannot be compared closes an assignment
// when it differs from the base.
func TestOtherNonNumericVersionClosesPending(t *testing.T) {
	for version, want := range map[string]int{"base": 1, "other": 0, "12": 0, "": 0} {
		f := NewSet([]PendingStatusWrite{newPending("s", "base", "192.0.2.1")})
		if got := f.PendingAddressesOfService(serviceKey("s"), version); len(got) != want {
			t.Errorf("a Service of version %q may still get %v, want %d addresses", version, got, want)
		}
		if f.ClosePendingWithOlderBase(serviceKey("s"), version); f.CountPending() != want {
			t.Errorf("after version %q %d assignments are pending, want %d", version, f.CountPending(), want)
		}
	}
	for text, want := range map[string]uint64{"1": 1, "18446744073709551615": 1<<64 - 1, "18446744073709551616": 0, "-1": 0, "1a": 0, "": 0} {
		if got := ParseResourceVersion(text); got != want {
			t.Errorf("the resourceVersion %q is %d, want %d", text, got, want)
		}
	}
}

func TestPendingOnLaterVersionIsRecognized(t *testing.T) {
	f := NewSet([]PendingStatusWrite{newPending("s", "10", "192.0.2.1")})
	for version, want := range map[string]bool{"9": true, "10": false, "11": false} {
		if got := f.HasPendingOnLaterResourceVersion(serviceKey("s"), version); got != want {
			t.Errorf("the assignment is on a later base than %s: %v, want %v", version, got, want)
		}
	}
	if f.HasPendingOnLaterResourceVersion(serviceKey("other"), "9") {
		t.Error("a Service without a pending assignment has a later base")
	}
}

// TestOmittedPendingStaysOpen leaves out the entries of earlier writes. Their addresses stay
// pending, also when the object is read again, until each is closed or written again.
func TestOmittedPendingStaysOpen(t *testing.T) {
	first, second, third := newPending("first", "3", "192.0.2.1"), newPending("second", "4", "192.0.2.2"), newPending("third", "5", "192.0.2.3")
	f := NewSet([]PendingStatusWrite{first, second})
	batch := []PendingStatusWrite{third}
	wantPending(t, "an object with the batch only", f.ListPendingOfBatchOnly(batch), third)
	f.OmitAllFromAddressLedgerExcept(batch)
	f.RecordBatchInAddressLedger(batch)
	wantPending(t, "the open assignments", f.ListOpenPending(), first, second, third)
	wantPending(t, "the next object", f.ListPendingMergedWithBatch(nil), third)
	if f.CountOmittedFromAddressLedger() != 2 || f.AddressLedgerContainsPending(first) || !f.AddressLedgerContainsPending(third) {
		t.Error("the object should lack the first two, and have the third")
	}
	again := NewSet([]PendingStatusWrite{third})
	again.AddPendingOfEarlierSet(f)
	wantPending(t, "the open assignments after reading the object", again.ListOpenPending(), first, second, third)
	wantPending(t, "the next object after reading it", again.ListPendingMergedWithBatch(nil), third)
	again.RecordBatchInAddressLedger(nil)
	if again.CountOmittedFromAddressLedger() != 2 || again.AddressLedgerContainsPending(first) || !again.AddressLedgerContainsPending(third) {
		t.Error("after reading the object it should lack the first two, and have the third")
	}
	f.ClosePendingWithBase(serviceKey("first"), "3")
	wantPending(t, "when the first is closed", f.ListOpenPending(), second, third)
	f.RecordBatchInAddressLedger([]PendingStatusWrite{second})
	wantPending(t, "when the second is written again", f.ListPendingMergedWithBatch(nil), second, third)
	if f.CountOmittedFromAddressLedger() != 0 {
		t.Error("nothing is left out any more")
	}
	if f.OmitFromAddressLedger(serviceKey("other")) || !f.OmitFromAddressLedger(serviceKey("third")) || f.OmitFromAddressLedger(serviceKey("third")) {
		t.Error("only an open assignment can be left out, and once")
	}
	wantPending(t, "when the third is left out", f.ListPendingMergedWithBatch(nil), second)
}
