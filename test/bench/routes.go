package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// frrBGPAndBFDConfig returns the configuration of an FRR that accepts routes from the nodes of a
// lab, and monitors the nodes by BFD if a profile is given.
func frrBGPAndBFDConfig(id string, nodes int, bfd string) string {
	text := "bfd\n profile fast\n  transmit-interval 50\n  receive-interval 50\n  detect-multiplier 3\n exit\n profile plain\n exit\nexit\n" +
		"router bgp 65000\n bgp router-id " + id + "\n no bgp ebgp-requires-policy\n"
	for i := range nodes {
		text += fmt.Sprintf(" neighbor 192.168.0.%d remote-as 64512\n", 11+i)
		if bfd != "" {
			text += fmt.Sprintf(" neighbor 192.168.0.%d bfd profile %s\n", 11+i, bfd)
		}
	}
	return text + " address-family ipv4 unicast\n  maximum-paths 8\n exit-address-family\n"
}

// bfdPeerPoolAndAdManifest configures the cluster for one router.
const bfdPeerPoolAndAdManifest = `apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
spec: {receiveInterval: 50, transmitInterval: 50, detectMultiplier: 3}
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: plain, namespace: metallb-system}
spec: {}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, bfdProfile: PROFILE}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed, namespace: metallb-system}
spec: {addresses: [10.200.0.0/16]}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed, namespace: metallb-system}
spec: {ipAddressPools: [routed]}
`

// measureBGPWithFRRRouter measures BGP with FRR on a lab of three nodes.
func measureBGPWithFRRRouter(ctx context.Context, dir string) error {
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		fmt.Println("routes are not measured:", m)
		return nil
	}
	s, tor, err := startLabWithFRRRouter(ctx, dir, 3, "fast")
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.ApplyManifests(ctx, strings.Replace(bfdPeerPoolAndAdManifest, "PROFILE", "fast", 1)); err != nil {
		return err
	}
	if err := s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("echo", "node3")); err != nil {
		return err
	}
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "echo")
	if err != nil {
		return err
	}
	vip := netip.PrefixFrom(address, 32)
	if err := awaitNextHopCountInRouterKernel(ctx, s, vip, 3); err != nil {
		return err
	}
	for _, part := range []func() error{
		func() error { return measureRouteInstallation(ctx, s) },
		func() error { return measureNextHopRemovalAfterCableCut(ctx, s, vip, "3 x 50 ms", 10) },
		func() error { return countLostRequestsInBGPDepartures(ctx, s, vip) },
		func() error { return countSessionResetsDuringRandomEdits(ctx, s, tor) },
		func() error {
			if err := tor.Stop(ctx); err != nil {
				return err
			}
			if err := tor.StartWithConfig(ctx, frrBGPAndBFDConfig("192.168.0.1", 3, "plain")); err != nil {
				return err
			}
			if err := s.ApplyManifests(ctx, strings.Replace(bfdPeerPoolAndAdManifest, "PROFILE", "plain", 1)); err != nil {
				return err
			}
			if err := awaitNextHopCountInRouterKernel(ctx, s, vip, 3); err != nil {
				return err
			}
			return measureNextHopRemovalAfterCableCut(ctx, s, vip, "the default profile", 10)
		},
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// startLabWithFRRRouter starts a lab with Gantry and an FRR that monitors the nodes by BFD if a
// profile is given.
func startLabWithFRRRouter(ctx context.Context, dir string, nodes int, bfd string) (*cluster.Cluster, *lab.Router, error) {
	s, err := cluster.StartLabWithoutGantry(ctx, lab.Options{Nodes: nodes, Dir: dir})
	if err != nil {
		return nil, nil, err
	}
	tor := s.RouterOnHost("router", router.FRR)
	if err = tor.StartWithConfig(ctx, frrBGPAndBFDConfig("192.168.0.1", nodes, bfd)); err == nil {
		err = s.InstallGantry(ctx)
	}
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	return s, tor, nil
}

// countNextHopsInRouterKernel returns the number of next hops of a prefix in the router's kernel.
func countNextHopsInRouterKernel(s *cluster.Cluster, p netip.Prefix) (int, error) {
	r, _, err := s.NamespaceOfHost("router").FindRouteToExactPrefix(p)
	return len(r.NextHops), err
}

// awaitNextHopCountInRouterKernel waits until the router's kernel has this number of next hops for
// a prefix.
func awaitNextHopCountInRouterKernel(ctx context.Context, s *cluster.Cluster, p netip.Prefix, want int) error {
	return cluster.AwaitNoError(ctx, fmt.Sprintf("%d next hops for %s", want, p), func(context.Context) error {
		n, err := countNextHopsInRouterKernel(s, p)
		if err == nil && n != want {
			err = fmt.Errorf("it has %d", n)
		}
		return err
	})
}

// pollRouterNextHopsUntil checks every millisecond until want accepts the number of next hops in
// the router's kernel, and returns the time.
func pollRouterNextHopsUntil(ctx context.Context, s *cluster.Cluster, p netip.Prefix, want func(int) bool) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		n, err := countNextHopsInRouterKernel(s, p)
		if err != nil {
			return time.Time{}, err
		}
		if want(n) {
			return time.Now(), nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%s has %d next hops at the router: %w", p, n, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// measureRouteInstallation measures from the creation of a Service with a running endpoint to the
// route in the router's kernel.
func measureRouteInstallation(ctx context.Context, s *cluster.Cluster) error {
	var took []time.Duration
	for i := range assignmentSampleCount {
		svc := cluster.NewService("default", fmt.Sprintf("routed-%d", i), "")
		svc.Spec.Selector = map[string]string{"app": "echo"}
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, 9, byte(i)}), 32)
		svc.Annotations = map[string]string{"metallb.io/loadBalancerIPs": p.Addr().String()}
		begun := time.Now()
		if err := s.API.Create(ctx, svc); err != nil {
			return err
		}
		at, err := pollRouterNextHopsUntil(ctx, s, p, func(n int) bool { return n > 0 })
		if err != nil {
			return err
		}
		took = append(took, at.Sub(begun))
		if err := s.API.Delete(ctx, svc); err != nil {
			return err
		}
		if _, err := pollRouterNextHopsUntil(ctx, s, p, func(n int) bool { return n == 0 }); err != nil {
			return err
		}
	}
	printMinMedianAndMax("a Service's route in the router's kernel, from its creation", took)
	return nil
}

