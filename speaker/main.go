// Command speaker announces the addresses of Services from its node. It takes part in the election
// of the holder of each address and answers for the addresses that it holds. One speaker runs on
// every node.
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
	option.CommonOptions
	NodeName          string
	PodName           string
	GossipBindAddress string
	GossipBindPort    int
	GossipKeyFile     string
	StateDir          string
	layer2Options
	bgpOptions
}

// garbageCollectionPercent bounds garbage to 30 % of the live heap. The live heap is about 20 MB
// with 10,000 Services and changes little.
const garbageCollectionPercent = 30

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	option.LimitHeapGarbage(garbageCollectionPercent)
	o, err := parseOptions(os.Args[1:], option.LookupEnvironmentVariable)
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err == nil {
		err = runSpeakerWithLogging(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "speaker:", err)
		os.Exit(1)
	}
}

// runSpeakerWithLogging sets the loggers and runs the speaker.
func runSpeakerWithLogging(ctx context.Context, o options) error {
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
	fs.StringVar(&o.PodName, "pod-name", "", "name of this speaker's Pod; empty if it does not run in a Pod")
	fs.StringVar(&o.GossipBindAddress, "gossip-bind-address", "",
		"address for gossip between speakers; empty for the internal address of the node")
	fs.IntVar(&o.GossipBindPort, "gossip-bind-port", 7946,
		"TCP and UDP port for gossip between speakers, the same on all nodes")
	fs.StringVar(&o.GossipKeyFile, "gossip-key-file", "",
		"file with the gossip key; empty for the Secret that the controller creates")
	fs.StringVar(&o.StateDir, "state-dir", "/run/gantry",
		"directory for the state that a restarted speaker resumes from while the API server is unreachable: "+
			"a hostPath that is cleared at reboot; empty to disable")
	o.layer2Options.addFlags(fs)
	o.bgpOptions.addFlags(fs)
	if err := option.ParseFlags(fs, args, lookup); err != nil {
		return o, err
	}
	if err := errors.Join(o.layer2Options.validate(), o.bgpOptions.validate()); err != nil {
		return o, err
	}
	if o.NodeName == "" {
		return o, option.InvalidOptionError("node-name", o.NodeName, "set the name of this node, as kubectl get nodes shows it")
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
