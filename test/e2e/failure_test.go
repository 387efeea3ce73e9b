package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// TestAddressMovesWithoutLongLoss moves one address in planned and unplanned ways, while a client
// sends 200 requests per second. The backend stays on its node.
func TestAddressMovesWithoutLongLoss(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 4})
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest+"---\n"+torPeerManifest("")))
	failOnError(t, s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("echo", "node4")))
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "echo")
	failOnError(t, err)
	// The node of the backend may not hold the address, because the test kills the holder.
	_, err = s.RunKubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	failOnError(t, err)
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "echo", "node4")
	failOnError(t, err)
	target := address.String() + ":7000"

	t.Run("a speaker that stops loses no request", func(t *testing.T) {
		stream := startUDPStream(ctx, t, s, target)
		failOnError(t, s.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGTERM))
		next, err := s.AwaitSingleAnnouncingNode(ctx, "echo", holder)
		failOnError(t, err)
		failOnError(t, stream.AwaitMoreAnswers(ctx, 200))
		if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 {
			t.Errorf("%d of %d requests were lost when %s handed the address over to %s", o.LostCount, o.SentCount, holder, next)
		}
		holder = next
	})
	t.Run("a cut cable moves the address, and it does not return", func(t *testing.T) {
		stream := startUDPStream(ctx, t, s, target)
		old := holder
		failOnError(t, s.CutCable(ctx, old))
		holder = awaitNewHolder(ctx, t, s, old)
		failOnError(t, stream.AwaitMoreAnswers(ctx, 200))
		failOnError(t, s.PlugCable(ctx, old))
		failOnError(t, stream.AwaitMoreAnswers(ctx, 400))
		stream.StopSending()
		if still, err := s.AwaitSingleAnnouncingNode(ctx, "echo", ""); err != nil || still != holder {
			t.Errorf("after %s is back the address is at %s (%v), want it to stay at %s", old, still, err, holder)
		}
	})
	t.Run("a dead node moves the address", func(t *testing.T) {
		stream := startUDPStream(ctx, t, s, target)
		old := holder
		failOnError(t, s.KillNode(ctx, old))
		holder = awaitNewHolder(ctx, t, s, old)
		failOnError(t, stream.AwaitMoreAnswers(ctx, 200))
		stream.StopSending()
		failOnError(t, awaitConfigStateAndSessionOfNode(ctx, s, old, "Unknown Unknown"))
		failOnError(t, s.ReviveNode(ctx, old))
		failOnError(t, awaitConfigStateAndSessionOfNode(ctx, s, old, "Valid Idle", "Valid Connect", "Valid Active"))
	})
	t.Run("a resumed process does not answer any more", func(t *testing.T) {
		stream := startUDPStream(ctx, t, s, target)
		old := holder
		failOnError(t, s.SignalProgramOrPod(ctx, old, "gantry-speaker", syscall.SIGSTOP))
		holder = awaitNewHolder(ctx, t, s, old)
		failOnError(t, stream.AwaitMoreAnswers(ctx, 200))
		failOnError(t, s.SignalProgramOrPod(ctx, old, "gantry-speaker", syscall.SIGCONT))
		failOnError(t, stream.AwaitMoreAnswers(ctx, 200))
		stream.StopSending()
		if still, err := s.AwaitSingleAnnouncingNode(ctx, "echo", ""); err != nil || still != holder {
			t.Errorf("after %s was resumed the address is at %s (%v), want it to stay at %s", old, still, err, holder)
		}
	})
}

// awaitConfigStateAndSessionOfNode waits until the ConfigurationState of a node and its session
// with a router that does not exist say one of these.
func awaitConfigStateAndSessionOfNode(ctx context.Context, s *cluster.Cluster, node string, want ...string) error {
	return cluster.AwaitNoError(ctx, "the reports of "+node, func(ctx context.Context) error {
		result, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "configurationstate", "speaker-"+node, "-o", "jsonpath={.status.result}")
		if err != nil {
			return err
		}
		state, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "bgpsession", "tor."+node, "-o", "jsonpath={.status.state}")
		if err == nil && !slices.Contains(want, result+" "+state) {
			err = fmt.Errorf("they say %s and %s, want %q", result, state, want)
		}
		return err
	})
}

func startUDPStream(ctx context.Context, t *testing.T, s *cluster.Cluster, target string) *cluster.RequestStream {
	t.Helper()
	failOnError(t, s.SendUDPUntilAnswered(ctx, "client", target))
	stream, err := s.StartUDPStream(ctx, "client", target, 200)
	failOnError(t, err)
	failOnError(t, stream.AwaitMoreAnswers(ctx, 50))
	return stream
}

func awaitNewHolder(ctx context.Context, t *testing.T, s *cluster.Cluster, old string) string {
	t.Helper()
	next, err := s.AwaitSingleAnnouncingNode(ctx, "echo", old)
	failOnError(t, err)
	return next
}

// TestAddressFollowsPodOfLocalTrafficPolicy checks externalTrafficPolicy Local: the address follows
// the Pod, and the Pod sees the client's own address.
func TestAddressFollowsPodOfLocalTrafficPolicy(t *testing.T) {
	t.Parallel()
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 3})
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest))
	local := strings.Replace(cluster.ExampleServiceAndDeploymentManifest, "  type: LoadBalancer", "  externalTrafficPolicy: Local\n  type: LoadBalancer", 1)
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(local, "replicas: 3", "replicas: 1", 1)))
	body, err := s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.201:9097/")
	failOnError(t, err)
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "tekton-dashboard", "")
	failOnError(t, err)
	for _, want := range []string{"node: " + holder + "\n", "peer: 192.168.0.100:"} {
		if !strings.Contains(body, want) {
			t.Errorf("with externalTrafficPolicy Local the answer lacks %q:\n%s", want, body)
		}
	}
	_, err = s.RunKubectl(ctx, "", "cordon", holder)
	failOnError(t, err)
	_, err = s.RunKubectl(ctx, "", "-n", "tekton-pipelines", "delete", "pod", "--all", "--grace-period=1")
	failOnError(t, err)
	next, err := s.AwaitSingleAnnouncingNode(ctx, "tekton-dashboard", holder)
	failOnError(t, err)
	failOnError(t, cluster.AwaitNoError(ctx, "the answer of the Pod's new node", func(ctx context.Context) error {
		body, err := s.FetchURLFromHost(ctx, "client", "http://192.168.0.201:9097/")
		if err == nil && !strings.Contains(body, "node: "+next+"\n") {
			err = fmt.Errorf("answered: %s", body)
		}
		return err
	}))
}
