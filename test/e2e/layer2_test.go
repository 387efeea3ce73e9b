package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/stage"
)

// labPool has addresses of both families.
var labPool = strings.Replace(stage.Pool, "  - 192.168.0.201-192.168.0.233\n", "  - 192.168.0.201-192.168.0.233\n  - fd00:a8::200-fd00:a8::2ff\n", 1)

// dualEcho is stage.Echo with an address of each family.
var dualEcho = strings.Replace(stage.Echo("echo", "node3"), "  type: LoadBalancer\n", "  type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n", 1)

// ear hears, and says, what passes on a host's link.
type ear struct {
	layer2.Port
	link facts.Link
}

// listen opens an ear; hear is called for each frame.
func listen(t *testing.T, s *stage.Stage, host string, f layer2.Family, hear func(layer2.Frame)) ear {
	t.Helper()
	var e ear
	must(t, s.Host(host).Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		e.link = facts.Link{Index: i.Index, Name: i.Name, MAC: facts.MAC(i.HardwareAddr)}
		e.Port, err = wire.Wire{}.Open(e.link, f)
		return err
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Receive(func(f layer2.Frame) (layer2.Frame, bool) {
			hear(f)
			return layer2.Frame{}, false
		})
	}()
	t.Cleanup(func() {
		_ = e.Close()
		<-ended
	})
	return e
}

// TestTheSegment holds what a user sees of layer 2 on a LAN with other hosts.
func TestTheSegment(t *testing.T) {
	ctx, s := start(t, lab.Options{Nodes: 3, Families: lab.DualStack})
	must(t, s.Apply(ctx, labPool))
	must(t, s.Apply(ctx, dualEcho))
	_, err := s.Address(ctx, "default", "echo")
	must(t, err)
	svc, err := s.Service(ctx, "default", "echo")
	must(t, err)
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
	t.Run("a neighbour of IPv6 is checked on and stays", func(t *testing.T) { neighbourStays(ctx, t, s, six) })
	t.Run("an address that somebody uses is not given", func(t *testing.T) { probed(ctx, t, s) })
	t.Run("a foreign host claims the address", func(t *testing.T) { foreignHost(ctx, t, s, four) })
	t.Run("a link flaps", func(t *testing.T) { linkFlaps(ctx, t, s, four) })
	t.Run("a client that hears no announcement follows a move", func(t *testing.T) { deafClient(ctx, t, s, four) })
	t.Run("pings are answered on wish", func(t *testing.T) { pingsAnswered(ctx, t, s, four, six) })
	t.Run("links are excluded while the speakers run", func(t *testing.T) { linksExcluded(ctx, t, s, four) })
}

// holderOf waits until exactly one node says that it answers for the address.
func holderOf(ctx context.Context, t *testing.T, s *stage.Stage, a netip.Addr) v1beta1.ServiceL2Status {
	t.Helper()
	var holder v1beta1.ServiceL2Status
	must(t, stage.Await(ctx, "a holder of "+a.String(), func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.Namespace)); err != nil {
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
			return fmt.Errorf("%d nodes say that they answer for it", n)
		}
		return nil
	}))
	return holder
}

