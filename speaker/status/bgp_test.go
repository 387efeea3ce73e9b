package status_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/status"
)

func TestPathWatchedCondition(t *testing.T) {
	router := netip.MustParseAddr("192.0.2.1")
	for name, tc := range map[string]struct {
		path   status.BFDPathState
		none   bool
		want   metav1.ConditionStatus
		reason names.Reason
		says   string
	}{
		"without BFD":               {none: true},
		"it is up":                  {path: status.BFDPathState{State: "Up"}, want: metav1.ConditionTrue, reason: names.ReasonWatched, says: "profile"},
		"the router is silent":      {path: status.BFDPathState{State: "Down"}, want: metav1.ConditionFalse, reason: names.ReasonBFDDown, says: "192.0.2.1"},
		"it is coming up":           {path: status.BFDPathState{State: "Init"}, want: metav1.ConditionFalse, reason: names.ReasonBFDDown, says: "Init"},
		"something is wrong, in Up": {path: status.BFDPathState{State: "Up", Fault: names.Explanation{Reason: names.ReasonEchoUnsupported, Text: "no echo"}}, want: metav1.ConditionFalse, reason: names.ReasonEchoUnsupported, says: "no echo"},
		"something is wrong":        {path: status.BFDPathState{State: "Down", Fault: names.Explanation{Reason: names.ReasonBFDAuthentication, Text: "it authenticates"}}, want: metav1.ConditionFalse, reason: names.ReasonBFDAuthentication, says: "it authenticates"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.path.Router = router
			c, watched := status.BuildPathWatchedCondition(tc.path)
			if watched == tc.none {
				t.Fatalf("watched: %t", watched)
			}
			if c.Status != tc.want || c.Reason != string(tc.reason) || !strings.Contains(c.Message, tc.says) {
				t.Errorf("%+v, want %s because of %s", c, tc.want, tc.reason)
			}
		})
	}
}

func TestEstablishedCondition(t *testing.T) {
	for name, tc := range map[string]struct {
		session status.BGPSessionState
		want    metav1.ConditionStatus
		reason  names.Reason
		says    string
	}{
		"it is up":       {session: status.BGPSessionState{Established: true, LastError: names.Explanation{Text: "it ended once"}}, want: metav1.ConditionTrue, reason: names.ReasonEstablished, says: "is established"},
		"it ended":       {session: status.BGPSessionState{LastError: names.Explanation{Text: "the router closed it"}}, want: metav1.ConditionFalse, reason: names.ReasonNoSession, says: "the router closed it"},
		"it was refused": {session: status.BGPSessionState{LastError: names.Explanation{Reason: names.ReasonWrongASNumber, Text: "bad AS"}}, want: metav1.ConditionFalse, reason: names.ReasonWrongASNumber, says: "bad AS"},
		"it begins":      {want: metav1.ConditionFalse, reason: names.ReasonNoSession, says: "not answered yet"},
		"none is tried":  {session: status.BGPSessionState{NotConnectingReason: names.ReasonNoGateway, LastError: names.Explanation{Text: "no gateway"}}, want: metav1.ConditionFalse, reason: names.ReasonNoGateway, says: "no gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			if c := status.BuildEstablishedCondition(tc.session); c.Status != tc.want || c.Reason != string(tc.reason) || !strings.Contains(c.Message, tc.says) {
				t.Errorf("%+v, want %s because of %s", c, tc.want, tc.reason)
			}
		})
	}
}

func TestRoutesAnnouncedCondition(t *testing.T) {
	for name, c := range map[string]struct {
		s            status.BGPSessionState
		hasCondition bool
		is           metav1.ConditionStatus
		reason       names.Reason
	}{
		"no session":              {s: status.BGPSessionState{WithheldRoutesExplanation: names.Explanation{Reason: names.ReasonNoNextHop}}},
		"every route":             {s: status.BGPSessionState{Established: true, LastError: names.Explanation{Text: "it ended once"}}, hasCondition: true, is: metav1.ConditionTrue, reason: names.ReasonAnnounced},
		"a family is not carried": {s: status.BGPSessionState{Established: true, WithheldRoutesExplanation: names.Explanation{Reason: names.ReasonFamilyNotCarried, Text: "activate it"}}, hasCondition: true, is: metav1.ConditionFalse, reason: names.ReasonFamilyNotCarried},
		"a route is withheld":     {s: status.BGPSessionState{Established: true, WithheldRoutesExplanation: names.Explanation{Reason: names.ReasonTooManyCommunities, Text: "fewer"}}, hasCondition: true, is: metav1.ConditionFalse, reason: names.ReasonTooManyCommunities},
		"no next hop":             {s: status.BGPSessionState{Established: true, WithheldRoutesExplanation: names.Explanation{Reason: names.ReasonNoNextHop, Text: "an address"}}, hasCondition: true, is: metav1.ConditionFalse, reason: names.ReasonNoNextHop},
	} {
		got, hasCondition := status.BuildRoutesAnnouncedCondition(c.s)
		if hasCondition != c.hasCondition || got.Status != c.is || got.Reason != string(c.reason) || c.s.WithheldRoutesExplanation.Text != "" && got.Message != c.s.WithheldRoutesExplanation.Text {
			t.Errorf("%s: it says %+v, %t", name, got, hasCondition)
		}
	}
}

