// Package options declares the flags of the speaker and checks their values. It also reads the file
// of excluded interfaces, which a flag names.
package options

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/option"
	"github.com/gantry-lb/gantry/speaker/fitness"
)

// Options are the speaker's options.
type Options struct {
	option.CommonOptions
	NodeName string
	// RoutesBindAddress is where the page of the announced routes is served.
	RoutesBindAddress string
	PodName           string
	StateDir          string

	GossipBindAddress string
	GossipBindPort    int
	GossipKeyFile     string

	// ExcludeInterfacesFile, AnnouncementRefreshInterval and AnswerPing are for ARP and NDP.
	ExcludeInterfacesFile       string
	AnnouncementRefreshInterval time.Duration
	AnswerPing                  bool

	// AroundDeadNodes sends new connections to living endpoints while a node is dead.
	AroundDeadNodes bool
	// KeepConnections keeps TCP connections open when their address moves.
	KeepConnections bool

	ServiceBGPStatusMode string // auto, on or off

	// ProxyHealthAddress is where kube-proxy answers whether it works; empty if that does not
	// count.
	ProxyHealthAddress  string
	ProxySilenceTimeout time.Duration
	SilentKubeletPolicy string // Ignore or Leave
}

const (
	// minAnnouncementRefreshInterval keeps the load of thousands of announced addresses low.
	minAnnouncementRefreshInterval = 10 * time.Second
	// maxServicesForAutoServiceBGPStatus is the largest number of Services for which a node writes
	// ServiceBGPStatus objects with "auto". Each node announces each Service, so there is one
	// object for each node and Service.
	maxServicesForAutoServiceBGPStatus = 500
)

// ParseOptions reads and checks the command line and the environment.
func ParseOptions(args []string, lookup func(string) (string, bool)) (Options, error) {
	var o Options
	fs := pflag.NewFlagSet("speaker", pflag.ContinueOnError)
	o.declareFlags(fs)
	if err := option.ParseFlags(fs, args, lookup); err != nil {
		return o, err
	}
	if err := o.validateLayer2AndBGP(); err != nil {
		return o, err
	}
	if err := errors.Join(o.validateNodeAndGossip(), o.validateProxyAndKubeletHealth()); err != nil {
		return o, err
	}
	return o, o.ValidateValues()
}

func (o *Options) declareFlags(fs *pflag.FlagSet) {
	o.DeclareFlags(fs, ":7473", "127.0.0.1:7474")
	fs.StringVar(&o.RoutesBindAddress, "routes-bind-address", "127.0.0.1:7475", "address:port of the page /bgp/routes, which kubectl gantry reads; 0 turns it off")
	fs.StringVar(&o.NodeName, "node-name", "", "name of this node in the Kubernetes API; required")
	fs.StringVar(&o.PodName, "pod-name", "", "name of this speaker's Pod; empty if it does not run in a Pod")
	fs.StringVar(&o.GossipBindAddress, "gossip-bind-address", "",
		"address for gossip between speakers; empty for the internal address of the node")
	fs.IntVar(&o.GossipBindPort, "gossip-bind-port", 7946,
		"TCP and UDP port for gossip between speakers, the same on all nodes")
	fs.StringVar(&o.GossipKeyFile, "gossip-key-file", "",
		"file with the gossip key; empty for the Secret that the controller creates")
	fs.StringVar(&o.StateDir, "state-dir", "/run/gantry",
		"directory for the state that a restarted speaker resumes from while the API server is unreachable: "+
			"a hostPath that is cleared at reboot; empty to disable")
	fs.StringVar(&o.ExcludeInterfacesFile, "exclude-interfaces-file", "/etc/gantry/excludel2.yaml",
		"file with the list announcedInterfacesToExclude: regular expressions for interfaces "+
			"on which nothing is announced; changes take effect at once, and without the file the usual container interfaces are excluded")
	fs.BoolVar(&o.AnswerPing, "layer2-answer-ping", false,
		"answer pings to held addresses; do not use it with kube-proxy in ipvs mode, where the kernel answers")
	fs.DurationVar(&o.AnnouncementRefreshInterval, "layer2-refresh-interval", 0,
		"announce held addresses by ARP and NDP again at this interval, for networks that forget them; "+
			"0 for never, else at least 10s")
	fs.StringVar(&o.ProxyHealthAddress, "kube-proxy-health-address", "127.0.0.1:10256",
		"address:port of kube-proxy's --healthz-bind-address on this node; if kube-proxy answered there and then falls silent, "+
			"other nodes serve the addresses; empty turns that off")
	fs.DurationVar(&o.ProxySilenceTimeout, "kube-proxy-silence-timeout", fitness.DefaultProxySilenceTimeout,
		"how long kube-proxy must be silent until other nodes serve the addresses; at least 5s")
	fs.StringVar(&o.SilentKubeletPolicy, "silent-kubelet", "Ignore",
		"what follows if the kubelet of a node does not report any more: Ignore, or Leave, so that other nodes serve the addresses")
	fs.BoolVar(&o.AroundDeadNodes, "around-dead-nodes", false,
		"while a node is dead and Kubernetes does not know it yet, send new connections to living endpoints by nftables rules; needs the capability NET_ADMIN")
	fs.BoolVar(&o.KeepConnections, "keep-connections", false,
		"when an address moves to another node as planned, keep its TCP connections: nftables rules forward their packets to the node that held the address before; needs the capability NET_ADMIN")
	fs.StringVar(&o.ServiceBGPStatusMode, "service-bgp-status", "auto", fmt.Sprintf(
		"write ServiceBGPStatus objects: on, off, or auto, which is off on a node that announces more than %d Services",
		maxServicesForAutoServiceBGPStatus))
}

