package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// AnnotationUnready on a Pod makes its containers unready, as a failing probe would.
const AnnotationUnready = "lab.gantry.dev/unready"

// AnnotationShutdownDelay on a Pod says how long its responders still answer after SIGTERM.
const AnnotationShutdownDelay = "lab.gantry.dev/shutdown-delay"

// podContainer is a container of a Pod, with its restarts.
type podContainer struct {
	pod                *pod
	containerManifest  *corev1.Container
	endedForGoodSignal chan struct{} // closed when it has ended for good

	mu                      sync.Mutex // guards the fields below
	runningCommand          *exec.Cmd
	stoppedForGood          bool
	startedAt               time.Time
	restarts                int32
	readinessProbeSucceeded bool // the last result of the readiness probe
	lastError               string
}

func newContainer(p *pod, c *corev1.Container) *podContainer {
	return &podContainer{pod: p, containerManifest: c, endedForGoodSignal: make(chan struct{})}
}

const (
	minBackoffDelay = 500 * time.Millisecond
	maxBackoffDelay = 10 * time.Second
)

// runAndRestart runs the container and starts it again whenever it ends, with a growing delay,
// until it is stopped for good.
func (r *podContainer) runAndRestart() {
	defer close(r.endedForGoodSignal)
	for backoff := minBackoffDelay; ; backoff = min(2*backoff, maxBackoffDelay) {
		begun := time.Now()
		err := r.runUntilProcessEnds()
		// it did not start, so this is no restart
		if errors.Is(err, errContainerPrerequisiteMissing) {
			backoff = minBackoffDelay / 2
		} else if !r.isStoppedForGood() {
			r.recordRestart(err)
		}
		r.pod.requestStatusUpdate()
		if r.isStoppedForGood() || r.pod.ctx.Err() != nil {
			return
		}
		if time.Since(begun) > maxBackoffDelay {
			backoff = minBackoffDelay
		}
		select {
		case <-r.pod.ctx.Done():
			return
		case <-time.After(backoff):
		}
	}
}

// errContainerPrerequisiteMissing means that something is missing that the container needs, for
// example its service account.
var errContainerPrerequisiteMissing = errors.New("the container cannot be started yet")

func (r *podContainer) isStoppedForGood() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stoppedForGood
}

func (r *podContainer) recordRestart(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restarts++
	r.lastError = fmt.Sprint(err)
}

