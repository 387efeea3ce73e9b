package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/packetrules"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/netns"
)

// measureContinuity counts the connections that fail when a node with a Pod dies, and the open ones
// that end when addresses move, with the default installation and with the one that keeps them. The
// environment variable CONTINUITY chooses some of the runs: transaction, iptables, or
// nftables/continuity, for example.
func measureContinuity(ctx context.Context, dir string) error {
	chosen := os.Getenv("CONTINUITY")
	if strings.HasPrefix("transaction", chosen) {
		if err := measureSteeringTransaction(); err != nil {
			return err
		}
	}
	for _, mode := range []string{lab.KubeProxyNFTables, lab.KubeProxyIPTables} {
		for _, overlay := range []string{"default", "continuity"} {
			if !strings.HasPrefix(mode+"/"+overlay, chosen) {
				continue
			}
			if err := measureDeathsOfNodes(ctx, fmt.Sprintf("%s-%s-%s", dir, mode, overlay), mode, overlay); err != nil {
				return fmt.Errorf("with kube-proxy in %s mode and config/%s: %w", mode, overlay, err)
			}
		}
	}
	return nil
}

// measureDeathsOfNodes moves addresses as planned, kills a node that holds none, and then one that
// does.
func measureDeathsOfNodes(ctx context.Context, dir, mode, overlay string) error {
	s, err := cluster.StartLabWithoutGantry(ctx, lab.Options{Nodes: 4, Dir: dir, ProxyMode: mode, Families: lab.DualStack, ProgressOutput: os.Stderr})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.InstallGantryOverlay(ctx, overlay); err != nil {
		return err
	}
	pool := strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "  - 192.168.0.201-192.168.0.233\n", "  - 192.168.0.201-192.168.0.233\n  - fd00:a8::201-fd00:a8::233\n", 1)
	if err := s.ApplyManifests(ctx, pool+"---\n"+cluster.PodOnEachNodeManifest+"  ipFamilyPolicy: RequireDualStack\n"); err != nil {
		return err
	}
	urls, err := s.AwaitURLsOfPodOnEachNode(ctx, 2)
	if err != nil {
		return err
	}
	if err := measureKeptConnections(ctx, s, urls, fmt.Sprintf("kube-proxy in %s mode, config/%s", mode, overlay)); err != nil {
		return err
	}
	baseline, err := startBaselineServer(s)
	if err != nil {
		return err
	}
	defer baseline.Close()
	clients := cluster.ClientsOnLAN(append(urls, "http://"+baseline.Addr().String()+"/"))
	for _, isHolder := range []bool{false, true} {
		out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "servicel2statuses", "-o", "jsonpath={.items[*].status.node}")
		if err != nil {
			return err
		}
		holders, node := strings.Fields(out), ""
		for i := 4; i >= 1; i-- {
			if name := fmt.Sprintf("node%d", i); slices.Contains(holders, name) == isHolder {
				node = name
			}
		}
		outcomes, err := s.KillNodeWhileClientsConnect(ctx, clients, time.Second, node)
		if err != nil {
			return err
		}
		for _, o := range outcomes {
			fmt.Printf("kube-proxy in %s mode, config/%s, the dead node is a holder: %t: %s\n", mode, overlay, isHolder, o)
		}
		if err := s.ReviveNode(ctx, node); err != nil {
			return err
		}
		if err := errors.Join(s.AwaitGantryRollout(ctx), awaitSpeakersReadyAndGossipSpread(ctx, s)); err != nil {
			return err
		}
	}
	return nil
}

// startBaselineServer starts a server on the LAN that no Service leads to. Its latency is that of
// the machine.
func startBaselineServer(s *cluster.Cluster) (net.Listener, error) {
	l, err := s.NamespaceOfHost("router").Listen("tcp", "192.168.0.1:8099")
	if err != nil {
		return nil, err
	}
	go func() { _ = http.Serve(l, http.NotFoundHandler()) }()
	return l, nil
}

// steeredServiceCount and endpointsPerSteeredService are the size of the measured transaction.
const (
	steeredServiceCount        = 5000
	endpointsPerSteeredService = 3
)

// measureSteeringTransaction measures how long the kernel needs for the rules of many Services. The
// baseline is a plain map with as many elements.
func measureSteeringTransaction() error {
	ns, release, err := netns.NewUnnamed()
	if err != nil {
		return err
	}
	defer release()
	var steering intent.Steering
	var endpoints []netip.AddrPort
	for i := range endpointsPerSteeredService {
		endpoints = append(endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 2}), 8080))
	}
	for i := range steeredServiceCount {
		steering = append(steering, intent.SteeredPort{
			ServiceAddressPort: intent.ServiceAddressPort{Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Protocol: intent.TCP, Port: 80},
			LinkIndexes:        []int{1}, LivingEndpoints: endpoints, Until: time.Now().Add(time.Minute),
		})
	}
	var ours, plain []time.Duration
	for range 5 {
		err := ns.RunInside(func() error {
			w, begun := packetrules.NewWriter(time.Now), time.Now()
			if err := w.SetSteering(steering); err != nil {
				return err
			}
			ours = append(ours, time.Since(begun))
			if err := w.RemoveTable(); err != nil {
				return err
			}
			begun = time.Now()
			if err := writePlainMap(steeredServiceCount * endpointsPerSteeredService); err != nil {
				return err
			}
			plain = append(plain, time.Since(begun))
			return nil
		})
		if err != nil {
			return err
		}
	}
	a := printMinMedianAndMax(fmt.Sprintf("rules for %d Services with %d living endpoints each", steeredServiceCount, endpointsPerSteeredService), ours)
	b := printMinMedianAndMax("baseline: a plain map with as many elements", plain)
	fmt.Printf("  ratio of the medians %.2f\n", float64(a)/float64(b))
	return nil
}

// writePlainMap writes a map in one transaction, and deletes it.
func writePlainMap(elements int) error {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(64 << 20) }))
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "plain", Family: nftables.TableFamilyINet})
	m := &nftables.Set{Table: table, Name: "plain", IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr}
	if err := conn.AddSet(m, nil); err != nil {
		return err
	}
	for first := 0; first < elements; first += 500 {
		var some []nftables.SetElement
		for i := first; i < min(first+500, elements); i++ {
			n := binary.BigEndian.AppendUint32(nil, uint32(i))
			some = append(some, nftables.SetElement{Key: n, Val: n})
		}
		if err := conn.SetAddElements(m, some); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("writing the plain map: %w", err)
	}
	conn.DelTable(table)
	return conn.Flush()
}
