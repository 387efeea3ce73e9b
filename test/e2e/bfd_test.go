package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// bfdProfilesAndPeersManifest has BFD profiles, and for each router a BGPPeer that refers to one.
// The detection time of three seconds is for a busy machine, on which a router may wait for a
// processor.
const bfdProfilesAndPeersManifest = `apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
spec: {receiveInterval: 200, transmitInterval: 200, detectMultiplier: 15}
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: other, namespace: metallb-system}
spec: {receiveInterval: 200, transmitInterval: 200, detectMultiplier: 15, echoMode: true, echoInterval: 200}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, bfdProfile: fast}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: spine, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.2, bfdProfile: fast}
`

// frrBFDConfig adds BFD to readFRRConfigFromDocs: FRR monitors the nodes with a profile.
const frrBFDConfig = `router bgp 65000
 neighbor nodes bfd
 neighbor nodes bfd profile node
 neighbor nodes timers connect 1
bfd
 profile node
  receive-interval 200
  transmit-interval 200
  detect-multiplier 15
 exit
exit
`

// birdBFDConfig is the configuration of BIRD, with BFD.
const birdBFDConfig = `router id 192.168.0.2;
protocol device { scan time 1; }
protocol kernel { merge paths on; ipv4 { export all; import none; }; }
protocol bfd { interface "eth0" { min rx interval 200 ms; min tx interval 200 ms; multiplier 15; }; }
template bgp node { local as 65000; bfd on; error wait time 1, 5; ipv4 { import all; export none; }; }
protocol bgp node1 from node { neighbor 192.168.0.11 as 64512; }
protocol bgp node2 from node { neighbor 192.168.0.12 as 64512; }
`

// TestBFDWithFRRAndBIRD runs BFD between the nodes of a cluster and both FRR and BIRD, as the
// BFDProfile says.
func TestBFDWithFRRAndBIRD(t *testing.T) {
	for _, k := range []router.Kind{router.FRR, router.BIRD} {
		if m := router.DescribeMissingPrerequisite(k); m != "" {
			t.Skip(m)
		}
	}
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2, Routers: 2})
	tor, spine := s.RouterOnHost("router", router.FRR), s.RouterOnHost("router2", router.BIRD)
	failOnError(t, tor.StartWithConfig(ctx, readFRRConfigFromDocs(t)+frrBFDConfig))
	failOnError(t, spine.StartWithConfig(ctx, birdBFDConfig))
	_, routed, _ := strings.Cut(bgpPeerPoolAndAdManifest, "---\n") // without its peer
	failOnError(t, s.ApplyManifests(ctx, bfdProfilesAndPeersManifest+"---\n"+routed))
	failOnError(t, s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("echo", "node2")))
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "echo")
	failOnError(t, err)
	vip := netip.PrefixFrom(address, 32)
	both := []string{"192.168.0.11", "192.168.0.12"}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := tor.RunShowCommand(context.WithoutCancel(ctx), "show bfd peers")
			t.Logf("FRR shows (%v):\n%s", err, out)
			out, err = spine.RunShowCommand(context.WithoutCancel(ctx), "show bfd sessions")
			t.Logf("BIRD shows (%v):\n%s", err, out)
			t.Logf("the BGPSessions are:\n%s", describeBGPSessions(context.WithoutCancel(ctx), t, s))
		}
	})
	all := func(t *testing.T, hops ...string) {
		t.Helper()
		awaitNextHopsInKernelOf(ctx, t, s, "router", vip, hops...)
		awaitNextHopsInKernelOf(ctx, t, s, "router2", vip, hops...)
	}
	all(t, both...)
	awaitBGPSessionBFDStates(ctx, t, s, "node1 spine Up Watched", "node1 tor Up Watched", "node2 spine Up Watched", "node2 tor Up Watched")

	t.Run("a cut cable removes the routes at both routers", func(t *testing.T) {
		failOnError(t, s.CutCableKeepingCarrier(ctx, "node1"))
		cut := time.Now()
		all(t, "192.168.0.12")
		if took := time.Since(cut); took > 60*time.Second {
			t.Errorf("that took %s: the hold time is 90 s", took)
		}
		failOnError(t, s.PlugCable(ctx, "node1"))
		all(t, both...)
	})
	t.Run("a changed profile is negotiated without a new session", func(t *testing.T) {
		awaitBGPSessionBFDStates(ctx, t, s, "node1 spine Up Watched", "node1 tor Up Watched", "node2 spine Up Watched", "node2 tor Up Watched")
		before := describeBGPSessionEstablishments(ctx, t, tor)
		failOnError(t, s.ApplyManifests(ctx, strings.Replace(bfdProfilesAndPeersManifest, "receiveInterval: 200, transmitInterval: 200, detectMultiplier: 15", "receiveInterval: 400, transmitInterval: 500, detectMultiplier: 20", 1)))
		failOnError(t, cluster.AwaitNoError(ctx, "the new intervals in FRR", func(ctx context.Context) error {
			return checkFRRBFDPeerStates(ctx, tor, func(p frrBFDPeerState) bool {
				return p.Status == "up" && p.RemoteReceiveIntervalMillis == 400 && p.RemoteTransmitIntervalMillis == 500 && p.RemoteDetectMultiplier == 20
			})
		}))
		failOnError(t, s.ApplyManifests(ctx, bfdProfilesAndPeersManifest))
		failOnError(t, cluster.AwaitNoError(ctx, "the old intervals in FRR", func(ctx context.Context) error {
			return checkFRRBFDPeerStates(ctx, tor, func(p frrBFDPeerState) bool {
				return p.Status == "up" && p.RemoteReceiveIntervalMillis == 200 && p.RemoteTransmitIntervalMillis == 200 && p.RemoteDetectMultiplier == 15
			})
		}))
		if after := describeBGPSessionEstablishments(ctx, t, tor); after != before {
			t.Errorf("the sessions were established %s times before the edits and %s after", before, after)
		}
	})
	t.Run("the objects report what does not work", func(t *testing.T) {
		failOnError(t, s.ApplyManifests(ctx, strings.ReplaceAll(bfdProfilesAndPeersManifest, "bfdProfile: fast", "bfdProfile: other")))
		// The kernel of tor returns echo packets; BIRD does not support them.
		awaitBGPSessionBFDStates(ctx, t, s, "node1 spine Up EchoUnsupported", "node1 tor Up Watched", "node2 spine Up EchoUnsupported", "node2 tor Up Watched")
		failOnError(t, s.ApplyManifests(ctx, strings.ReplaceAll(bfdProfilesAndPeersManifest, "bfdProfile: fast", "ebgpMultiHop: true, bfdProfile: other")))
		failOnError(t, cluster.AwaitNoError(ctx, "the BGPPeer's condition that echo does not work over several hops", func(ctx context.Context) error {
			out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "bgppeer", "tor", "-o", "jsonpath={.status.gantry.conditions[*].reason}")
			if err == nil && !strings.Contains(out, "EchoUnsupported") {
				err = fmt.Errorf("it is %q", out)
			}
			return err
		}))
		failOnError(t, s.ApplyManifests(ctx, bfdProfilesAndPeersManifest))
		awaitBGPSessionBFDStates(ctx, t, s, "node1 spine Up Watched", "node1 tor Up Watched", "node2 spine Up Watched", "node2 tor Up Watched")
	})
}

