// Package checkpoint saves what a speaker knows to a file on its node, so that a speaker that
// restarts while the API server is unreachable can resume from it. The file is valid for one boot
// of the node: it names the boot, and its directory is emptied by a boot. It is only a cache.
// Without it the speaker waits for the API server. It does not contain the passwords of BGP
// sessions.
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

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// SavedNodeState is the content of the file. It is immutable.
type SavedNodeState struct {
	// NodeName is the name of the node, GossipAddress the address of its speaker in the gossip.
	NodeName      string
	GossipAddress netip.Addr
	// GossipKeys are the gossip keys. The first one encrypts.
	GossipKeys [][]byte
	agent.Checkpoint
}

// checkpointFileName is the name of the file in its directory.
const checkpointFileName = "speaker.json"

// bootIDPath is a kernel file that identifies the boot of the machine.
const bootIDPath = "/proc/sys/kernel/random/boot_id"

// Store saves the state of the node in a directory. Run writes them.
type Store struct {
	directory, bootID    string
	isFirstRunSinceBoot  bool
	log                  *slog.Logger
	latestUnwrittenState *latest.Value[SavedNodeState]
}

// NewStore returns a Store for the directory, which must exist. With an empty name or a missing
// directory the Store saves nothing.
func NewStore(dir string, log *slog.Logger) *Store {
	boot, err := os.ReadFile(bootIDPath)
	s := &Store{
		directory: dir, bootID: strings.TrimSpace(string(boot)), log: log,
		latestUnwrittenState: latest.NewValue[SavedNodeState](),
	}
	if dir == "" || err != nil {
		s.directory = ""
		return s
	}
	if _, err := os.Stat(dir); err != nil {
		log.Warn("the speaker saves no checkpoint: it cannot resume while the API server is unreachable; mount a hostPath there (--state-dir), or set --state-dir to \"\"",
			"error", err)
		s.directory = ""
		return s
	}
	s.isFirstRunSinceBoot = !s.hasFileOfThisBoot()
	return s
}

// IsFirstRunSinceBoot reports whether no speaker has saved a checkpoint since the node booted. It
// returns false if the Store saves nothing: a restart of the speaker is more frequent than a boot.
func (s *Store) IsFirstRunSinceBoot() bool { return s.isFirstRunSinceBoot }

// hasFileOfThisBoot reports whether a file of this boot exists, whatever else it contains.
func (s *Store) hasFileOfThisBoot() bool {
	b, err := os.ReadFile(filepath.Join(s.directory, checkpointFileName))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	_, text, _ := bytes.Cut(b, []byte("\n"))
	var c struct{ Boot string }
	return json.Unmarshal(text, &c) != nil || c.Boot == s.bootID
}

// LoadState returns what the last speaker of the node saved. It returns nil without a usable file,
// for example after a boot of the node.
func (s *Store) LoadState(node string) *SavedNodeState {
	if s.directory == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(s.directory, checkpointFileName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var state SavedNodeState
	if err == nil {
		state, err = decodeCheckpointFile(b, s.bootID)
	}
	switch {
	case err != nil:
		s.log.Warn("the checkpoint of this node's last speaker is not usable",
			"file", filepath.Join(s.directory, checkpointFileName), "error", err)
		return nil
	case state.NodeName != node:
		s.log.Warn("the checkpoint belongs to another node",
			"file", filepath.Join(s.directory, checkpointFileName), "node", state.NodeName)
		return nil
	}
	return &state
}

// ReplaceStateToWrite passes a SavedNodeState to Run. It replaces one that is not written yet. It
// does not block.
func (s *Store) ReplaceStateToWrite(state SavedNodeState) { s.latestUnwrittenState.Put(state) }

// Run writes states until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	lastError := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case state := <-s.latestUnwrittenState.C():
			if s.directory == "" {
				continue
			}
			err := s.writeFile(state)
			if err != nil && err.Error() != lastError {
				lastError = err.Error()
				s.log.Warn("writing the checkpoint", "error", err)
			}
		}
	}
}

