package bfd_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/bfdtest"
)

// TestPauseOfTheProcessTakesNoSessionDown pauses the node's engine for longer than its detection
// time, between any two of its steps: each time that it asks for the time may be the last one
// before a pause. Packets arrive meanwhile.
func TestPauseOfTheProcessTakesNoSessionDown(t *testing.T) {
	const pauses = 300
	synctest.Test(t, func(t *testing.T) {
		network := bfdtest.NewFakeNetwork()
		var callsUntilPause atomic.Int64
		now := func() time.Time {
			if callsUntilPause.Add(-1) == 0 {
				time.Sleep(200 * time.Millisecond)
			}
			return time.Now()
		}
		node, router := bfd.NewEngine(network.AddHost(nodeAddress), now, 1), bfd.NewEngine(network.AddHost(routerAddress), time.Now, 2)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 2)
		for _, e := range []*bfd.Engine{node, router} {
			go func() { ended <- e.Run(ctx) }()
		}
		patient := fastProfile() // the router waits for longer than a pause
		patient.DetectMultiplier = 10
		node.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: routerAddress}, Profile: patient}})
		router.SetSessions([]bfd.SessionConfig{{SessionKey: bfd.SessionKey{PeerAddress: nodeAddress}, Profile: fastProfile()}})
		if v := <-node.Events(); !v.Up {
			t.Fatalf("the first event is %+v, want Up", v)
		}
		time.Sleep(5 * time.Second)
		if d := node.SessionStatuses()[0].DetectionTime; d != 150*time.Millisecond {
			t.Fatalf("the detection time is %s, want less than a pause", d)
		}
		for i := range int64(pauses) {
			callsUntilPause.Store(1 + i%10)
			time.Sleep(time.Second)
		}
		if s := node.SessionStatuses()[0]; s.DownEvents > 0 {
			t.Errorf("%d of %d pauses took the session down, though packets had arrived", s.DownEvents, pauses)
		}
		cancel()
		<-ended
		<-ended
	})
}