// runUntilProcessEnds runs the container until it ends.
func (r *podContainer) runUntilProcessEnds() error {
	cmd, err := r.buildCommand()
	if err != nil {
		r.pod.agent.config.Log.Info("a container cannot be started yet", "pod", r.pod.firstObject.Name, "reason", err)
		return errContainerPrerequisiteMissing
	}
	name := strings.Join([]string{r.pod.agent.config.Name, r.pod.firstObject.Namespace, r.pod.firstObject.Name, r.containerManifest.Name}, "_") + ".log"
	out, err := os.OpenFile(filepath.Join(r.pod.agent.config.LogDir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	r.mu.Lock()
	if r.stoppedForGood {
		r.mu.Unlock()
		return nil
	}
	if err := r.pod.networkNamespace.RunInside(cmd.Start); err != nil {
		r.mu.Unlock()
		return fmt.Errorf("starting container %s: %w", r.containerManifest.Name, err)
	}
	r.runningCommand, r.startedAt, r.readinessProbeSucceeded = cmd, time.Now(), false
	r.mu.Unlock()
	r.pod.requestStatusUpdate()
	err = cmd.Wait()
	r.mu.Lock()
	r.runningCommand = nil
	r.mu.Unlock()
	return err
}

func (r *podContainer) sendSignal(s syscall.Signal, final bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stoppedForGood = r.stoppedForGood || final
	if r.runningCommand != nil {
		_ = syscall.Kill(-r.runningCommand.Process.Pid, s)
	}
}

// ImageRunningMachineProgram is the image of a container that runs a program of this machine. The
// container's command is the path of the program.
const ImageRunningMachineProgram = "lab/machine"

// runsGantryImage says whether the container's image is Gantry's, in whatever registry.
func (r *podContainer) runsGantryImage() bool {
	name, _, _ := strings.Cut(path.Base(r.containerManifest.Image), "@")
	name, _, _ = strings.Cut(name, ":")
	return name == r.pod.agent.config.GantryImageName
}

// buildCommand returns the command of the container: Gantry's own binary, a program of the machine,
// or the responder.
func (r *podContainer) buildCommand() (*exec.Cmd, error) {
	c := &r.pod.agent.config
	cmd := exec.Command(c.SelfPath)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !r.runsGantryImage() && r.containerManifest.Image != ImageRunningMachineProgram {
		cmd.Args = append([]string{"lab", podPortResponderArg}, r.podPortResponderArguments()...)
		return cmd, nil
	}
	spec, err := r.buildProcessSpec()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd.Args = []string{"lab", containerArg, string(text)}
	return cmd, nil
}

// podPortResponderArguments returns the arguments of the responder: the names of the Pod and the
// node, which it answers, the delay of its shutdown, and its ports.
func (r *podContainer) podPortResponderArguments() []string {
	delay := cmp.Or(r.pod.firstObject.Annotations[AnnotationShutdownDelay], defaultShutdownDelay.String())
	out := []string{r.pod.firstObject.Name, r.pod.agent.config.Name, delay}
	for _, p := range r.containerManifest.Ports {
		out = append(out, strings.ToLower(string(p.Protocol))+"/"+strconv.Itoa(int(p.ContainerPort)))
	}
	return out
}

// isReady reports whether the container is ready.
func (r *podContainer) isReady() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runningCommand != nil && (r.containerManifest.ReadinessProbe == nil || r.readinessProbeSucceeded)
}

// runProbes runs the readiness probe and the liveness probe.
func (r *podContainer) runProbes() {
	if p := r.containerManifest.LivenessProbe; p != nil {
		r.pod.agent.runInBackground(func() { r.repeatProbeAndReportAtThreshold(p, func(ok bool) { r.endProcessIfLivenessFailed(ok) }) })
	}
	if p := r.containerManifest.ReadinessProbe; p != nil {
		r.repeatProbeAndReportAtThreshold(p, func(ok bool) {
			r.mu.Lock()
			changed := r.readinessProbeSucceeded != ok
			r.readinessProbeSucceeded = ok
			r.mu.Unlock()
			if changed {
				r.pod.requestStatusUpdate()
			}
		})
	}
}

// endProcessIfLivenessFailed ends a container whose liveness probe failed. runAndRestart starts it
// again.
func (r *podContainer) endProcessIfLivenessFailed(ok bool) {
	if !ok {
		r.sendSignal(syscall.SIGTERM, false)
	}
}

// repeatProbeAndReportAtThreshold runs a probe again and again, and calls report after as many
// equal results in a row as the probe demands. It pauses while the container is not running.
func (r *podContainer) repeatProbeAndReportAtThreshold(p *corev1.Probe, report func(bool)) {
	period := time.Duration(max(p.PeriodSeconds, 1)) * time.Second
	good, bad := int32(0), int32(0)
	for {
		r.mu.Lock()
		running := r.runningCommand != nil && time.Since(r.startedAt) >= time.Duration(p.InitialDelaySeconds)*time.Second
		r.mu.Unlock()
		wait := period
		switch {
		case !running:
			good, bad, wait = 0, 0, 50*time.Millisecond
		case r.probeOnce(p) == nil:
			good, bad = good+1, 0
			if good >= max(p.SuccessThreshold, 1) {
				report(true)
			}
		default:
			good, bad = 0, bad+1
			if bad >= max(p.FailureThreshold, 1) {
				report(false)
			}
			if p == r.containerManifest.ReadinessProbe && bad < 20 {
				// to notice soon when the container is ready
				wait = min(period, 200*time.Millisecond)
			}
		}
		select {
		case <-r.pod.ctx.Done():
			return
		case <-r.endedForGoodSignal:
			return
		case <-time.After(wait):
		}
	}
}

// probeOnce runs a probe once, from the node.
func (r *podContainer) probeOnce(p *corev1.Probe) error {
	if r.pod.isAnnotatedUnready() {
		return fmt.Errorf("the annotation %s is set", AnnotationUnready)
	}
	ctx, cancel := context.WithTimeout(r.pod.ctx, time.Duration(max(p.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	switch {
	case p.HTTPGet != nil:
		host := p.HTTPGet.Host
		if host == "" {
			host = r.pod.primaryIP.String()
		}
		address := net.JoinHostPort(host, strconv.Itoa(r.resolvePort(p.HTTPGet.Port)))
		client := http.Client{Transport: &http.Transport{DialContext: r.pod.agent.config.NetNS.Dial, DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+p.HTTPGet.Path, nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(req)
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode >= 400 {
			return fmt.Errorf("status %d", answer.StatusCode)
		}
	case p.TCPSocket != nil:
		c, err := r.pod.agent.config.NetNS.Dial(ctx, "tcp", net.JoinHostPort(r.pod.primaryIP.String(), strconv.Itoa(r.resolvePort(p.TCPSocket.Port))))
		if err != nil {
			return err
		}
		c.Close()
	}
	return nil // a command cannot run inside a responder, so it counts as a success
}

// resolvePort resolves a port by number or by the name of a container port.
func (r *podContainer) resolvePort(v intstr.IntOrString) int {
	for _, p := range r.containerManifest.Ports {
		if v.Type == intstr.String && p.Name == v.StrVal {
			return int(p.ContainerPort)
		}
	}
	return v.IntValue()
}
