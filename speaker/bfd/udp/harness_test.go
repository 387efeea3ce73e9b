package udp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
	"github.com/gantry-lb/gantry/speaker/bfd/udp"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// The addresses of router.Harness.
var (
	routerIPv4         = netip.MustParseAddr("192.168.0.1")
	routerIPv6         = netip.MustParseAddr("fd00:a8::1")
	nodeIPv4           = netip.MustParseAddr("192.168.0.11")
	nodeIPv6           = netip.MustParseAddr("fd00:a8::b")
	multihopRouterIPv4 = netip.MustParseAddr("10.99.0.2")
	multihopRouterIPv6 = netip.MustParseAddr("fd00:99::2")
)

// waitTimeout bounds every wait: a session that is not Up
// sends once a second, and the machine may be busy.
const waitTimeout = 90 * time.Second

// bfdEngineInLab is a node with our engine and other hosts of the lab network.
type bfdEngineInLab struct {
	*router.RoutedLAN
	t           *testing.T
	engine      *bfd.Engine
	stopEngine  context.CancelFunc // ends the engine, as an ordinary stop of the speaker does
	engineEnded chan error
}

// startBFDEngineInLab creates the lab network with an engine on the node.
func startBFDEngineInLab(t *testing.T) *bfdEngineInLab {
	t.Helper()
	if testing.Short() {
		t.Skip("a real router takes seconds")
	}
	for _, k := range []router.Kind{router.FRR, router.BIRD} {
		if m := router.DescribeMissingPrerequisite(k); m != "" {
			t.Skip(m)
		}
	}
	b, err := router.NewRoutedLAN(router.RoutedLANOptions{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.DeleteNamespaces)
	out := &bfdEngineInLab{RoutedLAN: b, t: t}
	out.startEngine(1)
	return out
}

// startEngine starts an engine on the node.
func (b *bfdEngineInLab) startEngine(seed uint64) { b.startEngineOn("node1", seed) }

func (b *bfdEngineInLab) startEngineOn(host string, seed uint64) {
	engine, ended := bfd.NewEngine(newTransport(b.t), time.Now, seed), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- b.NamespaceOfHost(host).RunInside(func() error { return engine.Run(ctx) }) }()
	b.engine, b.engineEnded, b.stopEngine = engine, ended, stop
	b.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.t.Errorf("the engine ended with %v", err)
		}
		ended <- nil // for other readers
	})
}

