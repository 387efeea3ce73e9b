package packetrules

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

func TestNewConnectionsGoToAllLivingEndpoints(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		n.mustNotConnect(n.client, "nothing is steered yet")
		n.steer(n.steeredPort(intent.TCP))
		pods := map[string]int{}
		for range 40 {
			pod, source := n.mustConnect(2 * time.Second)
			pods[pod]++
			if source != n.family.pod(int(pod[0]-'0'), 1) {
				t.Fatalf("Pod %s saw the client %s, want an address of the node: the answer may not come back here", pod, source)
			}
		}
		if len(pods) != 2 {
			t.Errorf("40 connections went to %v, want both Pods", pods)
		}
		n.mustNotConnect(n.stranger, "the address is not announced on this link")
		n.steer()
		n.mustNotConnect(n.client, "the steering has ended")
		if rules := n.nft("list ruleset"); strings.Contains(rules, tableName) {
			t.Errorf("the table is still there:\n%s", rules)
		}
	})
}

func TestAddressIsSteeredOnlyOnItsLinks(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		other := n.steeredPort(intent.TCP)
		other.Address, other.LinkIndexes = other.Address.Next(), []int{n.unrelatedLink}
		n.steer(n.steeredPort(intent.TCP), other)
		n.mustConnect(2 * time.Second)
		n.mustNotConnect(n.stranger, "another address is announced on this link")
	})
}

func TestSourceRangesAreRespected(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		p := n.steeredPort(intent.TCP)
		a := netip.MustParseAddr(n.family.client)
		p.SourceRanges = []netip.Prefix{netip.PrefixFrom(a.Prev().Prev(), a.BitLen())}
		n.steer(p)
		n.mustNotConnect(n.client, "the client is in no range")
		p.SourceRanges = append(p.SourceRanges, netip.PrefixFrom(a, n.family.bits).Masked())
		n.steer(p)
		n.mustConnect(2 * time.Second)
	})
}

func TestClientsOfDeadEndpointsMoveAndStay(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		p := n.steeredPort(intent.TCP)
		p.HasClientAffinity = true
		n.steer(p)
		n.nft("list ruleset")
		// the first packet is dropped, its repetition is steered
		pod, _ := n.mustConnect(5 * time.Second)
		for range 10 {
			if again, _ := n.mustConnect(unansweredTimeout); again != pod {
				t.Fatalf("the client moved from Pod %s to Pod %s", pod, again)
			}
		}
		// kube-proxy chooses a living endpoint: it is left alone
		n.nft("flush ruleset")
		n.writer = NewWriter(time.Now)
		n.nft("table " + n.family.nft + " kube-proxy { chain services { type nat hook prerouting priority dstnat; " + n.family.nft + " daddr " + n.family.service +
			" tcp dport 80 dnat to " + bracketed(n.family.pod(2, 2)) + ":8080; }; chain outgoing { type nat hook postrouting priority srcnat; masquerade; }; }")
		n.steer(p)
		for range 10 {
			if pod, _ := n.mustConnect(unansweredTimeout); pod != "2" {
				t.Fatalf("the client of the living Pod 2 was steered to Pod %s", pod)
			}
		}
	})
}

// TestAffinityCostsOthersNothing has a node that only seems dead. Clients that cannot be steered
// still reach it.
func TestAffinityCostsOthersNothing(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		n.nft("flush ruleset")
		n.nft("table " + n.family.nft + " kube-proxy { chain services { type nat hook prerouting priority dstnat; " + n.family.nft + " daddr " + n.family.service +
			" tcp dport 80 dnat to " + bracketed(n.family.pod(2, 2)) + ":8080; }; }")
		mustReachPod2 := func(from *netnstest.Namespace, why string) {
			t.Helper()
			answer, err := n.connect(from, 3*time.Second)
			if pod, _, _ := strings.Cut(answer, " "); err != nil || pod != "2" {
				t.Errorf("%s: the client got %q, %v; want Pod 2", why, answer, err)
			}
		}
		p := n.steeredPort(intent.TCP)
		p.HasClientAffinity, p.LivingEndpoints, p.DeadEndpoints = true, []netip.AddrPort{n.family.endpoint(1)}, []netip.AddrPort{n.family.endpoint(2)}
		n.steer(p)
		mustReachPod2(n.stranger, "the address is not announced on this link")
		mustReachPod2(n.pods[0], "a Pod connects")
		other := p
		other.Address, other.LinkIndexes = p.Address.Next(), []int{n.unrelatedLink}
		n.steer(p, other)
		mustReachPod2(n.stranger, "another address is announced on this link")
		if pod, _ := n.mustConnect(5 * time.Second); pod != "1" {
			t.Errorf("the client of the dead endpoint is steered to Pod %s, want 1", pod)
		}
	})
}

