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

// objectFollower follows all objects of a kind and stores none of them. It reduces each object to
// the needed part as soon as it is read, and passes that on. A cache would store every object a
// second time. With 10,000 Services that would be most of the speaker's memory. It is the store of
// a reflector, whose goroutine makes all calls.
type objectFollower[T any] struct {
	// reduceObject returns the needed part of an object.
	reduceObject func(o any) (T, bool)
	// onAdd, onUpdate and onDelete get a changed object. onReplace gets all objects.
	onAdd, onUpdate, onDelete func(T)
	onReplace                 func([]T)
	// syncedSignal is closed when all existing objects have been passed on.
	syncedSignal   chan struct{}
	isSyncedClosed bool // synced is closed
}

var _ toolscache.TransformingStore = (*objectFollower[int])(nil)

// followObjects follows the objects of a kind until ctx ends. list returns an empty
// list of that kind.
func (m *objectFollower[T]) followObjects(ctx context.Context, source client.WithWatch, kind client.Object, list func() client.ObjectList) {
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

// hasSynced says whether all existing objects have been passed on.
func (m *objectFollower[T]) hasSynced() bool {
	select {
	case <-m.syncedSignal:
		return true
	default:
		return false
	}
}

// Transformer lets the reflector reduce the objects that it gathers before Replace.
func (m *objectFollower[T]) Transformer() toolscache.TransformFunc {
	return func(o any) (any, error) {
		v, ok := m.reduceObject(o)
		if !ok {
			return nil, fmt.Errorf("unexpected object of type %T", o)
		}
		return v, nil
	}
}

// Add implements toolscache.ReflectorStore.
func (m *objectFollower[T]) Add(o any) error { return m.reduceAndPassOn(o, m.onAdd) }

// Update implements toolscache.ReflectorStore.
func (m *objectFollower[T]) Update(o any) error { return m.reduceAndPassOn(o, m.onUpdate) }

// Delete implements toolscache.ReflectorStore.
func (m *objectFollower[T]) Delete(o any) error { return m.reduceAndPassOn(o, m.onDelete) }

func (m *objectFollower[T]) reduceAndPassOn(o any, pass func(T)) error {
	v, ok := m.reduceObject(o)
	if !ok {
		return fmt.Errorf("unexpected object of type %T", o)
	}
	pass(v)
	return nil
}

// Replace implements toolscache.ReflectorStore. Objects from a watch are reduced already, objects
// from a list are not.
func (m *objectFollower[T]) Replace(all []any, _ string) error {
	out := make([]T, 0, len(all))
	for i, o := range all {
		v, reduced := o.(T)
		if !reduced {
			var ok bool
			if v, ok = m.reduceObject(o); !ok {
				return fmt.Errorf("unexpected object of type %T", o)
			}
		}
		out, all[i] = append(out, v), nil
	}
	m.onReplace(out)
	if !m.isSyncedClosed {
		m.isSyncedClosed = true
		close(m.syncedSignal)
	}
	return nil
}

// Resync implements toolscache.ReflectorStore. It does nothing.
func (m *objectFollower[T]) Resync() error { return nil }
