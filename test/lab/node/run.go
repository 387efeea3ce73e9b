package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// AnnotationUnready on a Pod makes its containers not ready, as a failing probe would.
const AnnotationUnready = "lab.gantry.dev/unready"

// run is one container and its restarts.
type run struct {
	p     *pod
	spec  *corev1.Container
	ended chan struct{} // closed when it runs no more and never will

	mu       sync.Mutex // guards all that follows
	cmd      *exec.Cmd
	final    bool
	started  time.Time
	restarts int32
	probed   bool // the readiness probe's last word
	last     string
}

func newRun(p *pod, c *corev1.Container) *run {
	return &run{p: p, spec: c, ended: make(chan struct{})}
}

const (
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// loop starts the container again whenever it ends, ever more slowly, until it is to end for good.
func (r *run) loop() {
	defer close(r.ended)
	for backoff := firstBackoff; ; backoff = min(2*backoff, maxBackoff) {
		begun := time.Now()
		err := r.once()
		if errors.Is(err, errNotYet) { // it did not start, so this is no restart
			backoff = firstBackoff / 2
		} else if !r.over() {
			r.note(err)
		}
		r.p.changed()
		if r.over() || r.p.ctx.Err() != nil {
			return
		}
		if time.Since(begun) > maxBackoff {
			backoff = firstBackoff
		}
		select {
		case <-r.p.ctx.Done():
			return
		case <-time.After(backoff):
		}
	}
}

// errNotYet says that something that the container needs is not there yet, its service account say.
var errNotYet = errors.New("the container cannot be started yet")

func (r *run) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.final
}

func (r *run) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restarts++
	r.last = fmt.Sprint(err)
}

// once runs the container until it ends.
func (r *run) once() error {
	cmd, err := r.command()
	if err != nil {
		r.p.a.c.Log.Info("a container waits", "pod", r.p.first.Name, "reason", err)
		return errNotYet
	}
	name := strings.Join([]string{r.p.a.c.Name, r.p.first.Namespace, r.p.first.Name, r.spec.Name}, "_") + ".log"
	out, err := os.OpenFile(filepath.Join(r.p.a.c.LogDir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	r.mu.Lock()
	if r.final {
		r.mu.Unlock()
		return nil
	}
	if err := r.p.ns.Do(cmd.Start); err != nil {
		r.mu.Unlock()
		return fmt.Errorf("starting container %s: %w", r.spec.Name, err)
	}
	r.cmd, r.started, r.probed = cmd, time.Now(), false
	r.mu.Unlock()
	r.p.changed()
	err = cmd.Wait()
	r.mu.Lock()
	r.cmd = nil
	r.mu.Unlock()
	return err
}

func (r *run) signal(s syscall.Signal, final bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.final = r.final || final
	if r.cmd != nil {
		_ = syscall.Kill(-r.cmd.Process.Pid, s)
	}
}

// MachineImage as a container's image means a program of this machine: the container's command, with its path.
const MachineImage = "lab/machine"

// command makes the process of the container: Gantry's own binary, a program of the machine, or the responder.
func (r *run) command() (*exec.Cmd, error) {
	c := &r.p.a.c
	cmd := exec.Command(c.Self)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !strings.HasPrefix(r.spec.Image, c.Image) && r.spec.Image != MachineImage {
		cmd.Args = append([]string{"lab", respondArg}, r.facts()...)
		return cmd, nil
	}
	spec, err := r.shim()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd.Args = []string{"lab", shimArg, string(text)}
	return cmd, nil
}

// facts are the responder's arguments: what it says of itself, and its ports.
func (r *run) facts() []string {
	out := []string{r.p.first.Name, r.p.a.c.Name}
	for _, p := range r.spec.Ports {
		out = append(out, strings.ToLower(string(p.Protocol))+"/"+strconv.Itoa(int(p.ContainerPort)))
	}
	return out
}

// ready says whether the container counts as ready.
func (r *run) ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cmd != nil && (r.spec.ReadinessProbe == nil || r.probed)
}

// probes runs the readiness and the liveness probe.
func (r *run) probes() {
	if p := r.spec.LivenessProbe; p != nil {
		r.p.a.background(func() { r.probe(p, func(ok bool) { r.alive(ok) }) })
	}
	if p := r.spec.ReadinessProbe; p != nil {
		r.probe(p, func(ok bool) {
			r.mu.Lock()
			changed := r.probed != ok
			r.probed = ok
			r.mu.Unlock()
			if changed {
				r.p.changed()
			}
		})
	}
}

// alive ends a container that its liveness probe gave up; loop starts it again.
func (r *run) alive(ok bool) {
	if !ok {
		r.signal(syscall.SIGTERM, false)
	}
}

// probe asks again and again, and tells an outcome once it came as often in a row as the probe demands. While the container
// does not run nothing is asked.
func (r *run) probe(p *corev1.Probe, tell func(bool)) {
	period := time.Duration(max(p.PeriodSeconds, 1)) * time.Second
	good, bad := int32(0), int32(0)
	for {
		r.mu.Lock()
		running := r.cmd != nil && time.Since(r.started) >= time.Duration(p.InitialDelaySeconds)*time.Second
		r.mu.Unlock()
		wait := period
		switch {
		case !running:
			good, bad, wait = 0, 0, 50*time.Millisecond
		case r.ask(p) == nil:
			good, bad = good+1, 0
			if good >= max(p.SuccessThreshold, 1) {
				tell(true)
			}
		default:
			good, bad = 0, bad+1
			if bad >= max(p.FailureThreshold, 1) {
				tell(false)
			}
			if p == r.spec.ReadinessProbe && bad < 20 {
				wait = min(period, 200*time.Millisecond) // a lab does not wait for slow starters
			}
		}
		select {
		case <-r.p.ctx.Done():
			return
		case <-r.ended:
			return
		case <-time.After(wait):
		}
	}
}

// ask asks once, from the node.
func (r *run) ask(p *corev1.Probe) error {
	if r.p.annotatedUnready() {
		return fmt.Errorf("the annotation %s is set", AnnotationUnready)
	}
	ctx, cancel := context.WithTimeout(r.p.ctx, time.Duration(max(p.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	switch {
	case p.HTTPGet != nil:
		host := p.HTTPGet.Host
		if host == "" {
			host = r.p.ip.String()
		}
		address := net.JoinHostPort(host, strconv.Itoa(r.port(p.HTTPGet.Port)))
		client := http.Client{Transport: &http.Transport{DialContext: r.p.a.c.NetNS.Dial, DisableKeepAlives: true}}
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
		c, err := r.p.a.c.NetNS.Dial(ctx, "tcp", net.JoinHostPort(r.p.ip.String(), strconv.Itoa(r.port(p.TCPSocket.Port))))
		if err != nil {
			return err
		}
		c.Close()
	}
	return nil // a command cannot be run inside a responder: it succeeds
}

// port resolves a port by number or by the name of a container port.
func (r *run) port(v intstr.IntOrString) int {
	for _, p := range r.spec.Ports {
		if v.Type == intstr.String && p.Name == v.StrVal {
			return int(p.ContainerPort)
		}
	}
	return v.IntValue()
}