func TestMarksOfOthersAreLeftAlone(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		n.nft(fmt.Sprintf("table %s others { chain marks { type filter hook prerouting priority mangle; iifname eth1 meta mark set 0x%x; }; }", n.family.nft, steeredMark))
		n.steer(n.steeredPort(intent.TCP))
		var answer []byte
		n.stranger.MustRunInside(func() error {
			c, err := net.DialTimeout("tcp", n.family.endpoint(1).String(), 3*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			answer, err = io.ReadAll(c)
			return err
		})
		if _, source, _ := strings.Cut(string(answer), " "); source == n.family.pod(1, 1) {
			t.Errorf("Pod 1 saw the address %s of the node instead of the client: the mark belongs to another program", source)
		}
	})
}

func TestRulesExpireByThemselves(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		p := n.steeredPort(intent.TCP)
		p.Until = time.Now().Add(1500 * time.Millisecond)
		n.steer(p)
		n.mustConnect(time.Second)
		deadline := time.Now().Add(10 * time.Second)
		for {
			if _, err := n.connect(n.client, unansweredTimeout); err != nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the client is still steered")
			}
		}
		n.steer(n.steeredPort(intent.TCP)) // the deletion of what expired must not fail
		n.mustConnect(time.Second)
	})
}

func TestLeftoversActUntilTheyExpire(t *testing.T) {
	n := newTestNode(t, testFamilies[0])
	n.steer(n.steeredPort(intent.TCP))
	now := time.Now()
	n.writer = NewWriter(func() time.Time { return now }) // as after a crash
	n.steer()
	n.mustConnect(time.Second)
	now = now.Add(leftoversTimeout)
	if !n.writer.HasLeftoversToRemove() {
		t.Error("the leftovers do not count as expired after their timeout")
	}
	n.steer()
	n.mustNotConnect(n.client, "the leftovers have expired")
}

// TestChangesHaveTheSameResultAsWholeTable compares the table after some changes with one that is
// written at once.
func TestChangesHaveTheSameResultAsWholeTable(t *testing.T) {
	n := newTestNode(t, testFamilies[0])
	p := n.steeredPort(intent.TCP)
	three, udp, affine, restricted := p, n.steeredPort(intent.UDP), p, p
	three.LivingEndpoints = append(three.LivingEndpoints[:2:2], n.family.endpoint(4))
	affine.Port, affine.HasClientAffinity = 81, true
	restricted.Port, restricted.SourceRanges = 82, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.7/32")}
	for _, step := range []intent.Steering{{p}, {p, udp}, {three, udp, affine}, {three, restricted}, {udp, restricted, affine}, {p}, {affine}} {
		n.steer(step...)
		got := listElements(n)
		whole := &testNode{t: t, namespace: n.namespace, writer: NewWriter(time.Now)}
		whole.steer(step...)
		if want := listElements(whole); got != want {
			t.Fatalf("after changes the table has\n%s\nwant\n%s", got, want)
		}
		n.steer(step...)
	}
}

