package status

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// BGPAnnouncement means that a node announces a Service to routers.
type BGPAnnouncement struct {
	Service view.ObjectKey
	// Peers are the names of the BGPPeers whose routers have a route, sorted.
	Peers []string
	// DrainingPeers are those of them whose routers are about to lose the routes, sorted.
	DrainingPeers []string
}

func (a BGPAnnouncement) equal(o BGPAnnouncement) bool {
	return slices.Equal(a.Peers, o.Peers) && slices.Equal(a.DrainingPeers, o.DrainingPeers)
}

// CarriedRoutes says which routes an established session carries.
type CarriedRoutes struct {
	// CarriesIPv4 and CarriesIPv6 mean that the session carries routes of the family.
	CarriesIPv4, CarriesIPv6 bool
	// DrainingPrefixes are routes that the session is about to lose, since the last endpoints on
	// this node terminate. Drained are those that it has lost for this reason.
	DrainingPrefixes, DrainedPrefixes []netip.Prefix
}

// carriesAddress reports whether the session carries the verdict's route to the address.
func (c *CarriedRoutes) carriesAddress(v *plan.BGPVerdict, a netip.Addr) bool {
	if a.Is4() && !c.CarriesIPv4 || !a.Is4() && !c.CarriesIPv6 {
		return false
	}
	return !v.EndpointsTerminating || !anyPrefixContainsAddress(c.DrainedPrefixes, a)
}

func anyPrefixContainsAddress(all []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
}

// isDraining reports whether the session is about to lose every route that it carries for the
// verdict.
func (c *CarriedRoutes) isDraining(v *plan.BGPVerdict) bool {
	return v.EndpointsTerminating && !slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool {
		return c.carriesAddress(v, a) && !anyPrefixContainsAddress(c.DrainingPrefixes, a)
	})
}

// PeersWithRoute returns those of the verdict's peers whose routers have a route to the Service.
func PeersWithRoute(v *plan.BGPVerdict, carriedByPeer map[string]CarriedRoutes) []string {
	missing := func(peer string) bool {
		c := carriedByPeer[peer]
		return !slices.ContainsFunc(v.Addresses, func(a netip.Addr) bool { return c.carriesAddress(v, a) })
	}
	if !slices.ContainsFunc(v.Peers, missing) {
		return v.Peers // as usual: it is shared
	}
	return slices.DeleteFunc(slices.Clone(v.Peers), missing)
}

// AddressesWithRoute returns the addresses of the Service to which a router has a route.
func AddressesWithRoute(v *plan.BGPVerdict, carriedByPeer map[string]CarriedRoutes) []netip.Addr {
	var out []netip.Addr
	for _, a := range v.Addresses {
		carries := func(peer string) bool {
			c := carriedByPeer[peer]
			return c.carriesAddress(v, a)
		}
		if slices.ContainsFunc(v.Peers, carries) {
			out = append(out, a)
		}
	}
	return out
}

// BFDPathState is what BFD knows about the path of a session.
type BFDPathState struct {
	Router netip.Addr
	// State of the BFD session (RFC 5880 section 4.1) in words; empty without BFD.
	State string
	// Fault says why BFD does not run as configured; zero if it does.
	Fault names.Explanation
}

// BGPSessionState is the state of a session.
type BGPSessionState struct {
	Established bool
	// NotConnectingReason is why no session is tried, or empty.
	NotConnectingReason names.Reason
	// LastError is why the last session failed or ended. Its Reason may be empty.
	LastError names.Explanation
	// WithheldRoutesExplanation is why an established session does not carry all routes, or zero.
	// FlapHoldBackExplanation is why an established session does not count yet, or zero.
	WithheldRoutesExplanation, FlapHoldBackExplanation names.Explanation
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
	if s.WithheldRoutesExplanation.IsSet() {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(s.WithheldRoutesExplanation.Reason), s.WithheldRoutesExplanation.Text
	}
	return c, true
}

// BuildEstablishedCondition returns whether a session is established.
func BuildEstablishedCondition(s BGPSessionState) metav1.Condition {
	c := metav1.Condition{Type: names.ConditionEstablished, Status: metav1.ConditionFalse, Reason: string(names.ReasonNoSession), Message: s.LastError.Text}
	switch {
	case s.Established && s.FlapHoldBackExplanation.IsSet():
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(s.FlapHoldBackExplanation.Reason), s.FlapHoldBackExplanation.Text
	case s.Established:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(names.ReasonEstablished), "the session is established"
	case s.NotConnectingReason != "":
		c.Reason = string(s.NotConnectingReason)
	case s.LastError.Text == "":
		c.Message = "the router has not answered yet"
	case s.LastError.Reason != "":
		c.Reason = string(s.LastError.Reason)
	}
	return c
}

