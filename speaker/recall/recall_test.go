package recall

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/intent"
)

func state() State {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	nodes := intent.NewCandidates(map[string]int{"node1": 0, "node2": 5})
	return State{
		Node: "node1", Address: netip.MustParseAddr("10.0.0.1"), Key: []byte("0123456789abcdef"),
		Memory: agent.Memory{
			Bids: []intent.Bid{
				{Address: a, Candidates: nodes, Siblings: []netip.Addr{b}, Links: []int{2, 3}, Rebalance: true},
				{Address: b, Candidates: nodes},
			},
			Claims: []elect.Claim{{Address: a, Holder: "node1", Nonce: 1 << 63, Epoch: 7}, {Address: b, Holder: "node2", Epoch: 1, Released: true}},
			Peers:  []netip.Addr{netip.MustParseAddr("10.0.0.2")},
			BGP: bgp.Desired{
				Peers: []intent.Peer{
					{
						Name: "blocked", IPv4: true, Blocked: intent.Block{Reason: "NoGateway", Text: "no gateway"},
					},
					{
						Name: "tor", Address: netip.MustParseAddr("10.0.0.254"), Port: 179, LocalASN: 64512, PeerASN: 65000, Hold: 90 * time.Second,
						IPv4: true, IPv6: true, GracefulRestart: true, BFD: &intent.BFD{Transmit: time.Second, Multiplier: 3},
					},
					{Name: "unnumbered", Unnumbered: true, Device: "eth0", Port: 179, LocalASN: 64512, ASNs: intent.ASNExternal, IPv6: true},
				},
				Routes: []*intent.Route{
					{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Peers: []string{"tor"}},
					{Prefix: netip.MustParsePrefix("192.0.2.2/32"), Peers: []string{"tor"}, Attributes: intent.Attributes{
						LocalPref: 7, MED: 1, HasMED: true, Communities: []uint32{1}, Large: [][3]uint32{{1, 2, 3}}, Extended: [][8]byte{{1, 2}}, Bandwidth: 9,
					}},
					{Prefix: netip.MustParsePrefix("192.0.2.3/32"), Peers: []string{"tor"}},
				},
				Leaving: true,
			},
		},
	}
}

func TestWhatIsKeptComesBack(t *testing.T) {
	s := New(t.TempDir(), slog.New(slog.DiscardHandler))
	if s.Load("node1") != nil {
		t.Error("there is a state before anything was kept")
	}
	if err := s.write(state()); err != nil {
		t.Fatal(err)
	}
	if got := s.Load("node1"); got == nil || !reflect.DeepEqual(*got, state()) {
		t.Errorf("kept %+v, got %+v", state(), got)
	}
	if s.Load("node2") != nil {
		t.Error("another node goes on from it")
	}
	info, err := os.Stat(filepath.Join(s.dir, fileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file with the key has mode %v (%v), want 0600", info.Mode(), err)
	}
}

func TestPasswordsAreNotKept(t *testing.T) {
	s := New(t.TempDir(), slog.New(slog.DiscardHandler))
	with := state()
	with.BGP.Peers[1].Password = "s3cret"
	if err := s.write(with); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, fileName))
	if err != nil || bytes.Contains(text, []byte("s3cret")) {
		t.Errorf("the password is in the file (%v)", err)
	}
	got := s.Load("node1").BGP.Peers[1]
	if got.Password != "" || got.Blocked.Reason != "UnknownSecret" || !strings.Contains(got.Blocked.Text, "waits for the API server") {
		t.Errorf("the peer with the password is %+v, want it to wait", got)
	}
}

func TestWhatIsOfNoUse(t *testing.T) {
	s := New(t.TempDir(), slog.New(slog.DiscardHandler))
	good, err := encode(state(), s.boot)
	if err != nil {
		t.Fatal(err)
	}
	other, err := encode(state(), "another boot")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"of another boot": other, "empty": nil, "cut off": good[:len(good)/2], "with a bit turned over": append(append([]byte{}, good[:200]...), append([]byte{good[200] ^ 1}, good[201:]...)...),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, fileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s.Load("node1") != nil {
			t.Errorf("a file that is %s is gone on from", name)
		}
	}
	if New(filepath.Join(t.TempDir(), "missing"), s.log).Load("node1") != nil || New("", s.log).Load("node1") != nil {
		t.Error("there is a state where nothing can be kept")
	}
}

func FuzzParse(f *testing.F) {
	good, err := encode(state(), "boot")
	if err != nil {
		f.Fatal(err)
	}
	_, text, _ := bytes.Cut(good, []byte("\n"))
	f.Add(text)
	f.Add([]byte(`{"Version":1,"Boot":"boot","Candidates":[{}],"Bids":[{"Address":"192.0.2.1"}]}`))
	f.Add([]byte(`{"Version":1,"Boot":"boot","Routers":[{"Name":"a"}],"Routes":[{"Peers":["a"],"Prefixes":["10.0.0.0/8","10.1.0.0/16"]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parse(text, "boot")
		if err != nil {
			return
		}
		once, err := encode(s, "boot")
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(once, "boot")
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := encode(back, "boot"); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s became %s (%v)", once, twice, err)
		}
	})
}
