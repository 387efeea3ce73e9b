package reconcile

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// mirror follows all objects of a kind and keeps none of them: each is reduced to what is needed of it, as soon as it is read, and
// handed on. A cache would hold every object a second time, beside what was made of it; of 10,000 Services that is most of the
// memory that a speaker would use. It is a reflector's store; one goroutine, the reflector's, calls what it hands on to.
type mirror[T any] struct {
	// reduce returns what is needed of an object.
	reduce func(o any) (T, bool)
	// added, changed and removed tell of one; replaced tells all that there are now.
	added, changed, removed func(T)
	replaced                func([]T)
	// done is closed when all that existed has been told.
	done chan struct{}
	told bool // done is closed
}

var _ toolscache.TransformingStore = (*mirror[int])(nil)

// follow keeps the mirror in step until ctx ends. The list says of which kind.
func (m *mirror[T]) follow(ctx context.Context, source client.WithWatch, kind client.Object, list func() client.ObjectList) {
	lw := &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l := list()
			return l, source.List(ctx, l, &client.ListOptions{Raw: &o, Limit: o.Limit, Continue: o.Continue})
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
			return source.Watch(ctx, list(), &client.ListOptions{Raw: &o})
		},
	}
	toolscache.NewReflectorWithOptions(lw, kind, m, toolscache.ReflectorOptions{Name: fmt.Sprintf("mirror of %T", kind)}).RunWithContext(ctx)
}

// synced says whether all that existed has been told.
func (m *mirror[T]) synced() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// Transformer lets the reflector reduce what it gathers before Replace.
func (m *mirror[T]) Transformer() toolscache.TransformFunc {
	return func(o any) (any, error) {
		v, ok := m.reduce(o)
		if !ok {
			return nil, fmt.Errorf("a %T is none of this kind", o)
		}
		return v, nil
	}
}

// Add is part of toolscache.ReflectorStore.
func (m *mirror[T]) Add(o any) error { return m.tell(o, m.added) }

// Update is part of toolscache.ReflectorStore.
func (m *mirror[T]) Update(o any) error { return m.tell(o, m.changed) }

// Delete is part of toolscache.ReflectorStore.
func (m *mirror[T]) Delete(o any) error { return m.tell(o, m.removed) }

func (m *mirror[T]) tell(o any, hand func(T)) error {
	v, ok := m.reduce(o)
	if !ok {
		return fmt.Errorf("a %T is none of this kind", o)
	}
	hand(v)
	return nil
}

// Replace is part of toolscache.ReflectorStore: what a stream gathered is reduced already, what a list has is not.
func (m *mirror[T]) Replace(all []any, _ string) error {
	out := make([]T, 0, len(all))
	for i, o := range all {
		v, reduced := o.(T)
		if !reduced {
			var ok bool
			if v, ok = m.reduce(o); !ok {
				return fmt.Errorf("a %T is none of this kind", o)
			}
		}
		out, all[i] = append(out, v), nil
	}
	m.replaced(out)
	if !m.told {
		m.told = true
		close(m.done)
	}
	return nil
}

// Resync is part of toolscache.ReflectorStore. Nothing is told twice.
func (m *mirror[T]) Resync() error { return nil }
