package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/gantry-lb/gantry/internal/configuration"
)

// WebhookObjectNames names the objects that the reconciler of the certificate maintains.
type WebhookObjectNames struct {
	Namespace string
	// ServiceName is the webhook's Service, Secret the Secret with the certificate; both are in
	// Namespace.
	ServiceName, CertificateSecretName string
	// ValidatingWebhookConfigurationName is the ValidatingWebhookConfiguration that must contain
	// the CA.
	ValidatingWebhookConfigurationName string
}

// limitCache limits a cache to these objects. The RBAC rules allow no others.
func (o WebhookObjectNames) limitCache(c *cluster.Options) {
	named := func(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }
	c.Cache.ByObject = map[client.Object]cache.ByObject{
		&corev1.Secret{}: {Namespaces: map[string]cache.Config{o.Namespace: {FieldSelector: named(o.CertificateSecretName)}}},
		&admissionv1.ValidatingWebhookConfiguration{}: {Field: named(o.ValidatingWebhookConfigurationName)},
	}
}

// Options are the settings of a WebhookCertificate.
type Options struct {
	WebhookObjectNames
	// IsSecretForeign is set if another program writes the Secret and renews the certificate.
	IsSecretForeign bool
	Now             func() time.Time
	Log             *slog.Logger
}

// WebhookCertificate is the certificate that the webhook serves. Use NewWebhookCertificate to
// create it.
type WebhookCertificate struct {
	Options
	// nil until the API server trusts it
	servingCertificateOnceTrusted atomic.Pointer[tls.Certificate]
}

// NewWebhookCertificate returns a WebhookCertificate that has nothing to serve until the controller
// of RegisterController has made it.
func NewWebhookCertificate(o Options) *WebhookCertificate { return &WebhookCertificate{Options: o} }

// certificateReconciler creates and renews the certificate, in every controller, leader or not.
type certificateReconciler struct {
	*WebhookCertificate
	client client.Client
	// liveReader reads without a cache.
	liveReader client.Reader
}

// RegisterController registers the reconciler of the certificate. It runs at the start, on every
// change of the objects, and when a certificate is due for renewal.
func (k *WebhookCertificate) RegisterController(mgr ctrl.Manager) error {
	// A cache of its own, because the manager's cache limits Secrets in another way.
	own, err := cluster.New(mgr.GetConfig(), k.limitCache, func(c *cluster.Options) { c.Scheme = mgr.GetScheme() })
	if err != nil {
		return fmt.Errorf("setting up the webhook's certificate: %w", err)
	}
	if err := mgr.Add(own); err != nil {
		return fmt.Errorf("setting up the webhook's certificate: %w", err)
	}
	first := make(chan event.GenericEvent, 1)
	first <- event.GenericEvent{Object: &corev1.Secret{}}
	needLeader := false
	one := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []ctrl.Request {
		return []ctrl.Request{{NamespacedName: client.ObjectKey{Namespace: k.Namespace, Name: k.CertificateSecretName}}}
	})
	err = ctrl.NewControllerManagedBy(mgr).
		Named("certificate").
		WatchesRawSource(source.Kind[client.Object](own.GetCache(), &corev1.Secret{}, one)).
		WatchesRawSource(source.Kind[client.Object](own.GetCache(), &admissionv1.ValidatingWebhookConfiguration{}, one)).
		WatchesRawSource(source.Channel(first, one)).
		WithOptions(controller.Options{NeedLeaderElection: &needLeader}).
		Complete(&certificateReconciler{k, own.GetClient(), mgr.GetAPIReader()})
	if err != nil {
		return fmt.Errorf("setting up the webhook's certificate: %w", err)
	}
	return nil
}

