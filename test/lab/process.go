package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// process is a program of the control plane or of a node, inside a namespace.
type process struct {
	name        string // "kube-apiserver", "node1/kube-proxy"
	logPath     string
	cmd         *exec.Cmd
	endedSignal chan struct{} // closed when it has ended
	exitError   error
}

// processes are all programs that were started, by name.
type processes struct {
	mu            sync.Mutex
	processByName map[string]*process
}

// startProgram starts a program inside a namespace, with its output in a log file.
func (ps *processes) startProgram(ns netns.Path, logDir, name, path string, args ...string) (*process, error) {
	p := &process{name: name, logPath: filepath.Join(logDir, filepath.Base(filepath.Dir("/"+name))+"-"+filepath.Base(name)+".log"), endedSignal: make(chan struct{})}
	out, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer out.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.RunInside(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.exitError = p.cmd.Wait()
		close(p.endedSignal)
	}()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.processByName == nil {
		ps.processByName = map[string]*process{}
	}
	ps.processByName[name] = p
	return p, nil
}

// sendSignal sends a signal to the program of that name.
func (ps *processes) sendSignal(name string, s syscall.Signal) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.processByName[name]
	if p == nil {
		return fmt.Errorf("no program %q is running in this lab", name)
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, s); err != nil {
		return fmt.Errorf("signalling %s: %w", name, err)
	}
	return nil
}

// findByName returns the program of that name.
func (ps *processes) findByName(name string) *process {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.processByName[name]
}

// retryUntilNoErrorOrProcessEnds calls check until it succeeds, the program ends or ctx ends. The
// error has the end of the log.
func (p *process) retryUntilNoErrorOrProcessEnds(ctx context.Context, check func(context.Context) error) error {
	var last error
	for {
		if last = check(ctx); last == nil {
			return nil
		}
		select {
		case <-p.endedSignal:
			last = fmt.Errorf("it ended: %w", p.exitError)
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
			continue
		}
		text, _ := os.ReadFile(p.logPath)
		return fmt.Errorf("waiting for %s: %w; the end of %s:\n%s", p.name, last, p.logPath, lastLines(string(text), 15))
	}
}
