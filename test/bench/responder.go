package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/test/flood"
)

// What the responder is asked.
const (
	heldAddresses    = 10000
	queriesPerSecond = 50000 // a second
	floodInterval    = 5 * time.Second
)

// measureResponder floods the speaker's engine with questions, and beside it the kernel, which holds the same addresses itself.
// What nobody answers tells what asking costs alone.
func measureResponder(ctx context.Context) error {
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		var alone time.Duration
		for _, who := range []string{"nobody", "kernel", "speaker"} {
			o, err := runFlood(ctx, f, who)
			if err != nil {
				return fmt.Errorf("flooding %s with %s: %w", who, f, err)
			}
			if who == "nobody" {
				alone = o.ProcessorTime
				continue
			}
			each := float64((o.ProcessorTime - alone).Nanoseconds()) / 1000 / float64(o.Sent)
			fmt.Printf("%-64s answered %d of %d, median %.1f, 99%% %.1f us, %.2f us of CPU each (asker lost %d)\n",
				fmt.Sprintf("%s, %d addresses, %d questions a second: the %s", f, heldAddresses, queriesPerSecond, who),
				o.Answered, o.Sent, inMicroseconds(o.LatencyQuantile(0.5)), inMicroseconds(o.LatencyQuantile(0.99)), each, o.Lost)
		}
	}
	return nil
}

func inMicroseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func runFlood(ctx context.Context, f layer2.Family, who string) (flood.Outcome, error) {
	c, err := flood.New(flood.Options{Family: f, Addresses: heldAddresses, QueriesPerSecond: queriesPerSecond, Duration: floodInterval})
	if err != nil {
		return flood.Outcome{}, err
	}
	defer c.Close()
	switch who {
	case "kernel":
		err = c.AssignToKernel()
	case "speaker":
		var stop func()
		if stop, err = c.StartResponder(ctx); err == nil {
			defer stop()
		}
	}
	if err != nil {
		return flood.Outcome{}, err
	}
	return c.SendQueries(ctx)
}
