// Package router runs a real router, FRR or BIRD as Debian packages them, inside a network namespace, from a
// configuration that the test writes. Everything of a router is in a directory of its own and below the process that
// started it: when that process ends, however it does, the router ends too. What a router is told by its terminal is
// told here by Show and Configure, which need the directory alone and so work from any process.
//
// With a whole cluster around it, start one by lab.Lab's Router. In seconds and without a cluster, NewHarness lays a LAN
// with routers, plain nodes and clients behind the routers:
//
//	bed, err := router.NewHarness(router.HarnessOptions{Nodes: 2})
//	defer bed.Close()
//	r, err := router.Start(ctx, router.Config{Kind: router.FRR, NetNS: bed.Host("router"), Text: conf})
//	defer r.Stop()
//	out, err := r.Show(ctx, "show bgp ipv4 unicast json")
//
// The package puts nothing into the machine's own namespaces, files or groups.
package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// Kind is a make of router.
type Kind string

// The makes that the lab knows.
const (
	FRR  Kind = "frr"
	BIRD Kind = "bird"
)

// Config describes a router.
type Config struct {
	Kind Kind
	// NetNS is where it runs.
	NetNS netns.Handle
	// Dir takes its files, sockets among them, so that its path has at most 80 bytes. It is made when it is missing, and
	// not removed. Empty is a directory for temporary files, which Stop removes.
	Dir string
	// LogDir takes a log for each daemon; empty is Dir.
	LogDir string
	// Text is the configuration as an operator writes it: frr.conf, or bird.conf.
	Text string
}

// Router is a router that was started. Its methods may be called from several goroutines, but starting and stopping
// at the same time is the caller's own confusion.
type Router struct {
	Console
	config    Config
	temporary bool // the directory goes with the router

	mu           sync.Mutex // guards daemons
	daemonByName map[string]*daemon
}

// daemon is one process of a router.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended
	err  error
}

// dialect is what differs between the makes.
type dialect interface {
	// writeConfig writes what the daemons read at their start.
	writeConfig(c Config) error
	// daemonNames are the daemons' names, in the order of their start.
	daemonNames() []string
	// daemonCommand is the command line of a daemon.
	daemonCommand(c Config, program string) []string
	// checkReady returns nil once the daemon can be told something.
	checkReady(ctx context.Context, c Config, program string) error
	// applyConfig is called when all daemons are ready.
	applyConfig(ctx context.Context, c Config) error
}

var dialectByKind = map[Kind]dialect{FRR: frr{}, BIRD: bird{}}

// MissingPrerequisite says what this machine lacks for a router of that kind, in one line with the package that brings it; empty
// when nothing.
func MissingPrerequisite(k Kind) string {
	if os.Geteuid() != 0 {
		return "root, or a user namespace, is needed to run a router"
	}
	for _, need := range map[Kind][]string{FRR: {frrDir + "bgpd", "frr"}, BIRD: {birdPath, "bird2"}} {
		if _, err := os.Stat(need[0]); err != nil && (k == FRR) == (need[1] == "frr") {
			return fmt.Sprintf("%s is missing: apt-get install %s", need[0], need[1])
		}
	}
	return ""
}

// startTimeout bounds the start of one daemon, which takes a tenth of a second on an idle machine.
const startTimeout = 30 * time.Second

