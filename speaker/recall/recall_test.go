package recall

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/gantry-lb/gantry/speaker/agent"
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