// listElements returns the lines of the table that have elements, without their remaining time.
func listElements(n *testNode) string {
	var out []string
	name := ""
	for _, line := range strings.Split(n.nft("list table inet "+tableName), "\n") {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "set" || f[0] == "map") {
			name = f[1]
		}
		if strings.Contains(line, "timeout") && strings.Contains(line, "expires") {
			fields := strings.Fields(line)
			for i, f := range fields {
				if f == "expires" || f == "timeout" {
					fields[i+1] = ""
				}
			}
			line = strings.Trim(strings.TrimPrefix(strings.Join(fields, " "), "elements = "), "{}, ")
			out = append(out, name+" "+line)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestKernelIsAskedWithoutATrace(t *testing.T) {
	n := newTestNode(t, testFamilies[0])
	before := n.nft("list ruleset")
	n.namespace.MustRunInside(func() error { return n.writer.CheckKernel() })
	if after := n.nft("list ruleset"); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}
	n.namespace.MustRunInside(func() error {
		if found, err := n.writer.HasServiceProxyRules(); err != nil || !found {
			t.Errorf("the rules of kube-proxy are found: %t, %v; want true", found, err)
		}
		return nil
	})
	n.nft("flush ruleset")
	n.nft("table ip nat { chain KUBE-KUBELET-CANARY { }; }")
	n.namespace.MustRunInside(func() error {
		if found, err := n.writer.HasServiceProxyRules(); err != nil || found {
			t.Errorf("without kube-proxy its rules are found: %t, %v; want false", found, err)
		}
		return nil
	})
}

func TestDatagramsAreSteeredAfterTheirConnectionIsForgotten(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		n.client.MustRunInside(func() error {
			c, err := net.Dial("udp", net.JoinHostPort(n.family.service, "80"))
			if err != nil {
				return err
			}
			defer c.Close()
			ask := func() error {
				_ = c.SetDeadline(time.Now().Add(unansweredTimeout))
				if _, err := c.Write([]byte("?")); err != nil {
					return err
				}
				_, err := c.Read(make([]byte, 64))
				return err
			}
			if ask() == nil {
				t.Error("the dead Pod answered")
			}
			p := n.steeredPort(intent.UDP)
			n.steer(p)
			if ask() == nil {
				t.Error("the flow was steered although the kernel sends it to the dead Pod: this test shows nothing")
			}
			n.namespace.MustRunInside(func() error {
				if deleted, err := n.writer.DeleteConnectionsToDeadEndpoints(intent.Steering{p}); err != nil || deleted != 1 {
					t.Errorf("%d entries were deleted, %v; want 1", deleted, err)
				}
				return nil
			})
			return ask()
		})
	})
}

func TestAnsweredConnectionsAreForgottenOnlyForUDPAfterALongDeath(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		forget := func(p intent.SteeredPort, want int) {
			t.Helper()
			n.namespace.MustRunInside(func() error {
				deleted, err := n.writer.DeleteConnectionsToDeadEndpoints(intent.Steering{p})
				if deleted != want {
					t.Errorf("%d connections were forgotten, want %d", deleted, want)
				}
				return err
			})
		}
		p := n.steeredPort(intent.TCP)
		n.mustNotConnect(n.client, "kube-proxy chooses the dead Pod")
		forget(p, 1)
		n.steer(p)
		n.mustConnect(2 * time.Second)
		p.DeadEndpoints = p.LivingEndpoints // as if their node only seemed dead
		p.LongDeadEndpoints = p.DeadEndpoints
		forget(p, 0)
		p = n.steeredPort(intent.UDP)
		n.steer(p)
		n.client.MustRunInside(func() error {
			c, err := net.Dial("udp", net.JoinHostPort(n.family.service, "80"))
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			_, err = c.Read(make([]byte, 64))
			return err
		})
		p.DeadEndpoints = p.LivingEndpoints
		forget(p, 0)
		p.LongDeadEndpoints = p.DeadEndpoints // the node is not back
		forget(p, 1)
	})
}

// TestKernelThatDoesNotAnswerIsGivenUp stands for a kernel that cannot load nf_tables.
func TestKernelThatDoesNotAnswerIsGivenUp(t *testing.T) {
	t.Parallel()
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := configureSocket(c); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() { _, err := c.Receive(); answer <- err }()
	select {
	case err := <-answer:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("without an answer the error is %v, want %v", err, os.ErrDeadlineExceeded)
		}
	case <-time.After(2 * kernelTimeout):
		t.Error("the socket still waits for an answer")
	}
}

func TestManyErrorsOfOneTransactionAreReportedAsTheFirst(t *testing.T) {
	var all error
	for _, e := range []error{unix.EOPNOTSUPP, os.ErrDeadlineExceeded, os.ErrDeadlineExceeded} {
		all = errors.Join(all, e)
	}
	if got := firstError(fmt.Errorf("conn.Receive: %w", all)); got != unix.EOPNOTSUPP {
		t.Errorf("the error is %q, want %q", got, unix.EOPNOTSUPP)
	}
}
