package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/test/flood"
)

// The load on the responder.
const (
	floodedAddressCount     = 10000
	floodQueriesPerSecond   = 50000 // per second
	floodStartToEndInterval = 5 * time.Second
)

// measureARPAndNDPResponder floods the speaker's engine with queries, and for comparison the kernel
// with the same addresses. A flood without answers shows the cost of the queries.
func measureARPAndNDPResponder(ctx context.Context) error {
	for _, f := range []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		var queryCost time.Duration
		for _, answering := range []string{"none", "kernel", "speaker"} {
			o, err := floodAndMeasureAnswers(ctx, f, answering)
			if err != nil {
				return fmt.Errorf("flooding %s with %s: %w", answering, f, err)
			}
			if answering == "none" {
				queryCost = o.ProcessorTimeOfBothSides
				continue
			}
			each := float64((o.ProcessorTimeOfBothSides - queryCost).Nanoseconds()) / 1000 / float64(o.SentQueryCount)
			fmt.Printf("%-64s answered %d of %d, median %.1f, 99%% %.1f us, %.2f us of CPU each (the client dropped %d)\n",
				fmt.Sprintf("%s, %d addresses, %d queries per second: the %s", f, floodedAddressCount, floodQueriesPerSecond, answering),
				o.AnsweredQueryCount, o.SentQueryCount, inMicroseconds(o.LatencyQuantile(0.5)), inMicroseconds(o.LatencyQuantile(0.99)), each, o.FramesDroppedByQuerier)
		}
	}
	return nil
}

func inMicroseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func floodAndMeasureAnswers(ctx context.Context, f ipfamily.Family, answering string) (flood.FloodMeasurement, error) {
	c, err := flood.NewCabledNamespacePair(flood.Options{QueriedAddressFamily: f, QueriedAddressCount: floodedAddressCount, QueriesPerSecond: floodQueriesPerSecond, Duration: floodStartToEndInterval})
	if err != nil {
		return flood.FloodMeasurement{}, err
	}
	defer c.DeleteNamespaces()
	switch answering {
	case "kernel":
		err = c.AssignAddressesToAnsweringKernel()
	case "speaker":
		var stop func()
		if stop, err = c.StartLayer2EngineForAddresses(ctx); err == nil {
			defer stop()
		}
	}
	if err != nil {
		return flood.FloodMeasurement{}, err
	}
	return c.SendQueriesAndMeasureAnswers(ctx)
}