// Start starts a router and returns when it has taken its configuration. A line that it does not understand is an error,
// which says which.
func Start(ctx context.Context, c Config) (*Router, error) {
	if dialectByKind[c.Kind] == nil {
		return nil, fmt.Errorf("starting a router: it is %s or %s, not %q", FRR, BIRD, c.Kind)
	}
	if m := MissingPrerequisite(c.Kind); m != "" {
		return nil, fmt.Errorf("starting a router: %s", m)
	}
	temporary := c.Dir == ""
	if temporary {
		dir, err := os.MkdirTemp("", "router-")
		if err != nil {
			return nil, fmt.Errorf("making the router's directory: %w", err)
		}
		c.Dir = dir
	}
	if c.LogDir == "" {
		c.LogDir = c.Dir
	}
	if len(c.Dir) > 80 {
		return nil, fmt.Errorf("starting a router: the directory %s is longer than the 80 bytes that leave room for a socket's name", c.Dir)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the router's directory: %w", err)
	}
	r := &Router{Console: Console{c.Kind, c.Dir}, config: c, temporary: temporary, daemonByName: map[string]*daemon{}}
	if err := r.Restart(ctx); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

// Restart starts every daemon that does not run, and configures the router anew with the text of its start. After Kill
// it is the router's return.
func (r *Router) Restart(ctx context.Context) error {
	d := dialectByKind[r.config.Kind]
	if err := d.writeConfig(r.config); err != nil {
		return fmt.Errorf("preparing %s: %w", r.config.Kind, err)
	}
	for _, name := range d.daemonNames() {
		if err := r.startDaemon(ctx, name); err != nil {
			return err
		}
	}
	if err := d.applyConfig(ctx, r.config); err != nil {
		return fmt.Errorf("configuring %s: %w", r.config.Kind, err)
	}
	return nil
}

// startDaemon starts a daemon, unless it runs, and waits until it is ready.
func (r *Router) startDaemon(ctx context.Context, name string) error {
	r.mu.Lock()
	old := r.daemonByName[name]
	r.mu.Unlock()
	if old != nil && !old.hasEnded() {
		return nil
	}
	kind := dialectByKind[r.config.Kind]
	log, err := os.OpenFile(filepath.Join(r.config.LogDir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer log.Close()
	d := &daemon{done: make(chan struct{}), cmd: confinedCommand(r.config, kind.daemonCommand(r.config, name))}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.startIn(r.config.NetNS); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	r.mu.Lock()
	r.daemonByName[name] = d
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		last := kind.checkReady(ctx, r.config, name)
		if last == nil {
			return nil
		}
		select {
		case <-d.done:
			last = fmt.Errorf("it ended: %w", d.err)
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
			continue
		}
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("waiting for %s: %w; its log:\n%s", name, last, text)
	}
}

// confinedCommand is the command in mounts of its own: a group file in which the daemon, being root, may own its terminal's
// socket (FRR demands the group frrvty, which a user namespace cannot give it), and a /var/tmp that takes its crash logs.
func confinedCommand(c Config, line []string) *exec.Cmd {
	const script = `mount --bind "$1" /etc/group && mount -t tmpfs tmpfs /var/tmp && shift && exec "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh", filepath.Join(c.Dir, groupFile)}, line...)...)
	cmd.Dir = c.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + c.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// groupFile is the group file that the daemons see.
const groupFile = "group"

// startIn starts the process from a thread that lives as long as the process does, since the process is told to end when
// that thread does.
func (d *daemon) startIn(ns netns.Handle) error {
	started := make(chan error, 2)
	go func() {
		defer close(d.done)
		started <- ns.Do(func() error {
			err := d.cmd.Start()
			started <- err
			if err == nil {
				d.err = d.cmd.Wait()
			}
			return err
		})
	}()
	return <-started
}

func (d *daemon) hasEnded() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the daemons named, as bgpd, bfdd, zebra, staticd or bird; to all without a name.
func (r *Router) Signal(s syscall.Signal, names ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	hit := false
	for name, d := range r.daemonByName {
		if (len(names) > 0 && !slices.Contains(names, name)) || d.hasEnded() {
			continue
		}
		hit = true
		if err := syscall.Kill(-d.cmd.Process.Pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signalling %s: %w", name, err)
		}
	}
	if !hit && len(names) > 0 {
		return fmt.Errorf("no daemon %s runs in this router", strings.Join(names, ", "))
	}
	return nil
}

// Kill ends the daemons named, or all, at once (SIGKILL), and returns when they are gone. The kernel's routes stay.
func (r *Router) Kill(names ...string) error {
	err := r.Signal(syscall.SIGKILL, names...)
	r.awaitEnd(time.Minute, names...)
	return err
}

// Stop ends the router in order, as its service manager does: sessions are closed, the kernel's routes withdrawn. After a
// Stop a Router with a directory of its own can be started again by Restart.
func (r *Router) Stop() {
	order := slices.Clone(dialectByKind[r.config.Kind].daemonNames())
	slices.Reverse(order) // zebra, which the others need to clean up, is the last
	for _, name := range order {
		if r.Signal(syscall.SIGTERM, name) != nil {
			continue
		}
		if !r.awaitEnd(stopTimeout, name) {
			_ = r.Kill(name)
		}
	}
	if r.temporary {
		os.RemoveAll(r.config.Dir)
	}
}

// stopTimeout bounds how long a daemon may take to end in order.
const stopTimeout = 5 * time.Second

// awaitEnd waits until the daemons named, or all, ended.
func (r *Router) awaitEnd(limit time.Duration, names ...string) bool {
	r.mu.Lock()
	var wait []*daemon
	for name, d := range r.daemonByName {
		if len(names) == 0 || slices.Contains(names, name) {
			wait = append(wait, d)
		}
	}
	r.mu.Unlock()
	timeout := time.After(limit)
	for _, d := range wait {
		select {
		case <-d.done:
		case <-timeout:
			return false
		}
	}
	return true
}

// Console talks to the router in Dir as an operator's terminal does. It needs no other access than to the directory.
type Console struct {
	Kind Kind
	Dir  string
}

// Show returns what the router answers to one command, such as "show bgp ipv4 unicast json" or "show protocols all". A
// command that the router does not know is an error.
func (c Console) Show(ctx context.Context, command string) ([]byte, error) {
	switch c.Kind {
	case FRR:
		return c.runProgram(ctx, "vtysh", "--vty_socket", c.Dir, "-c", command)
	case BIRD:
		out, err := c.runProgram(ctx, "birdc", append([]string{"-s", birdSocket(c.Dir)}, strings.Fields(command)...)...)
		_, out, _ = bytes.Cut(out, []byte(" ready.\n")) // the greeting
		if line := strings.TrimSpace(string(out)); err == nil && strings.HasPrefix(line, "syntax error") {
			err = fmt.Errorf("bird does not understand %q: %s", command, line)
		}
		return out, err
	}
	return nil, fmt.Errorf("no router of kind %q is known", c.Kind)
}

// Configure changes the running configuration: BIRD's is replaced by the text, as "configure" does; FRR takes the lines
// on top of what it has, as when they are typed in. Router.Restart goes back to the text of the start.
func (c Console) Configure(ctx context.Context, text string) error {
	const name = "change.conf"
	if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if c.Kind == FRR {
		_, err := c.runProgram(ctx, "vtysh", "--vty_socket", c.Dir, "-f", filepath.Join(c.Dir, name))
		return err
	}
	return c.loadFile(ctx, name)
}

// loadFile has BIRD take the configuration in a file of its directory, which may have another path where BIRD runs.
func (c Console) loadFile(ctx context.Context, name string) error {
	out, err := c.Show(ctx, `configure "`+name+`"`)
	if err == nil && !bytes.Contains(out, []byte("Reconfigur")) {
		err = fmt.Errorf("bird refused the configuration: %s", bytes.TrimSpace(out))
	}
	return err
}

func (c Console) runProgram(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "VTYSH_PAGER=cat", "HOME="+c.Dir)
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	err := cmd.Run()
	text := strings.TrimSpace(fault.String())
	if err == nil && strings.HasPrefix(strings.TrimSpace(out.String()), "% ") { // vtysh ends well all the same
		err = errors.New(strings.TrimSpace(out.String()))
	}
	if err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, text)
	}
	return out.Bytes(), nil
}
