// Package lab runs a real Kubernetes cluster in network namespaces of one Linux machine: etcd, API
// server, controller manager, scheduler, and a kube-proxy for each node. The LAN is a bridge with
// the nodes, a client and one or two routers, each router with another client behind it. Pods run
// without a kubelet, see package node. All processes of a lab are children of one supervisor in
// namespaces of its own: when the supervisor ends, for whatever reason, the whole lab is gone.
// Several labs can run at the same time. A program that uses the package calls Reexec before
// anything else, and ReexecInUserNamespaceUnlessRoot if ordinary users may run it. The command
// bin/lab offers the same on the command line.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// The values of Options.Families and Options.ProxyMode.
const (
	IPv4Only          = "ipv4"
	IPv6Only          = "ipv6"
	DualStack         = "dual"
	KubeProxyNFTables = "nftables"
	KubeProxyIPTables = "iptables"
)

// Options describe a lab.
type Options struct {
	// Nodes is the number of nodes, 1 to 20; 0 means 3.
	Nodes int
	// ProxyMode is the mode of kube-proxy: NFTables (the default) or IPTables.
	ProxyMode string
	// Families is IPv4Only (the default), IPv6Only or DualStack.
	Families string
	// Routers is the number of routers on the LAN, 1 or 2, each with a client behind it; 0 means 1.
	// They forward packets. Lab.Router starts a routing protocol on them.
	Routers int
	// AuditedNamespace is a namespace. The requests of its service accounts, allowed or not, are
	// written to logs/audit.log.
	AuditedNamespace string
	// Dir is the directory of all files of the lab. It must not exist, and is removed with the lab.
	Dir string
	// GantryBinDir has Gantry's binaries. It may be empty for a lab without Gantry.
	GantryBinDir string
	// ControlPlaneProgramsDir has the programs of the control plane. If it is empty,
	// FindOrBuildControlPlanePrograms provides them.
	ControlPlaneProgramsDir string
	// ProgressOutput gets a line for each step of the start.
	ProgressOutput io.Writer `json:"-"`
}

// setDefaultsAndValidate fills in fields that are not set and checks the others.
func (o *Options) setDefaultsAndValidate() error {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Nodes < 1 || o.Nodes > 20 {
		return fmt.Errorf("a lab has 1 to 20 nodes, not %d", o.Nodes)
	}
	if o.Routers == 0 {
		o.Routers = 1
	}
	if o.Routers < 1 || o.Routers > 2 {
		return fmt.Errorf("a lab has 1 or 2 routers, not %d", o.Routers)
	}
	if o.ProxyMode == "" {
		o.ProxyMode = KubeProxyNFTables
	}
	if o.ProxyMode != KubeProxyNFTables && o.ProxyMode != KubeProxyIPTables {
		return fmt.Errorf("the mode of kube-proxy is %s or %s, not %q", KubeProxyNFTables, KubeProxyIPTables, o.ProxyMode)
	}
	if o.Families == "" {
		o.Families = IPv4Only
	}
	if o.Families != IPv4Only && o.Families != IPv6Only && o.Families != DualStack {
		return fmt.Errorf("the families are %s, %s or %s, not %q", IPv4Only, IPv6Only, DualStack, o.Families)
	}
	if o.ProgressOutput == nil {
		o.ProgressOutput = io.Discard
	}
	return nil
}

// Lab is a running lab.
type Lab struct {
	options                   Options
	supervisorPID             int
	supervisorEnded           chan struct{} // closed when the supervisor has ended
	apiServerLoopbackListener net.Listener
	output                    *outputTail
	pipeThatKeepsLabAlive     io.Closer // closing it ends the lab
}

// DescribeMissingPrerequisite returns one line that says what this machine lacks to run a lab and
// which package provides it. It returns "" if nothing is missing.
func DescribeMissingPrerequisite() string {
	if os.Geteuid() != 0 {
		if why := describeUserNamespaceRefusal(); why != "" {
			return why
		}
		return "an ordinary user needs a user namespace: the program has to call lab.EnterUserNamespace"
	}
	for tool, pkg := range map[string]string{"nft": "nftables", "iptables": "iptables", "conntrack": "conntrack"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Sprintf("%s is missing: apt-get install %s", tool, pkg)
		}
	}
	return ""
}

// Start starts a lab and waits until it is up. If ctx ends before, nothing of the lab is left.
func Start(ctx context.Context, o Options) (*Lab, error) {
	if err := o.setDefaultsAndValidate(); err != nil {
		return nil, err
	}
	if m := DescribeMissingPrerequisite(); m != "" {
		return nil, fmt.Errorf("starting a lab: %s", m)
	}
	if o.ControlPlaneProgramsDir == "" {
		dir, err := FindOrBuildControlPlanePrograms(ctx, o.ProgressOutput)
		if err != nil {
			return nil, err
		}
		o.ControlPlaneProgramsDir = dir
	}
	if err := os.Mkdir(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating the lab's directory: %w", err)
	}
	l := &Lab{options: o, supervisorEnded: make(chan struct{}), output: &outputTail{}}
	if err := l.startSupervisor(); err != nil {
		os.RemoveAll(o.Dir)
		return nil, err
	}
	if err := l.awaitReady(ctx); err != nil {
		l.Close()
		return nil, err
	}
	if err := l.forwardLoopbackToAPIServer(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// startSupervisor starts the supervisor, which reads from a pipe that only this process holds open.
// When the pipe closes, by Close or because this process ends, the lab ends. That works from the
// first moment on.
func (l *Lab) startSupervisor() error {
	text, err := json.Marshal(l.options)
	if err != nil {
		return err
	}
	lifeline, life, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the lab's supervisor: %w", err)
	}
	defer lifeline.Close()
	cmd := exec.Command("/proc/self/exe", supervisorArg, string(text))
	cmd.Stdout, cmd.Stderr = l.options.ProgressOutput, l.output
	cmd.ExtraFiles = []*os.File{lifeline}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET, Setpgid: true}
	if err := cmd.Start(); err != nil {
		life.Close()
		return fmt.Errorf("starting the lab's supervisor: %w", err)
	}
	l.pipeThatKeepsLabAlive, l.supervisorPID = life, cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		// needed after a crash only; otherwise the supervisor removes it
		os.RemoveAll(l.options.Dir)
		close(l.supervisorEnded)
	}()
	return os.WriteFile(filepath.Join(l.options.Dir, "pid"), fmt.Append(nil, l.supervisorPID), 0o644)
}

