package node

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func isNotFoundOrConflict(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err)
}

func (p *pod) isAnnotatedUnready() bool {
	return p.currentObject().Annotations[AnnotationUnready] == "true"
}

// writeStatus reports the Pod as it is.
func (p *pod) writeStatus(ctx context.Context) error {
	status := p.podStatus()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.firstObject.UID}, "status": status})
	if err != nil {
		return err
	}
	_, err = p.agent.client.CoreV1().Pods(p.firstObject.Namespace).Patch(ctx, p.firstObject.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !isNotFoundOrConflict(err) {
		return fmt.Errorf("writing the status of Pod %s/%s: %w", p.firstObject.Namespace, p.firstObject.Name, err)
	}
	return nil
}

// podStatus builds the Pod's status.
func (p *pod) podStatus() corev1.PodStatus {
	o := p.currentObject()
	s := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: p.primaryIP.String(), HostIP: p.agent.config.Addresses[0].String()}
	for _, ip := range p.podIPs {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	for _, ip := range p.agent.config.Addresses {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip.String()})
	}
	start := metav1.NewTime(o.CreationTimestamp.Time)
	s.StartTime = &start
	ready := o.Annotations[AnnotationUnready] != "true"
	for _, r := range p.containers {
		c := r.containerStatus()
		ready = ready && c.Ready
		s.ContainerStatuses = append(s.ContainerStatuses, c)
	}
	s.Conditions = podConditions(o.Status.Conditions, map[corev1.PodConditionType]bool{
		corev1.PodReadyToStartContainers: true, corev1.PodInitialized: true, corev1.PodScheduled: true,
		corev1.ContainersReady: ready, corev1.PodReady: ready,
	})
	return s
}

// podConditions returns the conditions in a fixed order. The time of the last transition changes
// only with the status.
func podConditions(old []corev1.PodCondition, want map[corev1.PodConditionType]bool) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, t := range []corev1.PodConditionType{
		corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	} {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}
		if want[t] {
			c.Status = corev1.ConditionTrue
		}
		for _, o := range old {
			if o.Type == t && o.Status == c.Status {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
		out = append(out, c)
	}
	return out
}

// containerStatus builds the container's status.
func (r *podContainer) containerStatus() corev1.ContainerStatus {
	ready := r.isReady()
	r.mu.Lock()
	defer r.mu.Unlock()
	running := r.runningCommand != nil
	c := corev1.ContainerStatus{
		Name: r.containerManifest.Name, Image: r.containerManifest.Image, ImageID: "lab://" + r.containerManifest.Image, Ready: ready, Started: &running, RestartCount: r.restarts,
	}
	if running {
		c.ContainerID = fmt.Sprintf("lab://%d", r.runningCommand.Process.Pid)
		c.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(r.startedAt.Truncate(time.Second))}
		return c
	}
	c.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
	if r.restarts > 0 {
		c.State.Waiting.Reason, c.State.Waiting.Message = "CrashLoopBackOff", r.lastError
	}
	return c
}
