package router

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "__abandon" {
		startRoutersAndHang()
	}
	os.Exit(m.Run())
}

// newTestRoutedLAN creates a RoutedLAN, and skips the test if the machine lacks something.
func newTestRoutedLAN(t *testing.T, o RoutedLANOptions) *RoutedLAN {
	t.Helper()
	for _, k := range []Kind{FRR, BIRD} {
		if m := DescribeMissingPrerequisite(k); m != "" {
			t.Skip(m)
		}
	}
	b, err := NewRoutedLAN(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.DeleteNamespaces)
	return b
}

func startRouter(t *testing.T, c Config) *Router {
	t.Helper()
	r, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.StopDaemonsInOrder)
	return r
}

// awaitNoError waits until check succeeds.
func awaitNoError(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waiting until %s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

const frrConfig = `hostname tor
router bgp 65000
 bgp router-id 192.168.0.1
 no bgp ebgp-requires-policy
 timers bgp 1 3
 neighbor nodes peer-group
 neighbor nodes remote-as 65001
 neighbor nodes timers connect 1
 neighbor 192.168.0.11 peer-group nodes
 neighbor 192.168.0.12 peer-group nodes
 address-family ipv4 unicast
  redistribute static
 exit-address-family
ip route 203.0.113.0/24 blackhole
`

func birdTestConfigOfHost(number int) string {
	return fmt.Sprintf(`router id 192.168.0.%[1]d;
protocol device {}
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
protocol static { ipv4; route 198.51.100.1/32 blackhole; }
protocol bgp tor {
  local 192.168.0.%[1]d as 65001;
  neighbor 192.168.0.1 as 65000;
  connect retry time 1; connect delay time 1; error wait time 1, 2;
  ipv4 { import all; export where source = RTS_STATIC; };
}
`, number)
}

var announcedTestPrefix = netip.MustParsePrefix("198.51.100.1/32")

// awaitKernelNextHopsOnRouter waits until the kernel of FRR's host has exactly these next hops for
// the prefix.
func awaitKernelNextHopsOnRouter(t *testing.T, b *RoutedLAN, want ...string) {
	t.Helper()
	awaitNoError(t, fmt.Sprintf("the router's kernel sends %s to %v", announcedTestPrefix, want), func() error {
		r, ok, err := b.NamespaceOfHost("router").FindRouteToExactPrefix(announcedTestPrefix)
		if err != nil {
			return err
		}
		var got []string
		for _, a := range r.NextHops {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != strings.Join(want, " ") || ok != (len(want) > 0) {
			return fmt.Errorf("it has the next hops %v", got)
		}
		return nil
	})
}

// TestFRRAndBIRDExchangeRoutes connects FRR and BIRD. They exchange routes only if both work.
func TestFRRAndBIRDExchangeRoutes(t *testing.T) {
	b := newTestRoutedLAN(t, RoutedLANOptions{Nodes: 2})
	tor := startRouter(t, Config{Kind: FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: frrConfig})
	one := startRouter(t, Config{Kind: BIRD, NetNS: b.NamespaceOfHost("node1"), ConfigText: birdTestConfigOfHost(11)})
	startRouter(t, Config{Kind: BIRD, NetNS: b.NamespaceOfHost("node2"), ConfigText: birdTestConfigOfHost(12)})
	awaitKernelNextHopsOnRouter(t, b, "192.168.0.11", "192.168.0.12")

	t.Run("Show returns the routes of both routers", func(t *testing.T) {
		out, err := tor.RunShowCommand(t.Context(), "show bgp ipv4 unicast json")
		if err != nil {
			t.Fatal(err)
		}
		var table struct{ Routes map[string][]any }
		if err := json.Unmarshal(out, &table); err != nil || len(table.Routes[announcedTestPrefix.String()]) != 2 {
			t.Errorf("FRR shows %s (%v), want two paths to %s", out, err, announcedTestPrefix)
		}
		awaitNoError(t, "BIRD has FRR's route", func() error {
			out, err := one.RunShowCommand(t.Context(), "show route for 203.0.113.1")
			if err == nil && !bytes.Contains(out, []byte("via 192.168.0.1")) {
				err = fmt.Errorf("it shows %s", out)
			}
			return err
		})
	})
	t.Run("an unknown command is an error", func(t *testing.T) {
		for _, r := range []*Router{tor, one} {
			if out, err := r.RunShowCommand(t.Context(), "show nonsense"); err == nil {
				t.Errorf("%s answered %s", r.Kind, out)
			}
		}
	})
	t.Run("the other router notices a killed daemon and its restart", func(t *testing.T) {
		if err := one.KillDaemons(); err != nil {
			t.Fatal(err)
		}
		awaitKernelNextHopsOnRouter(t, b, "192.168.0.12")
		if err := one.StartEndedDaemons(t.Context()); err != nil {
			t.Fatal(err)
		}
		awaitKernelNextHopsOnRouter(t, b, "192.168.0.11", "192.168.0.12")
		if err := tor.KillDaemons("bgpd"); err != nil {
			t.Fatal(err)
		}
		if err := tor.StartEndedDaemons(t.Context()); err != nil {
			t.Fatal(err)
		}
		awaitKernelNextHopsOnRouter(t, b, "192.168.0.11", "192.168.0.12")
	})
	t.Run("Configure changes the configuration of a running router", func(t *testing.T) {
		if err := one.ChangeRunningConfig(t.Context(), strings.Replace(birdTestConfigOfHost(11), "route 198.51.100.1/32 blackhole;", "", 1)); err != nil {
			t.Fatal(err)
		}
		awaitKernelNextHopsOnRouter(t, b, "192.168.0.12")
		if err := tor.ChangeRunningConfig(t.Context(), "router bgp 65000\n neighbor 192.168.0.12 shutdown\n"); err != nil {
			t.Fatal(err)
		}
		awaitKernelNextHopsOnRouter(t, b)
	})
}

func TestStartErrorNamesUnknownRouterConfigLine(t *testing.T) {
	b := newTestRoutedLAN(t, RoutedLANOptions{})
	for kind, text := range map[Kind]string{FRR: "router bgp 65000\n neighbour 1.2.3.4\n", BIRD: "protocol device {}\nneighbour;\n"} {
		r, err := Start(t.Context(), Config{Kind: kind, NetNS: b.NamespaceOfHost("router"), ConfigText: text})
		if err == nil {
			r.StopDaemonsInOrder()
			t.Errorf("%s started with an unknown line", kind)
		} else if !strings.Contains(err.Error(), "neighbour") && !strings.Contains(err.Error(), ":2:") {
			t.Errorf("%s: the error %v does not name the line", kind, err)
		}
	}
}

func TestClientBehindEachRouterReachesNode(t *testing.T) {
	b := newTestRoutedLAN(t, RoutedLANOptions{Nodes: 1, Routers: 2})
	for _, address := range []string{"192.168.0.11:80", "[fd00:a8::b]:80"} {
		l, err := b.NamespaceOfHost("node1").Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for _, host := range []string{"far", "far2", "client", "router2"} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			c, err := b.NamespaceOfHost(host).Dial(ctx, "tcp", address)
			cancel()
			if err != nil {
				t.Errorf("%s does not reach %s: %v", host, address, err)
				continue
			}
			c.Close()
		}
	}
}

// startRoutersAndHang starts routers and then waits until it is killed.
func startRoutersAndHang() {
	b, err := NewRoutedLAN(RoutedLANOptions{Nodes: 1})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for host, c := range map[string]Config{"router": {Kind: FRR, ConfigText: frrConfig}, "node1": {Kind: BIRD, ConfigText: birdTestConfigOfHost(11)}} {
		c.NetNS = b.NamespaceOfHost(host)
		r, err := Start(context.Background(), c)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(r.Dir)
	}
	select {}
}

func TestRouterDaemonsEndWhenProgramIsKilled(t *testing.T) {
	newTestRoutedLAN(t, RoutedLANOptions{})
	cmd := exec.Command("/proc/self/exe", "__abandon")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dirs [2]string
	for i := range dirs {
		if _, err := fmt.Fscanln(out, &dirs[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dirs[i]) })
		if len(processesWithPathInCommandLine(t, dirs[i])) == 0 {
			t.Fatalf("no process has %s in its command line: this test would prove nothing", dirs[i])
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	awaitNoError(t, "the routers have ended too", func() error {
		for _, dir := range dirs {
			if left := processesWithPathInCommandLine(t, dir); len(left) > 0 {
				return fmt.Errorf("these processes are running: %s", left)
			}
		}
		return nil
	})
}

// processesWithPathInCommandLine returns the command lines of all processes of this machine that
// contain a path.
func processesWithPathInCommandLine(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline"); bytes.Contains(line, []byte(path)) {
			out = append(out, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return out
}
