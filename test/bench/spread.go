package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// spreadServiceCount is the number of addresses that are spread over the nodes.
const spreadServiceCount = 90

const spreadPoolAndL2AdManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: spread, namespace: metallb-system}
spec: {addresses: [192.168.0.101-192.168.0.233]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: spread, namespace: metallb-system}
`

// measureHolderSpread measures how evenly three of four nodes hold the addresses, and which
// addresses move when one of them dies.
func measureHolderSpread(ctx context.Context, dir string) error {
	s, err := startLabWithGantry(ctx, lab.Options{Nodes: 4, Dir: dir})
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.RunKubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true"); err != nil {
		return err
	}
	docs := []string{spreadPoolAndL2AdManifest, cluster.UDPEchoServiceManifest("echo", "node4")}
	for i := range spreadServiceCount {
		docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: spread-%02d}\n"+
			"spec: {type: LoadBalancer, selector: {app: echo}, ports: [{port: 7000, protocol: UDP}]}\n", i))
	}
	if err := s.ApplyManifests(ctx, strings.Join(docs, "---\n")); err != nil {
		return err
	}
	before, err := awaitHolderOfEachService(ctx, s, "")
	if err != nil {
		return err
	}
	printSpread := func(what string, held map[string]string) {
		each := map[string]int{}
		for _, node := range held {
			each[node]++
		}
		most := slices.Max(slices.Collect(maps.Values(each)))
		fmt.Printf("%-64s most %d, mean %.1f, ratio %.3f\n", what, most, float64(len(held))/float64(len(each)), float64(most*len(each))/float64(len(held)))
	}
	printSpread(fmt.Sprintf("%d addresses on 3 nodes", len(before)), before)
	if err := s.KillNode(ctx, "node1"); err != nil {
		return err
	}
	after, err := awaitHolderOfEachService(ctx, s, "node1")
	if err != nil {
		return err
	}
	others := 0
	for service, node := range before {
		if node != "node1" && after[service] != node {
			others++
		}
	}
	printSpread("after one of them died", after)
	fmt.Printf("%-64s %d\n", "addresses of other nodes that moved", others)
	return nil
}

// awaitHolderOfEachService waits until each Service has a holder other than the node named by not,
// and returns the holders by Service.
func awaitHolderOfEachService(ctx context.Context, s *cluster.Cluster, not string) (map[string]string, error) {
	var out map[string]string
	err := cluster.AwaitNoError(ctx, "a holder of each Service", func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace)); err != nil {
			return err
		}
		out = map[string]string{}
		for _, o := range list.Items {
			if o.Status.Node != "" && o.Status.Node != not {
				out[o.Labels[names.LabelServiceName]] = o.Status.Node
			}
		}
		if len(out) != spreadServiceCount+1 {
			return fmt.Errorf("%d of %d Services have one", len(out), spreadServiceCount+1)
		}
		return nil
	})
	return out, err
}
