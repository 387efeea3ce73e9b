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
	"github.com/gantry-lb/gantry/internal/option"
)

// webhookOptions are the options of the webhook that refuses faulty objects.
type webhookOptions struct {
	Mode              string
	Port              int
	ServiceName       string
	SecretName        string
	ConfigurationName string
}

// declareFlags declares the flags.
func (o *webhookOptions) declareFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Mode, "webhook-mode", "disabled", "enabled or disabled: refuse at apply time objects that contradict others; needs the objects of config/webhook")
	fs.IntVar(&o.Port, "webhook-port", 9443, "port on which the webhook is served")
	fs.StringVar(&o.ServiceName, "webhook-service", names.WebhookService, "name of the Service by which the API server calls the webhook")
	fs.StringVar(&o.SecretName, "webhook-secret", names.WebhookSecret, "name of the Secret with the webhook's certificate, which the controller creates and renews")
	fs.StringVar(&o.ConfigurationName, "webhook-config", names.WebhookConfiguration, "name of the ValidatingWebhookConfiguration into which the controller writes the CA")
}

// validateValues says which option has a value that cannot be used.
func (o *webhookOptions) validateValues() error {
	if o.Mode != "enabled" && o.Mode != "disabled" {
		return option.InvalidOptionError("webhook-mode", o.Mode, "write enabled or disabled")
	}
	if o.Port < 1 || o.Port > 65535 {
		return option.InvalidOptionError("webhook-port", strconv.Itoa(o.Port), "write a port, 1 to 65535")
	}
	for flag, name := range map[string]string{"webhook-service": o.ServiceName, "webhook-secret": o.SecretName, "webhook-config": o.ConfigurationName} {
		if name == "" {
			return option.InvalidOptionError(flag, name, "write the name of the object")
		}
	}
	return nil
}

// newWebhookServer returns the server and the Keeper of its certificate. The server listens only
// after registerWebhook.
func newWebhookServer(o options, log *slog.Logger) (webhook.Server, *certs.CertificateKeeper) {
	w := o.Webhook
	keeper := &certs.CertificateKeeper{
		WebhookObjects: certs.WebhookObjects{Namespace: o.Namespace, ServiceName: w.ServiceName, SecretName: w.SecretName, ConfigurationName: w.ConfigurationName},
		Now:            time.Now, Log: log,
	}
	return webhook.NewServer(webhook.Options{Port: w.Port, TLSOpts: []func(*tls.Config){keeper.ConfigureTLS}}), keeper
}

// registerWebhook makes every controller serve, leader or not. A controller is ready only when the
// API server can call it.
func registerWebhook(mgr ctrl.Manager, o options, keeper *certs.CertificateKeeper) error {
	if o.Webhook.Mode != "enabled" {
		return nil
	}
	admission.RegisterWebhookHandlers(mgr.GetWebhookServer(), &admission.Validator{Reader: mgr.GetClient(), ConfigurationScope: o.ConfigurationScope(), Now: time.Now})
	return errors.Join(keeper.RegisterController(mgr), mgr.AddReadyzCheck("webhook", keeper.CheckReady), mgr.AddReadyzCheck("webhook-port", mgr.GetWebhookServer().StartedChecker()))
}
