package elect

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// The messages of commit 4ed98b1, which has version 2 of the wire format. Node b sends them to node
// a. A speaker of that version must be able to work together with this one.
var hexOfVersion2MessageByName = map[string]string{
	"beacon":    "020102020002",
	"ack":       "0202010100",
	"claims":    "02030304c0000201016202050010" + "20010db8000000000000000000000001016202ac0200" + "04c00002020163030201",
	"state":     "02030304c0000201016202050104c000020201630302011020010db8000000000000000000000001016202ac0201",
	"suspicion": "020401630302c801",
	"offer":     "02050104c00002090161000600",
	"refusal":   "02060104c00002090162000100",
	"delta":     "02080102230104c00002010162020500",
}

// newMachineAmongMembersOfFormat is node a, which knows the members b and c. They publish the given
// version.
func newMachineAmongMembersOfFormat(t *testing.T, format byte) *Machine {
	t.Helper()
	m := NewMachine("a", 1, DefaultTiming(), testStart)
	bid := intent.Bid{
		Address: netip.MustParseAddr("192.0.2.9"), OwnLinkIndexes: []int{1},
		Candidates: intent.NewCandidates(map[string]int{"a": 0, "b": 0}),
	}
	m.Step(testStart, BidsChanged{Bids: []intent.Bid{bid}}, MembersChanged{facts.MemberSet{Members: []facts.Member{
		{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2, MaxMessageFormat: format}, {Name: "c", RunNonce: 3, MaxMessageFormat: format},
	}}})
	return m
}