func TestBGPAnnouncementsAreListedAndCompared(t *testing.T) {
	key := func(name string) view.ObjectKey { return view.ObjectKey{Namespace: "default", Name: name} }
	addresses := []netip.Addr{netip.MustParseAddr("192.0.2.10")}
	p := plan.Plan{BGPVerdicts: plan.NewSortedList(
		&plan.BGPVerdict{Service: key("a"), Addresses: addresses, Peers: []string{"tor1", "tor2"}, Reason: names.ReasonAnnounced},
		&plan.BGPVerdict{Service: key("b"), Addresses: addresses, Reason: names.ReasonNoEndpoints},
		&plan.BGPVerdict{Service: key("c"), Addresses: addresses, Peers: []string{"tor1"}, Reason: names.ReasonAnnounced},
	)}
	both := status.CarriedRoutes{CarriesIPv4: true, CarriesIPv6: true}
	sessions := map[string]status.CarriedRoutes{"tor1": both, "tor2": both}
	want := []status.BGPAnnouncement{{Service: key("a"), Peers: []string{"tor1", "tor2"}}, {Service: key("c"), Peers: []string{"tor1"}}}
	if got, all := status.ListBGPAnnouncements(p, sessions, 2); all != 2 || !reflect.DeepEqual(got, want) {
		t.Errorf("they are %+v, want %+v", got, want)
	}
	if got, all := status.ListBGPAnnouncements(p, sessions, 1); all != 2 || got != nil {
		t.Errorf("above the limit they are %+v of %d", got, all)
	}
	sessions["tor1"] = status.CarriedRoutes{CarriesIPv6: true}
	if got, _ := status.ListBGPAnnouncements(p, sessions, 2); !reflect.DeepEqual(got, []status.BGPAnnouncement{{Service: key("a"), Peers: []string{"tor2"}}}) {
		t.Errorf("with one session that carries only IPv6 they are %+v", got)
	}
	if got := status.AddressesWithRoute(&plan.BGPVerdict{Addresses: append(addresses, netip.MustParseAddr("fd00::1")), Peers: []string{"tor1"}}, sessions); len(got) != 1 || got[0].Is4() {
		t.Errorf("over a session that carries only IPv6 the routers have %v", got)
	}
	p.NodeLeaving = true
	if got, all := status.ListBGPAnnouncements(p, sessions, 2); len(got)+all > 0 {
		t.Errorf("a node that leaves announces %+v", got)
	}
	have := []status.BGPAnnouncement{{Service: key("a"), Peers: []string{"tor1"}}, {Service: key("b"), Peers: []string{"tor1"}}, {Service: key("c"), Peers: []string{"tor1"}}}
	write, remove := status.DiffBGPAnnouncements(want, have)
	if !reflect.DeepEqual(write, want[:1]) || !reflect.DeepEqual(remove, []view.ObjectKey{key("b")}) {
		t.Errorf("write %+v and remove %v", write, remove)
	}
	for got, want := range map[string]string{
		status.ServiceBGPStatusName("node-1", key("web")): "default.web.node-1",
		status.BGPSessionName("node-1.rack-2", "tor"):     "tor.node-1.rack-2",
	} {
		if got != want {
			t.Errorf("an object has the name %q, want %q", got, want)
		}
	}
	if a, b := status.BGPSessionName("b.c", "a"), status.BGPSessionName("c", "a.b"); a == b || len(status.BGPSessionName(strings.Repeat("n", 200), strings.Repeat("p", 200))) > 253 {
		t.Errorf("names are ambiguous or too long: %s, %s", a, b)
	}
	if status.ServiceBGPStatusName("n1", key("a")) == status.ServiceBGPStatusName("n2", key("a")) || status.BGPSessionName("n", "a") == status.BGPSessionName("a", "n") {
		t.Error("two objects have one name")
	}
}

