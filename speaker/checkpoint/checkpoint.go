// Package recall keeps what a speaker knows in a file of its node, so that one which is started again while the API server
// is away goes on from there. The file is good for one boot of the node: it is written where a boot empties it, and
// it names the boot. It is a cache and no more: without it, or when it cannot be read, a speaker waits for the API server. Passwords
// of sessions with routers are not in it.
package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// NodeState is what is kept. It is immutable.
type NodeState struct {
	// Node is the node's name, Address where its speaker talks to others, Key the key that they talk with.
	Node    string
	Address netip.Addr
	Key     []byte
	agent.Checkpoint
}

// fileName is the file's name in its directory.
const fileName = "speaker.json"

// bootIDFile tells one boot of the machine from the next.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// Store keeps States in a directory. Make it with New; Run writes.
type Store struct {
	directory, bootID string
	log               *slog.Logger
	unwritten         chan NodeState
}

// New returns a Store in the directory, which has to exist: an empty name or a missing directory keeps nothing.
func New(dir string, log *slog.Logger) *Store {
	boot, err := os.ReadFile(bootIDFile)
	s := &Store{directory: dir, bootID: strings.TrimSpace(string(boot)), log: log, unwritten: make(chan NodeState, 1)}
	if dir == "" || err != nil {
		s.directory = ""
		return s
	}
	if _, err := os.Stat(dir); err != nil {
		log.Warn("nothing is kept for a restart while the API server is away", "reason", err.Error(), "todo", "mount a hostPath there (--state-dir), or give an empty --state-dir")
		s.directory = ""
	}
	return s
}

// LoadState returns what the node's last speaker knew; nil when there is nothing to go on from, because the node was booted
// since, say.
func (s *Store) LoadState(node string) *NodeState {
	if s.directory == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(s.directory, fileName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var state NodeState
	if err == nil {
		state, err = decodeFile(b, s.bootID)
	}
	switch {
	case err != nil:
		s.log.Warn("what an earlier speaker of this node kept is of no use", "file", filepath.Join(s.directory, fileName), "reason", err.Error())
		return nil
	case state.Node != node:
		s.log.Warn("what is kept is of another node", "file", filepath.Join(s.directory, fileName), "node", state.Node)
		return nil
	}
	return &state
}

// SaveState has a State written, in the place of one that was not written yet. It returns at once; one goroutine calls it.
func (s *Store) SaveState(state NodeState) {
	select {
	case <-s.unwritten:
	default:
	}
	s.unwritten <- state
}

// Run writes until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case state := <-s.unwritten:
			if s.directory == "" {
				continue
			}
			err := s.writeFile(state)
			if err != nil && err.Error() != told {
				told = err.Error()
				s.log.Warn("keeping what a restart goes on from", "error", err)
			}
		}
	}
}

// writeFile puts the State in the place of the former. Nobody but root reads it: the key is in it.
func (s *Store) writeFile(state NodeState) error {
	b, err := encodeFile(state, s.bootID)
	if err != nil {
		return err
	}
	path := filepath.Join(s.directory, fileName)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// formatVersion is that of the file's form. What is of another version is of no use.
const formatVersion = 1

// fileContent is the file's second line; the first is the SHA-256 of the second.
type fileContent struct {
	Version    int
	Boot       string
	Node       string
	Address    netip.Addr
	Key        []byte
	Peers      []netip.Addr
	Claims     []elect.Claim
	Candidates []map[string]int // node -> score
	Bids       []bidEntry
	// Routers and Routes are for BGP; Leaving says that the routes were on their way out.
	Routers []peerEntry  `json:",omitempty"`
	Routes  []routeGroup `json:",omitempty"`
	Leaving bool         `json:",omitempty"`
}

// bidEntry is an intent.Bid whose candidates are among those of the content: thousands of addresses share them.
type bidEntry struct {
	Address    netip.Addr
	Candidates int
	Siblings   []netip.Addr `json:",omitempty"`
	Links      []int        `json:",omitempty"`
	Rebalance  bool         `json:",omitempty"`
}

func encodeFile(s NodeState, boot string) ([]byte, error) {
	c := fileContent{Version: formatVersion, Boot: boot, Node: s.Node, Address: s.Address, Key: s.Key, Peers: s.MemberAddresses, Claims: s.Claims}
	c.Routers, c.Routes = packBGP(s.BGP)
	c.Leaving = s.BGP.Leaving
	known := map[uint64]int{}
	for _, b := range s.Bids {
		i, ok := known[b.Candidates.Key]
		if !ok {
			i = len(c.Candidates)
			known[b.Candidates.Key] = i
			scores := map[string]int{}
			for j, n := range b.Candidates.Nodes {
				scores[n] = b.Candidates.Scores[j]
			}
			c.Candidates = append(c.Candidates, scores)
		}
		c.Bids = append(c.Bids, bidEntry{b.Address, i, b.Siblings, b.Links, b.MayRebalance})
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return append(append(hex.AppendEncode(nil, sum[:]), '\n'), text...), nil
}

func decodeFile(b []byte, boot string) (NodeState, error) {
	sum, text, _ := bytes.Cut(b, []byte("\n"))
	if want := sha256.Sum256(text); string(sum) != hex.EncodeToString(want[:]) {
		return NodeState{}, errors.New("its checksum is not that of what it says")
	}
	return parseContent(text, boot)
}

// parseContent reads the second line.
func parseContent(text []byte, boot string) (NodeState, error) {
	var c fileContent
	if err := json.Unmarshal(text, &c); err != nil {
		return NodeState{}, err
	}
	switch {
	case c.Version != formatVersion:
		return NodeState{}, fmt.Errorf("it is of version %d, and this speaker knows version %d", c.Version, formatVersion)
	case c.Boot != boot:
		return NodeState{}, errors.New("the node was booted since")
	}
	s := NodeState{Node: c.Node, Address: c.Address, Key: c.Key, Checkpoint: agent.Checkpoint{Claims: c.Claims, MemberAddresses: c.Peers}}
	for _, x := range c.Claims {
		if !x.Address.IsValid() {
			return NodeState{}, fmt.Errorf("a claim of %s has no address", x.Holder)
		}
	}
	var err error
	if s.BGP, err = unpackBGP(c.Routers, c.Routes); err != nil {
		return NodeState{}, err
	}
	s.BGP.Leaving = c.Leaving
	var candidates []*intent.Candidates
	for _, scores := range c.Candidates {
		candidates = append(candidates, intent.NewCandidates(scores))
	}
	for _, x := range c.Bids {
		if x.Candidates < 0 || x.Candidates >= len(candidates) || candidates[x.Candidates] == nil || !x.Address.IsValid() {
			return NodeState{}, fmt.Errorf("the entry of address %s is broken", x.Address)
		}
		s.Bids = append(s.Bids, intent.Bid{
			Address: x.Address, Candidates: candidates[x.Candidates], Siblings: x.Siblings, Links: x.Links, MayRebalance: x.Rebalance,
		})
	}
	return s, nil
}
