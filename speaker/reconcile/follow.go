package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
)

// batch bounds how many changes are posted together when everything is told anew.
const batch = 500

// serviceMirror follows the Services. Those that are not of type LoadBalancer are nothing to a speaker.
func (f *Feed) serviceMirror(ctx context.Context) *mirror[*view.Service] {
	set := func(v *view.Service) { f.post(ctx, f.setService(nil, v)) }
	return &mirror[*view.Service]{
		reduce: func(o any) (*view.Service, bool) {
			s, ok := o.(*corev1.Service)
			if !ok {
				return nil, false
			}
			v := view.FromService(s)
			v.Key.Namespace = view.Share(v.Key.Namespace)
			return &v, true
		},
		added:    set,
		changed:  set,
		removed:  func(v *view.Service) { f.post(ctx, f.removeService(nil, v.Key)) },
		replaced: func(all []*view.Service) { f.replaceServices(ctx, all) },
		done:     make(chan struct{}),
	}
}

// setService adds the change that a Service makes, if it makes one.
func (f *Feed) setService(out []agent.Change, v *view.Service) []agent.Change {
	if !v.LoadBalancer {
		return f.removeService(out, v.Key)
	}
	f.mu.Lock()
	f.services[v.Key] = types.UID(v.UID)
	f.mu.Unlock()
	return append(out, agent.SetService(*v))
}

func (f *Feed) removeService(out []agent.Change, k view.Key) []agent.Change {
	f.mu.Lock()
	_, known := f.services[k]
	delete(f.services, k)
	f.mu.Unlock()
	if !known {
		return out
	}
	return append(out, agent.RemoveService(k))
}

// replaceServices tells all Services that there are, and of those that went while nobody watched.
func (f *Feed) replaceServices(ctx context.Context, all []*view.Service) {
	f.mu.Lock()
	gone := make(map[view.Key]struct{}, len(f.services))
	for k := range f.services {
		gone[k] = struct{}{}
	}
	f.mu.Unlock()
	var out []agent.Change
	for i, v := range all {
		delete(gone, v.Key)
		if out, all[i] = f.setService(out, v), nil; len(out) >= batch {
			f.Agent.Post(ctx, out...)
			out = nil
		}
	}
	for k := range gone {
		out = f.removeService(out, k)
	}
	f.post(ctx, out)
}

// post hands changes over, if there are any.
func (f *Feed) post(ctx context.Context, out []agent.Change) {
	if len(out) > 0 {
		f.Agent.Post(ctx, out...)
	}
}

// Service returns what an event about a Service of type LoadBalancer names; nil when there is none.
func (f *Feed) Service(k view.Key) *corev1.Service {
	f.mu.Lock()
	defer f.mu.Unlock()
	uid, ok := f.services[k]
	if !ok {
		return nil
	}
	s := &corev1.Service{}
	s.Namespace, s.Name, s.UID = k.Namespace, k.Name, uid
	return s
}

// sliceMirror follows the EndpointSlices.
func (f *Feed) sliceMirror(ctx context.Context) *mirror[*view.Slice] {
	return &mirror[*view.Slice]{
		reduce: func(o any) (*view.Slice, bool) {
			s, ok := o.(*discoveryv1.EndpointSlice)
			if !ok {
				return nil, false
			}
			v := view.FromSlice(s)
			return &v, true
		},
		added: func(v *view.Slice) { f.post(ctx, f.endpoints(f.putSlice(v))) },
		changed: func(v *view.Slice) {
			former := f.dropSlice(v)
			f.post(ctx, f.endpoints(former, f.putSlice(v)))
		},
		removed:  func(v *view.Slice) { f.post(ctx, f.endpoints(f.dropSlice(v))) },
		replaced: func(all []*view.Slice) { f.replaceSlices(ctx, all) },
		done:     make(chan struct{}),
	}
}

// putSlice adds a slice, and returns its Service, without a name when it has none.
func (f *Feed) putSlice(v *view.Slice) view.Key {
	if v.Service.Name == "" {
		return view.Key{}
	}
	all := f.slices[v.Service]
	i, found := findSlice(all, v.Name)
	if found {
		all[i] = *v
	} else {
		f.slices[v.Service] = slices.Insert(slices.Clip(all), i, *v)
	}
	return v.Service
}

// dropSlice forgets what is known of a slice, and returns the Service that it was of. That may be another than it names now.
func (f *Feed) dropSlice(v *view.Slice) view.Key {
	of := v.Service
	if _, found := findSlice(f.slices[of], v.Name); !found {
		of = view.Key{}
		for k, all := range f.slices {
			if _, found := findSlice(all, v.Name); found && k.Namespace == v.Service.Namespace {
				of = k
				break
			}
		}
	}
	all := f.slices[of]
	i, found := findSlice(all, v.Name)
	if !found {
		return view.Key{}
	}
	if len(all) == 1 {
		delete(f.slices, of)
	} else {
		f.slices[of] = slices.Delete(all, i, i+1)
	}
	return of
}

func findSlice(all []view.Slice, name string) (int, bool) {
	return slices.BinarySearchFunc(all, name, func(s view.Slice, name string) int { return strings.Compare(s.Name, name) })
}

// endpoints returns the changes that tell the endpoints of the Services; those without a name are passed over.
func (f *Feed) endpoints(services ...view.Key) []agent.Change {
	var out []agent.Change
	for i, k := range services {
		if k.Name != "" && !slices.Contains(services[:i], k) {
			out = append(out, agent.SetEndpoints(view.Join(k, f.slices[k])))
		}
	}
	return out
}

// replaceSlices tells the endpoints of all Services anew.
func (f *Feed) replaceSlices(ctx context.Context, all []*view.Slice) {
	former := f.slices
	f.slices = make(map[view.Key][]view.Slice, len(all))
	for _, v := range all {
		f.putSlice(v)
	}
	for k := range former {
		if _, still := f.slices[k]; !still {
			f.post(ctx, f.endpoints(k))
		}
	}
	for chunk := range slices.Chunk(slices.Collect(maps.Keys(f.slices)), batch) {
		var out []agent.Change
		for _, k := range chunk {
			out = append(out, agent.SetEndpoints(view.Join(k, f.slices[k])))
		}
		f.post(ctx, out)
	}
}
