// Package router runs a real router, FRR or BIRD as Debian packages them, inside a network
// namespace, with a configuration that the test writes. The files of a router are in a directory of
// its own. Its daemons are children of the process that started it: when that process ends, for
// whatever reason, they end too. RunShowCommand and ChangeRunningConfig replace the router's
// terminal. They need only the directory, so they work in any process.
//
// Lab.Router of package lab starts a router in a cluster. Without a cluster, and within seconds,
// NewRoutedLAN creates a LAN with routers, plain nodes and clients behind the routers:
//
//	lan, err := router.NewRoutedLAN(router.RoutedLANOptions{Nodes: 2})
//	defer lan.DeleteNamespaces()
//	netNS := lan.NamespaceOfHost("router")
//	config := router.Config{Kind: router.FRR, NetNS: netNS, ConfigText: text}
//	r, err := router.Start(ctx, config)
//	defer r.StopDaemonsInOrder()
//	out, err := r.RunShowCommand(ctx, "show bgp ipv4 unicast json")
//
// The package changes nothing in the machine's own namespaces, files or groups.
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

// Kind is a routing software.
type Kind string

// The kinds that the lab can run.
const (
	FRR  Kind = "frr"
	BIRD Kind = "bird"
)

// Config describes a router.
type Config struct {
	Kind Kind
	// NetNS is the namespace that it runs in.
	NetNS netns.Path
	// Dir is the directory of its files. Its path has at most 80 bytes, because sockets are in it.
	// It is created if missing, and not removed. If Dir is empty, a temporary directory is used,
	// which StopDaemonsInOrder removes.
	Dir string
	// LogDir gets a log of each daemon; empty means Dir.
	LogDir string
	// ConfigText is the configuration as an operator writes it: frr.conf, or bird.conf.
	ConfigText string
}

// Router is a router that was started. Several goroutines may call its methods, but must not start
// and stop it at the same time.
type Router struct {
	RouterConsole
	config           Config
	removesDirOnStop bool // StopDaemonsInOrder removes the directory

	mu           sync.Mutex // guards daemons
	daemonByName map[string]*daemon
}

// daemon is one process of a router.
type daemon struct {
	cmd         *exec.Cmd
	endedSignal chan struct{} // closed when it has ended
	exitError   error
}

// routingSoftware is what differs between the kinds of routers.
type routingSoftware interface {
	// writeConfig writes the files that the daemons read at their start.
	writeConfig(c Config) error
	// daemonNames returns the names of the daemons, in the order of their start.
	daemonNames() []string
	// daemonCommand returns the command line of a daemon.
	daemonCommand(c Config, program string) []string
	// checkDaemonReady returns nil once the daemon accepts commands.
	checkDaemonReady(ctx context.Context, c Config, program string) error
	// loadRouterConfig loads the configuration. All daemons are ready when it is called.
	loadRouterConfig(ctx context.Context, c Config) error
}

var routingSoftwareByKind = map[Kind]routingSoftware{FRR: frrRoutingSoftware{}, BIRD: birdRoutingSoftware{}}