func newTransport(t testing.TB) *udp.Transport {
	t.Helper()
	out, err := udp.NewTransport()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// startRouter starts a router on a host.
func (b *bfdEngineInLab) startRouter(kind router.Kind, host, text string) *router.Router {
	b.t.Helper()
	r, err := router.Start(b.t.Context(), router.Config{Kind: kind, NetNS: b.NamespaceOfHost(host), ConfigText: text})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(r.StopDaemonsInOrder)
	return r
}

// waitForEvent waits for a matching event of a peer and ignores others.
func (b *bfdEngineInLab) waitForEvent(sentence string, peer netip.Addr, match func(v bfd.Event) bool) bfd.Event {
	b.t.Helper()
	deadline := time.After(waitTimeout)
	for {
		select {
		case v := <-b.engine.Events():
			if v.Key.PeerAddress == peer && match(v) {
				return v
			}
		case <-deadline:
			b.t.Fatalf("%s: no event within %s; %+v, discarded %v", sentence, waitTimeout, b.engine.SessionStatuses(), b.engine.DiscardedPackets())
		}
	}
}

func isUpEvent(v bfd.Event) bool { return v.Up }

// expectAllStayUp lets time pass in which every session must stay Up. If this
// process was not scheduled for longer than a fast session tolerates, a
// session that went down proves nothing: it must come back.
func (b *bfdEngineInLab) expectAllStayUp(sentence string, d time.Duration) {
	b.t.Helper()
	before := b.engine.SessionStatuses()
	worst := measureSchedulingDelay(d)
	for i, s := range b.engine.SessionStatuses() {
		if s.State == session.Up && s.DownEvents == before[i].DownEvents {
			continue
		}
		if worst < tolerableSchedulingDelay {
			b.t.Fatalf("%s: %s is %s and went down %d times, because %s", sentence, s.SessionKey, s.State, s.DownEvents-before[i].DownEvents, s.Diagnostic)
		}
		b.t.Logf("%s: not judged, since the processors were busy for %s", sentence, worst)
		b.awaitNoError("all are up again", func() error { return b.checkAllUp(len(before)) })
		return
	}
}

// tolerableSchedulingDelay is a scheduling delay that a session of 3 x 50 ms tolerates on both
// sides.
const tolerableSchedulingDelay = 50 * time.Millisecond

// measureSchedulingDelay waits for d and returns the longest time
// for which this process was ready but did not run.
func measureSchedulingDelay(d time.Duration) time.Duration {
	const step = 5 * time.Millisecond
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	begun := time.Now()
	var worst time.Duration
	for last := begun; last.Sub(begun) < d; {
		<-ticker.C
		now := time.Now()
		worst, last = max(worst, now.Sub(last)-step), now
	}
	return worst
}

// awaitNoError waits until check succeeds.
func (b *bfdEngineInLab) awaitNoError(what string, check func() error) {
	b.t.Helper()
	deadline := time.After(waitTimeout)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			b.t.Fatalf("waiting until %s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// frrSession is FRR's state of a session, with intervals in milliseconds.
type frrSession struct {
	Peer                          string `json:"peer"`
	Multihop                      bool   `json:"multihop"`
	Status                        string `json:"status"`
	Diagnostic                    string `json:"diagnostic"`
	RemoteDiagnostic              string `json:"remote-diagnostic"`
	RemoteReceiveMilliseconds     int    `json:"remote-receive-interval"`
	RemoteTransmitMilliseconds    int    `json:"remote-transmit-interval"`
	RemoteMultiplier              int    `json:"remote-detect-multiplier"`
	RemoteEchoReceiveMilliseconds int    `json:"remote-echo-receive-interval"`
}

// frrSessionsByPeer returns FRR's sessions by peer.
func (b *bfdEngineInLab) frrSessionsByPeer(r *router.Router) (map[string]frrSession, error) {
	out, err := r.RunShowCommand(b.t.Context(), "show bfd peers json")
	if err != nil {
		return nil, err
	}
	var all []frrSession
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("reading %s: %w", out, err)
	}
	peers := map[string]frrSession{}
	for _, p := range all {
		peers[p.Peer] = p
	}
	return peers, nil
}

// waitForFRRSession waits until FRR's state of a peer passes the check.
func (b *bfdEngineInLab) waitForFRRSession(what string, r *router.Router, peer netip.Addr, check func(p frrSession) bool) {
	b.t.Helper()
	b.awaitNoError("FRR shows that "+what, func() error {
		peers, err := b.frrSessionsByPeer(r)
		if err != nil {
			return err
		}
		if p := peers[peer.String()]; !check(p) {
			return fmt.Errorf("it shows %+v", p)
		}
		return nil
	})
}

// checkAllUp returns an error unless there are n sessions and all are Up without a fault.
func (b *bfdEngineInLab) checkAllUp(n int) error {
	all := b.engine.SessionStatuses()
	if len(all) != n {
		return fmt.Errorf("%d sessions, want %d", len(all), n)
	}
	for _, s := range all {
		if s.State != session.Up || s.Fault.IsSet() {
			return fmt.Errorf("%s is %s: %+v, discarded %v", s.SessionKey, s.State, s.Fault, b.engine.DiscardedPackets())
		}
	}
	return nil
}

// checkNoPollSequence returns an error while a session has a Poll Sequence under way.
func (b *bfdEngineInLab) checkNoPollSequence() error {
	for _, s := range b.engine.SessionStatuses() {
		if s.IsPolling {
			return fmt.Errorf("%s is polling", s.SessionKey)
		}
	}
	return nil
}

// checkStatus returns an error unless the session passes the check.
func (b *bfdEngineInLab) checkStatus(peer netip.Addr, check func(s bfd.SessionStatus) bool) error {
	for _, s := range b.engine.SessionStatuses() {
		if s.PeerAddress == peer && !check(s) {
			return fmt.Errorf("it is %+v", s)
		}
	}
	return nil
}

// takeQueuedEvents returns the queued events.
func (b *bfdEngineInLab) takeQueuedEvents() []bfd.Event {
	var out []bfd.Event
	for {
		select {
		case v := <-b.engine.Events():
			out = append(out, v)
		case <-time.After(100 * time.Millisecond):
			return out
		}
	}
}
