// Command controller assigns addresses from IPAddressPools to Services of type LoadBalancer.
// Several controllers may run; one leads, the others wait.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/controller/assign"
	"github.com/gantry-lb/gantry/controller/certs"
	"github.com/gantry-lb/gantry/controller/clusternetwork"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/controller/events"
	"github.com/gantry-lb/gantry/controller/gossipkey"
	"github.com/gantry-lb/gantry/controller/leaderlock"
	"github.com/gantry-lb/gantry/controller/poolmetrics"
	"github.com/gantry-lb/gantry/controller/sessioncount"
	"github.com/gantry-lb/gantry/controller/validcondition"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/metricsaccess"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// options are the options of the controller.
type options struct {
	option.CommonOptions
	LeaderElect    bool
	GossipKeyFlags gossipkey.Flags
	Webhook        webhookOptions
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	option.SetGCPercentAndStopMemProfile(50)
	o, err := parseOptions(os.Args[1:], option.LookupProcessEnvironmentVariable)
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil {
		err = runController(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		os.Exit(1)
	}
}

// parseOptions reads and checks the command line and the environment.
func parseOptions(args []string, lookup func(string) (string, bool)) (options, error) {
	var o options
	fs := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	o.DeclareFlags(fs, ":7472", ":8081")
	fs.BoolVar(&o.LeaderElect, "leader-elect", true, "wait for leadership before assigning addresses; required with more than one controller")
	o.GossipKeyFlags.DeclareFlags(fs)
	o.Webhook.declareFlags(fs)
	if err := option.ParseFlags(fs, args, lookup); err != nil {
		return o, err
	}
	return o, errors.Join(o.ValidateValues(), o.Webhook.validateValues(), o.GossipKeyFlags.ValidateValues())
}

// runController runs until ctx ends.
func runController(ctx context.Context, o options) error {
	log := o.NewLogger(os.Stderr)
	option.SetLibraryLoggers(ctx, log)
	o.LogStart(log, "controller", "webhook", o.Webhook.EnabledOrDisabled)
	config, err := o.LoadRESTConfig()
	if err != nil {
		return err
	}
	scheme, err := configuration.NewScheme()
	if err != nil {
		return err
	}
	if err := awaitCRDsWhileServingHealth(ctx, config, log, o.HealthProbeBindAddress); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("reading the host name: %w", err)
	}
	server, certificate := newWebhookServerAndCertificate(o, log)
	managerOpts := newManagerOptions(&o, scheme)
	if managerOpts.Metrics, err = metricsaccess.BuildServerOptions(o.CommonOptions, log); err != nil {
		return err
	}
	managerOpts.WebhookServer = server
	lock, err := leaderlock.NewLeaseLock(config, scheme, host, o.Namespace)
	if err != nil {
		return err
	}
	managerOpts.LeaderElectionResourceLockInterface = lock
	if err := metrics.Registry.Register(option.BuildInfoMetric{}); err != nil {
		return fmt.Errorf("registering the metric of the version: %w", err)
	}
	mgr, err := ctrl.NewManager(config, managerOpts)
	if err != nil {
		return fmt.Errorf("setting up: %w", err)
	}
	if err := registerControllersAndRunnables(ctx, mgr, lock.LeaderAbsence, certificate, o, log); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// registerControllersAndRunnables creates the parts of the controller and registers them with mgr.
// All but the two Readers, the webhook and its certificate run only on the leader.
func registerControllersAndRunnables(ctx context.Context, mgr ctrl.Manager, leaderAbsence func() assign.LeaderAbsence, certificate *certs.WebhookCertificate, o options, log *slog.Logger) error {
	scope, gauges, recordEvent := o.ConfigurationScope(), &configuration.LoadMetrics{}, events.NewRecorder(mgr.GetEventRecorder(names.ControllerEventSource)).RecordEvent
	identity, err := newProcessIdentity()
	if err != nil {
		return err
	}
	clusterAddresses := clusternetwork.NewKnownAddresses()
	passwords := configuration.NewPasswordSecrets(configuration.PasswordSecretsOptions{LiveReader: mgr.GetAPIReader(), Namespace: o.Namespace, Now: time.Now, Log: log})
	reader := configurationreader.NewReader(configurationreader.Options{
		ReadObjects: clusterAddresses.WrapReadWithClusterAddresses(func(ctx context.Context) (snapshot.ConfigurationObjects, error) {
			all, err := configurationreader.ReadAllObjects(ctx, mgr.GetClient(), scope)
			all.Secrets = passwords.SecretsOfPeers(ctx, all.BGPPeers)
			return all, err
		}),
		Log: log, RecordProblems: gauges.RecordProblemsOfLoadedConfiguration,
	})
	networks := clusternetwork.NewReader(clusternetwork.Options{KnownAddresses: clusterAddresses, NotifyChanged: reader.NotifyAllocationObjectChanged, LiveReader: mgr.GetAPIReader(), Log: log})
	announcedWriter := announcedcondition.NewConditionWriter(announcedcondition.Options{
		Client: mgr.GetClient(), Scope: scope, ConfigurationReader: reader, LoadBalancerClass: o.LoadBalancerClass, Now: time.Now, RecordSeriesEvent: events.NewSeriesRecorder(events.SeriesRecorderOptions{LiveReader: mgr.GetAPIReader(), Client: mgr.GetClient(), Log: log, Now: time.Now}).RecordSeriesEvent,
	})
	validWriter := validcondition.NewConditionWriter(validcondition.Options{Client: mgr.GetClient(), Scope: scope, ConfigurationReader: reader, Log: log})
	worker := assign.NewServiceWorker(assign.ServiceWorkerOptions{
		API:                 &assign.ClientBackedAPI{CachedClient: mgr.GetClient(), LiveReader: mgr.GetAPIReader(), Namespace: o.Namespace},
		ConfigurationReader: reader, Now: time.Now, Log: log, RecordEvent: recordEvent,
		PredictUnannouncedCondition: announcedWriter.PredictUnannouncedCondition, LeaderAbsence: leaderAbsence,
		Namespace: o.Namespace, LoadBalancerClass: o.LoadBalancerClass, LedgerWriterIdentity: identity,
	})
	gossipKey := gossipkey.NewKeyRotator(gossipkey.Options{Client: mgr.GetClient(), LiveReader: mgr.GetAPIReader(), Log: log, Namespace: o.Namespace, Flags: o.GossipKeyFlags, Now: time.Now})
	return errors.Join(
		sessioncount.NewSessionCounter(mgr.GetClient(), scope).RegisterController(mgr),
		reader.RegisterReader(ctx, mgr, scope),
		mgr.Add(passwordFollower(func(ctx context.Context) { passwords.Run(ctx, reader.NotifyAnnouncementObjectChanged) })),
		networks.RegisterReader(ctx, mgr),
		worker.RegisterWorker(ctx, mgr),
		announcedWriter.RegisterController(ctx, mgr),
		validWriter.RegisterController(mgr),
		mgr.Add(gossipKey),
		mgr.Add(poolmetrics.NewCollector(poolmetrics.Options{
			Reader: mgr.GetClient(), Namespace: o.Namespace, Log: log, Registry: metrics.Registry, ExtraCollectors: append(worker.Collectors(), gauges, announcedWriter, gossipKey, certificate),
		})),
		addHealthChecks(mgr, worker),
		registerWebhook(mgr, o, certificate, webhookKnowledge{reader, clusterAddresses, passwords}),
	)
}

// passwordFollower reads the Secrets of BGPPeers again and again. Every controller runs it, because
// each has a configuration.
type passwordFollower func(context.Context)

// Start implements manager.Runnable.
func (f passwordFollower) Start(ctx context.Context) error {
	f(ctx)
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (passwordFollower) NeedLeaderElection() bool { return false }

// newProcessIdentity returns the name of this process in the AddressLedger.
func newProcessIdentity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("reading the host name: %w", err)
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid()), nil
}