// measureNextHopRemovalAfterCableCut cuts a node's cable again and again, and measures until the
// router has removed the node from the next hops.
func measureNextHopRemovalAfterCableCut(ctx context.Context, s *cluster.Cluster, vip netip.Prefix, profile string, times int) error {
	var took []time.Duration
	for range times {
		time.Sleep(2 * time.Second) // until BFD is up and has negotiated its intervals
		begun := watchCarrierLossOfNode1(ctx, s)
		if err := s.CutCable(ctx, "node1"); err != nil {
			return err
		}
		at, err := pollRouterNextHopsUntil(ctx, s, vip, func(n int) bool { return n == 2 })
		if err != nil {
			return err
		}
		took = append(took, at.Sub(<-begun))
		if err := s.PlugCable(ctx, "node1"); err != nil {
			return err
		}
		if err := awaitNextHopCountInRouterKernel(ctx, s, vip, 3); err != nil {
			return err
		}
	}
	printMinMedianAndMax("next hop gone after a cut cable, BFD with "+profile, took)
	return nil
}

// watchCarrierLossOfNode1 returns the time when the link of node1 loses its carrier, as the node
// sees it: the request to cut the cable itself takes some time.
func watchCarrierLossOfNode1(ctx context.Context, s *cluster.Cluster) <-chan time.Time {
	out := make(chan time.Time, 1)
	go func() {
		for ctx.Err() == nil {
			var up bool
			err := s.NamespaceOfHost("node1").RunInside(func() error {
				link, err := net.InterfaceByName("eth0")
				up = err == nil && link.Flags&net.FlagRunning != 0
				return err
			})
			if err != nil || !up {
				break
			}
			time.Sleep(time.Millisecond)
		}
		out <- time.Now()
	}()
	return out
}

// countLostRequestsInBGPDepartures stops speakers and drains a node while a client behind the
// router sends requests, and counts the lost ones.
func countLostRequestsInBGPDepartures(ctx context.Context, s *cluster.Cluster, vip netip.Prefix) error {
	kubectl := func(args ...string) error {
		_, err := s.RunKubectl(ctx, "", args...)
		return err
	}
	for what, do := range map[string]func() error{
		"a speaker stops (SIGTERM)": func() error {
			if err := s.SignalProgramOrPod(ctx, "node1", "gantry-speaker", syscall.SIGTERM); err != nil {
				return err
			}
			time.Sleep(3 * time.Second)
			return nil
		},
		"all speakers are restarted by a rollout": func() error {
			if err := kubectl("-n", "metallb-system", "rollout", "restart", "daemonset/gantry-speaker"); err != nil {
				return err
			}
			return s.AwaitGantryRollout(ctx)
		},
		"a node is drained and comes back": func() error {
			if err := kubectl("annotate", "node", "node2", "gantry.dev/drain=bench"); err != nil {
				return err
			}
			if err := awaitNextHopCountInRouterKernel(ctx, s, vip, 2); err != nil {
				return err
			}
			return kubectl("annotate", "node", "node2", "gantry.dev/drain-")
		},
	} {
		lost, sent := 0, 0
		for range repetitionsPerDeparture {
			stream, err := s.StartUDPStream(ctx, "far", vip.Addr().String()+":7000", clientRequestsPerSecond)
			if err != nil {
				return err
			}
			if err := stream.AwaitMoreAnswers(ctx, clientRequestsPerSecond/2); err != nil {
				return err
			}
			if err := do(); err != nil {
				return err
			}
			if err := awaitNextHopCountInRouterKernel(ctx, s, vip, 3); err != nil {
				return err
			}
			if err := stream.AwaitMoreAnswers(ctx, stream.CountAnswers()+clientRequestsPerSecond/2); err != nil {
				return err
			}
			o := stream.StopAndAwaitLateAnswers()
			lost, sent = lost+o.LostCount, sent+o.SentCount
		}
		fmt.Printf("%-64s %d of %d requests, %d times\n", "BGP: lost when "+what, lost, sent, repetitionsPerDeparture)
	}
	return nil
}

