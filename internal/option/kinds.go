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

// groupVersion is where the kinds are looked for.
const groupVersion = "metallb.io/v1beta1"

// AwaitKinds waits until the API server serves the resources of metallb.io/v1beta1, and says once what is missing and
// how to install it. It returns an error only when it cannot even begin to ask; nil when ctx ends.
func AwaitKinds(ctx context.Context, config *rest.Config, log *slog.Logger, resources ...string) error {
	c, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("asking which kinds the API server serves: %w", err)
	}
	told := ""
	for {
		missing := missingKinds(c, resources)
		if missing == "" || ctx.Err() != nil {
			return nil
		}
		if missing != told {
			log.Error("waiting for the API", "missing", missing, "todo", "install the CRDs: kubectl apply -k config/crd")
			told = missing
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// missingKinds names what the API server does not serve, or why it could not be asked; empty when all is there.
func missingKinds(c discovery.DiscoveryInterface, resources []string) string {
	served, err := c.ServerResourcesForGroupVersion(groupVersion)
	if err != nil {
		return fmt.Sprintf("%s: %v", groupVersion, err)
	}
	for _, r := range resources {
		if !slices.ContainsFunc(served.APIResources, func(s metav1.APIResource) bool { return s.Name == r }) {
			return r + "." + groupVersion
		}
	}
	return ""
}
