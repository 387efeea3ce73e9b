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
	heldAddresses = 10000
	questions     = 50000 // a second
	floodTime     = 5 * time.Second
)

// responder floods the speaker's engine with questions, and beside it the kernel, which holds the same addresses itself.
// What nobody answers tells what asking costs alone.
func responder(ctx context.Context) error {
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		var alone time.Duration
		for _, who := range []string{"nobody", "kernel", "speaker"} {
			o, err := flooded(ctx, f, who)
			if err != nil {
				return fmt.Errorf("flooding %s with %s: %w", who, f, err)
			}
			if who == "nobody" {
				alone = o.Busy
				continue
			}
			each := float64((o.Busy - alone).Nanoseconds()) / 1000 / float64(o.Sent)
			fmt.Printf("%-64s answered %d of %d, median %.1f, 99%% %.1f us, %.2f us of CPU each (asker lost %d)\n",
				fmt.Sprintf("%s, %d addresses, %d questions a second: the %s", f, heldAddresses, questions, who),
				o.Answered, o.Sent, micro(o.Latency(0.5)), micro(o.Latency(0.99)), each, o.Lost)
		}
	}
	return nil
}

func micro(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func flooded(ctx context.Context, f layer2.Family, who string) (flood.Outcome, error) {
	c, err := flood.New(flood.Options{Family: f, Addresses: heldAddresses, Rate: questions, For: floodTime})
	if err != nil {
		return flood.Outcome{}, err
	}
	defer c.Close()
	switch who {
	case "kernel":
		err = c.Kernel()
	case "speaker":
		var stop func()
		if stop, err = c.Engine(ctx); err == nil {
			defer stop()
		}
	}
	if err != nil {
		return flood.Outcome{}, err
	}
	return c.Ask(ctx)
}
