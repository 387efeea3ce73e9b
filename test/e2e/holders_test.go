package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// dualStackPoolAndL2AdvertisementManifest is a pool of both families with its advertisement.
var dualStackPoolAndL2AdvertisementManifest = strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "  - 192.168.0.201-192.168.0.233\n", "  - 192.168.0.201-192.168.0.233\n  - fd00:a8::201-fd00:a8::233\n", 1)

func withRequiredDualStack(echo string) string {
	return strings.Replace(echo, "  type: LoadBalancer\n", "  type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n", 1)
}

// serviceUnderTraffic is a Service with streams of requests to its addresses, and a capture of the
// ARP and NDP answers for them.
type serviceUnderTraffic struct {
	cluster                     *cluster.Cluster
	addresses                   []netip.Addr
	stopDeletingNeighborEntries context.CancelFunc
	endNeighborCapture          func(...netip.Addr) ([]cluster.NeighborAnswer, error)
	streams                     []*cluster.RequestStream
}

// startTrafficAndNeighborCapture starts the streams and the capture on the client. It deletes the
// client's neighbor entries again and again, so that some node has to answer all the time.
func startTrafficAndNeighborCapture(ctx context.Context, t *testing.T, s *cluster.Cluster, addresses []netip.Addr) *serviceUnderTraffic {
	t.Helper()
	w := &serviceUnderTraffic{cluster: s, addresses: addresses}
	var err error
	w.endNeighborCapture, err = s.CaptureNeighborAnswers(ctx, "client")
	failOnError(t, err)
	for _, a := range addresses {
		stream, err := s.StartUDPStream(ctx, "client", netip.AddrPortFrom(a, 7000).String(), 100)
		failOnError(t, err)
		failOnError(t, stream.AwaitMoreAnswers(ctx, 20))
		w.streams = append(w.streams, stream)
	}
	ctx, w.stopDeletingNeighborEntries = context.WithCancel(ctx)
	s.DeleteNeighborEntriesRepeatedly(ctx, "client", addresses...)
	return w
}

// awaitMoreAnswersPerStream waits until each stream has n more answers.
func (w *serviceUnderTraffic) awaitMoreAnswersPerStream(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	for _, s := range w.streams {
		failOnError(t, s.AwaitMoreAnswers(ctx, n))
	}
}

// stopAndCollectNeighborAnswers stops the streams and the capture, and returns the ARP and NDP
// answers for each address, in order.
func (w *serviceUnderTraffic) stopAndCollectNeighborAnswers(t *testing.T) map[netip.Addr][]cluster.NeighborAnswer {
	t.Helper()
	w.stopDeletingNeighborEntries()
	for _, s := range w.streams {
		s.StopSending()
	}
	all, err := w.endNeighborCapture(w.addresses...)
	failOnError(t, err)
	out := map[netip.Addr][]cluster.NeighborAnswer{}
	for _, a := range all {
		out[a.Address] = append(out[a.Address], a)
	}
	for _, a := range w.addresses {
		if len(out[a]) < 5 {
			t.Fatalf("only %d answers for %s were captured: this test would prove nothing", len(out[a]), a)
		}
	}
	return out
}

// listMACsInOrderOfLastAnswer returns each Ethernet address that answered once, in the order of the
// last answers.
func listMACsInOrderOfLastAnswer(answers []cluster.NeighborAnswer) []string {
	var out []string
	for _, a := range answers {
		out = append(slices.DeleteFunc(out, func(m string) bool { return m == a.MAC }), a.MAC)
	}
	return out
}

// dropRepeatedAnswersOfSameMAC returns the first answer of each series of answers from one node.
func dropRepeatedAnswersOfSameMAC(answers []cluster.NeighborAnswer) []cluster.NeighborAnswer {
	return slices.CompactFunc(slices.Clone(answers), func(x, y cluster.NeighborAnswer) bool { return x.MAC == y.MAC })
}

// withoutFirstFrameAfterPause removes the first frame that a paused node sent after its pause. The
// pause may begin between the check of the send deadline and the system call that sends the frame.
// The speaker cannot notice that, and without further capabilities no socket option makes the
// kernel drop a late frame. So one such frame is possible in each pause, and no second one.
func withoutFirstFrameAfterPause(answers []cluster.NeighborAnswer, mac string, continued time.Time) []cluster.NeighborAnswer {
	i := slices.IndexFunc(answers, func(x cluster.NeighborAnswer) bool { return x.MAC == mac && x.CapturedAt.After(continued) })
	if i < 0 {
		return answers
	}
	return slices.Delete(slices.Clone(answers), i, i+1)
}

