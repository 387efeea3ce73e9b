package manifests

import (
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// TestStolenControllerToken tries what the token of the controller can create. It can make no
// Secret with the token of another account, and nothing that the controller does not need.
func TestStolenControllerToken(t *testing.T) {
	admin := apiserver.StartUntilTestEnds(t)
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(apiserver.CreateControllerToken(t, admin), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: name}
	}
	tokenOfSpeaker := func(name string) *corev1.Secret {
		s := &corev1.Secret{ObjectMeta: meta(name), Type: corev1.SecretTypeServiceAccountToken}
		s.Annotations = map[string]string{corev1.ServiceAccountNameKey: "gantry-speaker"}
		return s
	}
	inOtherNamespace := &corev1.Secret{ObjectMeta: meta(names.GossipSecret)}
	inOtherNamespace.Namespace = metav1.NamespaceDefault
	withGeneratedName := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, GenerateName: names.GossipSecret}}
	for what, o := range map[string]client.Object{
		"a token of another account":                             tokenOfSpeaker("stolen"),
		"a token of another account, in place of the gossip key": tokenOfSpeaker(names.GossipSecret),
		"a Secret of another name":                               &corev1.Secret{ObjectMeta: meta("router-password")},
		"a Secret with a generated name":                         withGeneratedName,
		"a Secret in another namespace":                          inOtherNamespace,
		"a Lease of another name":                                &coordinationv1.Lease{ObjectMeta: meta("kube-scheduler")},
		"an AddressLedger of another name":                       &v1alpha1.AddressLedger{ObjectMeta: meta("other")},
	} {
		if err := c.Create(t.Context(), o); !apierrors.IsForbidden(err) {
			t.Errorf("creating %s: got the error %v, want that it is forbidden", what, err)
		}
	}
	for what, o := range map[string]client.Object{
		"the gossip key":                   &corev1.Secret{ObjectMeta: meta(names.GossipSecret), Type: corev1.SecretTypeOpaque},
		"the certificate of the webhook":   &corev1.Secret{ObjectMeta: meta(names.WebhookSecret), Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: {}}},
		"the Lease of the leader":          &coordinationv1.Lease{ObjectMeta: meta(names.LeaderLease)},
		"the AddressLedger":                &v1alpha1.AddressLedger{ObjectMeta: meta(names.PendingAssignmentsLedger)},
		"the ledger of withheld addresses": &v1alpha1.AddressLedger{ObjectMeta: meta(names.WithheldAddressesLedger)},
	} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Errorf("creating %s: %v", what, err)
		}
	}
	// An account of the same name elsewhere is another program.
	elsewhere := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "any"}}
	namesake := rest.CopyConfig(admin)
	namesake.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:default:gantry-controller", Groups: []string{"system:masters"}}
	other, err := client.New(namesake, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Create(t.Context(), elsewhere); err != nil {
		t.Errorf("an account gantry-controller in another namespace creates a Secret: %v", err)
	}
}
