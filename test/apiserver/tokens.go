package apiserver

import (
	"context"
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// The service accounts of the speakers and of the controller.
const speakerServiceAccount, controllerServiceAccount = "gantry-speaker", "gantry-controller"

// errPolicyNotInForce means that a service account may still write what a policy refuses.
var errPolicyNotInForce = errors.New("a service account may write what the policy refuses")

// CreateSpeakerPodAndToken creates a Pod of a speaker on a node, and returns a client configuration
// with the token that the kubelet would give to this Pod. The speaker has the rights of
// config/rbac, and the policies apply to it when this function returns.
func CreateSpeakerPodAndToken(t testing.TB, admin *rest.Config, node string) *rest.Config {
	t.Helper()
	c, err := client.New(admin, client.Options{})
	if err != nil {
		t.Fatalf("creating a client: %v", err)
	}
	for _, file := range []string{"rbac/speaker.yaml", "rbac/bgp.yaml"} {
		createObjectsOfConfigFile(t.Context(), t, c, file)
	}
	n := &corev1.Node{}
	n.Name = node
	if err := c.Create(t.Context(), n); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatalf("creating node %s: %v", node, err)
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		NodeName: node, ServiceAccountName: speakerServiceAccount, Containers: []corev1.Container{{Name: "speaker", Image: "speaker"}},
	}}
	pod.Namespace, pod.Name = names.DefaultNamespace, "gantry-speaker-"+node
	if err := c.Create(t.Context(), pod); err != nil {
		t.Fatalf("creating the Pod of the speaker of %s: %v", node, err)
	}
	bound := &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	config := CreateSpeakerToken(t, admin, bound)
	awaitSpeakerPolicies(t, config)
	return config
}

// CreateSpeakerToken returns a client configuration with a token of the speakers' service account,
// which is bound to the object unless that is nil.
func CreateSpeakerToken(t testing.TB, admin *rest.Config, bound *authenticationv1.BoundObjectReference) *rest.Config {
	t.Helper()
	return createServiceAccountToken(t, admin, speakerServiceAccount, bound)
}

// CreateControllerToken returns a client configuration with a token of the controller's service
// account. It has the rights of config/rbac, and the policies apply to it when this function
// returns.
func CreateControllerToken(t testing.TB, admin *rest.Config) *rest.Config {
	t.Helper()
	for _, file := range []string{"rbac/controller.yaml", "rbac/bgp.yaml"} {
		CreateObjectsOfConfigFile(t, admin, file)
	}
	config := createServiceAccountToken(t, admin, controllerServiceAccount, nil)
	refused := &coordinationv1.Lease{}
	refused.Namespace, refused.Name = names.DefaultNamespace, "a-lease-of-another-program"
	ctx, cancel := context.WithTimeout(t.Context(), apiServerStartTimeout)
	defer cancel()
	awaitPolicyRefusal(ctx, t, config, "gantry-controller-objects", refused)
	return config
}

// createServiceAccountToken returns a client configuration with a token of a service account, which
// is bound to the object unless that is nil.
func createServiceAccountToken(t testing.TB, admin *rest.Config, account string, bound *authenticationv1.BoundObjectReference) *rest.Config {
	t.Helper()
	clients, err := kubernetes.NewForConfig(admin)
	if err != nil {
		t.Fatalf("creating a client: %v", err)
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	token, err := clients.CoreV1().ServiceAccounts(names.DefaultNamespace).CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating a token for %s: %v", account, err)
	}
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken, config.QPS = token.Status.Token, -1
	return config
}

// awaitSpeakerPolicies waits until the API server knows the rights of speakers, and refuses an
// object and an event about another node: it takes a moment to see all three.
func awaitSpeakerPolicies(t testing.TB, config *rest.Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), apiServerStartTimeout)
	defer cancel()
	const otherNode = "a-node-without-speaker"
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("gantry.dev/v1alpha1")
	o.SetKind("SpeakerStatus")
	o.SetNamespace(names.DefaultNamespace)
	o.SetName(otherNode)
	e := &eventsv1.Event{
		EventTime: metav1.NowMicro(), ReportingController: names.SpeakerEventSource, ReportingInstance: "x", Action: "x", Reason: "x", Type: corev1.EventTypeNormal,
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: otherNode},
	}
	e.Namespace, e.Name = metav1.NamespaceDefault, otherNode
	for policy, refused := range map[string]client.Object{"gantry-speaker-objects": o, "gantry-speaker-events": e} {
		awaitPolicyRefusal(ctx, t, config, policy, refused)
	}
}

// awaitPolicyRefusal waits until a policy refuses that an object is created.
func awaitPolicyRefusal(ctx context.Context, t testing.TB, config *rest.Config, policy string, refused client.Object) {
	t.Helper()
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatalf("creating a client: %v", err)
	}
	retryUntilNoErrorOrProgramEnds(ctx, t, nil, func() error {
		err := c.Create(ctx, refused.DeepCopyObject().(client.Object), client.DryRunAll)
		if err == nil {
			return errPolicyNotInForce
		}
		if strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+policy+"'") {
			return nil
		}
		return err
	})
}
