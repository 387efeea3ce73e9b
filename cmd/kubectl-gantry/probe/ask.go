package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

const (
	// connectTimeout bounds a TCP connection. The kernel asks again after 1 and 3 s (RFC 6298).
	connectTimeout = 4 * time.Second
	// answerTimeout bounds the answer of a program to HTTP.
	answerTimeout = 5 * time.Second
	// datagramAnswerTimeout bounds the answer to a datagram, and datagramCount is how many are
	// sent: the first one may be lost while the neighbour is asked.
	datagramAnswerTimeout = time.Second
	datagramCount         = 3
	// neighbourTimeout bounds the program that prints the neighbour table.
	neighbourTimeout = 2 * time.Second
)

// AskPort asks one port at one address, and looks at the neighbour table after that.
func AskPort(ctx context.Context, a netip.Addr, port Port) Observation {
	o := Observation{Address: a, Port: port, IsOnLink: isOnLink(a), LocalAddress: localAddressTowards(ctx, a)}
	switch port.Protocol {
	case "TCP":
		askByTCP(ctx, &o)
	case "UDP":
		askByUDP(ctx, &o)
	default:
		o.Outcome, o.Detail = OutcomeSilent, "not asked"
	}
	if o.IsOnLink {
		o.NeighbourMAC, o.IsNeighbourKnown = readNeighbour(ctx, a)
	}
	return o
}

// isOnLink reports whether the address is in a subnet of this machine.
func isOnLink(a netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, o := range all {
		if p, err := netip.ParsePrefix(o.String()); err == nil && !p.Addr().IsLoopback() && p.Masked().Contains(a) {
			return true
		}
	}
	return false
}

func askByTCP(ctx context.Context, o *Observation) {
	target := netip.AddrPortFrom(o.Address, uint16(o.Port.Number)).String()
	c, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", target)
	if err != nil {
		o.Outcome, o.Detail = classifyError(err), err.Error()
		return
	}
	_ = c.Close()
	o.Outcome = OutcomeConnected
	if o.Port.Scheme != "" {
		askByHTTP(ctx, o, target)
	}
}

// localAddressTowards returns the address by which this machine asks; not valid if there is no
// route. A UDP socket finds it without sending anything.
func localAddressTowards(ctx context.Context, a netip.Addr) netip.Addr {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(a, 9).String())
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	p, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}

// askByHTTP sends a request for /. Any answer of HTTP is an answer; the certificate may be for
// another name, since the request has the address.
func askByHTTP(ctx context.Context, o *Observation, target string) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, o.Port.Scheme+"://"+target+"/", http.NoBody)
	if err != nil {
		o.Detail = err.Error()
		return
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	asking := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := asking.Do(request)
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		o.Outcome, o.Detail = OutcomeNoTLS, err.Error()
	case err != nil:
		o.Outcome, o.Detail = OutcomeClosed, err.Error()
	default:
		_ = response.Body.Close()
		o.Outcome, o.Detail = OutcomeAnswered, response.Proto+" "+response.Status
	}
}

// askByUDP sends empty datagrams: many programs do not answer them, but a host without the port
// does.
func askByUDP(ctx context.Context, o *Observation) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(o.Address, uint16(o.Port.Number)).String())
	if err != nil {
		o.Outcome, o.Detail = classifyError(err), err.Error()
		return
	}
	defer c.Close()
	answer := make([]byte, 1)
	for range datagramCount {
		if _, err = c.Write(nil); err == nil {
			_ = c.SetReadDeadline(time.Now().Add(datagramAnswerTimeout))
			_, err = c.Read(answer)
		}
		var network net.Error
		switch {
		case err == nil:
			o.Outcome, o.Detail = OutcomeAnswered, "a datagram"
			return
		case !errors.As(err, &network) || !network.Timeout():
			o.Outcome, o.Detail = classifyError(err), err.Error()
			return
		}
	}
	o.Outcome, o.Detail = OutcomeSilent, "no answer"
}

// macPattern finds an Ethernet address. Some systems write - for :, or leave leading zeros out.
var macPattern = regexp.MustCompile(`(?i)\b[0-9a-f]{1,2}([:-][0-9a-f]{1,2}){5}\b`)

// readNeighbour returns the Ethernet address in the neighbour table; ok is false if the table
// cannot be read.
func readNeighbour(ctx context.Context, a netip.Addr) (mac string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, neighbourTimeout)
	defer cancel()
	var program []string
	switch {
	case runtime.GOOS == "linux":
		program = []string{"ip", "neighbour", "show", "to", a.String()}
	case runtime.GOOS == "windows" && a.Is4():
		program = []string{"arp", "-a", a.String()}
	case runtime.GOOS == "darwin" && a.Is4():
		program = []string{"arp", "-n", a.String()}
	default:
		return "", false
	}
	out, err := exec.CommandContext(ctx, program[0], program[1:]...).Output()
	if err != nil && runtime.GOOS == "linux" && a.Is4() { // a system without the program ip
		out, err = readARPTable(a)
	}
	if err != nil {
		return "", false
	}
	return parseNeighbour(string(out)), true
}

// readARPTable returns the line of the address in the table of the kernel of Linux.
func readARPTable(a netip.Addr) ([]byte, error) {
	text, err := os.ReadFile("/proc/net/arp")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == a.String() {
			return []byte(line), nil
		}
	}
	return nil, nil
}

// parseNeighbour returns the Ethernet address in a line of a neighbour table, as 02:00:5e:00:00:01;
// "" if there is none.
func parseNeighbour(text string) string {
	found := macPattern.FindString(text)
	if found == "" {
		return ""
	}
	parts := strings.FieldsFunc(strings.ToLower(found), func(r rune) bool { return r == ':' || r == '-' })
	for i, p := range parts {
		parts[i] = fmt.Sprintf("%02s", p)
	}
	if mac := strings.Join(parts, ":"); mac != "00:00:00:00:00:00" {
		return mac
	}
	return ""
}
