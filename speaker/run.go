package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/checkpoint"
	"github.com/gantry-lb/gantry/speaker/gossip"
	"github.com/gantry-lb/gantry/speaker/manager"
	"github.com/gantry-lb/gantry/speaker/options"
)

// handoverAtExitTimeout bounds the handover at the end. The kubelet waits 10 s for the speaker of
// our manifests.
const handoverAtExitTimeout = 3 * time.Second

// runSpeaker runs the speaker until ctx ends. It then hands over all addresses and stops its parts.
func runSpeaker(ctx context.Context, o options.Options, log *slog.Logger) error {
	mgr, err := manager.New(o, log)
	if err != nil {
		return err
	}
	// The parts outlive ctx until the addresses are handed over, since the agent and the engines
	// are needed for that. The manager starts first, so that the health checks are answered while
	// the speaker waits for the gossip key.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return mgr.Start(running) })
	store := checkpoint.NewStore(o.StateDir, log)
	member, err := gossip.OpenLocalMember(ctx, gossip.Options{
		NodeName: o.NodeName, Namespace: o.Namespace, BindAddress: o.GossipBindAddress, BindPort: o.GossipBindPort,
		KeyFile: o.GossipKeyFile, API: mgr.WatchClient(), AddressOfClusterFirstFamily: gossip.APIServerServiceAddress(), CheckpointStore: store, ConfigurationScope: o.ConfigurationScope(), Log: log,
	})
	if err != nil || ctx.Err() != nil {
		stop()
		return errors.Join(err, g.Wait())
	}
	p, err := newParts(mgr, member, store, o, log)
	if err != nil {
		return err
	}
	for _, run := range append(p.runFuncsWithoutAPIServer, store.Run) {
		g.Go(func() error { return run(running) })
	}
	// The parts that use the API server start once it serves our kinds. Until then the speaker
	// serves its checkpoint.
	g.Go(func() error {
		if err := mgr.AwaitKindsServed(running); err != nil || running.Err() != nil {
			return err
		}
		for _, run := range p.runFuncsNeedingAPIServer {
			g.Go(func() error { return run(running) })
		}
		return member.FollowKeysAndNodeAddress(running)
	})
	g.Go(func() error {
		defer stop()
		handOverAddressesAtExit(ctx, running, p.agent, p.bgpEngine, log)
		return nil
	})
	return g.Wait()
}

// handOverAddressesAtExit waits until ctx ends. It then waits until other nodes hold the addresses
// of this one and the routers have got the withdrawals. It returns at once when a part failed.
func handOverAddressesAtExit(ctx, running context.Context, a *agent.Agent, routers *bgp.Engine, log *slog.Logger) {
	select {
	case <-running.Done():
		return
	case <-ctx.Done():
	}
	running, cancel := context.WithTimeout(running, handoverAtExitTimeout)
	defer cancel()
	a.RequestHandover()
	routers.Stop(running)
	select {
	case <-a.HandoverDoneSignal():
		log.Info("all addresses are handed over")
	case <-running.Done():
		log.Warn("stopping although no other node took some addresses", "duration", handoverAtExitTimeout)
	}
}
