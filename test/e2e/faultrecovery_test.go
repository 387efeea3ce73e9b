package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
)

// checkServiceHasNoFault returns what still says that a Service has a fault: a condition that is
// not True, or a Warning without a newer event.
func (h *faultTestCluster) checkServiceHasNoFault(ctx context.Context, service string) error {
	svc, err := h.GetService(ctx, "default", service)
	if err != nil {
		return err
	}
	for _, c := range svc.Status.Conditions {
		if c.Status != metav1.ConditionTrue {
			return fmt.Errorf("the condition %s is %s: %s: %s", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	text, err := h.RunKubectl(ctx, "", "get", "events", "-o", "json", "--field-selector", "involvedObject.kind=Service,involvedObject.name="+service)
	if err != nil {
		return err
	}
	var all corev1.EventList
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return err
	}
	newest := corev1.Event{}
	for _, e := range all.Items {
		if lastEventTime(&e).After(lastEventTime(&newest)) {
			newest = e
		}
	}
	if newest.Type != corev1.EventTypeNormal {
		return fmt.Errorf("the newest of %d events is %s %s: %s", len(all.Items), newest.Type, newest.Reason, newest.Message)
	}
	return nil
}

// lastEventTime returns when an event was last sent.
func lastEventTime(e *corev1.Event) time.Time {
	last := e.EventTime.Time
	if e.LastTimestamp.After(last) {
		last = e.LastTimestamp.Time
	}
	if e.Series != nil && e.Series.LastObservedTime.After(last) {
		last = e.Series.LastObservedTime.Time
	}
	return last
}

// decodeStatusConditions returns the conditions of an object, those of a configuration object
// included.
func decodeStatusConditions(o *unstructured.Unstructured) []metav1.Condition {
	var status struct {
		Conditions []metav1.Condition `json:"conditions"`
		Gantry     struct {
			Conditions []metav1.Condition `json:"conditions"`
		} `json:"gantry"`
	}
	text, _ := json.Marshal(o.Object["status"])
	_ = json.Unmarshal(text, &status) // an object without a status has none
	return append(status.Conditions, status.Gantry.Conditions...)
}

// listObjects returns the objects of a kind in Gantry's namespace.
func (h *faultTestCluster) listObjects(ctx context.Context, kind string) ([]unstructured.Unstructured, error) {
	text, err := h.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", kind, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list unstructured.UnstructuredList
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	return list.Items, nil
}

// readObjectCondition returns a condition of an object; nil if it is absent.
func (h *faultTestCluster) readObjectCondition(ctx context.Context, o *objectCondition) (*metav1.Condition, error) {
	all, err := h.listObjects(ctx, o.kind)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].GetName() == o.name {
			return meta.FindStatusCondition(decodeStatusConditions(&all[i]), o.condition), nil
		}
	}
	return nil, fmt.Errorf("there is no %s %s", o.kind, o.name)
}

// awaitObjectFault waits until the condition of the object is False and names the cause.
func (h *faultTestCluster) awaitObjectFault(ctx context.Context, o *objectCondition, reason names.Reason, text string) error {
	return cluster.AwaitNoError(ctx, "the condition "+o.condition+" of "+o.name, func(ctx context.Context) error {
		c, err := h.readObjectCondition(ctx, o)
		if err == nil && (c == nil || c.Status != metav1.ConditionFalse || c.Reason != string(reason) || !strings.Contains(c.Message, text)) {
			err = fmt.Errorf("it is %+v, want %s: %s", c, reason, text)
		}
		return err
	})
}

// awaitObjectRepaired waits until the condition of the object is not False any more.
func (h *faultTestCluster) awaitObjectRepaired(ctx context.Context, o *objectCondition) error {
	return cluster.AwaitNoError(ctx, "the end of the fault of "+o.name, func(ctx context.Context) error {
		c, err := h.readObjectCondition(ctx, o)
		if err == nil && c != nil && c.Status != metav1.ConditionTrue {
			err = fmt.Errorf("the condition is %+v", c)
		}
		return err
	})
}

