package announced

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// newL2Report returns a node's report about a Service, with the claims of foreign hosts.
func newL2Report(conflicts ...v1beta1.AddressConflict) v1beta1.ServiceL2Status {
	return v1beta1.ServiceL2Status{Status: v1beta1.ServiceL2StatusStatus{Gantry: &v1beta1.ServiceL2StatusGantry{Conflicts: conflicts}}}
}

func newConflict(address, mac string, second int64) v1beta1.AddressConflict {
	return v1beta1.AddressConflict{Address: address, MAC: mac, Since: metav1.NewTime(time.Unix(second, 0))}
}

// The condition names the foreign hosts that speakers report, and nothing that changes without
// need.
func TestAnnouncementText(t *testing.T) {
	peers := v1beta1.ServiceBGPStatus{Status: v1beta1.ServiceBGPStatusStatus{Peers: []string{"router"}}}
	for name, tt := range map[string]struct {
		reports speakerReports
		reason  names.Reason
		text    string
	}{
		"layer 2": {speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report()}}, names.ReasonAnnounced, "announced by layer 2"},
		"two nodes, an older speaker's among them": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report(), {}}}, names.ReasonAnnounced, "announced by layer 2"},
		"both protocols": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report()}, bgpStatuses: []v1beta1.ServiceBGPStatus{peers}}, names.ReasonAnnounced, "announced by layer 2 and BGP"},
		"a foreign host": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{newL2Report(newConflict("192.168.0.201", "02:00:00:00:00:99", 7))}},
			names.ReasonForeignClaim, "announced by layer 2, but a foreign host claims 192.168.0.201 (02:00:00:00:00:99): "},
		"of many the one that claimed first, for each address, whoever reports it": {
			speakerReports{layer2Statuses: []v1beta1.ServiceL2Status{
				newL2Report(newConflict("fd00::1", "02:00:00:00:00:01", 9), newConflict("fd00::1", "02:00:00:00:00:02", 8)),
				newL2Report(newConflict("192.168.0.201", "02:00:00:00:00:04", 7), newConflict("192.168.0.201", "02:00:00:00:00:03", 7)),
			}},
			names.ReasonForeignClaim, "claims 192.168.0.201 (02:00:00:00:00:03), and fd00::1 (02:00:00:00:00:02): "},
	} {
		t.Run(name, func(t *testing.T) {
			reason, text := tt.reports.describeAnnouncement()
			if reason != tt.reason || !strings.Contains(text, tt.text) || (reason == names.ReasonAnnounced && text != tt.text) {
				t.Errorf("got %s, %q; want %s, %q", reason, text, tt.reason, tt.text)
			}
		})
	}
}
