package status

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// BGPAnnouncement means that a node announces a Service to routers.
type BGPAnnouncement struct {
	Service view.ObjectKey
	// Peers are the names of the BGPPeers, sorted.
	Peers []string
}

// BFDPathState is what BFD knows about the path of a session.
type BFDPathState struct {
	Router netip.Addr
	// State of the BFD session (RFC 5880 section 4.1) in words; empty without BFD.
	State string
	// FaultReason and Text say why BFD does not run as configured; empty if it does.
	FaultReason names.Reason
	FaultText   string
}

// BGPSessionState is the state of a session.
type BGPSessionState struct {
	Established bool
	// NotConnectingReason is why no session is tried, or empty. Text is why the last session failed
	// or ended.
	NotConnectingReason names.Reason
	LastErrorText       string
	// Withheld is why an established session does not carry all routes, or zero.
	Withheld names.Explanation
}

// BuildRoutesAnnouncedCondition returns whether a router gets every route that it should. There is
// no condition without a session.
func BuildRoutesAnnouncedCondition(s BGPSessionState) (metav1.Condition, bool) {
	if !s.Established {
		return metav1.Condition{}, false
	}
	c := metav1.Condition{
		Type: names.ConditionRoutesAnnounced, Status: metav1.ConditionTrue,
		Reason: string(names.ReasonAnnounced), Message: "the router gets every route that it should",
	}
	if s.Withheld.IsSet() {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(s.Withheld.Reason), s.Withheld.Text
	}
	return c, true
}

// BuildEstablishedCondition returns whether a session is established.
func BuildEstablishedCondition(s BGPSessionState) metav1.Condition {
	c := metav1.Condition{Type: names.ConditionEstablished, Status: metav1.ConditionFalse, Reason: string(names.ReasonNoSession), Message: s.LastErrorText}
	switch {
	case s.Established:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(names.ReasonEstablished), "the session is established"
	case s.NotConnectingReason != "":
		c.Reason = string(s.NotConnectingReason)
	case s.LastErrorText == "":
		c.Message = "the router has not answered yet"
	}
	return c
}

// BuildPathWatchedCondition returns whether BFD watches a path. There is no condition without BFD.
func BuildPathWatchedCondition(p BFDPathState) (metav1.Condition, bool) {
	if p.State == "" {
		return metav1.Condition{}, false
	}
	c := metav1.Condition{
		Type: names.ConditionPathWatched, Status: metav1.ConditionTrue,
		Reason: string(names.ReasonWatched), Message: "BFD watches the path as configured in its profile",
	}
	switch {
	case p.FaultReason != "":
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(p.FaultReason), p.FaultText
	case p.State != "Up":
		c.Status, c.Reason = metav1.ConditionFalse, string(names.ReasonBFDDown)
		c.Message = fmt.Sprintf("the BFD session with %s is %s: enable BFD on the router, and check the path and filters for UDP ports 3784 and 4784", p.Router, p.State)
	}
	return c, true
}

// ServiceBGPStatusName returns the name of the object for a node and a Service.
func ServiceBGPStatusName(node string, service view.ObjectKey) string {
	return "bgp-" + shortNameDigest(service.String()+"@"+node)
}

// BGPSessionName returns the name of the object for a node and a BGPPeer.
func BGPSessionName(node, peer string) string { return "session-" + shortNameDigest(peer+"@"+node) }

func shortNameDigest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// ListBGPAnnouncements returns what the Plan announces by BGP, sorted by Service, and the number of
// these Services. A leaving node announces nothing. Above the limit it returns only the number.
func ListBGPAnnouncements(p plan.Plan, limit int) (out []BGPAnnouncement, all int) {
	if p.NodeLeaving {
		return nil, 0
	}
	for v := range p.BGPVerdicts.All() {
		if v.Reason == names.ReasonAnnounced {
			all++
		}
	}
	if all > limit {
		return nil, all
	}
	for v := range p.BGPVerdicts.All() {
		if v.Reason == names.ReasonAnnounced {
			out = append(out, BGPAnnouncement{v.Service, v.Peers})
		}
	}
	return out, all
}

// DiffBGPAnnouncements compares the wanted announcements with the existing ones. It returns those
// to write, and the Services whose announcement has to be removed.
func DiffBGPAnnouncements(want, have []BGPAnnouncement) (write []BGPAnnouncement, remove []view.ObjectKey) {
	existing := make(map[view.ObjectKey][]string, len(have))
	for _, a := range have {
		existing[a.Service] = a.Peers
	}
	for _, a := range want {
		if peers, ok := existing[a.Service]; !ok || !slices.Equal(peers, a.Peers) {
			write = append(write, a)
		}
		delete(existing, a.Service)
	}
	for k := range existing {
		remove = append(remove, k)
	}
	slices.SortFunc(remove, view.ObjectKey.Compare)
	return write, remove
}
