package certs_test

import (
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/certs"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// TestCertificateOfAnotherProgramIsServed: the controller waits for the Secret, tells the API
// server to trust its CA, and serves each new certificate. It writes nothing into the Secret.
func TestCertificateOfAnotherProgramIsServed(t *testing.T) {
	rc := apiserver.StartUntilTestEnds(t)
	ctx := t.Context()
	api, err := client.New(rc, client.Options{Scheme: clientscheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Create(ctx, newWebhookConfiguration()); err != nil {
		t.Fatal(err)
	}
	k := startCertificateReconciler(t, rc, time.Now, func(o *certs.Options) { o.IsSecretForeign = true })
	issue := func() map[string][]byte {
		t.Helper()
		data, _, err := certs.RenewCertificateSecretDataIfDue(time.Now(), nil, []string{names.WebhookService + "." + names.DefaultNamespace + ".svc"})
		if err != nil {
			t.Fatal(err)
		}
		delete(data, "ca.key")
		return data
	}
	s := &corev1.Secret{Type: corev1.SecretTypeTLS, Data: issue()}
	s.Namespace, s.Name = names.DefaultNamespace, names.WebhookSecret
	if err := api.Create(ctx, s); err != nil {
		t.Fatalf("the controller may have created the Secret: %v", err)
	}
	awaitNoError(t, "the certificate", func() error {
		_, err := readTrustedCertificateServedByAll(ctx, api, time.Now(), nil, k)
		return err
	})
	first, err := readCertificateServedBy(k)
	if err != nil {
		t.Fatal(err)
	}
	s.Data = issue()
	if err := api.Update(ctx, s); err != nil {
		t.Fatalf("the controller may have changed the Secret: %v", err)
	}
	awaitNoError(t, "the new certificate", func() error {
		_, err := readTrustedCertificateServedByAll(ctx, api, time.Now(), first, k)
		return err
	})
	var stored corev1.Secret
	if err := api.Get(ctx, client.ObjectKeyFromObject(s), &stored); err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(stored.Data, s.Data, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Error("the controller has changed the Secret of another program")
	}
}
