package plan

import (
	"cmp"
	"math/rand"
	"slices"
	"testing"
)

// TestSortedListEditsEqualThoseOfSlice edits a SortedList at random and compares it with a plain
// slice.
func TestSortedListEditsEqualThoseOfSlice(t *testing.T) {
	for seed := range int64(20) {
		r := rand.New(rand.NewSource(seed))
		var list SortedList[int]
		var want []int
		span := 1 << (2 + r.Intn(14))
		for step := range 60 {
			add, drop := map[int]bool{}, map[int]bool{}
			for range r.Intn(1 + r.Intn(600)) {
				add[r.Intn(span)] = true
			}
			for range r.Intn(1 + r.Intn(600)) {
				if e := r.Intn(span); !add[e] {
					drop[e] = true
				}
			}
			if step%17 == 16 { // deletes nearly all elements
				for i, e := range want {
					if !add[e] && i%97 > 0 {
						drop[e] = true
					}
				}
			}
			before, old := list, slices.Clone(want)
			want = slices.DeleteFunc(want, func(e int) bool { return add[e] || drop[e] })
			for e := range add {
				want = append(want, e)
			}
			slices.Sort(want)
			list = list.withEdits(sortedKeys(add), sortedKeys(drop), cmp.Compare[int])
			if got := list.Slice(); !slices.Equal(got, want) || list.Len() != len(want) {
				t.Fatalf("with seed %d, step %d leads to %v (%d), want %v", seed, step, got, list.Len(), want)
			}
			if !slices.Equal(before.Slice(), old) {
				t.Fatalf("with seed %d, step %d changes the list before", seed, step)
			}
			for range 20 {
				e := r.Intn(span)
				got, found := list.lookup(e, cmp.Compare[int])
				if found != slices.Contains(want, e) || (found && got != e) {
					t.Fatalf("with seed %d, step %d finds %d for %d: %v", seed, step, got, e, found)
				}
			}
			if n := len(list.parts); n > 4+4*len(want)/sortedListPartSize {
				t.Fatalf("with seed %d, after step %d %d elements are in %d parts", seed, step, len(want), n)
			}
		}
	}
}

func sortedKeys(set map[int]bool) []int {
	var out []int
	for e := range set {
		out = append(out, e)
	}
	slices.Sort(out)
	return out
}
