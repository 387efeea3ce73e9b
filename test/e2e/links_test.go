package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/test/cluster"
)

// testOneNodeAnswersAfterShortCableCuts cuts the holder's cable again and again, and restores it
// immediately.
func testOneNodeAnswersAfterShortCableCuts(ctx context.Context, t *testing.T, s *cluster.Cluster, four netip.Addr) {
	target := netip.AddrPortFrom(four, 7000).String()
	for range 5 {
		holder := awaitHolderOfAddress(ctx, t, s, four).Status.Node
		failOnError(t, s.CutCable(ctx, holder))
		failOnError(t, s.PlugCable(ctx, holder))
	}
	startUDPStream(ctx, t, s, target).StopSending()
	var macs []facts.MAC
	for _, host := range []string{"node1", "node2", "node3"} {
		macs = append(macs, listenForFrames(t, s, host, ipfamily.IPv4, func(layer2.ARPOrNDPFrame) {}).link.MAC)
	}
	// Exactly one node answers, whichever it is.
	answered := make([]atomic.Int64, len(macs))
	asker := listenForFrames(t, s, "client", ipfamily.IPv4, func(f layer2.ARPOrNDPFrame) {
		for i, mac := range macs {
			if f.Operation == layer2.Reply && f.SenderIP == four && f.SenderMAC == mac && f.EthernetDestination[0]&1 == 0 {
				answered[i].Add(1)
			}
		}
	})
	const questions = 5
	wait := 250 * time.Millisecond
	failOnError(t, cluster.AwaitNoError(ctx, "one node that answers", func(ctx context.Context) error {
		for i := range answered {
			answered[i].Store(0)
		}
		for range questions {
			if err := asker.WriteFrame(layer2.ARPOrNDPFrame{
				EthernetDestination: layer2.AnnouncementDestinationMAC(four), EthernetSource: asker.link.MAC, Operation: layer2.Request,
				SenderMAC: asker.link.MAC, SenderIP: lanClientIP, TargetIP: four,
			}); err != nil {
				return err
			}
		}
		// Time for all answers: longer in each attempt, for a machine that is busy.
		wait *= 2
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		nodes, sum := 0, int64(0)
		for i := range answered {
			n := answered[i].Load()
			if sum += n; n > 0 {
				nodes++
			}
		}
		if nodes != 1 || sum != questions {
			return fmt.Errorf("%d nodes sent %d answers to %d queries", nodes, sum, questions)
		}
		return nil
	}))
}

// lanClientIP is the client's address on the LAN.
var lanClientIP = netip.MustParseAddr("192.168.0.100")

// testRenamedLinksLoseNoRequest renames the nodes' links while a client sends requests. The links
// keep their addresses.
func testRenamedLinksLoseNoRequest(ctx context.Context, t *testing.T, s *cluster.Cluster, addresses ...netip.Addr) {
	var streams []*cluster.RequestStream
	for _, a := range addresses {
		streams = append(streams, startUDPStream(ctx, t, s, netip.AddrPortFrom(a, 7000).String()))
	}
	rename := func(from, to string) {
		for _, node := range []string{"node1", "node2", "node3"} {
			failOnError(t, s.NamespaceOfHost(node).RunInside(exec.Command("ip", "link", "set", from, "name", to).Run))
		}
		failOnError(t, cluster.AwaitNoError(ctx, "links named "+to, func(ctx context.Context) error {
			for _, node := range []string{"node1", "node2", "node3"} {
				var speaker v1alpha1.SpeakerStatus
				if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: node}, &speaker); err != nil {
					return err
				}
				if !slices.ContainsFunc(speaker.Status.Links, func(l v1alpha1.SpeakerLink) bool { return l.Name == to && l.Usable }) {
					return fmt.Errorf("%s has the links %v", node, speaker.Status.Links)
				}
			}
			return nil
		}))
	}
	repeatCheckIfMachineWasBusy(t, func() []string {
		before := awaitHoldersByAddress(ctx, t, s, addresses, nil)
		rename("eth0", "uplink0")
		rename("uplink0", "eth0")
		if after := awaitHoldersByAddress(ctx, t, s, addresses, nil); !maps.Equal(after, before) {
			return []string{fmt.Sprintf("the addresses moved from %v to %v although links were only renamed", before, after)}
		}
		return nil
	})
	for i, stream := range streams {
		if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 {
			t.Errorf("%d of %d requests to %s were lost while links were renamed", o.LostCount, o.SentCount, addresses[i])
		}
	}
}

// testExcludedInterfacesEditIsApplied edits the mounted ConfigMap of excluded interfaces in the
// running containers, as the kubelet does.
func testExcludedInterfacesEditIsApplied(ctx context.Context, t *testing.T, s *cluster.Cluster, four netip.Addr) {
	volumes := findExcludedInterfacesVolumes(t, s)
	edit := func(text string) {
		for _, dir := range volumes {
			failOnError(t, os.WriteFile(filepath.Join(dir, "excludel2.yaml"), []byte(text), 0o644))
		}
	}
	links := func(want string) {
		failOnError(t, cluster.AwaitNoError(ctx, "links that are "+want, func(ctx context.Context) error {
			for _, node := range []string{"node1", "node2", "node3"} {
				var speaker v1alpha1.SpeakerStatus
				if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: node}, &speaker); err != nil {
					return err
				}
				got := ""
				for _, l := range speaker.Status.Links {
					if l.Name == "eth0" {
						got = fmt.Sprint(l.Usable, " ", l.Reason)
					}
				}
				if got != want {
					return fmt.Errorf("%s reports %q for eth0", node, got)
				}
			}
			return nil
		}))
	}
	links("true ")
	edit("announcedInterfacesToExclude: [\"^lo$\", \"^veth.*\", \"^eth0$\"]\n")
	links("false " + string(names.ReasonLinkExcluded))
	failOnError(t, cluster.AwaitNoError(ctx, "no holder", func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace)); err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return fmt.Errorf("%d entries", len(list.Items))
		}
		return nil
	}))
	edit("announcedInterfacesToExclude: [\"^lo$\", \"^veth.*\"]\n")
	links("true ")
	awaitHolderOfAddress(ctx, t, s, four)
	startUDPStream(ctx, t, s, netip.AddrPortFrom(four, 7000).String()).StopSending()
}

// findExcludedInterfacesVolumes returns the directories of the speakers' volumes in the lab.
func findExcludedInterfacesVolumes(t *testing.T, s *cluster.Cluster) []string {
	t.Helper()
	out, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/lab-pods/*/volumes/exclude", s.SupervisorPID()))
	failOnError(t, err)
	if len(out) < 3 {
		t.Fatalf("the speakers' volumes are %v", out)
	}
	return out
}