// Reconcile implements reconcile.Reconciler.
func (k *certificateReconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	state, err := k.createOrRenewCertificateSecret(ctx)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		// Another controller was faster: read its certificate.
		return ctrl.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	if err == nil {
		err = k.writeCABundleIntoWebhookConfiguration(ctx, state.TrustedCABundlePEM)
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	if k.servingCertificateOnceTrusted.Swap(&state.Certificate) == nil {
		k.Log.Info("the webhook serves", "until", state.Certificate.Leaf.NotAfter)
	}
	if err := k.letNamespaceOwnWebhookConfiguration(ctx); err != nil && ctx.Err() == nil {
		// Some clusters allow this only to those who may delete the object.
		k.Log.Info("the ValidatingWebhookConfiguration will not go with the namespace", "object", k.ValidatingWebhookConfigurationName, "error", err)
	}
	return ctrl.Result{RequeueAfter: max(time.Second, state.NextRenewalTime.Sub(k.Now())+time.Second)}, nil
}

// webhookServiceDNSNames are the DNS names by which the API server may call the webhook.
func (k *certificateReconciler) webhookServiceDNSNames() []string {
	host := k.ServiceName + "." + k.Namespace + ".svc"
	return []string{host, k.ServiceName + "." + k.Namespace, host + ".cluster.local"}
}

// createOrRenewCertificateSecret creates or renews the Secret where that is necessary, and returns
// its parsed content.
func (k *certificateReconciler) createOrRenewCertificateSecret(ctx context.Context) (ParsedCertificateSecret, error) {
	var s corev1.Secret
	err := k.client.Get(ctx, client.ObjectKey{Namespace: k.Namespace, Name: k.CertificateSecretName}, &s)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return ParsedCertificateSecret{}, fmt.Errorf("reading the Secret %s: %w", k.CertificateSecretName, err)
	}
	if k.IsSecretForeign {
		state, err := ParseForeignCertificateSecretData(k.Now(), s.Data, k.webhookServiceDNSNames()[0])
		if err != nil {
			return ParsedCertificateSecret{}, fmt.Errorf("using the Secret %s of another program as the webhook's certificate (--webhook-certificate): %w", k.CertificateSecretName, err)
		}
		return state, nil
	}
	data, state, err := RenewCertificateSecretDataIfDue(k.Now(), s.Data, k.webhookServiceDNSNames())
	if err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("making the webhook's certificate: %w", err)
	}
	switch {
	case missing:
		s = corev1.Secret{Type: corev1.SecretTypeTLS, Data: data}
		s.Namespace, s.Name = k.Namespace, k.CertificateSecretName
		err = k.client.Create(ctx, &s)
	case !bytes.Equal(data[corev1.TLSCertKey], s.Data[corev1.TLSCertKey]):
		changed := s.DeepCopy()
		changed.Data = data
		// Fails with a conflict when another controller wrote in between.
		err = k.client.Update(ctx, changed)
	default:
		return state, nil
	}
	if err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("writing the Secret %s: %w", k.CertificateSecretName, err)
	}
	k.Log.Info("webhook certificate made", "secret", k.Namespace+"/"+k.CertificateSecretName, "until", state.Certificate.Leaf.NotAfter)
	return state, nil
}

// writeCABundleIntoWebhookConfiguration writes the CA bundle into the webhook configuration, so
// that the API server trusts it.
func (k *certificateReconciler) writeCABundleIntoWebhookConfiguration(ctx context.Context, bundle []byte) error {
	var c admissionv1.ValidatingWebhookConfiguration
	err := k.client.Get(ctx, client.ObjectKey{Name: k.ValidatingWebhookConfigurationName}, &c)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("the ValidatingWebhookConfiguration %s is missing, so that the API server does not call the webhook: apply config/webhook, or remove --webhook-mode", k.ValidatingWebhookConfigurationName)
	}
	if err != nil {
		return fmt.Errorf("reading the ValidatingWebhookConfiguration %s: %w", k.ValidatingWebhookConfigurationName, err)
	}
	changed := c.DeepCopy()
	unchanged := true
	for i := range changed.Webhooks {
		if w := &changed.Webhooks[i]; !bytes.Equal(w.ClientConfig.CABundle, bundle) {
			w.ClientConfig.CABundle, unchanged = bundle, false
		}
	}
	if unchanged {
		return nil
	}
	if err := k.client.Patch(ctx, changed, client.StrategicMergeFrom(&c)); err != nil {
		return fmt.Errorf("writing the CA into the ValidatingWebhookConfiguration %s: %w", k.ValidatingWebhookConfigurationName, err)
	}
	return nil
}

