package fitness

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// fitnessMessageFirstByte is the first byte of a message of this package. Messages of the election
// begin with their version, which is low.
const fitnessMessageFirstByte = 0xf1

// flagDoubtful is the flag of a doubtful node.
const flagDoubtful = 1

const (
	// UnfitMessageRepeatInterval is how often an unfit node tells the other members so. A fit node
	// is silent.
	UnfitMessageRepeatInterval = 5 * time.Second
	// unfitEntryTimeout is how long a message counts: three may be lost.
	unfitEntryTimeout = 3*UnfitMessageRepeatInterval + time.Second
	// fitMessageRepeatCount is how often a node says that it is fit again.
	fitMessageRepeatCount = 3
	// maxSilentPrefixesInMessage keeps a message within one datagram.
	maxSilentPrefixesInMessage = 32
)

// IsFitnessMessage reports whether a message of another member is for this package.
func IsFitnessMessage(payload []byte) bool {
	return len(payload) > 0 && payload[0] == fitnessMessageFirstByte
}

// encodeFitness encodes a message.
func encodeFitness(f facts.Fitness) []byte {
	flags := byte(0)
	if f.IsDoubtful {
		flags = flagDoubtful
	}
	b := append([]byte{fitnessMessageFirstByte, flags, byte(len(f.NodeFault))}, f.NodeFault...)
	for _, p := range f.SilentSubnets[:min(len(f.SilentSubnets), maxSilentPrefixesInMessage)] {
		raw, err := p.MarshalBinary()
		if err != nil {
			continue
		}
		b = append(append(b, byte(len(raw))), raw...)
	}
	return b
}

// decodeFitness decodes a message. What cannot be read is left out.
func decodeFitness(b []byte) (facts.Fitness, bool) {
	var f facts.Fitness
	const header = 3
	if len(b) < header || len(b) < header+int(b[2]) {
		return f, false
	}
	f.IsDoubtful, f.NodeFault = b[1]&flagDoubtful > 0, string(b[header:header+int(b[2])])
	for b = b[header+int(b[2]):]; len(b) > 0 && len(b) > int(b[0]); b = b[1+int(b[0]):] {
		var p netip.Prefix
		if p.UnmarshalBinary(b[1:1+int(b[0])]) == nil && p.IsValid() {
			f.SilentSubnets = append(f.SilentSubnets, p)
		}
	}
	return f, true
}

// FitnessMessageSchedule decides when this node tells the other members how fit it is.
type FitnessMessageSchedule struct {
	lastFitness     facts.Fitness
	lastSentAt      time.Time
	fitMessagesLeft int
}

// DueMessage returns the message that is due, nil if there is none.
func (a *FitnessMessageSchedule) DueMessage(f facts.Fitness, now time.Time) []byte {
	if !f.Equal(a.lastFitness) {
		a.lastFitness, a.fitMessagesLeft = f, fitMessageRepeatCount
	} else if now.Sub(a.lastSentAt) < UnfitMessageRepeatInterval {
		return nil
	}
	if f.Equal(facts.Fitness{}) {
		if a.fitMessagesLeft == 0 {
			return nil
		}
		a.fitMessagesLeft--
	}
	a.lastSentAt = now
	return encodeFitness(f)
}

// UnfitMembersTable has the unfit and the doubtful nodes among the other members. It belongs to one
// goroutine.
type UnfitMembersTable struct{ entryByNode map[string]unfitMember }

type unfitMember struct {
	fitness   facts.Fitness
	expiresAt time.Time
}

// NewUnfitMembersTable returns an UnfitMembersTable in which every node is fit.
func NewUnfitMembersTable() *UnfitMembersTable {
	return &UnfitMembersTable{entryByNode: map[string]unfitMember{}}
}

// RecordMessage records what a member says of itself.
func (t *UnfitMembersTable) RecordMessage(from string, payload []byte, now time.Time) {
	f, ok := decodeFitness(payload)
	switch {
	case !ok:
	case f.Equal(facts.Fitness{}):
		delete(t.entryByNode, from)
	default:
		t.entryByNode[from] = unfitMember{f, now.Add(unfitEntryTimeout)}
	}
}

// UnfitOrDoubtfulMembers returns the unfit and the doubtful ones of the members.
func (t *UnfitMembersTable) UnfitOrDoubtfulMembers(members []string, now time.Time) map[string]facts.Fitness {
	maps.DeleteFunc(t.entryByNode, func(node string, e unfitMember) bool {
		return !now.Before(e.expiresAt) || !slices.Contains(members, node)
	})
	out := make(map[string]facts.Fitness, len(t.entryByNode))
	for n, e := range t.entryByNode {
		out[n] = e.fitness
	}
	return out
}