// neighbourStays has the client's kernel check again and again whether the holder is still there (RFC 4861 section
// 7.3), by questions to the holder alone, while it asks the Service.
func neighbourStays(ctx context.Context, t *testing.T, s *stage.Stage, six netip.Addr) {
	must(t, s.Host("client").Do(func() error {
		for key, value := range map[string]string{"base_reachable_time_ms": "300", "delay_first_probe_time": "1", "gc_stale_time": "1"} {
			if err := netns.Sysctl("net/ipv6/neigh/eth0/"+key, value); err != nil {
				return err
			}
		}
		return nil
	}))
	holder := holderOf(ctx, t, s, six).Status.Node
	var checks, answers atomic.Int64
	var client ear
	asked := listen(t, s, holder, layer2.IPv6, func(f layer2.Frame) {
		if f.Operation == layer2.Request && f.TargetIP == six && f.Destination[0]&1 == 0 {
			checks.Add(1)
		}
	})
	client = listen(t, s, "client", layer2.IPv6, func(f layer2.Frame) {
		if f.Operation == layer2.Reply && f.SenderIP == six && f.SenderMAC == asked.link.MAC && f.Destination[0]&1 == 0 && !f.Unsolicited {
			answers.Add(1)
		}
	})
	stream, err := s.UDP(ctx, "client", netip.AddrPortFrom(six, 7000).String(), 200)
	must(t, err)
	must(t, stage.Await(ctx, "three checks on the neighbour", func(context.Context) error {
		if n := checks.Load(); n < 3 {
			return fmt.Errorf("the client's kernel checked %d times", n)
		}
		return nil
	}))
	if o := stream.Stop(); o.Lost > 0 || o.Sent == 0 {
		t.Errorf("%d of %d requests are lost", o.Lost, o.Sent)
	}
	must(t, stage.Await(ctx, "an answer to each check", func(context.Context) error {
		if n, of := answers.Load(), checks.Load(); n < of {
			return fmt.Errorf("%d checks, %d answers to the client %s", of, n, client.link.MAC)
		}
		return nil
	}))
}

// foreignHost has the router claim the address for a while.
func foreignHost(ctx context.Context, t *testing.T, s *stage.Stage, four netip.Addr) {
	before := holderOf(ctx, t, s, four)
	var claimed, defended atomic.Bool
	holder := listen(t, s, before.Status.Node, layer2.IPv4, func(layer2.Frame) {})
	listen(t, s, "client", layer2.IPv4, func(f layer2.Frame) {
		if claimed.Load() && f.SenderIP == four && f.TargetIP == four && f.SenderMAC == holder.link.MAC {
			defended.Store(true)
		}
	})
	// The burst of the address's own announcements is over.
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	rogue := listen(t, s, "router", layer2.IPv4, func(layer2.Frame) {})
	all := layer2.Everybody(four)
	claim := layer2.Frame{
		Destination: all, Source: rogue.link.MAC, Operation: layer2.Reply,
		SenderMAC: rogue.link.MAC, SenderIP: four, TargetMAC: all, TargetIP: four,
	}
	claimed.Store(true)
	must(t, stage.Await(ctx, "what tells of the foreign host", func(ctx context.Context) error {
		if err := rogue.Write(claim); err != nil {
			return err
		}
		return told(ctx, s, before.Status.Node, four, rogue.link.MAC)
	}))
	must(t, stage.Await(ctx, "a defence of the address (RFC 5227 section 2.4)", func(context.Context) error {
		if !defended.Load() {
			return errors.New("the client heard none")
		}
		return nil
	}))
	if after := holderOf(ctx, t, s, four); after.Status.Node != before.Status.Node {
		t.Errorf("the holder changed from %s to %s", before.Status.Node, after.Status.Node)
	}
	stream := ask(ctx, t, s, netip.AddrPortFrom(four, 7000).String()) // the client was told the truth
	stream.Stop()
}