// writeFile replaces the file. Only root can read it, since it contains the gossip key.
func (s *Store) writeFile(state SavedNodeState) error {
	b, err := encodeCheckpointFile(state, s.bootID)
	if err != nil {
		return err
	}
	path := filepath.Join(s.directory, checkpointFileName)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// checkpointFileFormatVersion is the version of the file format. A new field is no new version:
// each speaker ignores the fields that it does not know, so that an earlier speaker can read the
// file of a later one. A speaker with a version above 1 has to read the version before it too.
const checkpointFileFormatVersion = 1

// fileContent is the second line of the file. The first line is the SHA-256 of the second.
type fileContent struct {
	Version       int
	Boot          string
	Node          string
	GossipAddress netip.Addr `json:"Address"`
	// EncryptingGossipKey is the gossip key that encrypts, OtherKeys are those that are accepted
	// too.
	EncryptingGossipKey []byte   `json:"Key"`
	OtherKeys           [][]byte `json:",omitempty"`
	// MemberAddresses are the addresses of the other speakers.
	MemberAddresses []netip.Addr `json:"Peers"`
	Claims          []elect.Claim
	Candidates      []map[string]int // scores by node
	Bids            []savedBid
	// Routers and Routes are for BGP. Leaving is set when the routes were being withdrawn.
	Routers []savedPeer       `json:",omitempty"`
	Routes  []savedRouteGroup `json:",omitempty"`
	Leaving bool              `json:",omitempty"`
	// ProxyAnswered is set if the service proxy has answered its health check in this boot.
	ProxyAnswered bool `json:",omitempty"`
	// InternalIPs are the node's internal addresses in the Kubernetes API.
	InternalIPs []netip.Addr `json:",omitempty"`
}

// savedBid is an intent.Bid. Its candidates are an index into those of the file, since thousands of
// addresses share them.
type savedBid struct {
	Address         netip.Addr
	CandidatesIndex int                  `json:"Candidates"`
	Siblings        []netip.Addr         `json:",omitempty"`
	Links           []int                `json:",omitempty"`
	Rebalance       bool                 `json:",omitempty"`
	WireCheck       intent.WireCheckMode `json:",omitempty"`
}

func encodeCheckpointFile(s SavedNodeState, boot string) ([]byte, error) {
	c := fileContent{
		Version: checkpointFileFormatVersion, Boot: boot, Node: s.NodeName, GossipAddress: s.GossipAddress,
		MemberAddresses: s.MemberAddresses, Claims: s.Claims,
	}
	c.Routers, c.Routes = groupRoutesAndStripPasswords(s.DesiredBGP)
	if len(s.GossipKeys) > 0 {
		c.EncryptingGossipKey, c.OtherKeys = s.GossipKeys[0], s.GossipKeys[1:]
	}
	c.ProxyAnswered = s.ServiceProxyAnswered
	c.Leaving, c.InternalIPs = s.DesiredBGP.NodeLeaving, s.DesiredBGP.NodeInternalIPs
	known := map[uint64]int{}
	for _, b := range s.BidsOfLastPlan {
		i, ok := known[b.Candidates.ContentHash]
		if !ok {
			i = len(c.Candidates)
			known[b.Candidates.ContentHash] = i
			scores := map[string]int{}
			for j, n := range b.Candidates.Nodes {
				scores[n] = b.Candidates.PreferenceScores[j]
			}
			c.Candidates = append(c.Candidates, scores)
		}
		c.Bids = append(c.Bids, savedBid{b.Address, i, b.SiblingAddresses, b.OwnLinkIndexes, b.MayRebalance, b.WireCheck})
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return append(append(hex.AppendEncode(nil, sum[:]), '\n'), text...), nil
}

func decodeCheckpointFile(b []byte, boot string) (SavedNodeState, error) {
	sum, text, _ := bytes.Cut(b, []byte("\n"))
	if want := sha256.Sum256(text); string(sum) != hex.EncodeToString(want[:]) {
		return SavedNodeState{}, errors.New("its checksum does not match its content")
	}
	return parseFileContent(text, boot)
}

// parseFileContent parses the second line.
func parseFileContent(text []byte, boot string) (SavedNodeState, error) {
	var c fileContent
	if err := json.Unmarshal(text, &c); err != nil {
		return SavedNodeState{}, err
	}
	switch {
	case c.Version != checkpointFileFormatVersion:
		return SavedNodeState{}, fmt.Errorf("it has format version %d, this speaker reads version %d", c.Version, checkpointFileFormatVersion)
	case c.Boot != boot:
		return SavedNodeState{}, errors.New("the node has booted since")
	}
	s := SavedNodeState{
		NodeName: c.Node, GossipAddress: c.GossipAddress, GossipKeys: append([][]byte{c.EncryptingGossipKey}, c.OtherKeys...),
		Checkpoint: agent.Checkpoint{Claims: c.Claims, MemberAddresses: c.MemberAddresses, ServiceProxyAnswered: c.ProxyAnswered},
	}
	for _, x := range c.Claims {
		if !x.Address.IsValid() {
			return SavedNodeState{}, fmt.Errorf("a claim of node %s has no address", x.Holder)
		}
	}
	var err error
	if s.DesiredBGP, err = ungroupRoutesBlockPasswordPeers(c.Routers, c.Routes); err != nil {
		return SavedNodeState{}, err
	}
	s.DesiredBGP.NodeLeaving, s.DesiredBGP.NodeInternalIPs = c.Leaving, c.InternalIPs
	var candidates []*intent.Candidates
	for _, scores := range c.Candidates {
		candidates = append(candidates, intent.NewCandidates(scores))
	}
	for _, x := range c.Bids {
		if x.CandidatesIndex < 0 || x.CandidatesIndex >= len(candidates) || candidates[x.CandidatesIndex] == nil ||
			!x.Address.IsValid() {
			return SavedNodeState{}, fmt.Errorf("the entry of address %s is invalid", x.Address)
		}
		s.BidsOfLastPlan = append(s.BidsOfLastPlan, intent.Bid{
			Address: x.Address, Candidates: candidates[x.CandidatesIndex], SiblingAddresses: x.Siblings, OwnLinkIndexes: x.Links,
			MayRebalance: x.Rebalance, WireCheck: x.WireCheck,
		})
	}
	return s, nil
}
