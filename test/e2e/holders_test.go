package e2e

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// dualStackPool is a pool of both families with its advertisement, and dual makes a Service ask for both.
var dualStackPool = strings.Replace(cluster.PoolManifest, "  - 192.168.0.201-192.168.0.233\n", "  - 192.168.0.201-192.168.0.233\n  - fd00:a8::201-fd00:a8::233\n", 1)

func requireDualStack(echo string) string {
	return strings.Replace(echo, "  type: LoadBalancer\n", "  type: LoadBalancer\n  ipFamilyPolicy: RequireDualStack\n", 1)
}

// watchedService is a Service whose addresses a client asks for all the time, and whose answers on the wire are captured.
type watchedService struct {
	cluster        *cluster.Cluster
	addresses      []netip.Addr
	stopForgetting context.CancelFunc
	endCapture     func(...netip.Addr) ([]cluster.NeighborAnswer, error)
	streams        []*cluster.Stream
}

// watchService begins to ask from the client; the neighbours are forgotten again and again, so that somebody has to answer.
func watchService(ctx context.Context, t *testing.T, s *cluster.Cluster, addresses []netip.Addr) *watchedService {
	t.Helper()
	w := &watchedService{cluster: s, addresses: addresses}
	var err error
	w.endCapture, err = s.CaptureNeighborAnswers(ctx, "client")
	must(t, err)
	for _, a := range addresses {
		stream, err := s.StreamUDP(ctx, "client", netip.AddrPortFrom(a, 7000).String(), 100)
		must(t, err)
		must(t, stream.AwaitAnswers(ctx, 20))
		w.streams = append(w.streams, stream)
	}
	ctx, w.stopForgetting = context.WithCancel(ctx)
	s.ForgetNeighborsRepeatedly(ctx, "client", addresses...)
	return w
}

// awaitAnswers waits for n more answers of each stream.
func (w *watchedService) awaitAnswers(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	for _, s := range w.streams {
		must(t, s.AwaitAnswers(ctx, n))
	}
}

// stopAndCollect returns who answered on the wire for each address, in order.
func (w *watchedService) stopAndCollect(t *testing.T) map[netip.Addr][]cluster.NeighborAnswer {
	t.Helper()
	w.stopForgetting()
	for _, s := range w.streams {
		s.Stop()
	}
	all, err := w.endCapture(w.addresses...)
	must(t, err)
	out := map[netip.Addr][]cluster.NeighborAnswer{}
	for _, a := range all {
		out[a.Address] = append(out[a.Address], a)
	}
	for _, a := range w.addresses {
		if len(out[a]) < 5 {
			t.Fatalf("%d answers for %s were captured: the test sees too little", len(out[a]), a)
		}
	}
	return out
}

// answeringMACs are the Ethernet addresses that answered, each once, by their last answer.
func answeringMACs(answers []cluster.NeighborAnswer) []string {
	var out []string
	for _, a := range answers {
		out = append(slices.DeleteFunc(out, func(m string) bool { return m == a.MAC }), a.MAC)
	}
	return out
}

// TestOneNodeAnswers has the network between the nodes fail in ways that make speakers believe that others are dead. What the
// client sees on the wire has to come from one holder.
func TestOneNodeAnswers(t *testing.T) {
	ctx, s := startCluster(t, lab.Options{Nodes: 4, Families: lab.DualStack})
	must(t, s.Apply(ctx, dualStackPool))
	must(t, s.Apply(ctx, requireDualStack(cluster.EchoManifest("echo", "node4"))))
	_, err := s.Kubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	must(t, err)
	addresses, err := s.AwaitAddresses(ctx, "default", "echo", 2)
	must(t, err)
	// The addresses of one Service have different holders where there is a choice.
	awaitHolders := func() []string {
		t.Helper()
		h, err := s.AwaitHolders(ctx, "echo", 2)
		must(t, err)
		return h
	}
	holders := awaitHolders()

	t.Run("gossip is blocked between two halves and the LAN is whole", func(t *testing.T) {
		w := watchService(ctx, t, s, addresses)
		must(t, s.BlockGossip(ctx, []string{"node1", "node2"}, []string{"node3", "node4"}))
		w.awaitAnswers(ctx, t, 500) // about 10 s: longer than the gossip takes to give the others up
		for _, n := range []string{"node1", "node2", "node3", "node4"} {
			must(t, s.UnblockPorts(ctx, n))
		}
		w.awaitAnswers(ctx, t, 100)
		for a, answers := range w.stopAndCollect(t) {
			if who := answeringMACs(answers); len(who) != 1 {
				t.Errorf("%s was answered for by %v, want one node", a, who)
			}
		}
		if now := awaitHolders(); !slices.Equal(now, holders) {
			t.Errorf("the addresses moved from %v to %v though every holder lived", holders, now)
		}
	})
	t.Run("the LAN is cut and heals to one holder", func(t *testing.T) {
		holder := holders[0]
		w := watchService(ctx, t, s, addresses)
		must(t, s.Partition(ctx, []string{holder}))
		w.awaitAnswers(ctx, t, 400)
		healed := time.Now()
		must(t, s.HealPartition(ctx))
		w.awaitAnswers(ctx, t, 150)
		for a, answers := range w.stopAndCollect(t) {
			i := slices.IndexFunc(answers, func(x cluster.NeighborAnswer) bool { return x.At.After(healed) })
			late := slices.DeleteFunc(slices.Clone(answers), func(x cluster.NeighborAnswer) bool { return x.At.Before(healed.Add(time.Second)) })
			if who := answeringMACs(late); len(who) != 1 {
				t.Errorf("a second after the LAN was whole again %s was answered for by %v, want one node", a, who)
			} else if i > 0 && who[0] != answers[i-1].MAC {
				t.Errorf("%s was answered for by %s while the LAN was cut, and by %s afterwards, though both lived", a, answers[i-1].MAC, who[0])
			}
		}
	})
	t.Run("a paused holder yields without another answer", func(t *testing.T) {
		holder := awaitHolders()[0]
		w := watchService(ctx, t, s, addresses)
		must(t, s.SignalProgram(ctx, holder, "gantry-speaker", syscall.SIGSTOP))
		w.awaitAnswers(ctx, t, 100)
		must(t, s.SignalProgram(ctx, holder, "gantry-speaker", syscall.SIGCONT))
		w.awaitAnswers(ctx, t, 100)
		for a, answers := range w.stopAndCollect(t) {
			order := slices.CompactFunc(answers, func(x, y cluster.NeighborAnswer) bool { return x.MAC == y.MAC })
			if len(order) > 2 {
				t.Errorf("%s was answered for by %v in turn, want the former holder and then its successor", a, order)
			}
		}
	})
	t.Run("a pause of 100 ms changes nothing", func(t *testing.T) {
		before := awaitHolders()
		w := watchService(ctx, t, s, addresses)
		for range 10 {
			must(t, s.SignalProgram(ctx, before[0], "gantry-speaker", syscall.SIGSTOP))
			<-time.After(80 * time.Millisecond) // and what the order takes to arrive
			must(t, s.SignalProgram(ctx, before[0], "gantry-speaker", syscall.SIGCONT))
			w.awaitAnswers(ctx, t, 30)
		}
		w.stopAndCollect(t)
		if now := awaitHolders(); !slices.Equal(now, before) {
			t.Errorf("short pauses moved the addresses from %v to %v", before, now)
		}
	})
}