// told says whether the event, the entry, the condition and the metric tell of a foreign host.
func told(ctx context.Context, s *stage.Stage, node string, a netip.Addr, mac facts.MAC) error {
	var events eventsv1.EventList
	if err := s.API.List(ctx, &events, client.InNamespace("default")); err != nil {
		return err
	}
	found := false
	for _, e := range events.Items {
		found = found || (e.Reason == names.EventAnnounceFailed && strings.Contains(e.Note, mac.String()) && strings.Contains(e.Note, a.String()))
	}
	if !found {
		return fmt.Errorf("no event %s names %s", names.EventAnnounceFailed, mac)
	}
	var entries v1beta1.ServiceL2StatusList
	if err := s.API.List(ctx, &entries, client.InNamespace(names.Namespace), client.MatchingLabels{names.LabelNode: node}); err != nil {
		return err
	}
	found = false
	for _, e := range entries.Items {
		for _, c := range e.Status.Gantry.Conflicts {
			found = found || (c.Address == a.String() && c.MAC == mac.String())
		}
	}
	if !found {
		return fmt.Errorf("no ServiceL2Status of %s names %s", node, mac)
	}
	var speaker v1alpha1.SpeakerStatus
	if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.Namespace, Name: node}, &speaker); err != nil {
		return err
	}
	if !meta.IsStatusConditionFalse(speaker.Status.Conditions, names.ConditionUncontested) {
		return fmt.Errorf("the conditions of the speaker are %v", speaker.Status.Conditions)
	}
	body, err := s.Fetch(ctx, node, "http://127.0.0.1:7473/metrics")
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

// linkFlaps pulls the holder's cable again and again, and plugs it in at once.
func linkFlaps(ctx context.Context, t *testing.T, s *stage.Stage, four netip.Addr) {
	target := netip.AddrPortFrom(four, 7000).String()
	for range 5 {
		holder := holderOf(ctx, t, s, four).Status.Node
		must(t, s.CutCable(ctx, holder))
		must(t, s.PlugCable(ctx, holder))
	}
	ask(ctx, t, s, target).Stop()
	var macs []facts.MAC
	for _, host := range []string{"node1", "node2", "node3"} {
		macs = append(macs, listen(t, s, host, layer2.IPv4, func(layer2.Frame) {}).link.MAC)
	}
	// Whoever holds it now, one node answers.
	answered := make([]atomic.Int64, len(macs))
	asker := listen(t, s, "client", layer2.IPv4, func(f layer2.Frame) {
		for i, mac := range macs {
			if f.Operation == layer2.Reply && f.SenderIP == four && f.SenderMAC == mac && f.Destination[0]&1 == 0 {
				answered[i].Add(1)
			}
		}
	})
	const questions = 5
	must(t, stage.Await(ctx, "one node that answers", func(ctx context.Context) error {
		for i := range answered {
			answered[i].Store(0)
		}
		for range questions {
			if err := asker.Write(layer2.Frame{
				Destination: layer2.Everybody(four), Source: asker.link.MAC, Operation: layer2.Request,
				SenderMAC: asker.link.MAC, SenderIP: clientIP, TargetIP: four,
			}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond): // for all of them
		}
		nodes, sum := 0, int64(0)
		for i := range answered {
			n := answered[i].Load()
			if sum += n; n > 0 {
				nodes++
			}
		}
		if nodes != 1 || sum != questions {
			return fmt.Errorf("%d nodes give %d answers to %d questions", nodes, sum, questions)
		}
		return nil
	}))
}

// clientIP is the client's address.
var clientIP = netip.MustParseAddr("192.168.0.100")

