// Package probing decides when this node probes whether another host uses an address, and what the
// answers mean. The controller puts each question to all speakers. The speakers take turns: as a
// rule one probes, and the next one only if the first has written no answer. The package is pure:
// it reads no clock and sends nothing.
package probing

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// FramesPerProbe and ProbeFrameInterval are for the frames of one Probe. RFC 5227 section 1.1 sends
// three, one to two seconds apart, because a link may take long to come up. Here a user waits and
// the hosts are servers. The holder detects a host that answers later.
const (
	FramesPerProbe     = 3
	ProbeFrameInterval = 200 * time.Millisecond
)

const (
	// perPrecedingNodeDelay is how long each node waits for the node before it. A probe and
	// its answer through the API take less. nodeOutsideSubnetExtraDelay is added on nodes without a
	// link in the subnet of the address.
	perPrecedingNodeDelay       = time.Second
	nodeOutsideSubnetExtraDelay = 3 * time.Second
	// maxPrecedingNodesToWaitFor bounds the delay in a large cluster.
	maxPrecedingNodesToWaitFor = 10
	// unsentOrDoubtfulProbeRetryDelay is the delay after a probe that could not be sent, or whose
	// answer is doubtful.
	unsentOrDoubtfulProbeRetryDelay = time.Second
	// minProbesAnsweredByMembers is how often one of our own nodes has to answer for an address
	// that none of them holds, before the answer counts. A node may be behind for a moment, or the
	// address may be configured on the node.
	minProbesAnsweredByMembers = 3
)

// Question is an address to probe. ID tells it from another question about the same address.
type Question struct {
	ID      string
	Address netip.Addr
	Pool    string
	// IsForThisNode is set if an operator wants to know what this node hears. Then no other node
	// answers, and an answer of the node that holds the address is one.
	IsForThisNode bool
}

// Answer is the result of a Question. AnsweringMACs has the Ethernet addresses that answered; it is
// empty if there was no answer.
type Answer struct {
	Question
	AnsweringMACs string
	// IsNotSent is set if a question for this node could be asked on no link.
	IsNotSent bool
}

// Probe is a probe for the layer 2 engine to send.
type Probe struct {
	ID          uint64
	Address     netip.Addr
	LinkIndexes []int
	// IsLikeNeighbour asks as a client does. A host that is about to take the address would give it
	// up after an acquire probe (RFC 5227, section 2.1.1).
	IsLikeNeighbour bool
}

// ProbingInputs is what the decisions are based on.
type ProbingInputs struct {
	// Self is the name of this node.
	Self     string
	Snapshot *snapshot.Snapshot
	// Links are the links on which frames can be sent.
	Links   facts.LinkSet
	Members facts.MemberSet
	// IsHeldByMember says whether one of the members holds the address.
	IsHeldByMember func(netip.Addr) bool
}

// QuestionQueue has the open questions. The zero value has none. It belongs to one goroutine.
type QuestionQueue struct {
	openQuestionByID map[string]*questionState
	// openQuestionByProbeID finds the question of a Probe by its number, which is never used again.
	openQuestionByProbeID map[uint64]*questionState
	lastProbeID           uint64
	undeliveredAnswers    []Answer
}

type questionState struct {
	Question
	dueAt                        time.Time
	isProbing                    bool
	isFinished                   bool
	probesAnsweredByMembersCount int
}

// SetQuestions replaces the open questions. A question that was answered is not probed again.
func (d *QuestionQueue) SetQuestions(questions []Question, w ProbingInputs, now time.Time) {
	before := d.openQuestionByID
	d.openQuestionByID = make(map[string]*questionState, len(questions))
	for _, q := range questions {
		o := before[q.ID]
		if o == nil {
			o = &questionState{Question: q, dueAt: now.Add(firstProbeDelay(q, w))}
		}
		d.openQuestionByID[q.ID] = o
	}
	for n, o := range d.openQuestionByProbeID {
		if d.openQuestionByID[o.ID] == nil {
			delete(d.openQuestionByProbeID, n)
		}
	}
}

