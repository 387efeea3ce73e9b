package checkpoint

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

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/intent"
)

func exampleState() SavedNodeState {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	nodes := intent.NewCandidates(map[string]int{"node1": 0, "node2": 5})
	return SavedNodeState{
		NodeName: "node1", GossipAddress: netip.MustParseAddr("10.0.0.1"), GossipKeys: [][]byte{[]byte("0123456789abcdef")},
		Checkpoint: agent.Checkpoint{
			BidsOfLastPlan: []intent.Bid{
				{Address: a, Candidates: nodes, SiblingAddresses: []netip.Addr{b}, OwnLinkIndexes: []int{2, 3}, MayRebalance: true},
				{Address: b, Candidates: nodes},
			},
			Claims: []elect.Claim{
				{Address: a, Holder: "node1", Nonce: 1 << 63, Epoch: 7},
				{Address: b, Holder: "node2", Epoch: 1, Released: true},
			},
			MemberAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
			DesiredBGP: bgp.DesiredState{
				Peers: []intent.Peer{
					{
						Name: "blocked", CarriesIPv4Routes: true, BlockedExplanation: names.Explanation{Reason: "NoGateway", Text: "no gateway"},
					},
					{
						Name: "tor", Address: netip.MustParseAddr("10.0.0.254"), Port: 179,
						LocalASN: 64512, PeerASN: 65000, HoldTime: 90 * time.Second,
						CarriesIPv4Routes: true, CarriesIPv6Routes: true, GracefulRestart: true,
						BFD: &intent.BFD{TransmitInterval: time.Second, Multiplier: 3},
					},
					{
						Name: "unnumbered", Unnumbered: true, Device: "eth0", Port: 179,
						LocalASN: 64512, AcceptedASNs: intent.AcceptExternalASN, CarriesIPv6Routes: true,
					},
				},
				Routes: []*intent.Route{
					{Prefix: netip.MustParsePrefix("192.0.2.1/32"), PeerNames: []string{"tor"}},
					{Prefix: netip.MustParsePrefix("192.0.2.2/32"), PeerNames: []string{"tor"}, Attributes: intent.Attributes{
						LocalPref: 7, MED: 1, HasMED: true, Communities: []uint32{1},
						LargeCommunities: [][3]uint32{{1, 2, 3}}, ExtendedCommunities: [][8]byte{{1, 2}}, LinkBandwidthBytesPerSecond: 9,
					}},
					{Prefix: netip.MustParsePrefix("192.0.2.3/32"), PeerNames: []string{"tor"}},
				},
				NodeLeaving: true,
			},
		},
	}
}

func TestASavedStateIsLoaded(t *testing.T) {
	s := NewStore(t.TempDir(), slog.New(slog.DiscardHandler))
	if s.LoadState("node1") != nil {
		t.Error("a state is loaded before one is saved")
	}
	if err := s.writeFile(exampleState()); err != nil {
		t.Fatal(err)
	}
	if got := s.LoadState("node1"); got == nil || !reflect.DeepEqual(*got, exampleState()) {
		t.Errorf("saved %+v, loaded %+v", exampleState(), got)
	}
	if s.LoadState("node2") != nil {
		t.Error("another node loads the state")
	}
	info, err := os.Stat(filepath.Join(s.directory, checkpointFileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file with the key has mode %v (%v), want 0600", info.Mode(), err)
	}
}

// TestFirstRunSinceBootIsDetected checks what a speaker knows at its start: after a boot
// routers must not keep the node's routes, since its traffic was lost meanwhile.
func TestFirstRunSinceBootIsDetected(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, tc := range map[string]struct {
		prepare func(s *Store) error // as an earlier speaker did
		want    bool
	}{
		"no speaker has run": {func(*Store) error { return nil }, true},
		"a speaker has run":  {func(s *Store) error { return s.writeFile(exampleState()) }, false},
		"a speaker has run before the boot": {func(s *Store) error {
			s.bootID = "that of an earlier boot"
			return s.writeFile(exampleState())
		}, true},
		"a file that cannot be read": {func(s *Store) error {
			return os.WriteFile(filepath.Join(s.directory, checkpointFileName), []byte("what"), 0o600)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			if err := tc.prepare(NewStore(directory, log)); err != nil {
				t.Fatal(err)
			}
			if got := NewStore(directory, log).IsFirstRunSinceBoot(); got != tc.want {
				t.Errorf("it is the first run since the boot: %t, want %t", got, tc.want)
			}
		})
	}
	if NewStore("", log).IsFirstRunSinceBoot() {
		t.Error("a speaker that saves nothing takes its restart for a boot")
	}
}

// testdata has the file that commit 4ed98b1 writes for exampleState. A speaker that is upgraded
// while the API server is unreachable finds such a file.
func TestFileWrittenByCommit4ed98b1IsLoaded(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "speaker-4ed98b1.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeCheckpointFile(text, "boot")
	if err != nil || !reflect.DeepEqual(got, exampleState()) {
		t.Errorf("loaded %+v (error %v), want %+v", got, err, exampleState())
	}
}

func TestPasswordsAreNotSaved(t *testing.T) {
	s := NewStore(t.TempDir(), slog.New(slog.DiscardHandler))
	with := exampleState()
	with.DesiredBGP.Peers[1].Password = "s3cret"
	if err := s.writeFile(with); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.directory, checkpointFileName))
	if err != nil || bytes.Contains(text, []byte("s3cret")) {
		t.Errorf("the password is in the file (%v)", err)
	}
	got := s.LoadState("node1").DesiredBGP.Peers[1]
	if got.Password != "" || got.BlockedExplanation.Reason != "UnknownSecret" ||
		!strings.Contains(got.BlockedExplanation.Text, "waits for the API server") {
		t.Errorf("the peer with the password is %+v, want it to wait for the API server", got)
	}
}

