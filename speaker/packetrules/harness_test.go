package packetrules

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// testNode is a node in a namespace, with a client on its link eth0, a stranger on eth1, and two
// Pods. A third Pod is on a dead node: nothing answers for it. A stand-in for kube-proxy sends all
// connections to the third.
type testNode struct {
	t                            *testing.T
	family                       testFamily
	namespace, client, stranger  *netnstest.Namespace
	pods                         []*netnstest.Namespace // those that live
	writer                       *Writer
	announcedLink, unrelatedLink int
}

// testFamily has the addresses of one family.
type testFamily struct {
	name, nft, service      string
	bits                    int
	node, client, podPrefix string
}

var testFamilies = []testFamily{
	{"IPv4", "ip", "198.51.100.1", 24, "192.0.2.1", "192.0.2.100", "10.244.%d.%d"},
	{"IPv6", "ip6", "2001:db8:5::1", 64, "2001:db8:1::1", "2001:db8:1::100", "fd00:244:%d::%d"},
}

func (f testFamily) pod(n, host int) string { return fmt.Sprintf(f.podPrefix, n, host) }

// endpoint returns port 8080 of Pod n.
func (f testFamily) endpoint(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(f.pod(n, 2)), 8080)
}

// runForEachFamily runs a test with IPv4 and with IPv6.
func runForEachFamily(t *testing.T, test func(t *testing.T, n *testNode)) {
	for _, f := range testFamilies {
		t.Run(f.name, func(t *testing.T) { test(t, newTestNode(t, f)) })
	}
}

func newTestNode(t *testing.T, f testFamily) *testNode {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is missing: apt-get install nftables")
	}
	n := &testNode{t: t, family: f, namespace: netnstest.NewNamespace(t), client: netnstest.NewNamespace(t), stranger: netnstest.NewNamespace(t), writer: NewWriter(time.Now)}
	n.namespace.MustRunInside(func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0), os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
	n.connectClient("eth0", n.client, 0)
	n.connectClient("eth1", n.stranger, 1)
	for i := 1; i <= 2; i++ {
		pod := netnstest.NewNamespace(t)
		link := fmt.Sprintf("pod%d", i)
		n.namespace.AddVethPair(link, pod, "eth0")
		n.namespace.AddAddressToLink(link, fmt.Sprintf("%s/%d", f.pod(i, 1), f.bits))
		pod.AddAddressToLink("eth0", fmt.Sprintf("%s/%d", f.pod(i, 2), f.bits))
		addDefaultRoute(pod, f.pod(i, 1))
		n.startServers(pod, i)
		n.pods = append(n.pods, pod)
	}
	n.namespace.MustRunInside(func() error { // packets to Pods of a dead node get no answer at all
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		gateway := net.ParseIP(strings.Replace(f.client, "100", "99", 1))
		return errors.Join(
			netlink.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 99}}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway, Dst: &net.IPNet{IP: net.ParseIP(f.pod(3, 0)), Mask: net.CIDRMask(f.bits, addressBits(f))}}))
	})
	n.announcedLink, n.unrelatedLink = n.linkIndex("eth0"), n.linkIndex("eth1")
	n.nft(fmt.Sprintf("table %s kube-proxy { chain services { type nat hook prerouting priority dstnat; %s daddr %s meta l4proto { tcp, udp, sctp } dnat to %s:8080; }; }",
		f.nft, f.nft, f.service, bracketed(f.pod(3, 2))))
	return n
}

func addressBits(f testFamily) int {
	if f.nft == "ip" {
		return 32
	}
	return 128
}

func bracketed(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}

// connectClient connects a host to a link of the node, in a subnet of its own.
func (n *testNode) connectClient(link string, host *netnstest.Namespace, number int) {
	node, client := n.family.node, n.family.client
	if number > 0 {
		node, client = strings.Replace(node, "192.0.2.", "192.0.3.", 1), strings.Replace(client, "192.0.2.", "192.0.3.", 1)
		node, client = strings.Replace(node, "db8:1:", "db8:2:", 1), strings.Replace(client, "db8:1:", "db8:2:", 1)
	}
	n.namespace.AddVethPair(link, host, "eth0")
	n.namespace.AddAddressToLink(link, fmt.Sprintf("%s/%d", node, n.family.bits))
	host.AddAddressToLink("eth0", fmt.Sprintf("%s/%d", client, n.family.bits))
	addDefaultRoute(host, node)
}