// countSessionResetsDuringRandomEdits makes 1,000 random edits of Services and advertisements, and
// counts the session resets at the router.
func countSessionResetsDuringRandomEdits(ctx context.Context, s *cluster.Cluster, tor *lab.Router) error {
	const edits = 1000
	before, err := countSessionEstablishments(ctx, tor)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range edits {
		name := fmt.Sprintf("edited-%d", random.IntN(20))
		switch random.IntN(3) {
		case 0:
			svc := cluster.NewService("default", name, "")
			svc.Spec.Selector = map[string]string{"app": "echo"}
			if err := s.API.Create(ctx, svc); err != nil && !strings.Contains(err.Error(), "already exists") {
				return err
			}
		case 1:
			svc := cluster.NewService("default", name, "")
			if err := s.API.Delete(ctx, svc); err != nil && !strings.Contains(err.Error(), "not found") {
				return err
			}
		default:
			ad := fmt.Sprintf(`{"spec":{"localPref":%d,"aggregationLength":%d,"communities":["64512:%d"],"gantry":{"med":%d}}}`,
				random.IntN(3)*100, 24+8*random.IntN(2), random.IntN(100), random.IntN(100))
			if err := patchBGPAdvertisement(ctx, s, ad); err != nil {
				return fmt.Errorf("edit %d: %w", i, err)
			}
		}
	}
	if err := patchBGPAdvertisement(ctx, s, `{"spec":{"localPref":0,"aggregationLength":32,"communities":null,"gantry":null}}`); err != nil {
		return err
	}
	for _, name := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19} {
		svc := cluster.NewService("default", fmt.Sprintf("edited-%d", name), "")
		if err := s.API.Delete(ctx, svc); err != nil && !strings.Contains(err.Error(), "not found") {
			return err
		}
	}
	time.Sleep(2 * time.Second)
	after, err := countSessionEstablishments(ctx, tor)
	if err != nil {
		return err
	}
	fmt.Printf("%-64s %d of 3\n", fmt.Sprintf("sessions reset through %d random edits", edits), after-before)
	return nil
}

// countSessionEstablishments returns how often the router's sessions were established, in total.
func countSessionEstablishments(ctx context.Context, tor *lab.Router) (int, error) {
	all, err := readFRRBGPNeighbors(ctx, tor)
	sum := 0
	for _, n := range all {
		sum += n.TimesEstablished
	}
	return sum, err
}

// frrNeighbor is FRR's state of a BGP neighbor.
type frrNeighbor struct {
	State            string                    `json:"bgpState"`
	TimesEstablished int                       `json:"connectionsEstablished"`
	Messages         struct{ UpdatesRecv int } `json:"messageStats"`
	Families         map[string]struct {
		Accepted int `json:"acceptedPrefixCounter"`
	} `json:"addressFamilyInfo"`
}

func (n frrNeighbor) acceptedRoutes() int { return n.Families["ipv4Unicast"].Accepted }

func readFRRBGPNeighbors(ctx context.Context, tor *lab.Router) (map[string]frrNeighbor, error) {
	out, err := tor.RunShowCommand(ctx, "show bgp neighbors json")
	if err != nil {
		return nil, err
	}
	all := map[string]frrNeighbor{}
	return all, json.Unmarshal(out, &all)
}

// patchBGPAdvertisement patches the advertisement.
func patchBGPAdvertisement(ctx context.Context, s *cluster.Cluster, patch string) error {
	ad := &v1beta1.BGPAdvertisement{}
	ad.Namespace, ad.Name = "metallb-system", "routed"
	if err := s.API.Patch(ctx, ad, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		return fmt.Errorf("editing the advertisement: %w", err)
	}
	return nil
}
