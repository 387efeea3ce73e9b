package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/netns"
)

// dualStackPoolOf256IPv6Manifest has addresses of both families.
var dualStackPoolOf256IPv6Manifest = strings.Replace(cluster.FirstPoolAndL2AdvertisementManifest, "  - 192.168.0.201-192.168.0.233\n", "  - 192.168.0.201-192.168.0.233\n  - fd00:a8::200-fd00:a8::2ff\n", 1)

// dualStackEchoManifest is cluster.EchoManifest with an address of each family.
var dualStackEchoManifest = strings.Replace(cluster.UDPEchoServiceManifest("echo", "node3"), "  type: LoadBalancer\n", "  type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n", 1)

// frameListener receives and sends frames on a host's link.
type frameListener struct {
	layer2.Port
	link facts.Link
}

// listenForFrames opens a frameListener, which calls hear for each frame.
func listenForFrames(t *testing.T, s *cluster.Cluster, host string, f ipfamily.Family, hear func(layer2.ARPOrNDPFrame)) frameListener {
	t.Helper()
	var e frameListener
	failOnError(t, s.NamespaceOfHost(host).RunInside(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		e.link = facts.Link{Index: i.Index, Name: i.Name, MAC: facts.MAC(i.HardwareAddr)}
		e.Port, err = wire.PacketSocketOpener{}.OpenPort(e.link, f)
		return err
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.ReceiveFrames(func(f layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
			hear(f)
			return layer2.ARPOrNDPFrame{}, false
		}, nil)
	}()
	t.Cleanup(func() {
		_ = e.Close()
		<-ended
	})
	return e
}

// TestLayer2BesideOtherHostsOnLAN checks layer 2 on a LAN with other hosts, as a user sees it.
func TestLayer2BesideOtherHostsOnLAN(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 3, Families: lab.DualStack})
	failOnError(t, s.ApplyManifests(ctx, dualStackPoolOf256IPv6Manifest))
	failOnError(t, s.ApplyManifests(ctx, dualStackEchoManifest))
	_, err := s.AwaitFirstAddressOfService(ctx, "default", "echo")
	failOnError(t, err)
	svc, err := s.GetService(ctx, "default", "echo")
	failOnError(t, err)
	var four, six netip.Addr
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if a := netip.MustParseAddr(in.IP); a.Is4() {
			four = a
		} else {
			six = a
		}
	}
	if !four.IsValid() || !six.IsValid() {
		t.Fatalf("the Service has %v, want an address of each family", svc.Status.LoadBalancer.Ingress)
	}
	t.Run("the holder answers Neighbor Unreachability Detection", func(t *testing.T) { testHolderAnswersUnicastSolicitations(ctx, t, s, six) })
	t.Run("an address that another host uses is not assigned", func(t *testing.T) { testAddressesInUseAreSkipped(ctx, t, s) })
	t.Run("the holder defends the address against a foreign host", func(t *testing.T) { testForeignHostClaimingAddressIsReported(ctx, t, s, four) })
	t.Run("another host detects the address as a duplicate", func(t *testing.T) { testHolderDefendsAddressInDAD(ctx, t, s, six) })
	t.Run("an event reports another node that announces the address", func(t *testing.T) { testStrayAnnouncementIsReported(ctx, t, s, four) })
	t.Run("a changed Ethernet address of the holder is announced", func(t *testing.T) { testChangedMACOfHolderIsAnnounced(ctx, t, s, four) })
	t.Run("one node answers after a link has flapped", func(t *testing.T) { testOneNodeAnswersAfterShortCableCuts(ctx, t, s, four) })
	t.Run("renaming a link loses no request", func(t *testing.T) { testRenamedLinksLoseNoRequest(ctx, t, s, four, six) })
	t.Run("a client without broadcasts follows a move", func(t *testing.T) { testTakeoverReachesClientByUnicast(ctx, t, s, four, six) })
	t.Run("a new holder does not report the foreign host", func(t *testing.T) {
		failOnError(t, awaitAnnouncedCondition(ctx, s, "echo", "True", names.ReasonAnnounced))
	})
	t.Run("pings are answered if the setting says so", func(t *testing.T) { testPingAnswersOnlyWithSetting(ctx, t, s, four, six) })
	t.Run("links can be excluded while speakers are running", func(t *testing.T) { testExcludedInterfacesEditIsApplied(ctx, t, s, four) })
}