// letNamespaceOwnWebhookConfiguration makes the Namespace the owner of the webhook configuration.
// So Kubernetes removes the configuration when the Namespace is gone, also if the manifests by
// which Gantry is uninstalled do not have it. Otherwise the API server would refuse each change of
// the configuration for ever, because nobody answers.
func (k *certificateReconciler) letNamespaceOwnWebhookConfiguration(ctx context.Context) error {
	namespace := configuration.NewMetadataObject("Namespace")
	if err := k.liveReader.Get(ctx, client.ObjectKey{Name: k.Namespace}, namespace); err != nil {
		return fmt.Errorf("reading the Namespace %s: %w", k.Namespace, err)
	}
	var c admissionv1.ValidatingWebhookConfiguration
	if err := k.client.Get(ctx, client.ObjectKey{Name: k.ValidatingWebhookConfigurationName}, &c); err != nil {
		return fmt.Errorf("reading the ValidatingWebhookConfiguration %s: %w", k.ValidatingWebhookConfigurationName, err)
	}
	isNamespace := func(o metav1.OwnerReference) bool { return o.APIVersion == "v1" && o.Kind == "Namespace" }
	if slices.ContainsFunc(c.OwnerReferences, func(o metav1.OwnerReference) bool { return isNamespace(o) && o.UID == namespace.UID }) {
		return nil
	}
	changed := c.DeepCopy()
	changed.OwnerReferences = append(slices.DeleteFunc(changed.OwnerReferences, isNamespace), metav1.OwnerReference{APIVersion: "v1", Kind: "Namespace", Name: k.Namespace, UID: namespace.UID})
	if err := k.client.Patch(ctx, changed, client.MergeFrom(&c)); err != nil {
		return fmt.Errorf("writing the owner of the ValidatingWebhookConfiguration %s: %w", k.ValidatingWebhookConfigurationName, err)
	}
	return nil
}

var certificateExpiryMetric = prometheus.NewDesc("gantry_webhook_certificate_expiry_timestamp_seconds", "When the certificate that the webhook serves expires, in seconds since 1970.", nil, nil)

var _ prometheus.Collector = (*WebhookCertificate)(nil)

// Describe is part of prometheus.Collector.
func (k *WebhookCertificate) Describe(c chan<- *prometheus.Desc) { c <- certificateExpiryMetric }

// Collect is part of prometheus.Collector. Without a certificate there is no metric.
func (k *WebhookCertificate) Collect(c chan<- prometheus.Metric) {
	if cert := k.servingCertificateOnceTrusted.Load(); cert != nil {
		c <- prometheus.MustNewConstMetric(certificateExpiryMetric, prometheus.GaugeValue, float64(cert.Leaf.NotAfter.Unix()))
	}
}

// errNoCertificateTrustedByAPIServer is the error before the API server trusts a certificate.
var errNoCertificateTrustedByAPIServer = errors.New("the webhook has no certificate yet that the API server trusts")

// ServeCurrentCertificate makes a server use the current certificate.
func (k *WebhookCertificate) ServeCurrentCertificate(c *tls.Config) {
	c.MinVersion = tls.VersionTLS13
	// One client and few requests: HTTP/2 would only add ways to attack.
	c.NextProtos = []string{"http/1.1"}
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if cert := k.servingCertificateOnceTrusted.Load(); cert != nil {
			return cert, nil
		}
		return nil, errNoCertificateTrustedByAPIServer
	}
}

// CheckTrustedCertificateIsServed says whether the API server can call the webhook; it is a
// readiness check.
func (k *WebhookCertificate) CheckTrustedCertificateIsServed(*http.Request) error {
	if k.servingCertificateOnceTrusted.Load() == nil {
		return errNoCertificateTrustedByAPIServer
	}
	return nil
}
