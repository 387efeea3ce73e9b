package node

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// podPortResponderArg and containerArg as the first argument make the program a responder or a
// container.
const (
	podPortResponderArg = "__responder"
	containerArg        = "__container"
)

// RunAsContainerIfRequested turns the process into a container if its arguments say so. The program
// of Config.SelfPath calls it before anything else.
func RunAsContainerIfRequested() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case podPortResponderArg:
		runPodPortResponder(os.Args[2:])
		os.Exit(0)
	case containerArg:
		fmt.Fprintln(os.Stderr, "lab: starting the container:", execAsContainerProcess(os.Args[2]))
		os.Exit(1)
	}
}

// defaultShutdownDelay is how long a responder still answers after SIGTERM, as a server does that
// finishes its requests.
const defaultShutdownDelay = 2 * time.Second

// runPodPortResponder answers on each port until SIGTERM. The arguments are the names of the Pod
// and the node, the delay of the shutdown, and the ports.
func runPodPortResponder(args []string) {
	shutdownDelay, err := time.ParseDuration(args[2])
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab: responder: reading %s: %v\n", AnnotationShutdownDelay, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	identity := "pod: " + args[0] + "\nnode: " + args[1]
	for _, p := range args[3:] {
		proto, port, _ := strings.Cut(p, "/")
		var err error
		switch proto {
		case "tcp":
			err = answerTCPWithPodName(identity, port)
		case "udp":
			err = answerUDPWithPodName(strings.NewReplacer(": ", "=", "\n", " ").Replace(identity), port)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab: responder:", err)
			os.Exit(1)
		}
	}
	<-ctx.Done()
	time.Sleep(shutdownDelay)
}

// answerTCPWithPodName answers an HTTP request with the names of the Pod and the node, and any
// other line with these names and the line.
func answerTCPWithPodName(identity, port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerConnectionWithPodName(c, identity, port)
		}
	}()
	return nil
}

func answerConnectionWithPodName(c net.Conn, identity, port string) {
	defer c.Close()
	answer := fmt.Sprintf("%s\npeer: %s\nport: %s\n", identity, c.RemoteAddr(), port)
	r := bufio.NewReader(c)
	for {
		start, err := r.Peek(4)
		if err != nil && len(start) == 0 {
			return
		}
		if method := string(start); method == "GET " || method == "HEAD" || method == "POST" || method == "PUT " {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body := answer + "path: " + req.URL.Path + "\nhost: " + req.Host + "\n"
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			if req.Close {
				return
			}
			continue
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%sline: %s", answer, line)
	}
}

// answerUDPWithPodName answers each datagram with the names of the Pod and the node, and the
// datagram's text.
func answerUDPWithPodName(identity, port string) error {
	c, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	netns.EnlargeReceiveBuffer(c)
	go func() {
		b := make([]byte, 2048)
		for {
			n, peer, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			answer := fmt.Sprintf("seq=%s %s peer=%s port=%s\n", b[:min(n, 64)], identity, peer, port)
			_, _ = c.WriteTo([]byte(answer), peer)
		}
	}()
	return nil
}