// twoAddressesTestCluster is a cluster of three eligible nodes and a Service with two addresses.
type twoAddressesTestCluster struct {
	*cluster.Cluster
	addresses []netip.Addr
	// initialHolders are the holders before the first scenario.
	initialHolders []string
}

// startTwoHoldersTestCluster runs the Pod on a node that is excluded.
func startTwoHoldersTestCluster(t *testing.T) (context.Context, *twoAddressesTestCluster) {
	t.Helper()
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 4, Families: lab.DualStack})
	h := &twoAddressesTestCluster{Cluster: s}
	failOnError(t, s.ApplyManifests(ctx, dualStackPoolAndL2AdvertisementManifest))
	failOnError(t, s.ApplyManifests(ctx, withRequiredDualStack(cluster.UDPEchoServiceManifest("echo", "node4"))))
	_, err := s.RunKubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	failOnError(t, err)
	h.addresses, err = s.AwaitServiceAddressCount(ctx, "default", "echo", 2)
	failOnError(t, err)
	h.initialHolders = h.awaitBothHolders(ctx, t)
	return ctx, h
}

// awaitBothHolders waits for the holders of the addresses. The two addresses of a Service have
// different holders if more than one node is eligible.
func (h *twoAddressesTestCluster) awaitBothHolders(ctx context.Context, t *testing.T) []string {
	t.Helper()
	holders, err := h.AwaitAnnouncingNodeCount(ctx, "echo", 2)
	failOnError(t, err)
	return holders
}

// awaitHolderOfFirstAddress waits until both addresses have a holder, and returns that of the first
// one. After a death one node may hold both: on a busy machine a node that holds none may be too
// late to take the address, and nothing moves only to spread the addresses again.
func (h *twoAddressesTestCluster) awaitHolderOfFirstAddress(ctx context.Context, t *testing.T) string {
	t.Helper()
	return awaitHoldersByAddress(ctx, t, h.Cluster, h.addresses, nil)[h.addresses[0]]
}

// TestOnlyOneNodeAnswersDuringPartitions breaks the network between nodes in ways that make
// speakers believe that others are dead. At any time only one node may answer the client. The
// scenarios run in this order on one cluster.
func TestOnlyOneNodeAnswersDuringPartitions(t *testing.T) {
	ctx, h := startTwoHoldersTestCluster(t)
	t.Run("gossip is blocked between two halves of an intact LAN", func(t *testing.T) { h.testBlockedGossipMovesNoAddress(ctx, t) })
	t.Run("after a partition of the LAN one holder answers", func(t *testing.T) {
		h.testOneHolderAfterPartition(ctx, t, []string{h.initialHolders[0]})
	})
	t.Run("after a partition the holder beside the gateway keeps its address", func(t *testing.T) {
		holder := h.awaitHolderOfFirstAddress(ctx, t)
		isolated := slices.DeleteFunc([]string{"node1", "node2", "node3"}, func(n string) bool { return n == holder })
		h.testOneHolderAfterPartition(ctx, t, isolated)
	})
	t.Run("a paused holder gives the address up without another answer", func(t *testing.T) { h.testPausedHolderGivesUpAddress(ctx, t) })
	t.Run("a pause of 100 ms changes nothing", func(t *testing.T) { h.testShortPausesMoveNoAddress(ctx, t) })
}

func (h *twoAddressesTestCluster) testBlockedGossipMovesNoAddress(ctx context.Context, t *testing.T) {
	w := startTrafficAndNeighborCapture(ctx, t, h.Cluster, h.addresses)
	failOnError(t, h.BlockGossipBetweenNodeGroups(ctx, []string{"node1", "node2"}, []string{"node3", "node4"}))
	// about 10 s, which is longer than the gossip needs to declare the others dead
	w.awaitMoreAnswersPerStream(ctx, t, 500)
	for _, n := range []string{"node1", "node2", "node3", "node4"} {
		failOnError(t, h.UnblockPorts(ctx, n))
	}
	w.awaitMoreAnswersPerStream(ctx, t, 100)
	for a, answers := range w.stopAndCollectNeighborAnswers(t) {
		if macs := listMACsInOrderOfLastAnswer(answers); len(macs) != 1 {
			t.Errorf("%v answered for %s, want one node", macs, a)
		}
	}
	if now := h.awaitBothHolders(ctx, t); !slices.Equal(now, h.initialHolders) {
		t.Errorf("the addresses moved from %v to %v although every holder was alive", h.initialHolders, now)
	}
}

