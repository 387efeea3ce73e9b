package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/certs"
	"github.com/gantry-lb/gantry/test/apiserver"
)

var testWebhookObjectNames = certs.WebhookObjectNames{
	Namespace: names.DefaultNamespace, ServiceName: names.WebhookService, CertificateSecretName: names.WebhookSecret, ValidatingWebhookConfigurationName: names.WebhookConfiguration,
}

// startCertificateReconciler makes a certificate in a manager of its own, as a controller that is
// not the leader does.
func startCertificateReconciler(t *testing.T, rc *rest.Config, now func() time.Time, edits ...func(*certs.Options)) *certs.WebhookCertificate {
	t.Helper()
	skipValidation := true
	mgr, err := ctrl.NewManager(rc, ctrl.Options{
		Scheme: clientscheme.Scheme, Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &skipValidation},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := certs.Options{WebhookObjectNames: testWebhookObjectNames, Now: now, Log: slog.New(slog.DiscardHandler)}
	for _, edit := range edits {
		edit(&o)
	}
	k := certs.NewWebhookCertificate(o)
	if err := k.RegisterController(mgr); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return k
}

// readCertificateServedBy returns the certificate that a controller serves.
func readCertificateServedBy(k *certs.WebhookCertificate) (*x509.Certificate, error) {
	var c tls.Config
	k.ServeCurrentCertificate(&c)
	cert, err := c.GetCertificate(nil)
	if err != nil {
		return nil, err
	}
	return cert.Leaf, nil
}

// awaitNoError calls check until it returns nil.
func awaitNoError(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// readTrustedCertificateServedByAll returns the certificate that all controllers serve. It is an
// error if they differ, if it is the unwanted one, or if a client that trusts the webhook
// configuration does not accept it.
func readTrustedCertificateServedByAll(ctx context.Context, api client.Client, now time.Time, unwanted *x509.Certificate, controllers ...*certs.WebhookCertificate) (*x509.Certificate, error) {
	first, err := readCertificateServedBy(controllers[0])
	if err != nil {
		return nil, err
	}
	if unwanted != nil && first.Equal(unwanted) {
		return nil, errors.New("the certificate is the old one")
	}
	for _, k := range controllers[1:] {
		if other, err := readCertificateServedBy(k); err != nil || !other.Equal(first) {
			return nil, fmt.Errorf("two controllers serve different certificates (%v)", err)
		}
	}
	var c admissionv1.ValidatingWebhookConfiguration
	if err := api.Get(ctx, client.ObjectKey{Name: names.WebhookConfiguration}, &c); err != nil {
		return nil, err
	}
	for _, w := range c.Webhooks {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(w.ClientConfig.CABundle)
		s := w.ClientConfig.Service
		if _, err := first.Verify(x509.VerifyOptions{Roots: roots, DNSName: s.Name + "." + s.Namespace + ".svc", CurrentTime: now}); err != nil {
			return nil, fmt.Errorf("the API server would refuse webhook %s: %w", w.Name, err)
		}
	}
	return first, nil
}

func newWebhookConfiguration() *admissionv1.ValidatingWebhookConfiguration {
	c := &admissionv1.ValidatingWebhookConfiguration{}
	c.Name = names.WebhookConfiguration
	none := admissionv1.SideEffectClassNone
	ignore := admissionv1.Ignore
	for _, name := range []string{"first.metallb.io", "second.metallb.io"} {
		c.Webhooks = append(c.Webhooks, admissionv1.ValidatingWebhook{
			Name: name, AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &ignore,
			ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Name: names.WebhookService, Namespace: names.DefaultNamespace}},
		})
	}
	return c
}