// TakeDueProbesAndNewAnswers returns the probes to send now, and the new answers.
func (d *QuestionQueue) TakeDueProbesAndNewAnswers(w ProbingInputs, now time.Time) (probes []Probe, answers []Answer) {
	for _, o := range d.openQuestionByID {
		if o.isFinished || o.isProbing || now.Before(o.dueAt) {
			continue
		}
		links, own, _ := linksToProbe(o.Question, w)
		switch {
		case own != "":
			d.finishQuestion(o, own)
		case len(links) == 0 && o.IsForThisNode:
			d.finishQuestionWithoutProbe(o)
		case len(links) == 0 || !o.IsForThisNode && w.IsHeldByMember != nil && w.IsHeldByMember(o.Address):
			o.dueAt = now.Add(unsentOrDoubtfulProbeRetryDelay)
		default:
			if d.openQuestionByProbeID == nil {
				d.openQuestionByProbeID = map[uint64]*questionState{}
			}
			d.lastProbeID++
			d.openQuestionByProbeID[d.lastProbeID], o.isProbing = o, true
			probes = append(probes, Probe{d.lastProbeID, o.Address, links, o.IsForThisNode})
		}
	}
	slices.SortFunc(probes, func(x, y Probe) int { return x.Address.Compare(y.Address) })
	answers, d.undeliveredAnswers = d.undeliveredAnswers, nil
	return probes, answers
}

// RecordProbeResult handles the result of a Probe.
func (d *QuestionQueue) RecordProbeResult(r facts.ProbeResult, w ProbingInputs, now time.Time) {
	o := d.openQuestionByProbeID[r.ID]
	delete(d.openQuestionByProbeID, r.ID)
	if o == nil {
		return
	}
	o.isProbing = false
	foreign, ours := separateForeignAnswers(r, w.Members)
	switch {
	case o.IsForThisNode && r.NoFrameSent && len(r.AnsweringMACs) == 0:
		d.finishQuestionWithoutProbe(o)
	case o.IsForThisNode:
		d.finishQuestion(o, formatMACs(r.AnsweringMACs))
	case len(foreign) > 0:
		d.finishQuestion(o, formatMACs(foreign))
	case r.NoFrameSent:
		o.dueAt = now.Add(unsentOrDoubtfulProbeRetryDelay)
	case len(ours) > 0:
		if o.probesAnsweredByMembersCount++; o.probesAnsweredByMembersCount >= minProbesAnsweredByMembers {
			d.finishQuestion(o, formatMACs(ours))
			return
		}
		o.dueAt = now.Add(unsentOrDoubtfulProbeRetryDelay)
	default:
		d.finishQuestion(o, "")
	}
}

// NextDueTime returns when TakeDueProbesAndNewAnswers has something to do; zero if no question is
// due at any time.
func (d *QuestionQueue) NextDueTime() (next time.Time) {
	for _, o := range d.openQuestionByID {
		if !o.isFinished && !o.isProbing && (next.IsZero() || o.dueAt.Before(next)) {
			next = o.dueAt
		}
	}
	return next
}

// HasDueWork says whether TakeDueProbesAndNewAnswers has something to do.
func (d *QuestionQueue) HasDueWork(now time.Time) bool {
	next := d.NextDueTime()
	return len(d.undeliveredAnswers) > 0 || !next.IsZero() && !next.After(now)
}

func (d *QuestionQueue) finishQuestion(o *questionState, by string) {
	o.isFinished = true
	d.undeliveredAnswers = append(d.undeliveredAnswers, Answer{Question: o.Question, AnsweringMACs: by})
}

// finishQuestionWithoutProbe says that this node can ask on no link.
func (d *QuestionQueue) finishQuestionWithoutProbe(o *questionState) {
	o.isFinished = true
	d.undeliveredAnswers = append(d.undeliveredAnswers, Answer{Question: o.Question, IsNotSent: true})
}

