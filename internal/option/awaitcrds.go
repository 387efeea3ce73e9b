package option

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// awaitedAPIGroupVersion is the group and version of the awaited resources.
const awaitedAPIGroupVersion = "metallb.io/v1beta1"

// AwaitCRDResourcesServed waits until the API server serves the resources of metallb.io/v1beta1.
// While one is missing, it logs once which, and how to install it. It returns an error only if no
// request is possible, and nil when ctx ends.
func AwaitCRDResourcesServed(ctx context.Context, config *rest.Config, log *slog.Logger, resources ...string) error {
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
func describeFirstMissingResource(c discovery.DiscoveryInterface, resources []string) string {
	served, err := c.ServerResourcesForGroupVersion(awaitedAPIGroupVersion)
	if err != nil {
		return fmt.Sprintf("%s: %v", awaitedAPIGroupVersion, err)
	}
	for _, r := range resources {
		if !slices.ContainsFunc(served.APIResources, func(s metav1.APIResource) bool { return s.Name == r }) {
			return r + "." + awaitedAPIGroupVersion
		}
	}
	return ""
}