// testOneHolderAfterPartition separates nodes from the client and its gateway for a while. Each
// address must then have a holder on both sides. The one that the client uses must stay.
func (h *twoAddressesTestCluster) testOneHolderAfterPartition(ctx context.Context, t *testing.T, isolated []string) {
	before := readMoveCounts(ctx, t, h.Cluster)
	w := startTrafficAndNeighborCapture(ctx, t, h.Cluster, h.addresses)
	failOnError(t, h.Partition(ctx, isolated))
	takers := isolated // they take the addresses of the holder beside the gateway
	if len(isolated) == 1 {
		takers = []string{"node1", "node2", "node3"}
	}
	failOnError(t, cluster.AwaitNoError(ctx, "a takeover in the partition", func(context.Context) error {
		now := readMoveCounts(ctx, t, h.Cluster)
		if !slices.ContainsFunc(takers, func(n string) bool { return now[n]["Taken HolderGone"] > before[n]["Taken HolderGone"] }) {
			return fmt.Errorf("the moves are %v", now)
		}
		return nil
	}))
	w.awaitMoreAnswersPerStream(ctx, t, 400)
	healed := time.Now()
	failOnError(t, h.HealPartition(ctx))
	w.awaitMoreAnswersPerStream(ctx, t, 100)
	awaitHoldersByAddress(ctx, t, h.Cluster, h.addresses, nil)
	settled := time.Now()
	w.awaitMoreAnswersPerStream(ctx, t, 100)
	for a, answers := range w.stopAndCollectNeighborAnswers(t) {
		i := slices.IndexFunc(answers, func(x cluster.NeighborAnswer) bool { return x.CapturedAt.After(healed) })
		late := slices.DeleteFunc(slices.Clone(answers), func(x cluster.NeighborAnswer) bool { return x.CapturedAt.Before(settled) })
		if macs := listMACsInOrderOfLastAnswer(late); len(macs) != 1 {
			t.Errorf("after the partition ended and the API named one holder %v answered for %s, want one node", macs, a)
		} else if i > 0 && macs[0] != answers[i-1].MAC {
			t.Errorf("the holder of %s was %s during the partition and %s afterwards, although both were alive", a, answers[i-1].MAC, macs[0])
		}
	}
}

func (h *twoAddressesTestCluster) testPausedHolderGivesUpAddress(ctx context.Context, t *testing.T) {
	holder := h.awaitHolderOfFirstAddress(ctx, t)
	mac, err := h.HostMAC(holder)
	failOnError(t, err)
	w := startTrafficAndNeighborCapture(ctx, t, h.Cluster, h.addresses)
	failOnError(t, h.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGSTOP))
	w.awaitMoreAnswersPerStream(ctx, t, 100)
	continued := time.Now()
	failOnError(t, h.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGCONT))
	w.awaitMoreAnswersPerStream(ctx, t, 100)
	inFlight := 1
	for a, answers := range w.stopAndCollectNeighborAnswers(t) {
		order := dropRepeatedAnswersOfSameMAC(answers)
		if len(order) > 2 && inFlight > 0 {
			inFlight--
			order = dropRepeatedAnswersOfSameMAC(withoutFirstFrameAfterPause(answers, mac, continued))
		}
		if len(order) > 2 {
			t.Errorf("the answers for %s came from %v in turn, want the old holder and then the new one", a, order)
		}
	}
}

// testShortPausesMoveNoAddress pauses a holder ten times for about 100 ms. On a busy machine the
// speakers may also wait for a processor, and then a pause is longer than the test wants. So one
// round of three without a move is enough. A speaker that does not bear such pauses fails in each.
func (h *twoAddressesTestCluster) testShortPausesMoveNoAddress(ctx context.Context, t *testing.T) {
	for round := 1; ; round++ {
		holder := h.awaitHolderOfFirstAddress(ctx, t)
		w := startTrafficAndNeighborCapture(ctx, t, h.Cluster, h.addresses)
		for range 10 {
			failOnError(t, h.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGSTOP))
			<-time.After(80 * time.Millisecond) // plus the time that the lab needs for the signal
			failOnError(t, h.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGCONT))
			w.awaitMoreAnswersPerStream(ctx, t, 30)
		}
		var moved []string
		for a, answers := range w.stopAndCollectNeighborAnswers(t) {
			if macs := listMACsInOrderOfLastAnswer(answers); len(macs) != 1 {
				moved = append(moved, fmt.Sprintf("%v answered for %s", macs, a))
			}
		}
		switch {
		case len(moved) == 0:
			return
		case round == 3:
			t.Fatalf("short pauses of %s moved addresses: %q", holder, moved)
		}
		t.Logf("round %d, %s paused: %q", round, holder, moved)
	}
}