func decodeVersion2Message(t *testing.T, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(hexOfVersion2MessageByName[name])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPreviousMessageFormatIsDecoded(t *testing.T) {
	receive := func(t *testing.T, name string) (*Machine, []Effect) {
		m := newMachineAmongMembersOfFormat(t, 0)
		return m, m.Step(testStart.Add(60*time.Millisecond), MessageReceived{From: "b", Payload: decodeVersion2Message(t, name)})
	}
	holderOf := func(m *Machine, ip string) string {
		for _, h := range m.Holders() {
			if h.Address == netip.MustParseAddr(ip) {
				return h.Node
			}
		}
		return ""
	}
	t.Run("beacon", func(t *testing.T) {
		m, effects := receive(t, "beacon")
		if kinds := messageKindsSentTo(effects, "b"); !slices.Contains(kinds, kindBeaconAck) {
			t.Errorf("the answer to the beacon has the kinds %v, want an acknowledgement", kinds)
		}
		if h := m.liveness.recordsByMember["b"]; h == nil || !h.lastSignOfLifeAt.Equal(testStart.Add(60*time.Millisecond)) {
			t.Errorf("the beacon is not heard: %+v", h)
		}
	})
	t.Run("acknowledgement", func(t *testing.T) {
		m := newMachineAmongMembersOfFormat(t, 0)
		m.Step(testStart.Add(50*time.Millisecond), TimePassed{})
		m.Step(testStart.Add(60*time.Millisecond), MessageReceived{From: "b", Payload: decodeVersion2Message(t, "ack")})
		if m.lease.lastAnsweredMessageSentAt.IsZero() {
			t.Error("the acknowledgement does not confirm the lease")
		}
	})
	t.Run("claims", func(t *testing.T) {
		if m, _ := receive(t, "claims"); holderOf(m, "192.0.2.1") != "b" || holderOf(m, "2001:db8::1") != "b" {
			t.Errorf("the holders are %+v", m.Holders())
		}
	})
	t.Run("full state", func(t *testing.T) {
		m := newMachineAmongMembersOfFormat(t, 0)
		m.Step(testStart.Add(time.Millisecond), RemoteStateReceived{decodeVersion2Message(t, "state")})
		if len(m.KnownClaims()) != 3 || !m.acquisitionsAllowed {
			t.Errorf("the claims are %+v, acquisitions allowed: %v", m.KnownClaims(), m.acquisitionsAllowed)
		}
	})
	t.Run("suspicion", func(t *testing.T) {
		m, _ := receive(t, "suspicion")
		if m.liveness.reportedNoncesBySilentNode["c"]["b"] != 3 || !m.liveness.isConnectedWitness("c", "b") {
			t.Error("the report of the silent node is not read")
		}
	})
	t.Run("offer", func(t *testing.T) {
		m := newMachineAmongMembersOfFormat(t, 0)
		m.Step(testStart.Add(time.Millisecond), RemoteStateReceived{decodeVersion2Message(t, "state")})
		effects := m.Step(testStart.Add(60*time.Millisecond), MessageReceived{From: "b", Payload: decodeVersion2Message(t, "offer")})
		if holderOf(m, "192.0.2.9") != "a" || !slices.Contains(messageKindsSentTo(effects, "b"), kindClaims) {
			t.Errorf("the offer is not taken: %+v", m.Holders())
		}
	})
	t.Run("delta", func(t *testing.T) {
		m := newMachineAmongMembersOfFormat(t, 0)
		m.requestSync("b")
		m.Step(testStart.Add(60*time.Millisecond), MessageReceived{From: "b", Payload: decodeVersion2Message(t, "delta")})
		if holderOf(m, "192.0.2.1") != "b" {
			t.Errorf("the holders are %+v", m.Holders())
		}
	})
}

// messageKindsSentTo returns the kinds of the messages to a member.
func messageKindsSentTo(effects []Effect, to string) []byte {
	var out []byte
	for _, e := range effects {
		if s, ok := e.(SendMessage); ok && s.To == to {
			out = append(out, s.Payload[1])
		}
	}
	return out
}

func TestNewestCommonMessageFormatIsSent(t *testing.T) {
	for format, want := range map[byte]byte{0: 2, 2: 2, 3: 3, 9: NewestMessageFormat} {
		m := newMachineAmongMembersOfFormat(t, format)
		var sent []byte
		for _, e := range m.Step(testStart.Add(250*time.Millisecond), TimePassed{}) {
			if s, ok := e.(SendMessage); ok {
				sent = append(sent, s.Payload[0])
			}
		}
		if len(sent) == 0 || slices.ContainsFunc(sent, func(v byte) bool { return v != want }) {
			t.Errorf("beside members that read version %d, messages have the versions %v, want %d", format, sent, want)
		}
		if state := m.EncodeAllClaims(); state[0] != 2 {
			t.Errorf("the full state has version %d: a node that joins may read only version 2", state[0])
		}
	}
}

// What version 2 must be able to read is encoded byte by byte as commit 4ed98b1 encodes it.
func TestPreviousMessageFormatIsEncodedExactly(t *testing.T) {
	m := NewMachine("b", 2, DefaultTiming(), testStart)
	m.Step(testStart, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}, {Name: "c", RunNonce: 3}}}})
	first := func(effects []Effect) string {
		for _, e := range effects {
			if s, ok := e.(SendMessage); ok && s.To == "a" {
				return hex.EncodeToString(s.Payload)
			}
		}
		return ""
	}
	if got := first(m.Step(testStart.Add(50*time.Millisecond), TimePassed{})); got != hexOfVersion2MessageByName["beacon"] {
		t.Errorf("the beacon is %s, want %s", got, hexOfVersion2MessageByName["beacon"])
	}
	beacon := []byte{2, kindBeacon, 1, 1, 0, flagAckRequested}
	if got := first(m.Step(testStart.Add(51*time.Millisecond), MessageReceived{From: "a", Payload: beacon})); got != hexOfVersion2MessageByName["ack"] {
		t.Errorf("the acknowledgement is %s, want %s", got, hexOfVersion2MessageByName["ack"])
	}
	offer := appendClaims(encodeMessageHeader(oldestMessageFormat, kindOffer), []Claim{{Address: netip.MustParseAddr("192.0.2.9"), Holder: "a", Epoch: 6}})
	if got := hex.EncodeToString(offer); got != hexOfVersion2MessageByName["offer"] {
		t.Errorf("the offer is %s, want %s", got, hexOfVersion2MessageByName["offer"])
	}
	refused := MessageReceived{From: "a", Payload: appendClaims(encodeMessageHeader(oldestMessageFormat, kindOffer),
		[]Claim{{Address: netip.MustParseAddr("192.0.2.9"), Holder: "b", Epoch: 1}})}
	if got := first(m.Step(testStart.Add(52*time.Millisecond), refused)); got != hexOfVersion2MessageByName["refusal"] {
		t.Errorf("the refusal is %s, want %s", got, hexOfVersion2MessageByName["refusal"])
	}
	h := &beaconRecord{memberNonce: 3, isSilent: true, lastSignOfLifeAt: m.now.Add(-200 * time.Millisecond)}
	m.liveness.addConnectedWitness("c", "b")
	m.outbox.beginStep()
	m.liveness.broadcastSuspicionOrRetraction("c", h, m.stepContext(), &m.outbox)
	if got := first(m.outbox.orderedEffects(nil)); got != hexOfVersion2MessageByName["suspicion"] {
		t.Errorf("the report of a silent node is %s, want %s", got, hexOfVersion2MessageByName["suspicion"])
	}
}