// expectNoFaultLeft checks after all repairs that no condition of a speaker, a session or a
// configuration object is False, that no session has an error that lasts, and that the Services
// and their reports fit together.
func (h *faultTestCluster) expectNoFaultLeft(ctx context.Context, t *testing.T) {
	failOnError(t, cluster.AwaitNoError(ctx, "no condition that says that something is wrong", func(ctx context.Context) error {
		for _, kind := range []string{"speakerstatuses", "bgpsessions", "ipaddresspools", "l2advertisements", "bgpadvertisements", "bgppeers", "bfdprofiles", "addressreservations"} {
			all, err := h.listObjects(ctx, kind)
			if err != nil {
				return err
			}
			for i := range all {
				for _, c := range decodeStatusConditions(&all[i]) {
					if c.Status != metav1.ConditionTrue {
						return fmt.Errorf("%s %s has the condition %+v", kind, all[i].GetName(), c)
					}
				}
				lastError, _, _ := unstructured.NestedString(all[i].Object, "status", "lastError")
				isOver, _, _ := unstructured.NestedBool(all[i].Object, "status", "lastErrorIsOver")
				if lastError != "" && !isOver {
					return fmt.Errorf("%s %s has the error %q, which is not over", kind, all[i].GetName(), lastError)
				}
			}
		}
		return nil
	}))
}

// testStopOfAllSpeakersIsReported stops both speakers at once, so that none is left to say that the
// other one is dead. The Services say that nobody knows whether they are announced, and work when
// the speakers continue.
func (h *faultTestCluster) testStopOfAllSpeakersIsReported(ctx context.Context, t *testing.T) {
	signal := func(s syscall.Signal) {
		for _, node := range []string{"node1", "node2"} {
			failOnError(t, h.SignalProgramOrPod(ctx, node, "gantry-speaker", s))
		}
	}
	signal(syscall.SIGSTOP)
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	failOnError(t, cluster.AwaitNoError(ctx, "the kubelets to notice", func(ctx context.Context) error {
		ready, err := h.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "pods", "-l", names.LabelComponent+"="+names.ComponentSpeaker, "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if err == nil && ready != "False False" {
			err = fmt.Errorf("the Pods of the speakers are ready: %s", ready)
		}
		return err
	}))
	for _, service := range []string{"web", "routed"} {
		failOnError(t, awaitAnnouncedCondition(ctx, h.Cluster, service, "Unknown", names.ReasonNoSpeaker))
		failOnError(t, cluster.AwaitNoError(ctx, "the event that no speaker runs", func(ctx context.Context) error {
			text, err := h.kubectlDescribeService(ctx, service)
			if err == nil && !strings.Contains(text, "NoSpeaker: no speaker runs on any node") {
				err = fmt.Errorf("kubectl describe does not say so:\n%s", text)
			}
			return err
		}))
	}
	signal(syscall.SIGCONT)
	for _, service := range []string{"web", "routed"} {
		failOnError(t, h.awaitAnnounced(ctx, service))
		failOnError(t, cluster.AwaitNoError(ctx, "the end of all that says that no speaker runs", func(ctx context.Context) error { return h.checkServiceHasNoFault(ctx, service) }))
	}
}

// testWaitForControllerIsReported creates a Service while no controller runs. The Lease shows
// that, and the next leader says in the text of the Service how long it waited.
func (h *faultTestCluster) testWaitForControllerIsReported(ctx context.Context, t *testing.T) {
	scale := func(n string) func(context.Context) error {
		return h.kubectlFunc("-n", names.DefaultNamespace, "scale", "deployment", "gantry-controller", "--replicas="+n)
	}
	failOnError(t, scale("0")(ctx))
	failOnError(t, cluster.AwaitNoError(ctx, "the Lease without a holder", func(ctx context.Context) error {
		holder, err := h.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "lease", names.LeaderLease, "-o", "jsonpath={.spec.holderIdentity}")
		if err == nil && holder != "" {
			err = fmt.Errorf("it is held by %s", holder)
		}
		return err
	}))
	failOnError(t, h.ApplyManifests(ctx, serviceManifest("late", "", "")))
	created := time.Now()
	failOnError(t, cluster.AwaitNoError(ctx, "a wait that is worth a report", func(context.Context) error {
		if waited := time.Since(created); waited < 4*time.Second {
			return fmt.Errorf("the Service waits for %s", waited)
		}
		return nil
	}))
	failOnError(t, scale("2")(ctx))
	failOnError(t, cluster.AwaitNoError(ctx, "the text of the next leader", func(ctx context.Context) error {
		svc, err := h.GetService(ctx, "default", "late")
		if err != nil {
			return err
		}
		const want = ", since no controller led from "
		c := meta.FindStatusCondition(svc.Status.Conditions, names.ConditionAddressAssigned)
		text, err := h.kubectlDescribeService(ctx, "late")
		if err == nil && (c == nil || !strings.Contains(c.Message, want) || !strings.Contains(text, want)) {
			err = fmt.Errorf("the condition is %+v, and kubectl describe says:\n%s", c, text)
		}
		return err
	}))
	failOnError(t, h.awaitAnnounced(ctx, "late"))
}
