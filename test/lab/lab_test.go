package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/test/lab/router"
)

func TestMain(m *testing.M) {
	RunAsLabPartIfRequested()
	if len(os.Args) == 3 && os.Args[1] == "__abandon" {
		_, err := Start(context.Background(), Options{Nodes: 1, Dir: os.Args[2], ProgressOutput: os.Stdout})
		fmt.Println(err)
		select {}
	}
	_ = ReexecInUserNamespaceUnlessRoot() // each skipped test repeats the error
	os.Exit(m.Run())
}

// startTestLab starts a lab of two nodes without Gantry.
func startTestLab(t *testing.T) (context.Context, *Lab) {
	t.Helper()
	if m := DescribeMissingPrerequisite(); m != "" {
		t.Skip(m)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	l, err := Start(ctx, Options{Nodes: 2, Routers: 2, Dir: filepath.Join(t.TempDir(), "lab"), ProgressOutput: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return ctx, l
}

// awaitNoError waits until check succeeds.
func awaitNoError(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waiting until %s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// checkNoTraceOfLab returns an error if something is left of a lab: its directory, a mount that
// this process sees, or a process that has the directory in its command line.
func checkNoTraceOfLab(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return fmt.Errorf("the directory %s exists", dir)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte(dir)) {
		return fmt.Errorf("a mount contains the path %s", dir)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lines {
		if b, _ := os.ReadFile(f); bytes.Contains(b, []byte(dir)) {
			return fmt.Errorf("a process is left: %s", bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		}
	}
	return nil
}

// dialFromClient opens and closes a connection from the client.
func dialFromClient(ctx context.Context, l *Lab, address string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := l.NamespaceOfHost("client").Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}

func errorUnlessUnreachable(err error) error {
	if err == nil {
		return fmt.Errorf("it is still reachable")
	}
	return nil
}

const echoDeploymentAndServiceManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers: [{name: echo, image: echo, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

func TestLabFaultsCanBeCausedAndUndone(t *testing.T) {
	ctx, l := startTestLab(t)
	if _, err := l.RunKubectl(ctx, echoDeploymentAndServiceManifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	reached := func() error { return dialFromClient(ctx, l, "192.168.0.11:30080") }
	awaitNoError(t, "the client reaches the Service at its NodePort", reached)

	act := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	levers := map[string]struct{ pull, release func() error }{
		"cutting a cable separates a node": {
			func() error { return l.CutCable(ctx, "node1") }, func() error { return l.PlugCable(ctx, "node1") }},
		"cutting a cable silently separates a node": {
			func() error { return l.CutCableKeepingCarrier(ctx, "node1") }, func() error { return l.PlugCable(ctx, "node1") }},
		"a partition separates a node": {
			func() error { return l.Partition(ctx, []string{"node1"}) }, func() error { return l.HealPartition(ctx) }},
		"a killed node does not answer until it is revived": {
			func() error { return l.KillNode(ctx, "node1") }, func() error { return l.ReviveNode(ctx, "node1") }},
	}
	for name, c := range levers {
		t.Run(name, func(t *testing.T) {
			act(c.pull())
			awaitNoError(t, "the node is unreachable", func() error { return errorUnlessUnreachable(reached()) })
			act(c.release())
			awaitNoError(t, "the node is reachable", reached)
		})
	}
	t.Run("a stopped API server is unreachable until it is started", func(t *testing.T) {
		act(l.BlockAPIServer(ctx))
		if dialFromClient(ctx, l, l.options.apiServerIPAndPort()) == nil {
			t.Error("the API server is reachable although it is stopped")
		}
		act(l.UnblockAPIServer(ctx))
		awaitNoError(t, "the API server is reachable after its start", func() error { return dialFromClient(ctx, l, l.options.apiServerIPAndPort()) })
	})
	t.Run("healing a partition leaves cut cables cut", func(t *testing.T) {
		act(l.CutCableKeepingCarrier(ctx, "node1"))
		act(l.Partition(ctx, []string{"node1", "client"}))
		act(l.HealPartition(ctx))
		if reached() == nil {
			t.Error("a node with a cut cable is reachable")
		}
		act(l.PlugCable(ctx, "node1"))
		awaitNoError(t, "the node is reachable", reached)
	})
	t.Run("a killed node loses its kernel's rules and connections", func(t *testing.T) {
		act(l.KillNode(ctx, "node1"))
		for _, line := range [][]string{{"nft", "list", "ruleset"}, {"conntrack", "-L"}} {
			if out := runOnHost(t, l, "node1", line...); strings.TrimSpace(out) != "" {
				t.Errorf("%s on the killed node shows\n%s", strings.Join(line, " "), out)
			}
		}
		act(l.ReviveNode(ctx, "node1"))
		awaitNoError(t, "the node is reachable", reached)
	})
	t.Run("parallel captures have all frames from start to end", func(t *testing.T) { testParallelCapturesHaveAllFrames(ctx, t, l) })
	t.Run("the supervisor waits for orphans", func(t *testing.T) { testSupervisorReapsOrphanProcesses(ctx, t, l) })
	t.Run("routers exchange routes, also after a kill and a restart", func(t *testing.T) { testFRRLearnsRouteFromBIRD(ctx, t, l) })
	t.Run("the error on an unknown host has its name", func(t *testing.T) {
		if err := l.CutCable(ctx, "node9"); err == nil || !strings.Contains(err.Error(), "node9") {
			t.Errorf("got %v, want an error that names node9", err)
		}
	})
	dir := l.Dir()
	l.Close()
	if err := checkNoTraceOfLab(dir); err != nil {
		t.Error("after Close:", err)
	}
}

// runOnHost runs a program on a host and returns what it prints.
func runOnHost(t *testing.T, l *Lab, host string, line ...string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout = &out
	if err := l.NamespaceOfHost(host).RunInside(cmd.Run); err != nil {
		t.Fatalf("%v on %s: %v", line, host, err)
	}
	return out.String()
}

func testParallelCapturesHaveAllFrames(ctx context.Context, t *testing.T, l *Lab) {
	if _, err := exec.LookPath("tcpdump"); err != nil {
		t.Skip("tcpdump is missing: apt-get install tcpdump")
	}
	// Both run on one host at the same time; the second one matches no frame.
	const filter, nothing = "tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn and port 30080", "udp port 1"
	path, end, err := l.StartCapture(ctx, "client", filter)
	if err != nil {
		t.Fatal(err)
	}
	other, endOther, err := l.StartCapture(ctx, "client", nothing)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.NamespaceOfHost("client").Dial(ctx, "tcp", "192.168.0.11:30080")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, stop := range []func() error{end, endOther} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]int{path: 1, other: 0} {
		out, err := exec.Command("tcpdump", "-n", "-r", file).Output()
		if got := strings.Count(string(out), "\n"); err != nil || got != want {
			t.Errorf("the capture %s has %d frames (%v), want %d:\n%s", filepath.Base(file), got, err, want, out)
		}
	}
}

// podWithOrphanProcessManifest is a Pod whose process does not wait for its child.
const podWithOrphanProcessManifest = `apiVersion: v1
kind: Pod
metadata: {name: parent}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: lab/machine, command: [/bin/sh, -c, "sleep 0 & exec sleep 1000"]}]
`

func testSupervisorReapsOrphanProcesses(ctx context.Context, t *testing.T, l *Lab) {
	if _, err := l.RunKubectl(ctx, podWithOrphanProcessManifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RunKubectl(ctx, "", "wait", "--for=condition=Ready", "pod/parent", "--timeout=2m"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RunKubectl(ctx, "", "delete", "pod", "parent", "--now"); err != nil {
		t.Fatal(err)
	}
	dead := func() int {
		n := 0
		files, _ := filepath.Glob("/proc/[0-9]*/status")
		for _, f := range files {
			text, _ := os.ReadFile(f)
			if bytes.Contains(text, fmt.Appendf(nil, "\nPPid:\t%d\n", l.SupervisorPID())) && bytes.Contains(text, []byte("\nState:\tZ")) {
				n++
			}
		}
		return n
	}
	awaitNoError(t, "the Pod's child is an orphan", func() error {
		if dead() == 0 {
			return fmt.Errorf("no child of the supervisor is dead")
		}
		return nil
	})
	awaitNoError(t, "no orphan is left", func() error {
		if n := dead(); n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
}

// testFRRLearnsRouteFromBIRD announces a route by BIRD on a node to FRR on the router, and checks
// the kernel of the router.
func testFRRLearnsRouteFromBIRD(ctx context.Context, t *testing.T, l *Lab) {
	for _, k := range []router.Kind{router.FRR, router.BIRD} {
		if m := router.DescribeMissingPrerequisite(k); m != "" {
			t.Skip(m)
		}
	}
	tor, node := l.RouterOnHost("router", router.FRR), l.RouterOnHost("node1", router.BIRD)
	for r, text := range map[*Router]string{
		tor: "router bgp 65000\n no bgp ebgp-requires-policy\n neighbor 192.168.0.11 remote-as 65001\n neighbor 192.168.0.11 timers connect 1\n",
		node: "router id 192.168.0.11;\nprotocol device {}\nprotocol static { ipv4; route 198.51.100.1/32 blackhole; }\n" +
			"protocol bgp { local as 65001; neighbor 192.168.0.1 as 65000; connect delay time 1; error wait time 1, 2; ipv4 { import all; export all; }; }\n",
	} {
		if err := r.StartWithConfig(ctx, text); err != nil {
			t.Fatal(err)
		}
	}
	learnt := func(want bool) func() error {
		return func() error {
			r, ok, err := l.NamespaceOfHost("router").FindRouteToExactPrefix(netip.MustParsePrefix("198.51.100.1/32"))
			if err == nil && ok != want {
				err = fmt.Errorf("the router's kernel has %v", r)
			}
			return err
		}
	}
	awaitNoError(t, "the router has the node's route", learnt(true))
	if out, err := tor.RunShowCommand(ctx, "show bgp summary"); err != nil || !strings.Contains(string(out), "192.168.0.11") {
		t.Errorf("the router shows %s (%v), want its neighbor 192.168.0.11", out, err)
	}
	if err := node.KillDaemons(ctx); err != nil {
		t.Fatal(err)
	}
	awaitNoError(t, "the router has removed the route of a killed daemon", learnt(false))
	if err := node.StartEndedDaemons(ctx); err != nil {
		t.Fatal(err)
	}
	awaitNoError(t, "the router has the route again", learnt(true))
	for _, r := range []*Router{tor, node} {
		if err := r.Stop(ctx); err != nil {
			t.Error(err)
		}
	}
	awaitNoError(t, "the router has removed the route of a stopped daemon", learnt(false))
	for _, host := range []string{"far", "far2"} {
		c, err := l.NamespaceOfHost(host).Dial(ctx, "tcp", "192.168.0.12:30080")
		if err != nil {
			t.Errorf("%s does not reach a node through its router: %v", host, err)
			continue
		}
		c.Close()
	}
}

func TestKilledSupervisorLeavesNoTraceOfLab(t *testing.T) {
	_, l := startTestLab(t)
	if err := syscall.Kill(l.SupervisorPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-l.EndedSignal()
	if err := checkNoTraceOfLab(l.Dir()); err != nil {
		t.Error(err)
	}
}

func TestCancelledStartLeavesNoTraceOfLab(t *testing.T) {
	if m := DescribeMissingPrerequisite(); m != "" {
		t.Skip(m)
	}
	for name, text := range map[string]string{"immediately": "", "during the start": "starting etcd"} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			dir := filepath.Join(t.TempDir(), "lab")
			kube, err := FindOrBuildControlPlanePrograms(ctx, os.Stderr)
			if err != nil {
				t.Fatal(err)
			}
			if text == "" {
				cancel()
			}
			if _, err := Start(ctx, Options{Nodes: 1, Dir: dir, ControlPlaneProgramsDir: kube, ProgressOutput: writerThatCancelsOnText{text, cancel}}); err == nil {
				t.Fatal("the lab started although the context was cancelled")
			}
			if err := checkNoTraceOfLab(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKilledParentProgramLeavesNoTraceOfLab(t *testing.T) {
	if m := DescribeMissingPrerequisite(); m != "" {
		t.Skip(m)
	}
	dir := filepath.Join(t.TempDir(), "lab")
	cmd := exec.Command("/proc/self/exe", "__abandon", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for line := bufio.NewScanner(out); line.Scan() && !strings.Contains(line.Text(), "etcd"); {
	}
	if checkNoTraceOfLab(dir) == nil {
		t.Error("the lab has not created anything yet: this test would prove nothing")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	awaitNoError(t, "nothing remains", func() error { return checkNoTraceOfLab(dir) })
}

// writerThatCancelsOnText is a writer that cancels the start when the progress has a certain text.
type writerThatCancelsOnText struct {
	textToFind string
	cancel     func()
}

func (c writerThatCancelsOnText) Write(b []byte) (int, error) {
	if strings.Contains(string(b), c.textToFind) {
		c.cancel()
	}
	return len(b), nil
}
