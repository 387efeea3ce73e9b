package probe

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

// portOf returns the address and the number of a listener.
func portOf(t *testing.T, a net.Addr) (netip.Addr, int32) {
	t.Helper()
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return p.Addr(), int32(p.Port())
}

// TestPortsOfThisMachineAreAsked asks servers of this machine.
func TestPortsOfThisMachineAreAsked(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	go func() {
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		buffer := make([]byte, 1)
		for {
			_, from, err := echo.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo([]byte("x"), from)
		}
	}()
	for name, c := range map[string]struct {
		server           net.Addr
		protocol, scheme string
		want             Outcome
	}{
		"HTTP":                {web.Listener.Addr(), "TCP", "http", OutcomeAnswered},
		"HTTPS":               {secure.Listener.Addr(), "TCP", "https", OutcomeAnswered},
		"HTTPS without TLS":   {web.Listener.Addr(), "TCP", "https", OutcomeNoTLS},
		"TCP":                 {mute.Addr(), "TCP", "", OutcomeConnected},
		"HTTP without answer": {mute.Addr(), "TCP", "http", OutcomeClosed},
		"a closed port":       {closed.Addr(), "TCP", "http", OutcomeRefused},
		"UDP":                 {echo.LocalAddr(), "UDP", "", OutcomeAnswered},
		"a closed UDP port":   {closed.Addr(), "UDP", "", OutcomeRefused},
	} {
		a, number := portOf(t, c.server)
		if o := AskPort(t.Context(), a, Port{Number: number, Protocol: c.protocol, Scheme: c.scheme}); o.Outcome != c.want || !o.LocalAddress.IsLoopback() {
			t.Errorf("%s: %s (%s), want %s", name, o.Outcome, o.Detail, c.want)
		}
	}
}

// TestNeighbourTablesOfEachSystemAreRead has lines as the programs of each system print them.
func TestNeighbourTablesOfEachSystemAreRead(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.10 dev eth0 lladdr 02:00:5e:10:00:01 REACHABLE\n":                                   "02:00:5e:10:00:01",
		"2001:db8::1 dev eth0 lladdr 02:00:5e:10:00:0a router STALE\n":                               "02:00:5e:10:00:0a",
		"192.0.2.10 dev eth0 FAILED\n":                                                               "",
		"? (192.0.2.10) at 2:0:5e:10:0:1 on en0 ifscope [ethernet]\n":                                "02:00:5e:10:00:01",
		"  192.0.2.10            02-00-5e-10-00-01     dynamic\r\n":                                  "02:00:5e:10:00:01",
		"192.0.2.10       0x1         0x0         00:00:00:00:00:00     *        eth0\n":             "",
		"192.0.2.10 (192.0.2.10) -- no entry\n":                                                      "",
		"192.0.2.10       0x1         0x2         02:00:5e:10:00:01     *        eth0 (/proc/net)\n": "02:00:5e:10:00:01",
	} {
		if got := parseNeighbour(text); got != want {
			t.Errorf("%q has %q, want %q", text, got, want)
		}
	}
}
