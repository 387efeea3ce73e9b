package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/udp"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/gobgp"
	"github.com/gantry-lb/gantry/speaker/bgp/tcp"
	"github.com/gantry-lb/gantry/speaker/reconcile"
)

// bgpOptions are the options for BGP.
type bgpOptions struct {
	ServiceBGPStatus string
}

// autoServiceBGPStatusLimit is the largest number of Services for which a node writes
// ServiceBGPStatus objects with "auto". Each node announces each Service, so there is one object
// for each node and Service.
const autoServiceBGPStatusLimit = 500

func (o *bgpOptions) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.ServiceBGPStatus, "service-bgp-status", "auto", fmt.Sprintf(
		"write ServiceBGPStatus objects: on, off, or auto, which is off on a node that announces more than %d Services",
		autoServiceBGPStatusLimit))
}

func (o *bgpOptions) validate() error {
	switch o.ServiceBGPStatus {
	case "auto", "on", "off":
		return nil
	}
	return option.InvalidOptionError("service-bgp-status", o.ServiceBGPStatus, "write auto, on or off")
}

// serviceBGPStatusLimit returns the largest number of Services for which objects are written.
func (o *bgpOptions) serviceBGPStatusLimit() int {
	switch o.ServiceBGPStatus {
	case "on":
		return math.MaxInt
	case "off":
		return 0
	}
	return autoServiceBGPStatusLimit
}

// bgpParts are the parts of the speaker that serve routers.
type bgpParts struct {
	bfdEngine        *bfd.Engine
	bgpEngine        *bgp.Engine
	statusWriter     *reconcile.BGPStatusWriter
	runsStatusWriter bool // statusWriter runs
}

// newBGPParts creates the parts. nonce identifies this run of the process. The objects of the
// statusWriter have the same owner as those of layer2Writer.
func newBGPParts(
	mgr ctrl.Manager, o options, nonce uint64, layer2Writer *reconcile.StatusWriter, log *slog.Logger,
) (bgpParts, error) {
	r := bgpParts{
		bfdEngine:        bfd.New(udp.New(), time.Now, nonce),
		runsStatusWriter: !o.ConfigurationScope().Layer2Only,
	}
	r.bgpEngine = bgp.New(bgp.Options{
		NodeName: o.NodeName, UpdateGenerator: gobgp.New(log), Transport: tcp.Transport{}, Now: time.Now, BFD: r.bfdEngine, Log: log,
	})
	r.statusWriter = reconcile.NewBGPStatusWriter(reconcile.BGPStatusWriterOptions{
		Client: mgr.GetClient(), Events: mgr.GetEventRecorder(names.SpeakerEventSource),
		Sessions: r.bgpEngine, Log: log,
		Self: o.NodeName, Namespace: o.Namespace, ServiceBGPStatusLimit: o.serviceBGPStatusLimit(),
		ServiceReference: layer2Writer.ServiceReference, PodOwnerReferences: layer2Writer.PodOwnerReferences,
	})
	if err := errors.Join(metrics.Registry.Register(r.bgpEngine), metrics.Registry.Register(r.bfdEngine)); err != nil {
		return r, fmt.Errorf("registering the metrics of BGP and BFD: %w", err)
	}
	return r, nil
}

// runFunctions returns the functions to run. With BGP disabled the engines get nothing to do, and
// no status is written.
func (r bgpParts) runFunctions() []func(context.Context) error {
	out := []func(context.Context) error{r.bfdEngine.Run, r.bgpEngine.Run}
	if r.runsStatusWriter {
		out = append(out, r.statusWriter.Run)
	}
	return out
}

// newStatusObserver returns a function that passes a Status to the writers of layer 2 and of BGP.
func (r bgpParts) newStatusObserver(layer2 func(agent.Status)) func(agent.Status) {
	return func(s agent.Status) {
		layer2(s)
		r.statusWriter.ObserveStatus(s)
	}
}
