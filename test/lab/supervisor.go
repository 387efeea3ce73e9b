package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/node"
)

// supervisorArg as the first argument makes the program the supervisor of a lab.
const supervisorArg = "__supervisor"

// RunAsLabPartIfRequested turns the process into a part of a lab if its arguments say so. Every
// program that starts labs calls it before anything else, tests too.
func RunAsLabPartIfRequested() {
	node.RunAsContainerIfRequested()
	if len(os.Args) < 3 || os.Args[1] != supervisorArg {
		return
	}
	if err := runSupervisor(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// supervisor is process 1 of a lab. When it dies, for whatever reason, the kernel ends every
// process of the lab and removes its namespaces and mounts.
type supervisor struct {
	options         Options
	log             *slog.Logger
	programs        processes
	bridgeNamespace netns.Path
	hostByName      map[string]*host
	relay           apiServerRelay
	ctx             context.Context

	mu          sync.Mutex // guards agentByNode
	agentByNode map[string]*runningAgent

	routers    runningRouters
	cableMutex sync.Mutex // guards the cables of the hosts

	startedCaptureCount atomic.Int32 // how many were started
}

// runningAgent is the agent of a node that is up.
type runningAgent struct {
	agent       *node.Agent
	cancel      context.CancelFunc
	endedSignal chan struct{}
}

func runSupervisor(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		awaitParentPipeClosed(parentPipeFD)
		stop() // which ends ctx
	}()
	s := &supervisor{bridgeNamespace: "/proc/1/ns/net", hostByName: map[string]*host{}, agentByNode: map[string]*runningAgent{}, ctx: ctx}
	if err := json.Unmarshal([]byte(text), &s.options); err != nil {
		return fmt.Errorf("reading the options: %w", err)
	}
	defer s.killAllLabProcesses() // runs even if the program that started the lab was killed
	s.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	if err := isolateMounts(); err != nil {
		return err
	}
	go s.reapOrphans()
	if err := s.startLab(ctx); err != nil {
		return err
	}
	control, err := net.Listen("unix", filepath.Join(s.options.Dir, "control"))
	if err != nil {
		return fmt.Errorf("opening the control socket: %w", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(s.serveSupervisorRequest), ReadHeaderTimeout: processStopTimeout}
	go func() { _ = server.Serve(control) }()
	if err := os.WriteFile(filepath.Join(s.options.Dir, "ready"), nil, 0o644); err != nil {
		return err
	}
	if err := closeProgressOutput(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil // all other processes end with this one
}

// parentPipeFD is the file descriptor of the pipe that closes when the process that started the lab
// ends.
const parentPipeFD = 3

// awaitParentPipeClosed returns when the other end of the lifeline is closed.
func awaitParentPipeClosed(fd uintptr) {
	unix.CloseOnExec(int(fd))
	f := os.NewFile(fd, "lifeline")
	defer f.Close()
	_, _ = io.Copy(io.Discard, f)
}

// killAllLabProcesses kills every other process of the lab and waits for it. So no process writes
// into the directory while it is removed, and none is running afterwards.
func (s *supervisor) killAllLabProcesses() {
	// From process 1 the signal reaches every process of its namespace. It is repeated because an
	// agent may have started another process since.
	for deadline := time.Now().Add(processStopTimeout / 2); time.Now().Before(deadline) && unix.Kill(-1, unix.SIGKILL) == nil; {
		if n, _ := unix.Wait4(-1, nil, unix.WNOHANG, nil); n <= 0 {
			<-time.After(time.Millisecond)
		}
	}
	os.RemoveAll(s.options.Dir)
}

// closeProgressOutput closes the standard output, which tells the reader of the progress that no
// more follows.
func closeProgressOutput() error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return unix.Dup2(int(null.Fd()), 1)
}

// isolateMounts makes the mounts of the supervisor independent of the machine's.
func isolateMounts() error {
	mounts := []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mounting %s in the lab: %w", m.target, err)
		}
	}
	return nil
}

// startLab builds the network, starts the control plane and the nodes, and waits until they are
// ready.
func (s *supervisor) startLab(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, labStartTimeout)
	defer cancel()
	for _, d := range []string{s.logDir(), filepath.Join(s.options.Dir, "captures"), "/run/lab-bin", "/run/lab-pods", routerDirectory} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if s.options.GantryBinDir != "" {
		// Containers of ordinary users need the binaries too, and may not read the original
		// directory.
		if err := unix.Mount(s.options.GantryBinDir, "/run/lab-bin", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s in the lab: %w", s.options.GantryBinDir, err)
		}
	}
	fmt.Println("laying cables")
	if err := s.buildNetwork(); err != nil {
		return err
	}
	fmt.Println("starting etcd and the API server")
	if err := s.startControlPlane(short); err != nil {
		return err
	}
	fmt.Printf("starting %d nodes with kube-proxy in %s mode\n", s.options.Nodes, s.options.ProxyMode)
	g, short := errgroup.WithContext(short)
	for i := 1; i <= s.options.Nodes; i++ {
		g.Go(func() error { return s.startNode(short, nodeName(i)) })
	}
	return g.Wait()
}

