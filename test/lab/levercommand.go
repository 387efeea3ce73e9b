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

// lever is a command that sends one order.
type lever struct {
	use, short string
	args       int
	order      func(args []string) (order, error)
}

// levers are the commands that make something fail, or right again.
var levers = []lever{
	{"cut HOST", "Pull a host's cable", 1, onHost("cut")},
	{"cut-silently HOST", "Let nothing pass to or from a host while its carrier stays", 1, onHost("cut-silently")},
	{"plug HOST", "Plug a host's cable in again", 1, onHost("plug")},
	{"kill NODE", "Cut a node's power", 1, onHost("kill")},
	{"revive NODE", "Switch a killed node on again", 1, onHost("revive")},
	{"unblock HOST", "Lift every block of a host", 1, onHost("unblock")},
	{"heal", "Undo a partition", 0, func([]string) (order, error) { return order{Op: "heal"}, nil }},
	{"partition HOST,HOST...", "Separate a group of hosts from all others", 1, func(a []string) (order, error) {
		return order{Op: "partition", Groups: [][]string{strings.Split(a[0], ",")}}, nil
	}},
	{"block HOST PROTO/PORT", "Drop what a host receives on a port or sends to it", 2, func(a []string) (order, error) {
		proto, text, _ := strings.Cut(a[1], "/")
		n, err := strconv.Atoi(text)
		if err != nil || (proto != "tcp" && proto != "udp") {
			return order{}, fmt.Errorf("%q is no port: write tcp/7946 or udp/7946", a[1])
		}
		return order{Op: "block", Host: a[0], Proto: proto, Port: n}, nil
	}},
	{"signal NODE TARGET SIGNAL", "Send a signal (KILL, STOP, CONT, TERM) to a program or Pod", 3, func(a []string) (order, error) {
		s := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(a[2]), "SIG"))
		if s == syscall.Signal(0) {
			return order{}, fmt.Errorf("%q is no signal: write KILL, STOP, CONT or TERM", a[2])
		}
		return order{Op: "signal", Host: a[0], Target: a[1], Signal: int(s)}, nil
	}},
	{"api stop|start|DURATION", "Make the API server vanish, come back, or slow by a duration (0s lifts it)", 1, func(a []string) (order, error) {
		if a[0] == "stop" || a[0] == "start" {
			return order{Op: a[0] + "-api"}, nil
		}
		d, err := time.ParseDuration(a[0])
		return order{Op: "slow-api", Delay: d}, err
	}},
	{"capture HOST FILTER", "Write matching frames to a file in captures; prints the capture's name and the file's", 2, func(a []string) (order, error) {
		return order{Op: "capture", Host: a[0], Filter: a[1]}, nil
	}},
	{"capture-end HOST NAME", "End a capture", 2, func(a []string) (order, error) {
		return order{Op: "capture-end", Host: a[0], Target: a[1]}, nil
	}},
}

func onHost(op string) func([]string) (order, error) {
	return func(a []string) (order, error) { return order{Op: op, Host: a[0]}, nil }
}

func leverCommands(dir func() string) []*cobra.Command {
	var out []*cobra.Command
	for _, l := range levers {
		out = append(out, &cobra.Command{Use: l.use, Short: l.short, Args: cobra.ExactArgs(l.args), RunE: func(c *cobra.Command, args []string) error {
			o, err := l.order(args)
			if err != nil {
				return err
			}
			return printOrder(c, dir(), o)
		}})
	}
	return out
}
