package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// ignoredByKubeProxyLabel makes kube-proxy ignore a Service: it is not measured here, and needs
// minutes for so many.
const ignoredByKubeProxyLabel = "service.kubernetes.io/service-proxy-name"

// secondPeerManifest is the BGPPeer of the second router.
const secondPeerManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor2, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.2}
`

// measureSpeakerWith10000Routes measures a node that announces 10,000 addresses to two routers.
func measureSpeakerWith10000Routes(ctx context.Context, dir string) error {
	const many = 10000
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		fmt.Println("many routes are not measured:", m)
		return nil
	}
	s, err := cluster.StartLabWithoutGantry(ctx, lab.Options{Nodes: 1, Routers: 2, Dir: dir})
	if err != nil {
		return err
	}
	defer s.Close()
	var tors []*lab.Router
	for i, host := range []string{"router", "router2"} {
		tor := s.RouterOnHost(host, router.FRR)
		if err := tor.StartWithConfig(ctx, frrBGPAndBFDConfig(fmt.Sprintf("192.168.0.%d", i+1), 1, "")); err != nil {
			return err
		}
		tors = append(tors, tor)
	}
	if err := s.InstallGantry(ctx); err != nil {
		return err
	}
	if err := s.ApplyManifests(ctx, strings.Replace(bfdPeerPoolAndAdManifest, ", bfdProfile: PROFILE", "", 1)+"---\n"+secondPeerManifest); err != nil {
		return err
	}
	if err := createServicesWithEndpoints(ctx, s, many); err != nil {
		return err
	}
	begun := time.Now()
	for _, tor := range tors {
		if err := awaitAcceptedRoutes(ctx, tor, many); err != nil {
			return err
		}
	}
	fmt.Printf("%-64s %d ms\n", fmt.Sprintf("%d routes at two routers, after the last Service", many), time.Since(begun).Milliseconds())
	var took []time.Duration
	for range 5 {
		d, err := measureRouteRecoveryAfterSessionReset(ctx, tors[0], many)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	printMinMedianAndMax(fmt.Sprintf("%d routes at FRR, from the start of the session", many), took)
	if err := measureUpdateDelayOfEndpointChange(ctx, s, many); err != nil {
		return err
	}
	if err := deleteServicesAndCountBGPUpdates(ctx, s, tors[0], many); err != nil {
		return err
	}
	if err := checkSpeakerMemory(fmt.Sprintf("resident memory of the speaker with %d addresses and 2 peers", many)); err != nil {
		return err
	}
	return measureSpeakerRestart(ctx, s, tors, many-10)
}

// measureSpeakerRestart restarts the speaker. It measures until both routers have its routes, and
// its memory afterwards.
func measureSpeakerRestart(ctx context.Context, s *cluster.Cluster, tors []*lab.Router, many int) error {
	const namespace, set = "metallb-system", "daemonset/gantry-speaker"
	begun := time.Now()
	for _, args := range [][]string{{"rollout", "restart", set, "-n", namespace}, {"rollout", "status", set, "-n", namespace, "--timeout=120s"}} {
		if _, err := s.RunKubectl(ctx, "", args...); err != nil {
			return err
		}
	}
	for _, tor := range tors {
		if err := awaitAcceptedRoutes(ctx, tor, many); err != nil {
			return err
		}
	}
	fmt.Printf("%-64s %.1f s\n", fmt.Sprintf("restart of the speaker, until both routers have %d routes", many), time.Since(begun).Seconds())
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Second):
	}
	return checkSpeakerMemory("resident memory of the speaker after the restart")
}

// createServicesWithEndpoints creates n Services with one endpoint each.
func createServicesWithEndpoints(ctx context.Context, s *cluster.Cluster, n int) error {
	var svcs []*corev1.Service
	g, within := errgroup.WithContext(ctx)
	g.SetLimit(apiConnectionCount)
	ready, node, number, proto := true, "node1", int32(80), corev1.ProtocolTCP
	for i := range n {
		name := fmt.Sprintf("r%05d", i)
		svc := cluster.NewService("default", name, "")
		svc.Labels = map[string]string{ignoredByKubeProxyLabel: "nobody"}
		svcs = append(svcs, svc)
		g.Go(func() error {
			return s.API.Create(within, &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name, ignoredByKubeProxyLabel: "nobody"}},
				AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &number, Protocol: &proto}},
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.9"}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
			})
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("creating endpoints: %w", err)
	}
	_, err := s.CreateServices(ctx, apiConnectionCount, svcs)
	return err
}

// awaitAcceptedRoutes waits until a router has n routes of the node.
func awaitAcceptedRoutes(ctx context.Context, tor *lab.Router, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		all, err := readFRRBGPNeighbors(ctx, tor)
		if err != nil {
			return err
		}
		got := all["192.168.0.11"].acceptedRoutes()
		if got == n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the router has %d routes, not %d: %w", got, n, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// measureRouteRecoveryAfterSessionReset resets the session at the router, and measures from the new
// session until the router has every route.
func measureRouteRecoveryAfterSessionReset(ctx context.Context, tor *lab.Router, n int) (time.Duration, error) {
	time.Sleep(12 * time.Second) // after a stable session the speaker tries again without delay
	before, err := readFRRBGPNeighbors(ctx, tor)
	if err != nil {
		return 0, err
	}
	if _, err := tor.RunShowCommand(ctx, "clear bgp *"); err != nil {
		return 0, err
	}
	cleared := time.Now()
	var begun time.Time
	for begun.IsZero() {
		asked := time.Now() // the session may have started later: this is the longer time
		all, err := readFRRBGPNeighbors(ctx, tor)
		if err != nil {
			return 0, err
		}
		if now := all["192.168.0.11"]; now.State == "Established" && now.TimesEstablished > before["192.168.0.11"].TimesEstablished {
			begun = asked
		}
		if time.Since(cleared) > time.Minute {
			return 0, fmt.Errorf("the session is not established again: %+v", all)
		}
	}
	err = awaitAcceptedRoutes(ctx, tor, n)
	return time.Since(begun), err
}

// deleteServicesAndCountBGPUpdates deletes single Services among n, and counts the UPDATEs.
func deleteServicesAndCountBGPUpdates(ctx context.Context, s *cluster.Cluster, tor *lab.Router, n int) error {
	var took []time.Duration
	before, err := readFRRBGPNeighbors(ctx, tor)
	if err != nil {
		return err
	}
	const changes = 10
	for i := range changes {
		svc := cluster.NewService("default", fmt.Sprintf("r%05d", i), "")
		begun := time.Now()
		if err := s.API.Delete(ctx, svc); client.IgnoreNotFound(err) != nil {
			return err
		}
		if err := awaitAcceptedRoutes(ctx, tor, n-i-1); err != nil {
			return err
		}
		took = append(took, time.Since(begun))
	}
	after, err := readFRRBGPNeighbors(ctx, tor)
	if err != nil {
		return err
	}
	printMinMedianAndMax(fmt.Sprintf("one Service of %d, from its deletion until FRR has removed its route", n), took)
	fmt.Printf("%-64s %.1f UPDATEs each\n", fmt.Sprintf("%d single Services of %d deleted", changes, n),
		float64(after["192.168.0.11"].Messages.UpdatesRecv-before["192.168.0.11"].Messages.UpdatesRecv)/changes)
	return nil
}
