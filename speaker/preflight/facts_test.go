package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/internal/nodefacts"
)

// TestListeningPortsAreReadFromTheKernelsTables has lines of /proc/net/tcp6 and /proc/net/udp.
func TestListeningPortsAreReadFromTheKernelsTables(t *testing.T) {
	const table = `  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:1F0A 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 0100007F:1D30 0100007F:C001 01 00000000:00000000
   2: 00000000:0EC8 00000000:0000 07 00000000:00000000
`
	if got := parseListeningPorts(table); !slices.Equal(got, []int{7946, 3784}) {
		t.Errorf("the ports are %v", got)
	}
}

// TestFactsOfThisMachineAreRead reads what every machine has.
func TestFactsOfThisMachineAreRead(t *testing.T) {
	facts := readFacts(t.Context(), time.Now)
	at := slices.IndexFunc(facts.Links, func(l nodefacts.Link) bool { return l.Name == "lo" })
	if at < 0 || !facts.Links[at].IsExcluded || facts.Links[at].MTU == 0 || facts.Time.IsZero() {
		t.Errorf("the facts are %+v", facts)
	}
}

// TestNodesAnswerEachOther serves the facts, and lets this machine ask itself. It needs the ports
// of Gantry, which are free on a machine without it.
func TestNodesAnswerEachOther(t *testing.T) {
	if used := readUsedPorts(); len(used) > 0 {
		t.Skipf("the ports are in use: %v", used)
	}
	defer serveTestFacts(t, Options{NodeName: "node1", Now: time.Now})()
	var facts nodefacts.Facts
	fetchJSON(t, nodefacts.FactsPagePath, &facts)
	if facts.Node != "node1" || len(facts.UsedPorts) > 0 {
		t.Errorf("the facts are %+v", facts)
	}
	var paths []nodefacts.Path
	fetchJSON(t, nodefacts.PathsPagePath+"?"+nodefacts.PathsParameter+"=127.0.0.1", &paths)
	if len(paths) != 1 || paths[0].To != netip.MustParseAddr("127.0.0.1") || !paths[0].TCP.Succeeded || !paths[0].UDP.Succeeded {
		t.Errorf("the paths are %+v", paths)
	}
}

// TestPortOfSpeakerStaysFree serves the facts beside a speaker that restarts.
func TestPortOfSpeakerStaysFree(t *testing.T) {
	if used := readUsedPorts(); len(used) > 0 {
		t.Skipf("the ports are in use: %v", used)
	}
	defer serveTestFacts(t, Options{NodeName: "node1", IsBesideSpeaker: true, Now: time.Now})()
	fetchJSON(t, nodefacts.FactsPagePath, &nodefacts.Facts{})
	speaker, err := net.Listen("tcp", net.JoinHostPort("", fmt.Sprint(nodefacts.GossipPort)))
	if err != nil {
		t.Fatal(err)
	}
	_ = speaker.Close()
}

// serveTestFacts serves the facts until the function that it returns is called.
func serveTestFacts(t *testing.T, o Options) func() {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- ServeFacts(ctx, o) }()
	return func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// fetchJSON reads a page as soon as it is served.
func fetchJSON(t *testing.T, path string, into any) {
	t.Helper()
	address := net.JoinHostPort("127.0.0.1", fmt.Sprint(nodefacts.PagePort))
	for {
		response, err := http.Get("http://" + address + path)
		if err != nil {
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
			continue
		}
		text, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err == nil {
			err = json.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatalf("%s: %v: %s", path, err, text)
		}
		return
	}
}

// TestOnlyAddressesAreAsked has parameters that are none.
func TestOnlyAddressesAreAsked(t *testing.T) {
	for _, texts := range [][]string{{"node2"}, {"192.0.2.1:80"}, make([]string, maxPathsPerRequest+1)} {
		if got, err := parseTargets(texts); err == nil {
			t.Errorf("%d parameters such as %q become %v", len(texts), texts[0], got)
		}
	}
}
