package assign

import (
	"fmt"
	"slices"
	"testing"
)

// takeAll takes all items.
func takeAll(q *namespaceTurns[string]) []string {
	var out []string
	for q.itemCount > 0 {
		out = append(out, q.takeItem())
	}
	return out
}

func TestNamespacesTakeTurns(t *testing.T) {
	var q namespaceTurns[string]
	for i := range 4 {
		q.addItem("many", fmt.Sprint("many", i))
	}
	q.addItem("few", "few0")
	q.addItem("some", "some0")
	q.addItem("some", "some1")
	if got, want := slices.Sorted(q.allItems()), []string{"few0", "many0", "many1", "many2", "many3", "some0", "some1"}; !slices.Equal(got, want) {
		t.Errorf("it has the items %q, want %q", got, want)
	}
	if got, want := takeAll(&q), []string{"many0", "few0", "some0", "many1", "some1", "many2", "many3"}; !slices.Equal(got, want) {
		t.Errorf("the items come in the order %q, want %q", got, want)
	}
	q.addItem("late", "late0")
	if got := takeAll(&q); !slices.Equal(got, []string{"late0"}) || len(q.itemsByNamespace)+len(q.namespaces) > 0 {
		t.Errorf("an item after the queue was empty: got %q, and %+v is left", got, q)
	}
}

func TestNamespaceWithAQuarterOfTheLastWritesIsBusy(t *testing.T) {
	var r recentWriters
	if r.isQuietBesideBusy("few") {
		t.Error("a namespace is quiet beside a busy one, though nobody has written")
	}
	for i := range 10 * maxRecentWrites {
		r.recordWrite(fmt.Sprint("each", i%maxRecentWrites))
	}
	if r.isQuietBesideBusy("each0") || r.isQuietBesideBusy("few") {
		t.Error("a namespace is quiet beside a busy one, though all have written equally often")
	}
	for range maxRecentWrites - 1 {
		r.recordWrite("many")
	}
	r.recordWrite("few")
	if r.isQuietBesideBusy("many") || !r.isQuietBesideBusy("few") || !r.isQuietBesideBusy("new") || len(r.countByNamespace) != 2 {
		t.Errorf("the busy namespace counts as quiet, or the others do not; the counts are %v", r.countByNamespace)
	}
}