// separateForeignAnswers separates the answers of foreign hosts from those of our own nodes. A
// foreign host that probes for the address at the same time counts as an answer, one of our nodes
// does not.
func separateForeignAnswers(r facts.ProbeResult, members facts.MemberSet) (foreign, ours []facts.MAC) {
	member := func(m facts.MAC) bool {
		return slices.ContainsFunc(members.Members, func(o facts.Member) bool { return slices.Contains(o.LinkMACs, m) })
	}
	for _, m := range r.AnsweringMACs {
		if member(m) {
			ours = append(ours, m)
		} else {
			foreign = append(foreign, m)
		}
	}
	for _, m := range r.RivalProberMACs {
		if !member(m) && !slices.Contains(foreign, m) {
			foreign = append(foreign, m)
		}
	}
	return foreign, ours
}

// reportedMACsLimit is how many Ethernet addresses an answer lists.
const reportedMACsLimit = 8

func formatMACs(macs []facts.MAC) string {
	var out []string
	for _, m := range macs[:min(len(macs), reportedMACsLimit)] {
		out = append(out, m.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// firstProbeDelay returns how long this node leaves a question to other nodes.
func firstProbeDelay(q Question, w ProbingInputs) time.Duration {
	if q.IsForThisNode {
		return 0
	}
	order := slices.Clone(w.Members.Members)
	slices.SortFunc(order, func(x, y facts.Member) int {
		return cmp.Or(cmp.Compare(nodeOrderHashForAddress(x.Name, q.Address), nodeOrderHashForAddress(y.Name, q.Address)), cmp.Compare(x.Name, y.Name))
	})
	before := slices.IndexFunc(order, func(m facts.Member) bool { return m.Name == w.Self })
	out := time.Duration(min(max(before, 0), maxPrecedingNodesToWaitFor)) * perPrecedingNodeDelay
	if _, _, near := linksToProbe(q, w); !near {
		out += nodeOutsideSubnetExtraDelay
	}
	return out
}

// nodeOrderHashForAddress spreads the questions over the nodes.
func nodeOrderHashForAddress(node string, a netip.Addr) uint64 {
	h := fnv.New64a()
	b := a.As16()
	_, _ = h.Write(b[:])
	_, _ = h.Write([]byte(node))
	return h.Sum64()
}

// linksToProbe returns the links on which a node would announce the address. own is this node's
// Ethernet address if the address is configured on this node. near means that the subnet of one of
// the links covers the address. A question for this node asks as a client does, and so needs the
// link's own address of the family as its sender.
func linksToProbe(q Question, w ProbingInputs) (links []int, own string, near bool) {
	for _, l := range w.Links {
		if slices.ContainsFunc(l.AddressesWithPrefixLength, func(p netip.Prefix) bool { return p.Addr() == q.Address }) {
			return nil, l.MAC.String(), true
		}
	}
	ads := advertise.L2AdvertisementsOfPool(w.Snapshot, q.Pool)
	if len(ads) == 0 {
		ads = []*snapshot.L2Advertisement{{}} // as if one without limits were to come
	}
	covers := func(l facts.Link) bool { return l.CanSendFamilyOf(q.Address) && l.CoversAddress(q.Address) }
	links = advertise.AnnouncingLinkIndexes(ads, nil, q.Address, w.Links, advertise.SubnetReachedByAnyNode(slices.ContainsFunc(w.Links, covers)))
	if q.IsForThisNode {
		links = slices.DeleteFunc(links, func(index int) bool {
			return !slices.ContainsFunc(w.Links, func(l facts.Link) bool { return l.Index == index && l.HasAddressOfFamilyOf(q.Address) })
		})
	}
	near = slices.ContainsFunc(w.Links, func(l facts.Link) bool {
		return slices.Contains(links, l.Index) && l.CoversAddress(q.Address)
	})
	return links, "", near
}