func TestUnusableFilesAreNotLoaded(t *testing.T) {
	s := NewStore(t.TempDir(), slog.New(slog.DiscardHandler))
	good, err := encodeCheckpointFile(exampleState(), s.bootID)
	if err != nil {
		t.Fatal(err)
	}
	other, err := encodeCheckpointFile(exampleState(), "another boot")
	if err != nil {
		t.Fatal(err)
	}
	corrupt := bytes.Clone(good)
	corrupt[200] ^= 1
	for name, b := range map[string][]byte{
		"of another boot": other, "empty": nil, "truncated": good[:len(good)/2], "corrupt": corrupt,
	} {
		if err := os.WriteFile(filepath.Join(s.directory, checkpointFileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s.LoadState("node1") != nil {
			t.Errorf("a file that is %s is loaded", name)
		}
	}
	if NewStore(filepath.Join(t.TempDir(), "missing"), s.log).LoadState("node1") != nil || NewStore("", s.log).LoadState("node1") != nil {
		t.Error("a state is loaded without a directory")
	}
}

// TestVersion1FileIsReadAndWrittenUnchanged reads a file that an earlier version wrote: an update
// of the speaker must not lose the checkpoint.
func TestVersion1FileIsReadAndWrittenUnchanged(t *testing.T) {
	want := exampleState()
	p := &want.DesiredBGP.Peers[1]
	p.SourceAddress = netip.MustParseAddr("10.0.0.1")
	p.KeepaliveTime, p.MaxReconnectDelay, p.MaxHops = 30*time.Second, 7*time.Second, 1
	p.BFD = &intent.BFD{
		TransmitInterval: time.Second, ReceiveInterval: 2 * time.Second, EchoInterval: 3 * time.Second,
		Multiplier: 3, EchoMode: true, MinTTL: 254,
	}
	want.DesiredBGP.Routes[1].PrependCount = 2
	file, err := os.ReadFile(filepath.Join("testdata", "version1.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeCheckpointFile(file, "boot"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the file is read as %+v (%v), want %+v", got, err, want)
	}
	if got, err := encodeCheckpointFile(want, "boot"); err != nil || !bytes.Equal(got, file) {
		t.Errorf("the state is written as %s (%v), want %s", got, err, file)
	}
}

func FuzzParseFileContent(f *testing.F) {
	good, err := encodeCheckpointFile(exampleState(), "boot")
	if err != nil {
		f.Fatal(err)
	}
	_, text, _ := bytes.Cut(good, []byte("\n"))
	f.Add(text)
	f.Add([]byte(`{"Version":1,"Boot":"boot","Candidates":[{}],"Bids":[{"Address":"192.0.2.1"}]}`))
	f.Add([]byte(`{"Version":1,"Boot":"boot","Routers":[{"Name":"a"}],"Routes":[{"Peers":["a"],"Prefixes":["10.0.0.0/8","10.1.0.0/16"]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseFileContent(text, "boot")
		if err != nil {
			return
		}
		once, err := encodeCheckpointFile(s, "boot")
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeCheckpointFile(once, "boot")
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := encodeCheckpointFile(back, "boot"); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s became %s (%v)", once, twice, err)
		}
	})
}

// TestAllGossipKeysAreSavedAndLoaded: while the gossip key is replaced, a speaker needs all of
// them.
func TestAllGossipKeysAreSavedAndLoaded(t *testing.T) {
	s := NewStore(t.TempDir(), slog.New(slog.DiscardHandler))
	want := exampleState()
	want.GossipKeys = append(want.GossipKeys, []byte("fedcba9876543210"))
	want.ServiceProxyAnswered = true
	if err := s.writeFile(want); err != nil {
		t.Fatal(err)
	}
	if got := s.LoadState("node1"); got == nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("saved %+v, loaded %+v", want, got)
	}
}
