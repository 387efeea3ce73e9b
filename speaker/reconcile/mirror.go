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

// objectMirror follows all objects of a kind and keeps none of them: each is reduced to what is needed of it, as soon as it is read, and
// handed on. A cache would hold every object a second time, beside what was made of it; of 10,000 Services that is most of the
// memory that a speaker would use. It is a reflector's store; one goroutine, the reflector's, calls what it hands on to.
type objectMirror[T any] struct {
	// reduce returns what is needed of an object.
	reduce func(o any) (T, bool)
	// onAdd, changed and removed tell of one; replaced tells all that there are now.
	onAdd, onUpdate, onDelete func(T)
	onReplace                 func([]T)
	// synced is closed when all that existed has been told.
	synced         chan struct{}
	isSyncedClosed bool // done is closed
}

var _ toolscache.TransformingStore = (*objectMirror[int])(nil)

// followObjects keeps the mirror in step until ctx ends. The list says of which kind.
func (m *objectMirror[T]) followObjects(ctx context.Context, source client.WithWatch, kind client.Object, list func() client.ObjectList) {
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

// hasSynced says whether all that existed has been told.
func (m *objectMirror[T]) hasSynced() bool {
	select {
	case <-m.synced:
		return true
	default:
		return false
	}
}

// Transformer lets the reflector reduce what it gathers before Replace.
func (m *objectMirror[T]) Transformer() toolscache.TransformFunc {
	return func(o any) (any, error) {
		v, ok := m.reduce(o)
		if !ok {
			return nil, fmt.Errorf("a %T is none of this kind", o)
		}
		return v, nil
	}
}

// Add is part of toolscache.ReflectorStore.
func (m *objectMirror[T]) Add(o any) error { return m.reduceAndPass(o, m.onAdd) }

// Update is part of toolscache.ReflectorStore.
func (m *objectMirror[T]) Update(o any) error { return m.reduceAndPass(o, m.onUpdate) }

// Delete is part of toolscache.ReflectorStore.
func (m *objectMirror[T]) Delete(o any) error { return m.reduceAndPass(o, m.onDelete) }

func (m *objectMirror[T]) reduceAndPass(o any, hand func(T)) error {
	v, ok := m.reduce(o)
	if !ok {
		return fmt.Errorf("a %T is none of this kind", o)
	}
	hand(v)
	return nil
}

// Replace is part of toolscache.ReflectorStore: what a stream gathered is reduced already, what a list has is not.
func (m *objectMirror[T]) Replace(all []any, _ string) error {
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
	m.onReplace(out)
	if !m.isSyncedClosed {
		m.isSyncedClosed = true
		close(m.synced)
	}
	return nil
}

// Resync is part of toolscache.ReflectorStore. Nothing is told twice.
func (m *objectMirror[T]) Resync() error { return nil }