// frrBFDPeerState is FRR's state of a BFD peer.
type frrBFDPeerState struct {
	Peer, Status                 string
	RemoteReceiveIntervalMillis  int `json:"remote-receive-interval"`
	RemoteTransmitIntervalMillis int `json:"remote-transmit-interval"`
	RemoteDetectMultiplier       int `json:"remote-detect-multiplier"`
}

// checkFRRBFDPeerStates returns an error if want does not accept FRR's state of one of the two
// nodes.
func checkFRRBFDPeerStates(ctx context.Context, tor *lab.Router, want func(frrBFDPeerState) bool) error {
	out, err := tor.RunShowCommand(ctx, "show bfd peers json")
	if err != nil {
		return err
	}
	var peers []frrBFDPeerState
	if err := json.Unmarshal(out, &peers); err != nil {
		return err
	}
	shown := 0
	for _, p := range peers {
		if p.Peer == "192.168.0.13" {
			continue
		}
		if shown++; !want(p) {
			return fmt.Errorf("it shows %+v", p)
		}
	}
	if shown != 2 {
		return fmt.Errorf("it shows %d nodes, want 2", shown)
	}
	return nil
}

// describeBGPSessions returns a line for each BGPSession, sorted: node, peer, BFD state, and the
// reason of the condition PathWatched.
func describeBGPSessions(ctx context.Context, t *testing.T, s *cluster.Cluster) string {
	t.Helper()
	out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "bgpsessions", "--sort-by={.status.peer}", "-o",
		`jsonpath={range .items[*]}{.status.node} {.status.peer} {.status.bfd} {.status.conditions[?(@.type=="gantry.dev/PathWatched")].reason}{"\n"}{end}`)
	failOnError(t, err)
	return out
}

// awaitBGPSessionBFDStates waits until describeBGPSessions has all these lines.
func awaitBGPSessionBFDStates(ctx context.Context, t *testing.T, s *cluster.Cluster, want ...string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "the BFD states in the BGPSessions", func(ctx context.Context) error {
		out := describeBGPSessions(ctx, t, s)
		for _, line := range want {
			if !strings.Contains(out, line+"\n") {
				return fmt.Errorf("%q is not among\n%s", line, out)
			}
		}
		return nil
	}))
}