func addDefaultRoute(host *netnstest.Namespace, gateway string) {
	host.MustRunInside(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gateway)})
	})
}

// startServers answers with the number of the Pod and the address of the client.
func (n *testNode) startServers(pod *netnstest.Namespace, number int) {
	pod.MustRunInside(func() error {
		tcp, err := net.Listen("tcp", ":8080")
		if err != nil {
			return err
		}
		udp, err := net.ListenPacket("udp", ":8080")
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { tcp.Close(); udp.Close() })
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%d %s", number, host)
				c.Close()
			}
		}()
		go func() {
			b := make([]byte, 64)
			for {
				_, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(from.String())
				_, _ = udp.WriteTo(fmt.Appendf(nil, "%d %s", number, host), from)
			}
		}()
		return nil
	})
}

// nft runs a command of nft on the node and returns its output.
func (n *testNode) nft(command string) string {
	n.t.Helper()
	var out []byte
	n.namespace.MustRunInside(func() (err error) {
		if out, err = exec.Command("nft", command).CombinedOutput(); err != nil {
			err = fmt.Errorf("nft %s: %w: %s", command, err, out)
		}
		return err
	})
	return string(out)
}

func (n *testNode) linkIndex(name string) (index int) {
	n.namespace.MustRunInside(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			index = l.Attrs().Index
		}
		return err
	})
	return index
}

// steeredPort returns port 80 of the Service, steered around the third Pod for a minute.
func (n *testNode) steeredPort(protocol intent.TransportProtocol) intent.SteeredPort {
	return intent.SteeredPort{
		ServiceAddressPort: intent.ServiceAddressPort{Address: netip.MustParseAddr(n.family.service), Protocol: protocol, Port: 80},
		LinkIndexes:        []int{n.announcedLink}, LivingEndpoints: []netip.AddrPort{n.family.endpoint(1), n.family.endpoint(2)},
		DeadEndpoints: []netip.AddrPort{n.family.endpoint(3)}, Until: time.Now().Add(time.Minute),
	}
}

// steer passes the steering to the writer.
func (n *testNode) steer(s ...intent.SteeredPort) {
	n.t.Helper()
	n.namespace.MustRunInside(func() error { return n.writer.SetSteering(s) })
}

// unansweredTimeout is how long a request waits that should get no answer: not until the kernel
// repeats the first packet of a connection, after a second.
const unansweredTimeout = 600 * time.Millisecond

// connect connects to port 80 of the Service and returns the answer: the number of the Pod, and the
// address that the Pod saw.
func (n *testNode) connect(from *netnstest.Namespace, timeout time.Duration) (answer string, err error) {
	err = from.RunInside(context.Background(), func(ctx context.Context) error {
		d := net.Dialer{Timeout: timeout}
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(n.family.service, "80"))
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(timeout))
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	return answer, err
}

// mustNotConnect checks that the connection goes to the dead Pod.
func (n *testNode) mustNotConnect(from *netnstest.Namespace, why string) {
	n.t.Helper()
	if answer, err := n.connect(from, unansweredTimeout); err == nil {
		n.t.Errorf("%s: the client is steered to Pod %s", why, answer)
	}
}

// mustConnect connects and returns the number of the Pod, and the address that it saw.
func (n *testNode) mustConnect(timeout time.Duration) (pod, source string) {
	n.t.Helper()
	answer, err := n.connect(n.client, timeout)
	if err != nil {
		n.t.Fatalf("connecting to the Service: %v\n%s", err, n.nft("list ruleset"))
	}
	pod, source, _ = strings.Cut(answer, " ")
	return pod, source
}
