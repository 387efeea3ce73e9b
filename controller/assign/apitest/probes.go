package apitest

import (
	"cmp"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
)

// AllProbes returns the AddressProbes, sorted by name.
func (s *Server) AllProbes() []v1alpha1.AddressProbe {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]v1alpha1.AddressProbe, 0, len(s.probeByName))
	for _, p := range s.probeByName {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(x, y v1alpha1.AddressProbe) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// WriteProbeResultAsSpeaker writes a speaker's result, or returns false when there is no such
// probe. The test must notify the workers.
func (s *Server) WriteProbeResultAsSpeaker(name, outcome, by string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probeByName[name] == nil {
		return false
	}
	p := s.probeByName[name].DeepCopy()
	p.Status = v1alpha1.AddressProbeStatus{Outcome: outcome, By: by, Node: "node"}
	s.probeByName[name] = p
	return true
}

// CreateProbeAsUser creates the AddressProbe of a user. The test must notify the workers.
func (s *Server) CreateProbeAsUser(name, address, node string, createdAt time.Time) {
	p := &v1alpha1.AddressProbe{Spec: v1alpha1.AddressProbeSpec{Address: address, Node: node}}
	p.Name, p.CreationTimestamp = name, metav1.NewTime(createdAt)
	s.createOrReplaceProbe(p)
}

func (s *Server) createOrReplaceProbe(p *v1alpha1.AddressProbe) *v1alpha1.AddressProbe {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeRequestCountByKind["probe"]++
	p = p.DeepCopy()
	p.Namespace, p.UID, p.ResourceVersion = names.DefaultNamespace, types.UID("uid-"+s.nextResourceVersion()), s.nextResourceVersion()
	s.probeByName[p.Name] = p
	return p
}

func (s *Server) deleteProbe(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writeRequestCountByKind["probe"]++
	delete(s.probeByName, name)
}
