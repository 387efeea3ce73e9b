package preflight

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/nodefacts"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/packetrules"
)

// readFacts reads the facts of this node, but for its name and ports.
func readFacts(ctx context.Context, now func() time.Time) nodefacts.Facts {
	rules := packetrules.NewWriter(now)
	return nodefacts.Facts{
		Time: now(), Links: readLinks(), Proxy: readServiceProxy(ctx),
		RawSockets: nodefacts.NewAttempt(openRawSocket()), TCPMD5: nodefacts.NewAttempt(setTCPMD5Key()), PacketRules: nodefacts.NewAttempt(rules.CheckKernel()),
		ForwardingRules: nodefacts.NewAttempt(rules.CheckKernelForwards()),
		DoesNotForward:  readSetting("ipv4/ip_forward") == 0,
		HasIPv6:         hasIPv6("all"),
	}
}

// settingsDirectory has the settings of the kernel for the network namespace of the reader.
const settingsDirectory = "/proc/sys/net"

// readSetting returns a setting of the kernel that is a number; -1 if there is none.
func readSetting(path string) int {
	text, err := os.ReadFile(filepath.Join(settingsDirectory, path))
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}

// settingInEffect returns the larger one of a setting of the link and of all links: it is in effect
// (Documentation/networking/ip-sysctl.rst of Linux).
func settingInEffect(link, name string) int {
	return max(readSetting("ipv4/conf/all/"+name), readSetting("ipv4/conf/"+link+"/"+name))
}

// hasIPv6 reports whether a link may have IPv6 addresses.
func hasIPv6(link string) bool { return readSetting("ipv6/conf/"+link+"/disable_ipv6") == 0 }

func readLinks() []nodefacts.Link {
	var excluded []*regexp.Regexp
	for _, p := range links.DefaultExcludePatterns {
		if e, err := regexp.Compile(p); err == nil {
			excluded = append(excluded, e)
		}
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	var out []nodefacts.Link
	for _, l := range all {
		a := l.Attrs()
		link := nodefacts.Link{
			Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU,
			IsExcluded:        slices.ContainsFunc(excluded, func(e *regexp.Regexp) bool { return e.MatchString(a.Name) }),
			HasCarrier:        a.RawFlags&unix.IFF_LOWER_UP != 0 && a.RawFlags&unix.IFF_UP != 0,
			ReversePathFilter: settingInEffect(a.Name, "rp_filter"), ARPIgnore: settingInEffect(a.Name, "arp_ignore"), ARPAnnounce: settingInEffect(a.Name, "arp_announce"),
			HasProxyARP: settingInEffect(a.Name, "proxy_arp") > 0, HasIPv6: hasIPv6(a.Name) && hasIPv6("all"),
		}
		if addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL); err == nil {
			for _, o := range addresses {
				ip, ok := netip.AddrFromSlice(o.IP)
				if length, _ := o.Mask.Size(); ok && !ip.Unmap().IsLinkLocalUnicast() {
					link.Subnets = append(link.Subnets, netip.PrefixFrom(ip.Unmap(), length))
				}
			}
		}
		out = append(out, link)
	}
	slices.SortFunc(out, func(x, y nodefacts.Link) int { return strings.Compare(x.Name, y.Name) })
	return out
}

const (
	// proxyHealthURL and proxyModeURL are where kube-proxy answers by default.
	proxyHealthURL = "http://127.0.0.1:10256/healthz"
	proxyModeURL   = "http://127.0.0.1:10249/proxyMode"
	// proxyAnswerTimeout bounds an answer of kube-proxy, which is on the same node.
	proxyAnswerTimeout = 2 * time.Second
	// maxModeBytes bounds the name of kube-proxy's mode.
	maxModeBytes = 64
)

func readServiceProxy(ctx context.Context) nodefacts.ServiceProxy {
	_, err := fetchLocalPage(ctx, proxyHealthURL)
	out := nodefacts.ServiceProxy{Health: nodefacts.NewAttempt(err)}
	if mode, err := fetchLocalPage(ctx, proxyModeURL); err == nil {
		out.Mode = strings.TrimSpace(mode)
	}
	return out
}

func fetchLocalPage(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, proxyAnswerTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxModeBytes))
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("it answers %s", response.Status)
	}
	return string(text), err
}

// openRawSocket opens a socket as ARP and NDP need it.
func openRawSocket() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// setTCPMD5Key gives a socket a password for an address of documentation, to which it never
// connects (RFC 2385, RFC 5737).
func setTCPMD5Key() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	signature := unix.TCPMD5Sig{Addr: unix.SockaddrStorage{Family: unix.AF_INET}, Keylen: 1}
	copy(signature.Addr.Data[2:], netip.MustParseAddr("192.0.2.1").AsSlice()) // after the port
	signature.Key[0] = 'k'
	return unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &signature)
}

// gantryPorts are the ports that Gantry's programs need on a node.
var gantryPorts = []nodefacts.UsedPort{
	{Protocol: "TCP", Port: nodefacts.GossipPort}, {Protocol: "UDP", Port: nodefacts.GossipPort}, {Protocol: "TCP", Port: nodefacts.BGPPort}, {Protocol: "UDP", Port: nodefacts.BFDPort},
	{Protocol: "TCP", Port: nodefacts.ControllerMetricsPort}, {Protocol: "TCP", Port: nodefacts.SpeakerMetricsPort}, {Protocol: "TCP", Port: nodefacts.SpeakerHealthPort}, {Protocol: "TCP", Port: nodefacts.SpeakerRoutesPort},
}

// readUsedPorts returns the ports of Gantry on which a program waits.
func readUsedPorts() []nodefacts.UsedPort {
	var out []nodefacts.UsedPort
	for _, table := range []struct{ file, protocol string }{{"tcp", "TCP"}, {"tcp6", "TCP"}, {"udp", "UDP"}, {"udp6", "UDP"}} {
		text, err := os.ReadFile(filepath.Join("/proc/self/net", table.file))
		if err != nil {
			continue
		}
		for _, port := range parseListeningPorts(string(text)) {
			used := nodefacts.UsedPort{Protocol: table.protocol, Port: port}
			if slices.Contains(gantryPorts, used) && !slices.Contains(out, used) {
				out = append(out, used)
			}
		}
	}
	return out
}

// The states of a socket in the tables of the kernel: one that waits for connections, and one of
// UDP without a peer.
const (
	tcpListenState      = "0A"
	udpUnconnectedState = "07"
)

// parseListeningPorts returns the ports on which programs wait, from a table such as /proc/net/tcp.
func parseListeningPorts(table string) []int {
	var out []int
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != tcpListenState && fields[3] != udpUnconnectedState {
			continue
		}
		_, text, _ := strings.Cut(fields[1], ":")
		if port, err := strconv.ParseUint(text, 16, 16); err == nil {
			out = append(out, int(port))
		}
	}
	return out
}
