package members

import (
	"encoding/binary"
	"maps"
	"time"

	"github.com/hashicorp/memberlist"
)

// memberlist does not tell its user whether a member left or died. So a member that leaves says so
// to each other member before. A member that goes without a word has vanished.
const (
	// departureVersion is the first version of direct messages with which a member says that it
	// leaves. No one knows whether an older member left or died.
	departureVersion = 2
	// departureTimeout is how long after the gossip removed a member its datagram may come. A busy
	// node can process them in the other order.
	departureTimeout = time.Second
	// departureRepeatDelay is between the two datagrams, so that one burst of lost packets does not
	// lose both.
	departureRepeatDelay = 100 * time.Millisecond
	// forgetVanishedMemberDelay is how long the member sets have a member that vanished.
	forgetVanishedMemberDelay = time.Minute
)

// kindDeparture begins the datagram, after a zero byte. It is no kind of a path message.
const kindDeparture = 3

// departure says that a run of a member ends in order.
type departure struct {
	nonce  uint64
	sender string
}

func (d *departure) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{0, kindDeparture}, d.nonce)
	return append(b, d.sender...)
}

// decodeDeparture decodes a datagram without its first byte.
func decodeDeparture(b []byte) (departure, bool) {
	if len(b) < 10 || b[0] != kindDeparture {
		return departure{}, false
	}
	return departure{nonce: binary.BigEndian.Uint64(b[1:]), sender: string(b[9:])}, true
}

// departures knows which members left and which vanished.
type departures struct {
	// leavingNonceByMember has the runs of current members that have said that they leave.
	leavingNonceByMember map[string]uint64
	// silentlyGoneByMember has the former members that have not said so.
	silentlyGoneByMember map[string]goneMember
}

// goneMember is the last run of a former member.
type goneMember struct {
	nonce uint64
	at    time.Time
}

func newDepartures() departures {
	return departures{leavingNonceByMember: map[string]uint64{}, silentlyGoneByMember: map[string]goneMember{}}
}

// recordJoin records that a member is there.
func (d *departures) recordJoin(name string) { delete(d.silentlyGoneByMember, name) }

// recordLeave records that a member is gone. It reports whether the member has not said so.
func (d *departures) recordLeave(n *memberlist.Node, now time.Time) (isSilent bool) {
	nonce, _ := decodeMetadata(n.Meta)
	said, isLeaving := d.leavingNonceByMember[n.Name]
	delete(d.leavingNonceByMember, n.Name)
	if isSilent = directMessageVersionOf(n) >= departureVersion && (!isLeaving || said != nonce); isSilent {
		d.silentlyGoneByMember[n.Name] = goneMember{nonce, now}
	}
	return isSilent
}

// listVanished returns when the members left that vanished lately. It forgets the others.
func (d *departures) listVanished(now time.Time) map[string]time.Time {
	out := map[string]time.Time{}
	for name, gone := range d.silentlyGoneByMember {
		switch age := now.Sub(gone.at); {
		case age >= forgetVanishedMemberDelay:
			delete(d.silentlyGoneByMember, name)
		case age >= departureTimeout:
			out[name] = gone.at
		}
	}
	return out
}

// recordDeparture takes what a member says that leaves. It may be gone already. What an earlier run
// said is ignored.
func (m *Members) recordDeparture(d departure) {
	m.editMembersAndDeliverSet(func() {
		if _, ok := m.memberlistNodeByName[d.sender]; ok {
			m.departures.leavingNonceByMember[d.sender] = d.nonce
		}
		if m.departures.silentlyGoneByMember[d.sender].nonce == d.nonce {
			delete(m.departures.silentlyGoneByMember, d.sender)
		}
	})
}

// announceDeparture tells the other members that this one leaves. An older one would take the
// datagram for a greeting.
func (m *Members) announceDeparture() {
	d := departure{nonce: m.options.RunNonce, sender: m.options.NodeName}
	m.mu.Lock()
	others := maps.Clone(m.memberlistNodeByName)
	m.mu.Unlock()
	maps.DeleteFunc(others, func(name string, n memberlist.Node) bool {
		return name == m.options.NodeName || directMessageVersionOf(&n) < departureVersion
	})
	for name, n := range others {
		if err := m.memberlist.SendBestEffort(&n, d.encode()); err != nil {
			m.options.Log.Debug("saying that this member leaves", "node", name, "error", err)
		}
	}
}
