package announcedcondition

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/gantry-lb/gantry/api/names"
)

// A living speaker writes that another one is dead. If all are dead, nobody does: then the Pods of
// the speakers tell it, and what the speakers wrote last means nothing any more.

// allSpeakersUnreadyTimeout is how long no Pod of a speaker may be ready: a container that fails is
// started again within a second or two.
const allSpeakersUnreadyTimeout = 5 * time.Second

// SpeakerPodLabels select the Pods of the speakers.
func SpeakerPodLabels() map[string]string {
	return map[string]string{names.LabelAppName: names.AppName, names.LabelComponent: names.ComponentSpeaker}
}

// CompactPod reduces the Pod of a speaker in the cache to whether it is ready.
func CompactPod(o any) (any, error) {
	if p, ok := o.(*corev1.Pod); ok {
		p.ObjectMeta = metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, Labels: p.Labels, CreationTimestamp: p.CreationTimestamp}
		p.Spec = corev1.PodSpec{}
		p.Status = corev1.PodStatus{Conditions: slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type != corev1.PodReady })}
	}
	return o, nil
}

// allSpeakersAbsence says whether anybody can tell what is announced.
type allSpeakersAbsence struct {
	// Explanation is set while no Pod of a speaker is ready.
	names.Explanation
	// hasNoPods means that there are no such Pods. Then the reports vanished with them, or the
	// speakers run outside of Pods.
	hasNoPods bool
	// lookAgainDelay is when to ask again, if no Pod has been ready for less than
	// allSpeakersUnreadyTimeout; otherwise 0.
	lookAgainDelay time.Duration
}

// readAllSpeakersAbsence reads whether a speaker is ready.
func readAllSpeakersAbsence(ctx context.Context, r client.Reader, namespace string, now time.Time) allSpeakersAbsence {
	var pods corev1.PodList
	err := r.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels(SpeakerPodLabels()))
	if err != nil || len(pods.Items) == 0 {
		return allSpeakersAbsence{hasNoPods: err == nil}
	}
	var since time.Time
	for i := range pods.Items {
		isReady, changed := podReadinessAndSince(&pods.Items[i])
		if isReady {
			return allSpeakersAbsence{}
		}
		if changed.After(since) {
			since = changed
		}
	}
	if wait := allSpeakersUnreadyTimeout - now.Sub(since); wait > 0 {
		return allSpeakersAbsence{lookAgainDelay: min(wait, allSpeakersUnreadyTimeout)}
	}
	return allSpeakersAbsence{Explanation: names.NewExplanation(names.ReasonNoSpeaker, "no speaker runs on any node, so that nobody knows whether the addresses are still announced: look at the Pods of the DaemonSet gantry-speaker, and at the nodes")}
}

// HaveAllSpeakersJustStopped reports whether no Pod of a speaker is ready, and that for less time
// than a container needs that is started again. Then the condition of a Service still holds.
func HaveAllSpeakersJustStopped(ctx context.Context, r client.Reader, namespace string, now time.Time) bool {
	return readAllSpeakersAbsence(ctx, r, namespace, now).lookAgainDelay > 0
}

// podReadinessAndSince returns whether a Pod is ready, and since when.
func podReadinessAndSince(p *corev1.Pod) (isReady bool, since time.Time) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	return false, p.CreationTimestamp.Time
}

// speakerPodHandler looks at all Services when no Pod of a speaker is ready any more, and at those
// with a fault when one is ready again.
func (r *ConditionWriter) speakerPodHandler() handler.EventHandler {
	look := func(ctx context.Context, queue requestQueue) {
		r.enqueueUnannouncedServices(queue)
		if silence := r.announcementStateReader.readAllSpeakersAbsence(ctx); silence.lookAgainDelay > 0 {
			for _, k := range r.allLoadBalancerServices(ctx) {
				queue.AddAfter(ctrl.Request{NamespacedName: k}, silence.lookAgainDelay)
			}
		}
	}
	return handler.Funcs{
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q requestQueue) {
			before, ok1 := e.ObjectOld.(*corev1.Pod)
			after, ok2 := e.ObjectNew.(*corev1.Pod)
			if !ok1 || !ok2 {
				return
			}
			was, _ := podReadinessAndSince(before)
			if is, _ := podReadinessAndSince(after); is != was {
				look(ctx, q)
			}
		},
		DeleteFunc: func(ctx context.Context, _ event.DeleteEvent, q requestQueue) { look(ctx, q) },
	}
}