// awaitHolderOfAddress waits until exactly one node holds the address, according to the API.
func awaitHolderOfAddress(ctx context.Context, t *testing.T, s *cluster.Cluster, a netip.Addr) v1beta1.ServiceL2Status {
	t.Helper()
	var holder v1beta1.ServiceL2Status
	failOnError(t, cluster.AwaitNoError(ctx, "a holder of "+a.String(), func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace)); err != nil {
			return err
		}
		n := 0
		for _, o := range list.Items {
			if o.Status.Gantry != nil && strings.Contains(" "+strings.Join(o.Status.Gantry.Addresses, " ")+" ", " "+a.String()+" ") {
				holder = o
				n++
			}
		}
		if n != 1 {
			return fmt.Errorf("%d nodes hold it", n)
		}
		return nil
	}))
	return holder
}

// testHolderAnswersUnicastSolicitations makes the client's kernel check again and again whether the
// holder is reachable (Neighbor Unreachability Detection, RFC 4861 section 7.3) while it sends
// requests to the Service. The holder has to answer these unicast solicitations.
func testHolderAnswersUnicastSolicitations(ctx context.Context, t *testing.T, s *cluster.Cluster, six netip.Addr) {
	setNeighborTimers := func(values map[string]string) {
		failOnError(t, s.NamespaceOfHost("client").RunInside(func() error {
			for key, value := range values {
				if err := netns.SetSysctl("net/ipv6/neigh/eth0/"+key, value); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	setNeighborTimers(map[string]string{"base_reachable_time_ms": "300", "delay_first_probe_time": "1", "gc_stale_time": "1"})
	// With the timers of the kernel, a client does not check its neighbor during a takeover.
	defer setNeighborTimers(map[string]string{"base_reachable_time_ms": "30000", "delay_first_probe_time": "5", "gc_stale_time": "60"})
	holder := awaitHolderOfAddress(ctx, t, s, six).Status.Node
	var checks, answers atomic.Int64
	var client frameListener
	asked := listenForFrames(t, s, holder, ipfamily.IPv6, func(f layer2.ARPOrNDPFrame) {
		if f.Operation == layer2.Request && f.TargetIP == six && f.EthernetDestination[0]&1 == 0 {
			checks.Add(1)
		}
	})
	client = listenForFrames(t, s, "client", ipfamily.IPv6, func(f layer2.ARPOrNDPFrame) {
		if f.Operation == layer2.Reply && f.SenderIP == six && f.SenderMAC == asked.link.MAC && f.EthernetDestination[0]&1 == 0 && !f.Unsolicited {
			answers.Add(1)
		}
	})
	target := netip.AddrPortFrom(six, 7000).String()
	failOnError(t, s.SendUDPUntilAnswered(ctx, "client", target)) // kube-proxy has its rules
	stream, err := s.StartUDPStream(ctx, "client", target, 200)
	failOnError(t, err)
	failOnError(t, cluster.AwaitNoError(ctx, "three solicitations of the client", func(context.Context) error {
		if n := checks.Load(); n < 3 {
			return fmt.Errorf("the client's kernel sent %d", n)
		}
		return nil
	}))
	if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 || o.SentCount == 0 {
		t.Errorf("%d of %d requests were lost", o.LostCount, o.SentCount)
	}
	failOnError(t, cluster.AwaitNoError(ctx, "an answer to each solicitation", func(context.Context) error {
		if n, of := answers.Load(), checks.Load(); n < of {
			return fmt.Errorf("%d solicitations, %d answers to the client %s", of, n, client.link.MAC)
		}
		return nil
	}))
	for metric, least := range map[string]int{
		"metallb_layer2_requests_received": int(checks.Load()), "metallb_layer2_responses_sent": int(answers.Load()), "metallb_layer2_gratuitous_sent": 1,
	} {
		if n := readSpeakerMetric(ctx, t, s, holder, fmt.Sprintf(`%s{ip="%s"}`, metric, six)); n < float64(least) {
			t.Errorf("%s counts %v as %s, want at least %d", holder, n, metric, least)
		}
	}
}

// readSpeakerMetric returns the value of a metric with its labels from the speaker of the node, or
// 0 if there is none.
func readSpeakerMetric(ctx context.Context, t *testing.T, s *cluster.Cluster, node, metric string) float64 {
	t.Helper()
	body, err := s.FetchSpeakerMetricsUntilSuccess(ctx, node)
	failOnError(t, err)
	for line := range strings.Lines(body) {
		if text, ok := strings.CutPrefix(line, metric+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			failOnError(t, err)
			return v
		}
	}
	return 0
}

// testForeignHostClaimingAddressIsReported makes the router claim the address for a while.
func testForeignHostClaimingAddressIsReported(ctx context.Context, t *testing.T, s *cluster.Cluster, four netip.Addr) {
	before := awaitHolderOfAddress(ctx, t, s, four)
	var claimed, defended atomic.Bool
	holder := listenForFrames(t, s, before.Status.Node, ipfamily.IPv4, func(layer2.ARPOrNDPFrame) {})
	listenForFrames(t, s, "client", ipfamily.IPv4, func(f layer2.ARPOrNDPFrame) {
		if claimed.Load() && f.SenderIP == four && f.TargetIP == four && f.SenderMAC == holder.link.MAC {
			defended.Store(true)
		}
	})
	// Wait until the holder's first announcements of the address are over.
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	rogue := listenForFrames(t, s, "router", ipfamily.IPv4, func(layer2.ARPOrNDPFrame) {})
	all := layer2.AnnouncementDestinationMAC(four)
	claim := layer2.ARPOrNDPFrame{
		EthernetDestination: all, EthernetSource: rogue.link.MAC, Operation: layer2.Reply,
		SenderMAC: rogue.link.MAC, SenderIP: four, TargetMAC: all, TargetIP: four,
	}
	claimed.Store(true)
	failOnError(t, cluster.AwaitNoError(ctx, "the reports of the foreign host", func(ctx context.Context) error {
		if err := rogue.WriteFrame(claim); err != nil {
			return err
		}
		return checkConflictReported(ctx, s, before.Status.Node, four, rogue.link.MAC)
	}))
	failOnError(t, cluster.AwaitNoError(ctx, "a defence of the address (RFC 5227 section 2.4)", func(context.Context) error {
		if !defended.Load() {
			return errors.New("the client received none")
		}
		return nil
	}))
	if after := awaitHolderOfAddress(ctx, t, s, four); after.Status.Node != before.Status.Node {
		t.Errorf("the holder changed from %s to %s", before.Status.Node, after.Status.Node)
	}
	// the client knows the right node
	startUDPStream(ctx, t, s, netip.AddrPortFrom(four, 7000).String()).StopSending()
}

// checkConflictReported returns an error unless the event, the ServiceL2Status, the conditions and
// the metrics report the foreign host.
func checkConflictReported(ctx context.Context, s *cluster.Cluster, node string, a netip.Addr, mac facts.MAC) error {
	var events eventsv1.EventList
	if err := s.API.List(ctx, &events, client.InNamespace("default")); err != nil {
		return err
	}
	found := false
	for _, e := range events.Items {
		found = found || (e.Reason == names.EventAnnounceFailed && strings.Contains(e.Note, mac.String()) && strings.Contains(e.Note, a.String()))
	}
	if !found {
		return fmt.Errorf("no event %s has %s", names.EventAnnounceFailed, mac)
	}
	var entries v1beta1.ServiceL2StatusList
	if err := s.API.List(ctx, &entries, client.InNamespace(names.DefaultNamespace), client.MatchingLabels{names.LabelServiceStatusNode: node}); err != nil {
		return err
	}
	found = false
	for _, e := range entries.Items {
		if e.Status.Gantry == nil { // the status is written after the object
			continue
		}
		for _, c := range e.Status.Gantry.Conflicts {
			found = found || (c.Address == a.String() && c.MAC == mac.String())
		}
	}
	if !found {
		return fmt.Errorf("no ServiceL2Status of %s has %s", node, mac)
	}
	var speaker v1alpha1.SpeakerStatus
	if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: node}, &speaker); err != nil {
		return err
	}
	if !meta.IsStatusConditionFalse(speaker.Status.Conditions, names.ConditionHeldAddressesUncontested) {
		return fmt.Errorf("the conditions of the speaker are %v", speaker.Status.Conditions)
	}
	svc, err := s.GetService(ctx, "default", "echo")
	if err != nil {
		return err
	}
	c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAnnounced)
	if c == nil || c.Status != metav1.ConditionTrue || c.Reason != string(names.ReasonForeignClaim) || !strings.Contains(c.Message, fmt.Sprintf("%s (%s)", a, mac)) {
		return fmt.Errorf("the condition of the Service is %+v", c)
	}
	body, err := s.FetchSpeakerMetrics(ctx, node)
	if err != nil {
		return err
	}
	if line := fmt.Sprintf(`gantry_layer2_conflicts_total{ip="%s"} `, a); !strings.Contains(body, line) || strings.Contains(body, line+"0\n") {
		return fmt.Errorf("the metrics count no conflict")
	}
	if line := fmt.Sprintf(`metallb_speaker_announced{ip="%s",node="%s",protocol="layer2",service="default/echo"} 1`, a, node); !strings.Contains(body, line) {
		return fmt.Errorf("the metrics lack %s", line)
	}
	return nil
}

// testTakeoverReachesClientByUnicast drops broadcast and multicast announcements at the client, as
// some networks do. The client has asked for the addresses before, so the next holder sends it a
// unicast announcement. Without that, the client would need half a minute to find the new holder.
func testTakeoverReachesClientByUnicast(ctx context.Context, t *testing.T, s *cluster.Cluster, four, six netip.Addr) {
	rules := func(text string) {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		failOnError(t, s.NamespaceOfHost("client").RunInside(cmd.Run))
	}
	rules("add table arp deaf\nadd chain arp deaf in { type filter hook input priority 0; }\n" +
		fmt.Sprintf("add rule arp deaf in arp saddr ip %s meta pkttype broadcast drop\n", four) +
		"add table ip6 deaf\nadd chain ip6 deaf in { type filter hook input priority 0; }\n" +
		"add rule ip6 deaf in icmpv6 type nd-neighbor-advert ip6 daddr ff02::1 drop\n")
	defer rules("delete table arp deaf\ndelete table ip6 deaf\n")
	const backend = "node3" // must not move
	label := func(value string) {
		_, err := s.RunKubectl(ctx, "", "label", "node", backend, "node.kubernetes.io/exclude-from-external-load-balancers"+value)
		failOnError(t, err)
	}
	label("=true")
	defer label("-")
	for _, a := range []netip.Addr{four, six} {
		checkTakeoverWithoutClientQuery(ctx, t, s, a, backend)
	}
}

// checkTakeoverWithoutClientQuery cuts the holder's cable, and checks that the client does not have
// to ask for the next holder.
func checkTakeoverWithoutClientQuery(ctx context.Context, t *testing.T, s *cluster.Cluster, a netip.Addr, backend string) {
	var questions atomic.Int64
	var asker atomic.Pointer[facts.MAC]
	heard := listenForFrames(t, s, "router", ipfamily.FamilyOf(a), func(f layer2.ARPOrNDPFrame) {
		if mac := asker.Load(); mac != nil && f.Operation == layer2.Request && f.SenderMAC == *mac && f.TargetIP == a {
			questions.Add(1)
		}
	})
	failOnError(t, heard.JoinGroupOfAddress(a))
	client := listenForFrames(t, s, "client", ipfamily.FamilyOf(a), func(layer2.ARPOrNDPFrame) {})
	asker.Store(&client.link.MAC)
	var old string
	failOnError(t, cluster.AwaitNoError(ctx, "a holder on another node than the backend", func(context.Context) error {
		if old = awaitHolderOfAddress(ctx, t, s, a).Status.Node; old == backend {
			return errors.New("it is " + old + " still")
		}
		return nil
	}))
	// so that the client asks again
	_ = s.NamespaceOfHost("client").RunInside(exec.Command("ip", "neigh", "del", a.String(), "dev", "eth0").Run)
	stream := startUDPStream(ctx, t, s, netip.AddrPortFrom(a, 7000).String())
	failOnError(t, cluster.AwaitNoError(ctx, "the client's query", func(context.Context) error {
		if questions.Load() == 0 {
			return errors.New("the client sent none")
		}
		return nil
	}))
	questions.Store(0)
	failOnError(t, s.CutCable(ctx, old))
	defer func() {
		failOnError(t, s.PlugCable(ctx, old))
		failOnError(t, s.AwaitGantryRollout(ctx))
	}()
	failOnError(t, stream.AwaitMoreAnswers(ctx, 200))
	if n := questions.Load(); n > 0 {
		t.Errorf("the client had to send %d queries for %s", n, a)
	}
	o := stream.StopAndAwaitLateAnswers()
	t.Logf("the client waited for %s", o.LongestTimeWithoutAnswer)
	failOnError(t, cluster.AwaitNoError(ctx, "metrics of the new holder", func(ctx context.Context) error {
		now := awaitHolderOfAddress(ctx, t, s, a).Status.Node
		for _, metric := range []string{`gantry_speaker_moves_total{event="Taken",reason="HolderGone"}`, "gantry_speaker_takeover_seconds_count"} {
			if readSpeakerMetric(ctx, t, s, now, metric) == 0 {
				return fmt.Errorf("%s does not count %s", now, metric)
			}
		}
		n := readSpeakerMetric(ctx, t, s, now, "gantry_speaker_takeover_seconds_count")
		each := time.Duration(readSpeakerMetric(ctx, t, s, now, "gantry_speaker_takeover_seconds_sum") / n * float64(time.Second))
		// beacons are sent every 50 ms
		if each < 50*time.Millisecond || each > max(2*o.LongestTimeWithoutAnswer, 10*time.Second) {
			return fmt.Errorf("the metrics say that each of %v takeovers took %v, but the client waited for %v", n, each, o.LongestTimeWithoutAnswer)
		}
		return nil
	}))
}
