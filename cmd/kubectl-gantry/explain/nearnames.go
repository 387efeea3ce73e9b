package explain

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/view"
)

// ListNamesForCompletion returns the names of what can be explained, to complete what a user types:
// of the kind service, node, pool, peer or advertisement. It returns none if they cannot be read.
func (e *Explainer) ListNamesForCompletion(ctx context.Context, kind, namespace string) []string {
	var lists []client.ObjectList
	switch kind {
	case "service":
		lists = []client.ObjectList{&corev1.ServiceList{}}
	case "node":
		lists, namespace = []client.ObjectList{newMetadataList("NodeList")}, ""
	case "pool":
		lists, namespace = []client.ObjectList{&v1beta1.IPAddressPoolList{}}, e.gantryNamespace
	case "peer":
		lists, namespace = []client.ObjectList{&v1beta2.BGPPeerList{}}, e.gantryNamespace
	case "advertisement":
		lists, namespace = []client.ObjectList{&v1beta1.L2AdvertisementList{}, &v1beta1.BGPAdvertisementList{}}, e.gantryNamespace
	}
	var out []string
	for _, list := range lists {
		if err := e.objectReader.List(ctx, list, client.InNamespace(namespace)); err != nil {
			continue
		}
		_ = meta.EachListItem(list, func(o runtime.Object) error {
			if object, ok := o.(client.Object); ok {
				out = append(out, object.GetName())
			}
			return nil
		})
	}
	return out
}

const (
	// maxSimilarNames is how many near names are suggested.
	maxSimilarNames = 3
	// maxNameLetters is how long the name of an object can be (a DNS name, RFC 1123). A value of an
	// annotation may have 256 KiB, and to compare it with each name would take minutes.
	maxNameLetters = 253
)

// findSimilarNames returns the known names that somebody may have meant: those with few different
// letters, and those that contain the name or are contained in it. The nearest comes first. No name
// is similar to a text that is too long for a name.
func findSimilarNames(name string, known []string) []string {
	if len(name) > maxNameLetters {
		return nil
	}
	type near struct {
		name     string
		distance int
	}
	var found []near
	for _, k := range known {
		d := view.EditDistance(name, k)
		if d <= max(1, len(name)/3) || view.AreAnagrams(name, k) || len(name) > 2 && strings.Contains(k, name) || len(k) > 2 && strings.Contains(name, k) {
			found = append(found, near{k, d})
		}
	}
	slices.SortFunc(found, func(x, y near) int {
		if x.distance != y.distance {
			return x.distance - y.distance
		}
		return strings.Compare(x.name, y.name)
	})
	var out []string
	for _, n := range found[:min(len(found), maxSimilarNames)] {
		out = append(out, n.name)
	}
	return out
}

// ignoreForbidden returns nil for a missing right, which is recorded elsewhere.
func ignoreForbidden(err error) error {
	if apierrors.IsForbidden(err) {
		return nil
	}
	return err
}