// labStartTimeout limits the start of a lab, and processStopTimeout the wait for processes of a
// node to end. Both are for a machine that is busy with something else.
const (
	labStartTimeout    = 5 * time.Minute
	processStopTimeout = time.Minute
)

func (s *supervisor) logDir() string { return filepath.Join(s.options.Dir, "logs") }

// startNode starts kube-proxy and the agent of a node, and waits until the node is Ready.
func (s *supervisor) startNode(ctx context.Context, name string) error {
	h := s.hostByName[name]
	if err := s.startKubeProxy(h); err != nil {
		return err
	}
	rest, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.options.Dir, "credentials", "node.kubeconfig"))
	if err != nil {
		return err
	}
	rest.QPS, rest.Dial = -1, h.namespace.Dial
	agent, err := node.NewAgent(node.Config{
		Name: name, NetNS: h.namespace, Addresses: h.addresses, PodCIDRs: h.podNetworks, RESTConfig: rest, APIServerClusterIPAddress: s.options.apiServerClusterIPAddress(),
		GantryBinDir: "/run/lab-bin", GantryImageName: "gantry", SelfPath: "/proc/self/exe", LogDir: s.logDir(), VolumesAndTokensDir: "/run/lab-pods", Log: s.log,
	})
	if err != nil {
		return err
	}
	life, cancel := context.WithCancel(s.ctx)
	r := &runningAgent{agent: agent, cancel: cancel, endedSignal: make(chan struct{})}
	s.mu.Lock()
	s.agentByNode[name] = r
	s.mu.Unlock()
	go func() {
		defer close(r.endedSignal)
		if err := agent.Run(life); err != nil && life.Err() == nil {
			s.log.Error("the node's agent ended", "node", name, "error", err)
		}
	}()
	return s.awaitNodeReady(ctx, name)
}

// killNode simulates a power failure of a node.
func (s *supervisor) killNode(name string) error {
	s.mu.Lock()
	r := s.agentByNode[name]
	delete(s.agentByNode, name)
	s.mu.Unlock()
	if r == nil {
		return fmt.Errorf("no node %q is up", name)
	}
	if err := s.cutCable(name); err != nil {
		return err
	}
	r.agent.SimulatePowerFailure()
	r.cancel()
	if err := s.programs.sendSignal(name+"/kube-proxy", syscall.SIGKILL); err != nil {
		return err
	}
	<-s.programs.findByName(name + "/kube-proxy").endedSignal
	select {
	case <-r.endedSignal: // before the node may come back
	case <-time.After(processStopTimeout):
		return fmt.Errorf("the Pods of %s did not end within %v", name, processStopTimeout)
	}
	if router := s.routers.findByHost(name); router != nil {
		_ = router.KillDaemons()
	}
	return s.hostByName[name].clearKernelState()
}

// clearKernelState removes the state of a host's kernel that a power failure would destroy:
// firewall rules, connections, neighbors.
func (h *host) clearKernelState() error {
	for _, line := range [][]string{{"nft", "flush", "ruleset"}, {"conntrack", "-F"}} {
		cmd := exec.Command(line[0], line[1:]...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := h.namespace.RunInside(cmd.Run); err != nil {
			return fmt.Errorf("%s on %s: %w: %s", strings.Join(line, " "), h.name, err, strings.TrimSpace(out.String()))
		}
	}
	return h.namespace.RunInside(netns.FlushNeighbors)
}

// reviveNode starts a killed node again.
func (s *supervisor) reviveNode(ctx context.Context, name string) error {
	s.mu.Lock()
	_, up := s.agentByNode[name]
	s.mu.Unlock()
	if s.hostByName[name] == nil || up {
		return fmt.Errorf("node %q is not down", name)
	}
	if err := s.plugCable(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, labStartTimeout)
	defer cancel()
	return s.startNode(ctx, name)
}

// host is a machine on the LAN.
type host struct {
	name        string
	namespace   netns.Path
	addresses   []netip.Addr   // on the LAN
	podNetworks []netip.Prefix // of a node

	// Guarded by the supervisor's cableMutex:
	currentBridge  string // the bridge of its cable: the LAN, or a part of it
	dropsAllFrames bool   // its cable drops all frames
}
