// Command speaker announces the addresses of Services from its node. It takes part in the election
// of the holder of each address and answers for the addresses that it holds. One speaker runs on
// every node.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/gantry-lb/gantry/internal/nodefacts"
	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/speaker/options"
	"github.com/gantry-lb/gantry/speaker/preflight"
)

// garbageCollectionPercent bounds garbage to 20 % of the live heap. The live heap is about 20 MB
// with 10,000 Services and changes little.
const garbageCollectionPercent = 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	option.SetGCPercentAndStopMemProfile(garbageCollectionPercent)
	if err := runWithArguments(ctx, os.Args[1:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "speaker:", err)
		os.Exit(1)
	}
}

// runWithArguments runs the speaker, or with the subcommand only serves the facts of the node.
func runWithArguments(ctx context.Context, args []string) error {
	isPreflight := len(args) > 0 && args[0] == nodefacts.Subcommand
	if isPreflight {
		args = args[1:]
	}
	isBesideSpeaker := isPreflight && len(args) > 0 && args[0] == nodefacts.BesideSpeakerArgument
	if isBesideSpeaker {
		args = args[1:]
	}
	o, err := options.ParseOptions(args, option.LookupProcessEnvironmentVariable)
	switch {
	case err != nil:
		return err
	case isPreflight:
		return preflight.ServeFacts(ctx, preflight.Options{NodeName: o.NodeName, IsBesideSpeaker: isBesideSpeaker, Now: time.Now})
	}
	return runSpeakerWithLogging(ctx, o)
}

// runSpeakerWithLogging sets the loggers and runs the speaker.
func runSpeakerWithLogging(ctx context.Context, o options.Options) error {
	return option.RunWithLogQueue(ctx, os.Stderr, func(w io.Writer) error {
		log := o.NewLogger(w)
		option.SetLibraryLoggers(ctx, log)
		o.LogStart(log, "speaker", "node", o.NodeName, "aroundDeadNodes", o.AroundDeadNodes, "keepConnections", o.KeepConnections)
		return runSpeaker(ctx, o, log)
	})
}