// awaitReady waits until the supervisor reports that the lab is up.
func (l *Lab) awaitReady(ctx context.Context) error {
	for {
		if _, err := os.Stat(filepath.Join(l.options.Dir, "ready")); err == nil {
			return nil
		}
		select {
		case <-l.supervisorEnded:
			return fmt.Errorf("the lab did not start: %s", strings.TrimSpace(l.output.String()))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// forwardLoopbackToAPIServer makes the API server reachable on the loopback interface of this
// machine.
func (l *Lab) forwardLoopbackToAPIServer() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("publishing the API server: %w", err)
	}
	l.apiServerLoopbackListener = listener
	cp := l.NamespaceOfHost("cp")
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				server, err := cp.Dial(context.Background(), "tcp", l.options.apiServerIPAndPort())
				if err != nil {
					return
				}
				defer server.Close()
				go func() {
					_, _ = io.Copy(server, c)
					server.Close()
				}()
				_, _ = io.Copy(c, server)
			}()
		}
	}()
	cred := filepath.Join(l.options.Dir, "credentials")
	admin, err := clientcmd.BuildConfigFromFlags("", filepath.Join(cred, "admin.kubeconfig"))
	if err != nil {
		return err
	}
	return writeKubeconfig(cred, l.Kubeconfig(), "https://"+listener.Addr().String(), admin.BearerToken)
}

// AttachToLab returns the lab that another process runs in dir.
func AttachToLab(ctx context.Context, dir string) (*Lab, error) {
	if !isLabRunning(dir) {
		return nil, fmt.Errorf("no lab runs in %s", dir)
	}
	kube, err := FindOrBuildControlPlanePrograms(ctx, io.Discard)
	if err != nil {
		return nil, err
	}
	l := &Lab{options: Options{Dir: dir, ControlPlaneProgramsDir: kube}, supervisorPID: readPIDFile(dir, "pid"), supervisorEnded: make(chan struct{})}
	go func() {
		for isLabRunning(dir) {
			time.Sleep(50 * time.Millisecond) // a process can wait for its own children only
		}
		os.RemoveAll(dir)
		close(l.supervisorEnded)
	}()
	return l, nil
}

// Close ends the lab and waits until nothing is left of it.
func (l *Lab) Close() {
	if l.apiServerLoopbackListener != nil {
		l.apiServerLoopbackListener.Close()
	}
	if l.pipeThatKeepsLabAlive != nil {
		l.pipeThatKeepsLabAlive.Close()
	}
	_ = syscall.Kill(l.supervisorPID, syscall.SIGTERM) // for a lab that another process started
	select {
	case <-l.supervisorEnded:
	case <-time.After(processStopTimeout):
		_ = syscall.Kill(l.supervisorPID, syscall.SIGKILL)
		<-l.supervisorEnded
	}
}

// EndedSignal returns a channel that is closed when the lab has ended, for whatever reason.
func (l *Lab) EndedSignal() <-chan struct{} { return l.supervisorEnded }

// Kubeconfig returns the path of a kubeconfig for an administrator that works on this machine.
func (l *Lab) Kubeconfig() string { return filepath.Join(l.options.Dir, "kubeconfig") }

// Dir returns the directory of the lab, with its logs and captures.
func (l *Lab) Dir() string { return l.options.Dir }

// ControlPlaneProgramsDir returns the directory of kubectl and the control plane's programs.
func (l *Lab) ControlPlaneProgramsDir() string { return l.options.ControlPlaneProgramsDir }

// SupervisorPID returns the process ID of the supervisor. When it ends, every process of the lab
// ends.
func (l *Lab) SupervisorPID() int { return l.supervisorPID }

// RESTConfig returns a client's configuration for an administrator.
func (l *Lab) RESTConfig() (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("reading the lab's kubeconfig: %w", err)
	}
	c.QPS = -1
	return c, nil
}

// NamespaceOfHost returns the network namespace of a host of the lab: node1, node2 and so on;
// client; cp, the control plane; router, and far behind it; with two routers, router2 and far2. Its
// methods work in this process.
func (l *Lab) NamespaceOfHost(name string) netns.Path {
	return netns.Path(fmt.Sprintf("/proc/%d/root%s/%s", l.supervisorPID, netns.NamespaceDir, name))
}

// RunKubectl runs kubectl as an administrator and returns its standard output. The error has its
// error output.
func (l *Lab) RunKubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return RunKubectl(ctx, l.options.ControlPlaneProgramsDir, l.Kubeconfig(), stdin, args...)
}

// RunKubectl runs the kubectl of the directory dir with a kubeconfig.
func RunKubectl(ctx context.Context, dir, kubeconfig, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(fault.String()))
	}
	return out.String(), nil
}

// sendSupervisorRequest sends a request to the supervisor of the lab in dir and returns its answer.
func sendSupervisorRequest(ctx context.Context, dir string, o supervisorRequest) (string, error) {
	body, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(dir, "control"))
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lab/", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	r, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("sending a request to the lab in %s: %w", dir, err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return string(text), err
}
