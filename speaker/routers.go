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
	bgpwire "github.com/gantry-lb/gantry/speaker/bgp/wire"
	"github.com/gantry-lb/gantry/speaker/reconcile"
)

// bgpOptions are the options about BGP.
type bgpOptions struct {
	ServiceBGPStatus string
}

// autoLimit is for how many Services a node writes ServiceBGPStatus objects by itself: every node announces every Service,
// so that their number is that of nodes times Services.
const autoLimit = 500

func (o *bgpOptions) bind(fs *pflag.FlagSet) {
	fs.StringVar(&o.ServiceBGPStatus, "service-bgp-status", "auto", fmt.Sprintf("write ServiceBGPStatus objects: on, off, or auto, which is off on a node that announces more than %d Services", autoLimit))
}

func (o *bgpOptions) validate() error {
	switch o.ServiceBGPStatus {
	case "auto", "on", "off":
		return nil
	}
	return option.Invalid("service-bgp-status", o.ServiceBGPStatus, "write auto, on or off")
}

// limit is for how many Services objects are written.
func (o *bgpOptions) limit() int {
	switch o.ServiceBGPStatus {
	case "on":
		return math.MaxInt
	case "off":
		return 0
	}
	return autoLimit
}

// routers are the parts that have to do with routers.
type routers struct {
	paths   *bfd.Engine
	engine  *bgp.Engine
	status  *reconcile.BGPStatusWriter
	writing bool // status is written
}

// newRouters makes the parts; nonce tells this life of the process from others.
func newRouters(mgr ctrl.Manager, o options, nonce uint64, log *slog.Logger) (routers, error) {
	r := routers{paths: bfd.New(udp.New(), time.Now, nonce), writing: !o.scope().Layer2Alone}
	r.engine = bgp.New(bgp.Options{Node: o.NodeName, Library: gobgp.New(log), Transport: bgpwire.Wire{}, BFD: r.paths, Log: log})
	r.status = &reconcile.BGPStatusWriter{
		Client: mgr.GetClient(), Events: mgr.GetEventRecorder(names.SpeakerEvents), Sessions: r.engine, Log: log,
		Self: o.NodeName, Namespace: o.Namespace, Limit: o.limit(),
	}
	r.status.Init()
	if err := errors.Join(metrics.Registry.Register(r.engine), metrics.Registry.Register(r.paths)); err != nil {
		return r, fmt.Errorf("registering the metrics of BGP and BFD: %w", err)
	}
	return r, nil
}

// runs are what has to run. Without BGP nothing is ever asked of the engines, and there is no status to write.
func (r routers) runs() []func(context.Context) error {
	out := []func(context.Context) error{r.paths.Run, r.engine.Run}
	if r.writing {
		out = append(out, r.status.Run)
	}
	return out
}

// observe returns what hands a Status to the writer of layer 2 and to ours.
func (r routers) observe(layer2 func(agent.Status)) func(agent.Status) {
	return func(s agent.Status) {
		layer2(s)
		r.status.Observe(s)
	}
}