// deafClient is a client in a network that keeps announcements to everybody from it. It asked for the address before, so
// that the next holder tells it alone: it need not find out by itself, which takes half a minute.
func deafClient(ctx context.Context, t *testing.T, s *stage.Stage, four netip.Addr) {
	rules := func(text string) {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		must(t, s.Host("client").Do(cmd.Run))
	}
	rules(fmt.Sprintf("add table arp deaf\nadd chain arp deaf in { type filter hook input priority 0; }\n"+
		"add rule arp deaf in arp saddr ip %s meta pkttype broadcast drop\n", four))
	defer rules("delete table arp deaf\n")
	var found atomic.Int64
	listen(t, s, "router", layer2.IPv4, func(f layer2.Frame) {
		if f.Operation == layer2.Request && f.SenderIP == clientIP && f.TargetIP == four {
			found.Add(1)
		}
	})
	const backend = "node3" // which has to stay
	label := func(value string) {
		_, err := s.Kubectl(ctx, "", "label", "node", backend, "node.kubernetes.io/exclude-from-external-load-balancers"+value)
		must(t, err)
	}
	label("=true")
	defer label("-")
	var old string
	must(t, stage.Await(ctx, "a holder without the backend", func(context.Context) error {
		if old = holderOf(ctx, t, s, four).Status.Node; old == backend {
			return errors.New("it is " + old + " still")
		}
		return nil
	}))
	stream := ask(ctx, t, s, netip.AddrPortFrom(four, 7000).String())
	found.Store(0)
	must(t, s.CutCable(ctx, old))
	defer func() {
		must(t, s.PlugCable(ctx, old))
		must(t, s.AwaitRollout(ctx))
	}()
	must(t, stream.AwaitAnswers(ctx, 200))
	if n := found.Load(); n > 0 {
		t.Errorf("the client had to ask %d times who has the address", n)
	}
	o := stream.Stop()
	t.Logf("the client waited for %s", o.Gap)
	must(t, stage.Await(ctx, "metrics of the new holder", func(ctx context.Context) error {
		now := holderOf(ctx, t, s, four).Status.Node
		body, err := s.Fetch(ctx, now, "http://127.0.0.1:7473/metrics")
		if err != nil {
			return err
		}
		for _, want := range []string{`gantry_speaker_moves_total{event="Taken",reason="HolderGone"} `, "gantry_speaker_takeover_seconds_count "} {
			if !strings.Contains(body, want) || strings.Contains(body, want+"0\n") {
				return fmt.Errorf("%s does not count %s", now, want)
			}
		}
		return nil
	}))
}

// linksExcluded edits what the ConfigMap of excluded interfaces says, in the place of the kubelet, which brings an edit into
// the running container.
func linksExcluded(ctx context.Context, t *testing.T, s *stage.Stage, four netip.Addr) {
	volumes := excludeVolumes(t, s)
	edit := func(text string) {
		for _, dir := range volumes {
			must(t, os.WriteFile(filepath.Join(dir, "excludel2.yaml"), []byte(text), 0o644))
		}
	}
	links := func(want string) {
		must(t, stage.Await(ctx, "links that are "+want, func(ctx context.Context) error {
			for _, node := range []string{"node1", "node2", "node3"} {
				var speaker v1alpha1.SpeakerStatus
				if err := s.API.Get(ctx, client.ObjectKey{Namespace: names.Namespace, Name: node}, &speaker); err != nil {
					return err
				}
				got := ""
				for _, l := range speaker.Status.Links {
					if l.Name == "eth0" {
						got = fmt.Sprint(l.Usable, " ", l.Reason)
					}
				}
				if got != want {
					return fmt.Errorf("%s says %q of eth0", node, got)
				}
			}
			return nil
		}))
	}
	links("true ")
	edit("announcedInterfacesToExclude: [\"^lo$\", \"^veth.*\", \"^eth0$\"]\n")
	links("false " + string(names.ReasonLinkExcluded))
	must(t, stage.Await(ctx, "no holder", func(ctx context.Context) error {
		var list v1beta1.ServiceL2StatusList
		if err := s.API.List(ctx, &list, client.InNamespace(names.Namespace)); err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return fmt.Errorf("%d entries", len(list.Items))
		}
		return nil
	}))
	edit("announcedInterfacesToExclude: [\"^lo$\", \"^veth.*\"]\n")
	links("true ")
	holderOf(ctx, t, s, four)
	ask(ctx, t, s, netip.AddrPortFrom(four, 7000).String()).Stop()
}

// excludeVolumes finds where the lab keeps the speakers' volume.
func excludeVolumes(t *testing.T, s *stage.Stage) []string {
	t.Helper()
	out, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/run/lab-pods/*/volumes/exclude", s.PID()))
	must(t, err)
	if len(out) < 3 {
		t.Fatalf("the speakers' volumes are %v", out)
	}
	return out
}