// BuildPathWatchedCondition returns whether BFD watches a path. There is no condition without BFD.
func BuildPathWatchedCondition(p BFDPathState) (metav1.Condition, bool) {
	if p.State == "" && p.Fault.Reason == "" {
		return metav1.Condition{}, false
	}
	c := metav1.Condition{
		Type: names.ConditionBFDWatchesPath, Status: metav1.ConditionTrue,
		Reason: string(names.ReasonWatched), Message: "BFD watches the path as configured in its profile",
	}
	switch {
	case p.Fault.Reason != "":
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, string(p.Fault.Reason), p.Fault.Text
	case p.State != "Up":
		c.Status, c.Reason = metav1.ConditionFalse, string(names.ReasonBFDDown)
		c.Message = fmt.Sprintf("the BFD session with %s is %s: enable BFD on the router, and check the path and filters for UDP ports 3784 and 4784", p.Router, p.State)
	}
	return c, true
}

// ServiceBGPStatusName returns the name of the object for a node and a Service.
func ServiceBGPStatusName(node string, service view.ObjectKey) string {
	return joinObjectName(service.Namespace, service.Name, node)
}

// BGPSessionName returns the name of the object for a node and a BGPPeer.
func BGPSessionName(node, peer string) string { return joinObjectName(peer, node) }

// maxObjectNameLength is how many characters the name of an object may have.
const maxObjectNameLength = 253

// joinObjectName joins the parts of an object's name by dots, such as default.web.node1. Two
// objects never get one name: if a part other than the last has a dot, or if the name is too long,
// the name ends in a hash of the parts.
func joinObjectName(parts ...string) string {
	name := strings.Join(parts, ".")
	isAmbiguous := slices.ContainsFunc(parts[:len(parts)-1], func(part string) bool { return strings.Contains(part, ".") })
	if !isAmbiguous && len(name) <= maxObjectNameLength {
		return name
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "/")))
	digest := hex.EncodeToString(sum[:8])
	return strings.TrimRight(name[:min(len(name), maxObjectNameLength-len(digest)-1)], ".-") + "-" + digest
}

// ListBGPAnnouncements returns what routers have of the Services that the Plan announces by BGP,
// sorted by Service, and the number of Services in the Plan. A Service without a session that
// carries it is left out. A leaving node announces nothing. Above the limit it returns only the
// number.
func ListBGPAnnouncements(p plan.Plan, carriedByPeer map[string]CarriedRoutes, limit int) (out []BGPAnnouncement, all int) {
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
		if v.Reason != names.ReasonAnnounced {
			continue
		}
		a := BGPAnnouncement{Service: v.Service, Peers: PeersWithRoute(v, carriedByPeer)}
		if len(a.Peers) == 0 {
			continue
		}
		for _, peer := range a.Peers {
			if c := carriedByPeer[peer]; c.isDraining(v) {
				a.DrainingPeers = append(a.DrainingPeers, peer)
			}
		}
		out = append(out, a)
	}
	return out, all
}

// DiffBGPAnnouncements compares the wanted announcements with the existing ones. It returns those
// to write, and the Services whose announcement has to be removed.
func DiffBGPAnnouncements(want, have []BGPAnnouncement) (write []BGPAnnouncement, remove []view.ObjectKey) {
	existing := make(map[view.ObjectKey]BGPAnnouncement, len(have))
	for _, a := range have {
		existing[a.Service] = a
	}
	for _, a := range want {
		if before, ok := existing[a.Service]; !ok || !a.equal(before) {
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

// unestablishedStateShowDelay is how long a session that is not established has to be in a state
// until that state is shown: each attempt passes through some of them, and ends after 5 s. The
// longest delay between attempts is 10 s, unless the BGPPeer says otherwise.
const unestablishedStateShowDelay = 30 * time.Second

// unknownSessionState is the state of a session whose speaker is dead.
const unknownSessionState = "Unknown"

// SessionStatusOfDeadSpeaker returns what a living speaker writes about a session of a dead one.
// text says who is dead.
func SessionStatusOfDeadSpeaker(last v1alpha1.BGPSessionStatus, text string, now time.Time) v1alpha1.BGPSessionStatus {
	since := metav1.NewTime(now.Truncate(time.Second))
	out := v1alpha1.BGPSessionStatus{
		Node: last.Node, Peer: last.Peer, Address: last.Address, State: unknownSessionState, Since: &since,
		LastError: last.LastError, LastErrorTime: last.LastErrorTime, LastErrorIsOver: last.LastErrorIsOver,
		Conditions: slices.Clone(last.Conditions),
	}
	meta.SetStatusCondition(&out.Conditions, metav1.Condition{Type: names.ConditionEstablished, Status: metav1.ConditionUnknown, Reason: string(names.ReasonNoSpeaker), Message: text})
	meta.RemoveStatusCondition(&out.Conditions, names.ConditionRoutesAnnounced)
	meta.RemoveStatusCondition(&out.Conditions, names.ConditionBFDWatchesPath)
	return out
}

// ShownSessionState returns the state to show of a session (RFC 4271, section 8.2.2), given the one
// that is shown, empty if none is, and since when it is in the current one. It also returns when to
// look again, or 0. So a router that is down costs no write for each attempt to connect.
func ShownSessionState(shown, current string, currentSince, now time.Time) (state string, lookAgain time.Duration) {
	const established = "Established"
	if shown == "" || shown == unknownSessionState || shown == current || shown == established || current == established {
		return current, 0
	}
	if wait := unestablishedStateShowDelay - now.Sub(currentSince); wait > 0 {
		return shown, wait
	}
	return current, 0
}
