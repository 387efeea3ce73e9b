// Command speaker announces the addresses of Services from its node: it takes part in the election of each address's
// holder and answers for what it holds. One runs on every node.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/gantry-lb/gantry/internal/option"
)

// options are the speaker's options.
type options struct {
	option.Common
	NodeName          string
	PodName           string
	GossipBindAddress string
	GossipBindPort    int
	GossipKeyFile     string
	StateDir          string
	layer2Options
	bgpOptions
}

// garbageCollectionPercent is how much of it may lie beside what is in use, in percent: what is in use is some 20 MB with 10,000 Services, and little of
// it changes at a time.
const garbageCollectionPercent = 30

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	option.LimitGarbage(garbageCollectionPercent)
	o, err := parseOptions(os.Args[1:], option.LookupEnvironment)
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil {
		err = runWithLogging(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "speaker:", err)
		os.Exit(1)
	}
}

// runWithLogging sets the loggers up and runs.
func runWithLogging(ctx context.Context, o options) error {
	log := o.NewLogger(os.Stderr)
	ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
	klog.SetSlogLogger(log)
	return runSpeaker(ctx, o, log)
}

// parseOptions reads and checks the command line and the environment.
func parseOptions(args []string, lookup func(string) (string, bool)) (options, error) {
	var o options
	fs := pflag.NewFlagSet("speaker", pflag.ContinueOnError)
	o.DeclareFlags(fs, ":7473", "127.0.0.1:7474")
	fs.StringVar(&o.NodeName, "node-name", "", "name of this node in the Kubernetes API; required")
	fs.StringVar(&o.PodName, "pod-name", "", "name of this speaker's Pod, if it runs in one")
	fs.StringVar(&o.GossipBindAddress, "gossip-bind-address", "", "address on which speakers talk to each other; empty takes the node's internal address")
	fs.IntVar(&o.GossipBindPort, "gossip-bind-port", 7946, "port on which speakers talk to each other, TCP and UDP, the same on all nodes")
	fs.StringVar(&o.GossipKeyFile, "gossip-key-file", "", "file with the gossip key; empty takes the Secret that the controller makes")
	fs.StringVar(&o.StateDir, "state-dir", "/run/gantry", "directory on the node, emptied when it boots, in which the speaker keeps what a restart goes on from while the API server is away; empty keeps nothing")
	o.layer2Options.addFlags(fs)
	o.bgpOptions.addFlags(fs)
	if err := option.ParseFlags(fs, args, lookup); err != nil {
		return o, err
	}
	if err := errors.Join(o.layer2Options.validate(), o.bgpOptions.validate()); err != nil {
		return o, err
	}
	if o.NodeName == "" {
		return o, option.InvalidOptionError("node-name", o.NodeName, "name the node that the speaker runs on, as kubectl get nodes shows it")
	}
	if o.GossipBindPort < 1 || o.GossipBindPort > 65535 {
		return o, option.InvalidOptionError("gossip-bind-port", fmt.Sprint(o.GossipBindPort), "write a port, 1 to 65535")
	}
	if o.GossipBindAddress != "" {
		if _, err := netip.ParseAddr(o.GossipBindAddress); err != nil {
			return o, option.InvalidOptionError("gossip-bind-address", o.GossipBindAddress, "write an IPv4 or IPv6 address of this node")
		}
	}
	return o, o.ValidateValues()
}
