package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// The condition Announced follows a change within maxMedianConditionDelay, as the median of
// conditionChangeCount changes.
const (
	conditionChangeCount    = 10
	maxMedianConditionDelay = 2 * time.Second
	conditionPollInterval   = 5 * time.Millisecond
)

// layer2OnLabelledNodesManifest announces a pool of its own from the nodes with a label.
const layer2OnLabelledNodesManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: local, namespace: metallb-system}
spec: {addresses: [192.168.0.240/28], autoAssign: false}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: local, namespace: metallb-system}
spec: {ipAddressPools: [local], nodeSelectors: [{matchLabels: {bench: holder}}]}
`

// measureAnnouncedConditionDelay measures from a change until the condition Announced of a Service
// says it, on a lab of two nodes and one router. The router ends all its BGP sessions. For layer 2,
// the nodes lose the label that an L2Advertisement selects. The baseline is a status that the
// benchmark writes itself.
func measureAnnouncedConditionDelay(ctx context.Context, dir string) error {
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		fmt.Println("the condition Announced is not measured:", m)
		return nil
	}
	s, tor, err := startLabWithFRRRouter(ctx, dir, 2, "")
	if err != nil {
		return err
	}
	defer s.Close()
	withoutBFD := strings.Replace(bfdPeerPoolAndAdManifest, ", bfdProfile: PROFILE", "", 1)
	if err := s.ApplyManifests(ctx, withoutBFD+"---\n"+layer2OnLabelledNodesManifest); err != nil {
		return err
	}
	if err := s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("echo", "node1")); err != nil {
		return err
	}
	local := cluster.NewService("default", "local", "")
	local.Annotations = map[string]string{names.AnnotationRequestedPool: "local"}
	local.Spec.Selector = map[string]string{"app": "echo"}
	if err := s.API.Create(ctx, local); err != nil {
		return err
	}
	if err := labelNodesForLayer2(ctx, s, true); err != nil {
		return err
	}
	var tooSlow error
	for _, c := range []struct {
		service, event string
		change         func(isAnnounced bool) error
	}{
		{"echo", "the router has ended all BGP sessions", func(up bool) error { return setRouterSessionsUp(ctx, tor, up) }},
		{"local", "no node is selected any more", func(labelled bool) error { return labelNodesForLayer2(ctx, s, labelled) }},
	} {
		took, err := measureConditionChanges(ctx, s, c.service, c.change)
		if err != nil {
			return err
		}
		if m := printMinMedianAndMax("condition Announced is False, after "+c.event, took); m > maxMedianConditionDelay {
			tooSlow = errors.Join(tooSlow, fmt.Errorf("the condition follows after %s in the median, more than %s", m, maxMedianConditionDelay))
		}
	}
	baseline, err := measureOwnStatusWrites(ctx, s)
	if err != nil {
		return err
	}
	printMinMedianAndMax("baseline: a status that the benchmark writes and reads", baseline)
	return tooSlow
}

// measureConditionChanges makes a Service unannounced several times, and returns how long its
// condition took to say so. After each time it edits the BGPPeer, so that the speakers do not hold
// back a session that returned often.
func measureConditionChanges(ctx context.Context, s *cluster.Cluster, service string, change func(isAnnounced bool) error) ([]time.Duration, error) {
	var took []time.Duration
	if _, err := awaitAnnouncedStatus(ctx, s, service, metav1.ConditionTrue); err != nil {
		return nil, err
	}
	for i := range conditionChangeCount {
		begun := time.Now()
		if err := change(false); err != nil {
			return nil, err
		}
		changed, err := awaitAnnouncedStatus(ctx, s, service, metav1.ConditionFalse)
		if err != nil {
			return nil, err
		}
		took = append(took, changed.Sub(begun))
		edit := strings.Replace(bfdPeerPoolAndAdManifest, ", bfdProfile: PROFILE", fmt.Sprintf(", gantry: {drainDelay: %dms}", 600+i), 1)
		if err := s.ApplyManifests(ctx, edit); err != nil {
			return nil, err
		}
		if err := change(true); err != nil {
			return nil, err
		}
		if _, err := awaitAnnouncedStatus(ctx, s, service, metav1.ConditionTrue); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// awaitAnnouncedStatus waits for a status of the condition Announced, and returns when it was seen.
func awaitAnnouncedStatus(ctx context.Context, s *cluster.Cluster, service string, want metav1.ConditionStatus) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		var svc corev1.Service
		err := s.API.Get(ctx, types.NamespacedName{Namespace: "default", Name: service}, &svc)
		if c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAnnounced); err == nil && c != nil && c.Status == want {
			return time.Now(), nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("the condition of Service %s does not become %s: %w", service, want, errors.Join(ctx.Err(), err))
		case <-time.After(conditionPollInterval):
		}
	}
}

// setRouterSessionsUp ends the router's sessions with both nodes, or allows them again.
func setRouterSessionsUp(ctx context.Context, tor *lab.Router, up bool) error {
	no := ""
	if up {
		no = "no "
	}
	return tor.ChangeRunningConfig(ctx, fmt.Sprintf("router bgp 65000\n %sneighbor 192.168.0.11 shutdown\n %sneighbor 192.168.0.12 shutdown\n", no, no))
}

// labelNodesForLayer2 gives the nodes the label that the L2Advertisement selects, or removes it.
func labelNodesForLayer2(ctx context.Context, s *cluster.Cluster, labelled bool) error {
	value := "null"
	if labelled {
		value = `"holder"`
	}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{"bench":%s}}}`, value))
	for _, node := range []string{"node1", "node2"} {
		if err := s.API.Patch(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, patch); err != nil {
			return err
		}
	}
	return nil
}

// measureOwnStatusWrites writes a condition of a Service of another class several times, and
// returns how long it took until a read showed it.
func measureOwnStatusWrites(ctx context.Context, s *cluster.Cluster) ([]time.Duration, error) {
	svc := cluster.NewService("default", "baseline", baselineLoadBalancerClass)
	if err := s.API.Create(ctx, svc); err != nil {
		return nil, err
	}
	var took []time.Duration
	for i := range conditionChangeCount {
		want := []metav1.ConditionStatus{metav1.ConditionTrue, metav1.ConditionFalse}[i%2]
		begun := time.Now()
		meta.SetStatusCondition(&svc.Status.Conditions, metav1.Condition{Type: names.ConditionAnnounced, Status: want, Reason: "Baseline"})
		if err := s.API.Status().Update(ctx, svc); err != nil {
			return nil, err
		}
		seen, err := awaitAnnouncedStatus(ctx, s, "baseline", want)
		if err != nil {
			return nil, err
		}
		took = append(took, seen.Sub(begun))
	}
	return took, nil
}
