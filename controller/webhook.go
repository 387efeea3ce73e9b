package main

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/admission"
	"github.com/gantry-lb/gantry/controller/certs"
	"github.com/gantry-lb/gantry/controller/clusternetwork"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// webhookOptions are the options of the webhook that refuses faulty objects.
type webhookOptions struct {
	EnabledOrDisabled                  string
	Port                               int
	ServiceName                        string
	CertificateSecretName              string
	CertificateSource                  string // Controller or Secret
	ValidatingWebhookConfigurationName string
}

// declareFlags declares the flags.
func (o *webhookOptions) declareFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.EnabledOrDisabled, "webhook-mode", "disabled", "enabled or disabled: refuse at apply time objects that contradict others; needs the objects of config/webhook")
	fs.IntVar(&o.Port, "webhook-port", 9443, "port on which the webhook is served")
	fs.StringVar(&o.ServiceName, "webhook-service", names.WebhookService, "name of the Service by which the API server calls the webhook")
	fs.StringVar(&o.CertificateSecretName, "webhook-secret", names.WebhookSecret, "name of the Secret with the webhook's certificate, which the controller creates and renews")
	fs.StringVar(&o.CertificateSource, "webhook-certificate", "Controller", "Controller: the controller creates and renews the certificate; Secret: another program does, such as cert-manager")
	fs.StringVar(&o.ValidatingWebhookConfigurationName, "webhook-config", names.WebhookConfiguration, "name of the ValidatingWebhookConfiguration into which the controller writes the CA")
}

// validateValues says which option has a value that cannot be used.
func (o *webhookOptions) validateValues() error {
	if o.EnabledOrDisabled != "enabled" && o.EnabledOrDisabled != "disabled" {
		return option.InvalidOptionError("webhook-mode", o.EnabledOrDisabled, "write enabled or disabled")
	}
	if o.CertificateSource != "Controller" && o.CertificateSource != "Secret" {
		return option.InvalidOptionError("webhook-certificate", o.CertificateSource, "write Controller or Secret")
	}
	if o.Port < 1 || o.Port > 65535 {
		return option.InvalidOptionError("webhook-port", strconv.Itoa(o.Port), "write a port, 1 to 65535")
	}
	for flag, name := range map[string]string{"webhook-service": o.ServiceName, "webhook-secret": o.CertificateSecretName, "webhook-config": o.ValidatingWebhookConfigurationName} {
		if name == "" {
			return option.InvalidOptionError(flag, name, "write the name of the object")
		}
	}
	return nil
}

// newWebhookServerAndCertificate returns the server and its certificate.
// The server listens only after registerWebhook.
func newWebhookServerAndCertificate(o options, log *slog.Logger) (webhook.Server, *certs.WebhookCertificate) {
	w := o.Webhook
	certificate := certs.NewWebhookCertificate(certs.Options{
		WebhookObjectNames: certs.WebhookObjectNames{Namespace: o.Namespace, ServiceName: w.ServiceName, CertificateSecretName: w.CertificateSecretName, ValidatingWebhookConfigurationName: w.ValidatingWebhookConfigurationName},
		IsSecretForeign:    w.CertificateSource == "Secret",
		Now:                time.Now, Log: log,
	})
	return webhook.NewServer(webhook.Options{Port: w.Port, TLSOpts: []func(*tls.Config){certificate.ServeCurrentCertificate}}), certificate
}

// webhookKnowledge is what the webhook knows beyond the objects in the cache.
type webhookKnowledge struct {
	reader           *configurationreader.Reader
	clusterAddresses *clusternetwork.KnownAddresses
	passwords        *configuration.PasswordSecrets
}

// registerWebhook makes every controller serve, leader or not. A controller is ready only when the
// API server can call it.
func registerWebhook(mgr ctrl.Manager, o options, certificate *certs.WebhookCertificate, known webhookKnowledge) error {
	if o.Webhook.EnabledOrDisabled != "enabled" {
		return nil
	}
	admission.RegisterWebhookHandlers(mgr.GetWebhookServer(), &admission.ConfigurationValidator{
		Reader: mgr.GetClient(), ConfigurationScope: o.ConfigurationScope(), CreationTimeOfNewObject: time.Now,
		LatestSnapshot: func() *snapshot.Snapshot {
			if c, _ := known.reader.LatestConfiguration(); c != nil {
				return c.Snapshot
			}
			return nil
		},
		LatestClusterAddresses: known.clusterAddresses.LatestClusterAddresses, ReadSecretsOfPeers: known.passwords.PeekSecretsOfPeers,
	})
	return errors.Join(certificate.RegisterController(mgr), mgr.AddReadyzCheck("webhook", certificate.CheckTrustedCertificateIsServed), mgr.AddReadyzCheck("webhook-port", mgr.GetWebhookServer().StartedChecker()))
}