// TestDrainingRoutesAreReported checks a Service whose last endpoints on the node terminate: one
// router still has its route, one has lost it, and one has a route for it that other endpoints
// serve.
func TestDrainingRoutesAreReported(t *testing.T) {
	prefix, around := netip.MustParsePrefix("192.0.2.10/32"), netip.MustParsePrefix("198.51.100.0/24")
	v := &plan.BGPVerdict{
		Service: view.ObjectKey{Namespace: "default", Name: "web"}, Addresses: []netip.Addr{prefix.Addr()},
		Peers: []string{"drained", "draining", "serving"}, Reason: names.ReasonAnnounced, EndpointsTerminating: true,
	}
	sessions := map[string]status.CarriedRoutes{
		"drained": {CarriesIPv4: true, DrainedPrefixes: []netip.Prefix{around, prefix}}, "draining": {CarriesIPv4: true, DrainingPrefixes: []netip.Prefix{around, prefix}}, "serving": {CarriesIPv4: true, DrainingPrefixes: []netip.Prefix{around}},
	}
	list := func() status.BGPAnnouncement {
		t.Helper()
		got, _ := status.ListBGPAnnouncements(plan.Plan{BGPVerdicts: plan.NewSortedList(v)}, sessions, 9)
		if len(got) != 1 {
			t.Fatalf("%d Services are announced, want 1", len(got))
		}
		return got[0]
	}
	want := status.BGPAnnouncement{Service: v.Service, Peers: []string{"draining", "serving"}, DrainingPeers: []string{"draining"}}
	draining := list()
	if !reflect.DeepEqual(draining, want) {
		t.Errorf("the report is %+v, want %+v", draining, want)
	}
	v.EndpointsTerminating = false
	if got := list(); len(got.Peers) != 3 || len(got.DrainingPeers) > 0 {
		t.Errorf("with a ready endpoint the report is %+v", got)
	}
	served := draining
	if served.DrainingPeers = nil; len(announcementsToWrite(status.DiffBGPAnnouncements([]status.BGPAnnouncement{served}, []status.BGPAnnouncement{draining}))) != 1 {
		t.Error("the end of a drain is not written")
	}
}

func announcementsToWrite(write []status.BGPAnnouncement, _ []view.ObjectKey) []status.BGPAnnouncement {
	return write
}

// TestShortLivedSessionStatesAreNotShown plays a router that is down for ten minutes: a reader of
// the BGPSession sees when the session ended, and not each step of each attempt to connect.
func TestShortLivedSessionStatesAreNotShown(t *testing.T) {
	now := time.Unix(1e9, 0)
	shown, changes := "Established", 0
	show := func(current string, since, at time.Time) time.Duration {
		state, lookAgain := status.ShownSessionState(shown, current, since, at)
		if state != shown {
			shown, changes = state, changes+1
		}
		return lookAgain
	}
	show("Idle", now, now)
	for range 40 { // 10 s of waiting, and an attempt of 5 s
		show("Idle", now, now)
		now = now.Add(10 * time.Second)
		show("Connect", now, now)
		now = now.Add(5 * time.Second)
		show("Connect", now.Add(-5*time.Second), now)
	}
	if shown != "Idle" || changes != 1 {
		t.Errorf("%q is shown after %d changes, want Idle after 1", shown, changes)
	}
	// The router takes the connection, and then says nothing.
	if lookAgain := show("OpenConfirm", now, now.Add(10*time.Second)); shown != "Idle" || lookAgain != 20*time.Second {
		t.Errorf("%q is shown after 10 s in OpenSent, to look again after %s, want Idle and 20s", shown, lookAgain)
	}
	if lookAgain := show("OpenConfirm", now, now.Add(30*time.Second)); shown != "OpenConfirm" || lookAgain != 0 {
		t.Errorf("%q is shown after 30 s in OpenSent, to look again after %s, want OpenSent and never", shown, lookAgain)
	}
	if show("Established", now, now); shown != "Established" {
		t.Errorf("%q is shown of an established session", shown)
	}
	if shown, _ := status.ShownSessionState("", "Active", now, now); shown != "Active" {
		t.Errorf("the first state that is shown is %q, want Active", shown)
	}
}
