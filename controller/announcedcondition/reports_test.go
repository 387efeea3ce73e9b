package announcedcondition

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// newL2Report returns a node's report about a Service, with the claims of foreign hosts.
func newL2Report(conflicts ...v1beta1.AddressConflict) v1beta1.ServiceL2Status {
	return v1beta1.ServiceL2Status{Status: v1beta1.ServiceL2StatusStatus{Gantry: &v1beta1.ServiceL2StatusGantry{Addresses: []string{"192.168.0.201", "fd00::1"}, Conflicts: conflicts}}}
}

func newAddressConflict(address, mac string, second int64) v1beta1.AddressConflict {
	return v1beta1.AddressConflict{Address: address, MAC: mac, Since: metav1.NewTime(time.Unix(second, 0))}
}

// newL2ReportOfBroadcastAddress returns a node's report whose address a subnet reserves.
func newL2ReportOfBroadcastAddress(address, subnet string) v1beta1.ServiceL2Status {
	r := newL2Report()
	r.Status.Gantry.ReservedAddresses = []v1beta1.NetworkOrBroadcastAddress{{Address: address, Subnet: subnet}}
	return r
}

// TestAnnouncedConditionText checks that the condition names the foreign hosts and the sessions
// that speakers report, and nothing that changes without need.
func TestAnnouncedConditionText(t *testing.T) {
	address := netip.MustParseAddr("192.168.0.201")
	up := sessionReport{node: "node1", peer: "tor", wantedAddresses: []netip.Addr{address}, carriesIPv4: true}
	down := sessionReport{node: "node2", peer: "tor", fault: names.NewExplanation(names.ReasonNoAnswer, "it is silent")}
	for name, tt := range map[string]struct {
		reports speakerReports
		reason  names.Reason
		text    string
	}{
		"layer 2": {speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report()}}, names.ReasonAnnounced, "announced by layer 2"},
		"two nodes, an older speaker's among them": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report(), {}}}, names.ReasonAnnounced, "announced by layer 2"},
		"BGP on all sessions": {
			speakerReports{sessions: []sessionReport{up, up}}, names.ReasonAnnounced, "announced by BGP"},
		"BGP on some sessions": {
			speakerReports{sessions: []sessionReport{up, down}}, names.ReasonAnnounced, "announced by BGP, on 1 of 2 BGP sessions: not on tor on node2: it is silent (NoAnswer)"},
		"layer 2, and no session is established": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report()}, sessions: []sessionReport{down}}, names.ReasonAnnounced, "announced by layer 2"},
		"both protocols": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report()}, sessions: []sessionReport{up}}, names.ReasonAnnounced, "announced by layer 2 and BGP"},
		"a foreign host": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report(newAddressConflict("192.168.0.201", "02:00:00:00:00:99", 7))}},
			names.ReasonForeignClaim, "announced by layer 2, but a foreign host claims 192.168.0.201 (02:00:00:00:00:99): "},
		"of many the one that claimed first, for each address, whoever reports it": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{
				newL2Report(newAddressConflict("fd00::1", "02:00:00:00:00:01", 9), newAddressConflict("fd00::1", "02:00:00:00:00:02", 8)),
				newL2Report(newAddressConflict("192.168.0.201", "02:00:00:00:00:04", 7), newAddressConflict("192.168.0.201", "02:00:00:00:00:03", 7)),
			}},
			names.ReasonForeignClaim, "claims 192.168.0.201 (02:00:00:00:00:03), and fd00::1 (02:00:00:00:00:02): "},
		"the broadcast address of a subnet, from two nodes": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2ReportOfBroadcastAddress("192.168.0.201", "192.168.0.200/31"), newL2ReportOfBroadcastAddress("192.168.0.201", "192.168.0.200/31")}},
			names.ReasonBroadcastAddress, "announced by layer 2, but 192.168.0.201 is the broadcast address of the subnet 192.168.0.200/31: hosts of that subnet cannot connect to it; "},
		"the network address of a subnet": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2ReportOfBroadcastAddress("192.168.0.201", "192.168.0.201/30")}},
			names.ReasonBroadcastAddress, "192.168.0.201 is the network address of the subnet 192.168.0.201/30"},
	} {
		t.Run(name, func(t *testing.T) {
			found := tt.reports.summarizeAnnouncement([]netip.Addr{address})
			if len(found.unannouncedAddresses) > 0 {
				t.Fatalf("%v counts as not announced", found.unannouncedAddresses)
			}
			reason, text := tt.reports.describeAnnouncement(&found, true)
			if reason != tt.reason || !strings.Contains(text, tt.text) || (reason == names.ReasonAnnounced && text != tt.text) {
				t.Errorf("got %s, %q; want %s, %q", reason, text, tt.reason, tt.text)
			}
		})
	}
}

// TestAnnouncedConditionNeedsEveryAddress checks the addresses of a dual-stack Service one by one.
func TestAnnouncedConditionNeedsEveryAddress(t *testing.T) {
	four, six := netip.MustParseAddr("192.168.0.201"), netip.MustParseAddr("fd00::1")
	onlyFour := newL2Report()
	onlyFour.Status.Gantry.Addresses = []string{"192.168.0.201"}
	both := []netip.Addr{four, six}
	for name, tt := range map[string]struct {
		reports speakerReports
		missing []netip.Addr
	}{
		"a node answers for one address":         {speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{onlyFour}}, []netip.Addr{six}},
		"a session carries one family":           {speakerReports{sessions: []sessionReport{{wantedAddresses: both, carriesIPv6: true}}}, []netip.Addr{four}},
		"a session should carry one address":     {speakerReports{sessions: []sessionReport{{wantedAddresses: both[:1], carriesIPv4: true, carriesIPv6: true}}}, []netip.Addr{six}},
		"layer 2 has one address, BGP the other": {speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{onlyFour}, sessions: []sessionReport{{wantedAddresses: both, carriesIPv6: true}}}, nil},
		"nobody announces":                       {speakerReports{}, []netip.Addr{four, six}},
	} {
		if found := tt.reports.summarizeAnnouncement(both); !slices.Equal(found.unannouncedAddresses, tt.missing) {
			t.Errorf("%s: %v count as not announced, want %v", name, found.unannouncedAddresses, tt.missing)
		}
	}
}