// newManagerOptions returns the options of the manager.
func newManagerOptions(o *options, scheme *runtime.Scheme) ctrl.Options {
	grace, duration, renew, retry, shared := 2*time.Second, leaderlock.LeaseTimeout, leaderlock.RenewTimeout, leaderlock.RetryInterval, true
	watched := o.ConfigurationScope().CacheOptionsByObject()
	own := cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {}}}
	for _, report := range announcedcondition.CacheKinds(o.ConfigurationScope()) {
		watched[report] = cache.ByObject{Namespaces: own.Namespaces, UnsafeDisableDeepCopy: &shared}
	}
	watched[&corev1.Pod{}] = cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {LabelSelector: labels.SelectorFromSet(announcedcondition.SpeakerPodLabels())}}, Transform: announcedcondition.CompactPod}
	watched[&v1beta1.ConfigurationState{}], watched[&v1alpha1.AddressReservation{}], watched[&v1alpha1.AddressProbe{}] = own, own, own
	// Cached Services are never modified, so that they need not be copied.
	watched[&corev1.Service{}] = cache.ByObject{Transform: assign.CompactService, UnsafeDisableDeepCopy: &shared}
	watched[&corev1.Node{}] = cache.ByObject{Transform: clusternetwork.CompactNode, UnsafeDisableDeepCopy: &shared}
	watched[&discoveryv1.EndpointSlice{}] = cache.ByObject{Transform: announcedcondition.CompactEndpointSlice, UnsafeDisableDeepCopy: &shared}
	return ctrl.Options{
		Scheme:                        scheme,
		HealthProbeBindAddress:        o.HealthProbeBindAddress,
		LeaderElection:                o.LeaderElect,
		LeaderElectionID:              names.LeaderLease,
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &duration,
		RenewDeadline:                 &renew,
		RetryPeriod:                   &retry,
		GracefulShutdownTimeout:       &grace,
		Cache:                         cache.Options{DefaultTransform: cache.TransformStripManagedFields(), ByObject: watched},
	}
}

// addHealthChecks adds the liveness and the readiness check. A leader is ready once it knows every
// address in use, another controller at once.
func addHealthChecks(mgr ctrl.Manager, services *assign.ServiceWorker) error {
	checkAlive := func(*http.Request) error { return services.CheckAlive(time.Now()) }
	checkReady := func(*http.Request) error {
		select {
		case <-mgr.Elected():
			if !services.IsLedgerLoaded() {
				return errors.New("the addresses in use have not been read yet")
			}
		default:
		}
		return services.CheckReady(time.Now())
	}
	return errors.Join(mgr.AddHealthzCheck("alive", checkAlive), mgr.AddReadyzCheck("loaded", checkReady))
}