// DescribeMissingPrerequisite returns one line that says what this machine lacks to run a router of
// this kind and which package provides it. It returns "" if nothing is missing.
func DescribeMissingPrerequisite(k Kind) string {
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

// daemonStartTimeout limits the start of one daemon, which takes 0.1 s on an idle machine.
const daemonStartTimeout = 90 * time.Second

// Start starts a router and returns when its configuration is in effect. A line that it does not
// understand is an error that names the line.
func Start(ctx context.Context, c Config) (*Router, error) {
	if routingSoftwareByKind[c.Kind] == nil {
		return nil, fmt.Errorf("starting a router: the kind is %s or %s, not %q", FRR, BIRD, c.Kind)
	}
	if m := DescribeMissingPrerequisite(c.Kind); m != "" {
		return nil, fmt.Errorf("starting a router: %s", m)
	}
	temporary := c.Dir == ""
	if temporary {
		dir, err := os.MkdirTemp("", "router-")
		if err != nil {
			return nil, fmt.Errorf("creating the router's directory: %w", err)
		}
		c.Dir = dir
	}
	if c.LogDir == "" {
		c.LogDir = c.Dir
	}
	if len(c.Dir) > 80 {
		return nil, fmt.Errorf("starting a router: the path of the directory %s is longer than 80 bytes, which leaves no room for a socket's name", c.Dir)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating the router's directory: %w", err)
	}
	r := &Router{RouterConsole: RouterConsole{c.Kind, c.Dir}, config: c, removesDirOnStop: temporary, daemonByName: map[string]*daemon{}}
	if err := r.StartEndedDaemons(ctx); err != nil {
		r.StopDaemonsInOrder()
		return nil, err
	}
	return r, nil
}

// StartEndedDaemons starts every daemon that is not running, and loads the configuration of Start
// again. Use it after KillDaemons.
func (r *Router) StartEndedDaemons(ctx context.Context) error {
	d := routingSoftwareByKind[r.config.Kind]
	if err := d.writeConfig(r.config); err != nil {
		return fmt.Errorf("preparing %s: %w", r.config.Kind, err)
	}
	for _, name := range d.daemonNames() {
		if err := r.startDaemon(ctx, name); err != nil {
			return err
		}
	}
	if err := d.loadRouterConfig(ctx, r.config); err != nil {
		return fmt.Errorf("configuring %s: %w", r.config.Kind, err)
	}
	return nil
}

// startDaemon starts a daemon, unless it is running, and waits until it is ready.
func (r *Router) startDaemon(ctx context.Context, name string) error {
	r.mu.Lock()
	old := r.daemonByName[name]
	r.mu.Unlock()
	if old != nil && !old.hasEnded() {
		return nil
	}
	kind := routingSoftwareByKind[r.config.Kind]
	log, err := os.OpenFile(filepath.Join(r.config.LogDir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer log.Close()
	d := &daemon{endedSignal: make(chan struct{}), cmd: commandWithPrivateMounts(r.config, kind.daemonCommand(r.config, name))}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.startInNamespace(r.config.NetNS); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	r.mu.Lock()
	r.daemonByName[name] = d
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, daemonStartTimeout)
	defer cancel()
	for {
		last := kind.checkDaemonReady(ctx, r.config, name)
		if last == nil {
			return nil
		}
		select {
		case <-d.endedSignal:
			last = fmt.Errorf("it ended: %w", d.exitError)
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
			continue
		}
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("waiting for %s: %w; its log:\n%s", name, last, text)
	}
}

// commandWithPrivateMounts returns the command with mounts of its own: a group file by which root
// is in the group frrvty, which FRR demands for its terminal's socket and which a user namespace
// does not have; and a /var/tmp for crash logs.
func commandWithPrivateMounts(c Config, line []string) *exec.Cmd {
	const script = `mount --bind "$1" /etc/group && mount -t tmpfs tmpfs /var/tmp && shift && exec "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh", filepath.Join(c.Dir, fakeGroupFileName)}, line...)...)
	cmd.Dir = c.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + c.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// fakeGroupFileName is the name of the group file that the daemons see.
const fakeGroupFileName = "group"

// startInNamespace starts the process from a thread that ends after it: the kernel kills the
// process when the thread that started it ends.
func (d *daemon) startInNamespace(ns netns.Path) error {
	started := make(chan error, 2)
	go func() {
		defer close(d.endedSignal)
		started <- ns.RunInside(func() error {
			err := d.cmd.Start()
			started <- err
			if err == nil {
				d.exitError = d.cmd.Wait()
			}
			return err
		})
	}()
	return <-started
}

func (d *daemon) hasEnded() bool {
	select {
	case <-d.endedSignal:
		return true
	default:
		return false
	}
}

// SignalDaemons sends a signal to the daemons with these names (bgpd, bfdd, zebra, staticd, bird),
// or to all if no name is given.
func (r *Router) SignalDaemons(s syscall.Signal, names ...string) error {
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
		return fmt.Errorf("no daemon %s is running in this router", strings.Join(names, ", "))
	}
	return nil
}

// KillDaemons sends SIGKILL to the daemons with these names, or to all, and returns when they have
// ended. The routes in the kernel stay.
func (r *Router) KillDaemons(names ...string) error {
	err := r.SignalDaemons(syscall.SIGKILL, names...)
	r.awaitDaemonsEnd(time.Minute, names...)
	return err
}

// StopDaemonsInOrder ends the router as its service manager does: it closes its sessions and
// removes its routes from the kernel. Restart can start it again if Config.Dir was set.
func (r *Router) StopDaemonsInOrder() {
	order := slices.Clone(routingSoftwareByKind[r.config.Kind].daemonNames())
	slices.Reverse(order) // zebra is the last, because the others need it to clean up
	for _, name := range order {
		if r.SignalDaemons(syscall.SIGTERM, name) != nil {
			continue
		}
		if !r.awaitDaemonsEnd(daemonStopTimeout, name) {
			_ = r.KillDaemons(name)
		}
	}
	if r.removesDirOnStop {
		os.RemoveAll(r.config.Dir)
	}
}

// daemonStopTimeout limits how long a daemon may take to end after SIGTERM.
const daemonStopTimeout = 20 * time.Second

// awaitDaemonsEnd waits until the daemons with these names, or all, have ended.
func (r *Router) awaitDaemonsEnd(limit time.Duration, names ...string) bool {
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
		case <-d.endedSignal:
		case <-timeout:
			return false
		}
	}
	return true
}

// RouterConsole gives commands to the router in Dir, as an operator's terminal does. It needs
// access to the directory only.
type RouterConsole struct {
	Kind Kind
	Dir  string
}

// RunShowCommand returns the router's answer to one command, such as "show bgp ipv4 unicast json"
// or "show protocols all". An unknown command is an error.
func (c RouterConsole) RunShowCommand(ctx context.Context, command string) ([]byte, error) {
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
	return nil, fmt.Errorf("%q is not a kind of router", c.Kind)
}

// ChangeRunningConfig changes the running configuration. In BIRD the text replaces it, as
// "configure" does. In FRR the lines are added to it, as if they were typed in. Router.Restart
// returns to the configuration of Start.
func (c RouterConsole) ChangeRunningConfig(ctx context.Context, text string) error {
	const name = "change.conf"
	if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if c.Kind == FRR {
		_, err := c.runProgram(ctx, "vtysh", "--vty_socket", c.Dir, "-f", filepath.Join(c.Dir, name))
		return err
	}
	return c.loadBIRDConfigFile(ctx, name)
}

// loadBIRDConfigFile makes BIRD load a file of its directory. The name is relative, because the
// directory may have another path in BIRD's mounts.
func (c RouterConsole) loadBIRDConfigFile(ctx context.Context, name string) error {
	out, err := c.RunShowCommand(ctx, `configure "`+name+`"`)
	if err == nil && !bytes.Contains(out, []byte("Reconfigur")) {
		err = fmt.Errorf("bird refused the configuration: %s", bytes.TrimSpace(out))
	}
	return err
}

func (c RouterConsole) runProgram(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "VTYSH_PAGER=cat", "HOME="+c.Dir)
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	err := cmd.Run()
	text := strings.TrimSpace(fault.String())
	// vtysh exits with status 0 all the same
	if err == nil && strings.HasPrefix(strings.TrimSpace(out.String()), "% ") {
		err = errors.New(strings.TrimSpace(out.String()))
	}
	if err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, text)
	}
	return out.Bytes(), nil
}