// checkNamespaceOwnsWebhookConfiguration returns an error unless Kubernetes will remove the
// configuration together with the Namespace.
func checkNamespaceOwnsWebhookConfiguration(ctx context.Context, api client.Client) error {
	var namespace corev1.Namespace
	if err := api.Get(ctx, client.ObjectKey{Name: names.DefaultNamespace}, &namespace); err != nil {
		return err
	}
	var c admissionv1.ValidatingWebhookConfiguration
	if err := api.Get(ctx, client.ObjectKey{Name: names.WebhookConfiguration}, &c); err != nil {
		return err
	}
	if len(c.OwnerReferences) != 1 || c.OwnerReferences[0].UID != namespace.UID {
		return fmt.Errorf("the owners are %+v, want the Namespace %s", c.OwnerReferences, namespace.UID)
	}
	return nil
}

// TestAllControllersServeSameTrustedCertificate starts two controllers at once. It then deletes the
// Secret, the CA in the configuration and the configuration itself, and lets the certificate grow
// old.
func TestAllControllersServeSameTrustedCertificate(t *testing.T) {
	rc := apiserver.StartUntilTestEnds(t)
	ctx := t.Context()
	api, err := client.New(rc, client.Options{Scheme: clientscheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	if err := api.Create(ctx, newWebhookConfiguration()); err != nil {
		t.Fatal(err)
	}
	a, b := startCertificateReconciler(t, rc, now), startCertificateReconciler(t, rc, now)
	var cert *x509.Certificate
	awaitAgreement := func(what string, not *x509.Certificate) {
		t.Helper()
		awaitNoError(t, what, func() (err error) {
			c, err := readTrustedCertificateServedByAll(ctx, api, now(), not, a, b)
			if err == nil {
				cert = c
			}
			return err
		})
		if err := errors.Join(a.CheckTrustedCertificateIsServed(nil), b.CheckTrustedCertificateIsServed(nil)); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
	}
	awaitAgreement("the first certificate", nil)

	if err := api.Delete(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: names.WebhookSecret}}); err != nil {
		t.Fatal(err)
	}
	awaitAgreement("a certificate after the Secret was deleted", cert)

	var c admissionv1.ValidatingWebhookConfiguration
	if err := api.Get(ctx, client.ObjectKey{Name: names.WebhookConfiguration}, &c); err != nil {
		t.Fatal(err)
	}
	c.Webhooks[1].ClientConfig.CABundle = nil
	if err := api.Update(ctx, &c); err != nil {
		t.Fatal(err)
	}
	awaitAgreement("the CA after it was taken out of a webhook", nil)

	if err := errors.Join(api.Delete(ctx, newWebhookConfiguration()), api.Create(ctx, newWebhookConfiguration())); err != nil {
		t.Fatal(err)
	}
	awaitAgreement("the CA in a new configuration", nil)
	awaitNoError(t, "the Namespace as the owner of the configuration", func() error { return checkNamespaceOwnsWebhookConfiguration(ctx, api) })
	if err := api.Patch(ctx, newWebhookConfiguration(), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Namespace","name":"metallb-system","uid":"of-an-earlier-installation"}]}}`))); err != nil {
		t.Fatal(err)
	}
	awaitNoError(t, "the Namespace as the owner instead of an earlier one", func() error { return checkNamespaceOwnsWebhookConfiguration(ctx, api) })

	var s corev1.Secret
	if err := api.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.WebhookSecret}, &s); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(s.Data["ca.crt"])
	later.Store(int64(70 * 24 * time.Hour))
	// The timer for the renewal is weeks away; any event makes the reconciler look at the clock.
	// A patch, because the controllers may write at the same moment.
	if err := api.Patch(ctx, &s, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"touched":"true"}}}`))); err != nil {
		t.Fatal(err)
	}
	awaitAgreement("a new certificate after 70 days", cert)
	if err := api.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.WebhookSecret}, &s); err != nil || bytes.HasPrefix(s.Data["ca.crt"], before) || !bytes.HasSuffix(s.Data["ca.crt"], before) {
		t.Errorf("the new certificate has no CA of its own, or the old CA is not trusted any more (%v)", err)
	}
	if key, found := s.Data["ca.key"]; found {
		t.Errorf("the Secret has the key of a CA, of %d bytes", len(key))
	}
}
