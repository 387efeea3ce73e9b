package lab

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// faultCommand is a subcommand that sends one request to the supervisor.
type faultCommand struct {
	usageLine, summary string
	argumentCount      int
	buildRequest       func(args []string) (supervisorRequest, error)
}

// faultCommands are the subcommands that cause a fault or end one.
var faultCommands = []faultCommand{
	{"cut HOST", "Pull a host's cable", 1, requestBuilderForHost("cut")},
	{"cut-silently HOST", "Drop all frames to and from a host, which keeps the carrier", 1, requestBuilderForHost("cut-silently")},
	{"plug HOST", "Plug a host's cable in again", 1, requestBuilderForHost("plug")},
	{"kill NODE", "Simulate a power failure of a node", 1, requestBuilderForHost("kill")},
	{"revive NODE", "Start a killed node again", 1, requestBuilderForHost("revive")},
	{"restart-proxy NODE", "Kill kube-proxy on a node and start it again", 1, requestBuilderForHost("restart-proxy")},
	{"unblock HOST", "Remove all blocks of a host", 1, requestBuilderForHost("unblock")},
	{"heal", "Undo a partition", 0, func([]string) (supervisorRequest, error) { return supervisorRequest{Operation: "heal"}, nil }},
	{"partition HOST,HOST...", "Separate a group of hosts from all others", 1, func(a []string) (supervisorRequest, error) {
		return supervisorRequest{Operation: "partition", PartitionGroups: [][]string{strings.Split(a[0], ",")}}, nil
	}},
	{"block HOST PROTO/PORT", "Drop packets that a host receives on a port or sends to it", 2, func(a []string) (supervisorRequest, error) {
		proto, text, _ := strings.Cut(a[1], "/")
		n, err := strconv.Atoi(text)
		if err != nil || (proto != "tcp" && proto != "udp") {
			return supervisorRequest{}, fmt.Errorf("%q is not a port: write tcp/7946 or udp/7946", a[1])
		}
		return supervisorRequest{Operation: "block", LANHost: a[0], BlockedProtocol: proto, BlockedPort: n}, nil
	}},
	{"signal NODE TARGET SIGNAL", "Send a signal (KILL, STOP, CONT, TERM) to a program or Pod", 3, func(a []string) (supervisorRequest, error) {
		s := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(a[2]), "SIG"))
		if s == syscall.Signal(0) {
			return supervisorRequest{}, fmt.Errorf("%q is not a signal: write KILL, STOP, CONT or TERM", a[2])
		}
		return supervisorRequest{Operation: "signal", LANHost: a[0], ProgramOrPodPrefix: a[1], Signal: int(s)}, nil
	}},
	{"api stop|start|DURATION", "Stop the API server, start it again, or delay its requests by a duration (0s ends the delay)", 1, func(a []string) (supervisorRequest, error) {
		if a[0] == "stop" || a[0] == "start" {
			return supervisorRequest{Operation: a[0] + "-api"}, nil
		}
		d, err := time.ParseDuration(a[0])
		return supervisorRequest{Operation: "slow-api", APIRequestDelay: d}, err
	}},
	{"capture HOST FILTER", "Write matching frames to a file in captures; prints the names of the capture and the file", 2, func(a []string) (supervisorRequest, error) {
		return supervisorRequest{Operation: "capture", LANHost: a[0], CaptureFilter: a[1]}, nil
	}},
	{"capture-end HOST NAME", "End a capture", 2, func(a []string) (supervisorRequest, error) {
		return supervisorRequest{Operation: "capture-end", LANHost: a[0], ProgramOrPodPrefix: a[1]}, nil
	}},
}

func requestBuilderForHost(op string) func([]string) (supervisorRequest, error) {
	return func(a []string) (supervisorRequest, error) {
		return supervisorRequest{Operation: op, LANHost: a[0]}, nil
	}
}

func newFaultCommands(dir func() string) []*cobra.Command {
	var out []*cobra.Command
	for _, l := range faultCommands {
		out = append(out, &cobra.Command{Use: l.usageLine, Short: l.summary, Args: cobra.ExactArgs(l.argumentCount), RunE: func(c *cobra.Command, args []string) error {
			o, err := l.buildRequest(args)
			if err != nil {
				return err
			}
			return sendRequestAndPrintAnswer(c, dir(), o)
		}})
	}
	return out
}