func (o *Options) validateLayer2AndBGP() error {
	var refresh, status error
	if o.AnnouncementRefreshInterval != 0 && o.AnnouncementRefreshInterval < minAnnouncementRefreshInterval {
		refresh = option.InvalidOptionError("layer2-refresh-interval", o.AnnouncementRefreshInterval.String(), "write 0, or 10s or more")
	}
	switch o.ServiceBGPStatusMode {
	case "auto", "on", "off":
	default:
		status = option.InvalidOptionError("service-bgp-status", o.ServiceBGPStatusMode, "write auto, on or off")
	}
	return errors.Join(refresh, status)
}

// minProxySilenceTimeout is several times the interval of the health checks.
const minProxySilenceTimeout = 5 * time.Second

func (o *Options) validateProxyAndKubeletHealth() error {
	var address, silence, kubelet error
	if _, _, err := net.SplitHostPort(o.ProxyHealthAddress); o.ProxyHealthAddress != "" && err != nil {
		address = option.InvalidOptionError("kube-proxy-health-address", o.ProxyHealthAddress, "write ADDRESS:PORT, or leave it empty")
	}
	if o.ProxySilenceTimeout < minProxySilenceTimeout {
		silence = option.InvalidOptionError("kube-proxy-silence-timeout", o.ProxySilenceTimeout.String(), "write 5s or more")
	}
	if o.SilentKubeletPolicy != "Ignore" && o.SilentKubeletPolicy != "Leave" {
		kubelet = option.InvalidOptionError("silent-kubelet", o.SilentKubeletPolicy, "write Ignore or Leave")
	}
	return errors.Join(address, silence, kubelet)
}

func (o *Options) validateNodeAndGossip() error {
	if _, _, err := net.SplitHostPort(o.RoutesBindAddress); o.RoutesBindAddress != option.ListenAddressDisabledValue && err != nil {
		return option.InvalidOptionError("routes-bind-address", o.RoutesBindAddress, "write ADDRESS:PORT, :PORT or 0")
	}
	if o.NodeName == "" {
		return option.InvalidOptionError("node-name", o.NodeName, "set the name of this node, as kubectl get nodes shows it")
	}
	if o.GossipBindPort < 1 || o.GossipBindPort > 65535 {
		return option.InvalidOptionError("gossip-bind-port", fmt.Sprint(o.GossipBindPort), "write a port, 1 to 65535")
	}
	if o.GossipBindAddress != "" {
		if _, err := netip.ParseAddr(o.GossipBindAddress); err != nil {
			return option.InvalidOptionError("gossip-bind-address", o.GossipBindAddress, "write an IPv4 or IPv6 address of this node")
		}
	}
	return nil
}

// ServiceBGPStatusLimit returns the largest number of Services for which ServiceBGPStatus objects
// are written.
func (o *Options) ServiceBGPStatusLimit() int {
	switch o.ServiceBGPStatusMode {
	case "on":
		return math.MaxInt
	case "off":
		return 0
	}
	return maxServicesForAutoServiceBGPStatus
}

// ServiceProxyOptions says what follows from the health of kube-proxy on this node.
func (o *Options) ServiceProxyOptions(now time.Time) fitness.ServiceProxyOptions {
	out := fitness.ServiceProxyOptions{IsHealthCheckUsed: o.ProxyHealthAddress != "", ProxySilenceTimeout: o.ProxySilenceTimeout}
	var system unix.Sysinfo_t
	if unix.Sysinfo(&system) == nil {
		out.NodeBootedAt = now.Add(-time.Duration(system.Uptime) * time.Second)
	}
	return out
}
