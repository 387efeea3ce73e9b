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

// awaitedGroupVersion is where the kinds are looked for.
const awaitedGroupVersion = "metallb.io/v1beta1"

// AwaitResources waits until the API server serves the resources of metallb.io/v1beta1, and says once what is missing and
// how to install it. It returns an error only when it cannot even begin to ask; nil when ctx ends.
func AwaitResources(ctx context.Context, config *rest.Config, log *slog.Logger, resources ...string) error {
	c, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("asking which kinds the API server serves: %w", err)
	}
	lastLogged := ""
	for {
		missing := findMissingResource(c, resources)
		if missing == "" || ctx.Err() != nil {
			return nil
		}
		if missing != lastLogged {
			log.Error("waiting for the API", "missing", missing, "todo", "install the CRDs: kubectl apply -k config/crd")
			lastLogged = missing
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// findMissingResource names what the API server does not serve, or why it could not be asked; empty when all is there.
func findMissingResource(c discovery.DiscoveryInterface, resources []string) string {
	served, err := c.ServerResourcesForGroupVersion(awaitedGroupVersion)
	if err != nil {
		return fmt.Sprintf("%s: %v", awaitedGroupVersion, err)
	}
	for _, r := range resources {
		if !slices.ContainsFunc(served.APIResources, func(s metav1.APIResource) bool { return s.Name == r }) {
			return r + "." + awaitedGroupVersion
		}
	}
	return ""
}
