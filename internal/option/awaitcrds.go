package option

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// AwaitCRDResourcesServed waits until the API server serves the resources. While one is missing, it
// logs once which, and how to install it. It returns an error only if no request is possible, and
// nil when ctx ends.
func AwaitCRDResourcesServed(ctx context.Context, config *rest.Config, log *slog.Logger, resources ...schema.GroupVersionResource) error {
	c, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("asking which kinds the API server serves: %w", err)
	}
	lastLogged := ""
	for {
		missing := describeFirstMissingResource(c, resources)
		if missing == "" || ctx.Err() != nil {
			return nil
		}
		if missing != lastLogged {
			log.Error("waiting for CRDs: install them with kubectl apply -k config/crd", "missing", missing)
			lastLogged = missing
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// describeFirstMissingResource returns the first resource that the API server does not serve, or
// why the request failed; empty when none is missing.
func describeFirstMissingResource(c discovery.DiscoveryInterface, resources []schema.GroupVersionResource) string {
	served := map[string]*metav1.APIResourceList{}
	for _, r := range resources {
		group := r.GroupVersion().String()
		if served[group] == nil {
			list, err := c.ServerResourcesForGroupVersion(group)
			if err != nil {
				return fmt.Sprintf("%s: %v", group, err)
			}
			served[group] = list
		}
		if !slices.ContainsFunc(served[group].APIResources, func(s metav1.APIResource) bool { return s.Name == r.Resource }) {
			return r.Resource + "." + group
		}
	}
	return ""
}
